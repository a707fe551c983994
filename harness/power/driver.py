"""Power: switch a board off and on.

A driver is one small file with an options model and a class; ``options.PowerSection`` names
its options, :func:`open_driver` makes it. Drivers report the state they *verified*, or
``UNKNOWN`` where the hardware cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, assert_never

if TYPE_CHECKING:
    from harness.boardfile.boardfile import BoardFile
    from harness.lab.labgrid.place import LabgridPlace
    from harness.links.address import SerialAddress, SshAddress
    from harness.power.options import LabgridPowerSection, OutletSection, PowerSection


class PowerState(StrEnum):
    """Power as the driver verified it; ``UNKNOWN`` where it cannot know."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Links that the power driver itself provides; None where the board file names them."""

    ssh: SshAddress | None = None
    serial: SerialAddress | None = None


class PowerDriver(Protocol):
    """Switches one board. Timeouts are seconds; every failure is a
    :class:`harness.errors.PowerError` (or :class:`~harness.errors.HostError` where this machine
    lacks something)."""

    def on(self, timeout: float) -> None:
        """Power the board on; returns when power is on, not when the board has booted. A board
        that is on stays as it is."""
        ...

    def off(self, timeout: float) -> None:
        """Cut the power, as pulling the plug would. A board that is off stays so."""
        ...

    def cycle(self, timeout: float) -> None:
        """Off, then on."""
        ...

    def state(self) -> PowerState:
        """The verified state; never raises."""
        ...

    def endpoints(self) -> Endpoints:
        """Where the board's links are now; valid after :meth:`on`."""
        ...

    def keeps(self) -> Path | None:
        """The directory for what belongs to this board's flash and must live exactly as long;
        None where the flash is real and outlives everything here. Valid after :meth:`on`."""
        ...

    def close(self) -> None:
        """Give everything back; never raises, at most two seconds."""
        ...


def power_of(file: BoardFile, *, assume_yes: bool = False) -> PowerDriver:
    """How the board of ``file`` is switched; in a labgrid place the driver holds the place, too,
    from its first use until it is closed. ``assume_yes`` tells the manual driver that nobody will
    answer."""
    if file.labgrid is None:
        return open_driver(file.power, board=file.name, assume_yes=assume_yes)
    from harness.lab.labgrid.outlet import PlacePower
    from harness.lab.labgrid.place import LabgridPlace

    place = LabgridPlace(file.labgrid, board=file.name)
    driver = open_driver(file.power, board=file.name, assume_yes=assume_yes, place=place)
    return PlacePower(
        driver,
        place,
        ssh=file.ssh is None or not file.ssh.host,
        serial=file.serial is None or not file.serial.named,
    )


def open_driver(
    section: PowerSection,
    *,
    board: str,
    assume_yes: bool = False,
    place: LabgridPlace | None = None,
) -> PowerDriver:
    """The driver a board file's ``[power]`` table asks for; ``place`` is where the labgrid driver
    finds its outlet."""
    match section.driver:
        case "emulated":
            from harness.power.emulated import EmulatedPower

            return EmulatedPower(section, board=board)
        case "command":
            from harness.power.command import CommandPower

            return CommandPower(section.options, board=board)
        case "manual":
            from harness.power.manual import ManualPower

            return ManualPower(board=board, assume_yes=assume_yes)
        case "qemu":
            from harness.power.qemu import QemuPower

            return QemuPower(section.options, board=board)
        case _:
            return _outlet_power(section, board=board, place=place)


def _outlet_power(
    section: OutletSection | LabgridPowerSection, *, board: str, place: LabgridPlace | None
) -> PowerDriver:
    from harness.power.outlet import Outlet, OutletPower

    outlet: Outlet
    match section.driver:
        case "labgrid":
            from harness.lab.labgrid.outlet import LabgridOutlet

            assert place is not None, "the board file's validation asks for [labgrid]"
            outlet = LabgridOutlet(place)
        case "http":
            from harness.power.http import HttpOutlet

            outlet = HttpOutlet(section.options)
        case "snmp":
            from harness.power.snmp import SnmpOutlet

            outlet = SnmpOutlet(section.options)
        case "usb-hub":
            from harness.power.usb_hub import UsbHubOutlet

            outlet = UsbHubOutlet(section.options)
        case "relay":
            from harness.power.relay import RelayOutlet

            outlet = RelayOutlet(section.options)
        case _:
            assert_never(section.driver)
    return OutletPower(
        outlet,
        board=board,
        request_timeout=section.options.timeout,
        off_seconds=section.options.off_seconds,
    )
