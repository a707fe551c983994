"""The physical things that make up a board: what a lease locks."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from harness.lab.adapter import AdapterAbsent, is_url, node_of, usb_port_of

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile, SerialSection


def things_of(file: BoardFile) -> list[str]:
    """One word for each physical thing of a board: SSH end point, serial adapter, outlet, flash
    image. Board files of one board share them, whatever their names are. A board that is made
    afresh for each run has none."""
    from harness.power.registry import driver_of

    things = [_without_options(thing) for thing in driver_of(file.power).things(file.power)]
    if file.labgrid is not None:
        # Its exporters' ports and outlets are locked by labgrid with it.
        things.append(f"place {file.labgrid.address} {file.labgrid.place}")
    if file.ssh is not None and file.ssh.host:
        things.append(f"ssh {file.ssh.host}:{file.ssh.port or 22}")
    if file.serial is not None and file.serial.named:
        things.append(_serial(file.serial))
    return sorted(things)


def nodes_of(file: BoardFile) -> dict[str, str]:
    """The device nodes of those of a board's things that have one now."""
    if file.serial is None or not file.serial.named:
        return {}
    port = file.serial.port
    if port is None and file.serial.udev is not None:
        try:
            port = node_of(file.serial.udev)
        except AdapterAbsent:
            return {}
    return {_serial(file.serial): port} if port is not None and not is_url(port) else {}


def _serial(section: SerialSection) -> str:
    return f"serial {usb_port_of(section)}"


def _without_options(thing: str) -> str:
    """An outlet is what its options say, and among those may be a command with a password."""
    if not thing.startswith("outlet "):
        return thing
    return f"outlet {sha256(thing.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
