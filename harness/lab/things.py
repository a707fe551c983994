"""The physical things that make up a board: what a lease locks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, assert_never

from harness.lab.adapter import place_of

if TYPE_CHECKING:
    from harness.boardfile.boardfile import BoardFile
    from harness.power.options import PowerSection


def things_of(file: BoardFile) -> list[str]:
    """One word for each physical thing of a board: SSH end point, serial adapter, outlet, flash
    image. Board files of one board share them, whatever their names are. A board that is made
    afresh for each run has none."""
    things = []
    if file.labgrid is not None:
        # Its exporters' ports and outlets are locked by labgrid with it.
        things.append(f"place {file.labgrid.address} {file.labgrid.place}")
    if file.ssh is not None and file.ssh.host:
        things.append(f"ssh {file.ssh.host}:{file.ssh.port}")
    if file.serial is not None and file.serial.named:
        things.append(f"serial {place_of(file.serial)}")
    things += _outlet(file.power)
    return sorted(things)


def _outlet(section: PowerSection) -> list[str]:
    match section.driver:
        case "emulated":
            return [] if section.state is None else [f"image {os.path.realpath(section.state)}"]
        case "manual" | "labgrid":
            return []
        case "qemu":
            images = [*section.options.flash, *section.options.disks]
            images += [section.options.emmc] if section.options.emmc else []
            return [f"image {os.path.realpath(image)}" for image in images]
        case "command":
            return [f"outlet {section.options.on}"]
        case "http":
            return [f"outlet http {section.options.host} {section.options.outlet}"]
        case "snmp":
            return [f"outlet snmp {section.options.host} {section.options.oid.lstrip('.')}"]
        case "usb-hub":
            return [f"outlet usb {section.options.location} {section.options.port}"]
        case "relay":
            port = os.path.realpath(section.options.port)
            return [f"outlet relay {port} {section.options.channel}"]
        case _:
            assert_never(section.driver)
