"""Power by the power resource of the labgrid place that the board is in."""

from typing import Literal

from harness.power.driver import Context, Driver
from harness.power.outlet import OutletPower
from harness.power.section import OutletOptions, Section


class LabgridPowerOptions(OutletOptions):
    """Nothing but times: the place and its power resource are named in ``[labgrid]``."""


class LabgridPowerSection(Section):
    """The power resource of the board's labgrid place."""

    driver: Literal["labgrid"]
    options: LabgridPowerOptions = LabgridPowerOptions()


def _open(section: LabgridPowerSection, context: Context) -> OutletPower:
    assert context.place_outlet is not None, "the board file's validation asks for [labgrid]"
    return OutletPower(context.place_outlet, section.options, board=context.board)


def _cannot_tell(section: LabgridPowerSection) -> str:
    return "labgrid's driver for this outlet reads no state"


# The place's exporters lock its outlets with it.
DRIVER = Driver(section=LabgridPowerSection, open=_open, needs_place=True, cannot_tell=_cannot_tell)
