"""The physical things that make up a board: what a lease locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lab.adapter import usb_port_of

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile


def things_of(file: BoardFile) -> list[str]:
    """One word for each physical thing of a board: SSH end point, serial adapter, outlet, flash
    image. Board files of one board share them, whatever their names are. A board that is made
    afresh for each run has none."""
    from harness.power.registry import driver_of

    things = [*driver_of(file.power).things(file.power)]
    if file.labgrid is not None:
        # Its exporters' ports and outlets are locked by labgrid with it.
        things.append(f"place {file.labgrid.address} {file.labgrid.place}")
    if file.ssh is not None and file.ssh.host:
        things.append(f"ssh {file.ssh.host}:{file.ssh.port or 22}")
    if file.serial is not None and file.serial.named:
        things.append(f"serial {usb_port_of(file.serial)}")
    return sorted(things)
