"""A serial device of this machine: whether it is there and ours to open, and who has it open.

Of other users' processes only root sees the descriptors; what they were called with, everybody
does.
"""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness.errors import HostError
from harness.links.address import SerialAddress

_MEDDLERS: Final = {
    "ModemManager": "a udev rule with ENV{ID_MM_DEVICE_IGNORE}=1, or stop ModemManager",
    "brltty": "stop brltty, or remove its udev rules for this adapter",
    "agetty": "systemctl disable --now serial-getty@{tty}",
    "getty": "take {tty} out of /etc/inittab",
    "gpsd": "stop gpsd, or set USBAUTO=false",
}
"""Programs that open adapters unasked, and what ends that."""


def check_device(address: SerialAddress) -> None:
    """Raise ``HostError`` where the device is not there, or not ours to open."""
    path = Path(address.url)
    if not path.exists():
        present = sorted(
            str(node)
            for pattern in ("ttyUSB*", "ttyACM*", "serial/by-id/*")
            for node in Path("/dev").glob(pattern)
        )
        raise HostError(
            f"the serial device {path} does not exist",
            remedy="plug the adapter in or correct `serial` in the board file; present: "
            + (", ".join(present) or "none"),
            link=f"serial {address}",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        group = _group_of(path)
        raise HostError(
            f"no permission to open the serial device {path}",
            remedy=f"add yourself to the group {group} (`sudo usermod -aG {group} $USER`) and log"
            " in again",
            link=f"serial {address}",
        )


def _group_of(path: Path) -> str:
    gid = path.stat().st_gid
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def holders_of(path: Path) -> list[str]:
    """Who has the device open, as far as /proc lets this user see: ``name (pid n)``."""
    target = path.resolve()
    return [
        f"{_name(process)} (pid {process.name})"
        for process in _processes()
        if _has_open(process, target)
    ]


def others_with(device: str) -> list[str]:
    """As :func:`holders_of`, without this process, its ancestors, which keep the device for it as
    long as they hold its lease, and a pty's other end, which is no reader of this one; with those
    that were told to use the device and cannot be looked into, and with what ends a program that
    opens adapters unasked."""
    path = Path(device)
    target = path.resolve()
    ours = {str(os.getpid()), *_ancestors()}
    found = []
    for process in _processes():
        if process.name in ours or _is_child_of_this(process) or _is_other_end(process, target):
            continue
        open_ = _has_open(process, target)
        name = _name(process)
        if open_ or (open_ is None and _told_to_use(process, path, target, name)):
            remedy = _MEDDLERS.get(name, "").format(tty=target.name)
            found.append(f"{name} (pid {process.name})" + (f": {remedy}" if remedy else ""))
    return found


def _processes() -> Iterator[Path]:
    return Path("/proc").glob("[0-9]*")


def _name(process: Path) -> str:
    with contextlib.suppress(OSError):
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return "a process that has just ended"


def _has_open(process: Path, target: Path) -> bool | None:
    """None where this user may not see it."""
    try:
        descriptors = list((process / "fd").iterdir())
    except PermissionError:
        return None
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if descriptor.readlink() == target:
                return True
    return False


def _is_other_end(process: Path, target: Path) -> bool:
    """Whether it has the master of the pty ``target`` open: a board in software or a bridge, which
    may keep the slave open, too, lest the line hang up between two users."""
    if target.parent != Path("/dev/pts"):
        return False
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if descriptor.readlink().name != "ptmx":
                    continue
                told = (process / "fdinfo" / descriptor.name).read_text(encoding="ascii")
                if ["tty-index:", target.name] in map(str.split, told.splitlines()):
                    return True
    return False


def _is_child_of_this(process: Path) -> bool:
    """What this process started has inherited its descriptor at most."""
    return _parent(process) == str(os.getpid())


def _ancestors() -> Iterator[str]:
    parent = str(os.getppid())
    while parent != "0":
        yield parent
        parent = _parent(Path("/proc", parent))


def _parent(process: Path) -> str:
    """The parent's process id; 0 where there is none to see."""
    with contextlib.suppress(OSError, IndexError):
        text = (process / "stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[1]
    return "0"


def _told_to_use(process: Path, path: Path, target: Path, name: str) -> bool:
    with contextlib.suppress(OSError):
        words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        # As getty is told it: ttyUSB0, pts/3. A bare 3 is no device.
        known = {str(path), str(target), str(target).removeprefix("/dev/")}
        # It opens every adapter that is plugged in, and gives no sign which.
        return name == "ModemManager" or not known.isdisjoint(words)
    return False
