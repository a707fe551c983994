"""How the board of a board file is switched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.power.driver import Context, PowerDriver

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile


def power_of(file: BoardFile, *, assume_yes: bool = False) -> PowerDriver:
    """The power driver of the board of ``file``; in a labgrid place it holds the place, too, from
    its first use until it is closed. ``assume_yes`` tells the manual driver that nobody will
    answer."""
    from harness.power.registry import driver_of

    driver = driver_of(file.power)
    if file.labgrid is None:
        return driver.open(file.power, Context(file.name, assume_yes))
    from harness.lab.labgrid.outlet import LabgridOutlet, PlacePower
    from harness.lab.labgrid.place import LabgridPlace

    place = LabgridPlace(file.labgrid, board=file.name)
    context = Context(file.name, assume_yes, LabgridOutlet(place))
    return PlacePower(
        driver.open(file.power, context),
        place,
        ssh=file.ssh is None or not file.ssh.host,
        serial=file.serial is None or not file.serial.named,
    )
