"""``udevadm info``: what udev knows of a device, from /sys (udevadm(8), systemd 257).

No rule of the board gives a device properties of its own, so the kernel's are all there are.
"""

from __future__ import annotations

import errno
import re
import stat
from typing import Final

from emulation.linux.kernel import Task
from emulation.linux.vfs import Filesystem

SYSFS_MOUNT: Final = "/sys"
_MOST_LINKS: Final = 40
"""MAXSYMLINKS (K6 include/linux/namei.h)."""
_READ: Final = 4096


class NoDevice(Exception):
    """The path leads to no device; the text is udevadm's."""


def describe(sysfs: Filesystem, path: str, task: Task) -> list[str]:
    """The lines of ``udevadm info -p PATH``, without the empty one at the end.

    Raises :class:`NoDevice` for a path that is none in /sys or holds no ``uevent``.
    """
    relative = path.removeprefix(SYSFS_MOUNT).strip("/")
    try:
        place = _resolve(sysfs, relative.split("/"), task)
        uevent = _read(sysfs, [*place, "uevent"], task)
    except OSError as error:
        reason = f'Unknown device "{path}"'
        raise NoDevice(f"{reason}: No such device") from error
    name = place[-1]
    subsystem = _link(sysfs, [*place, "subsystem"], task)
    driver = _link(sysfs, [*place, "driver"], task)
    properties = uevent.splitlines()
    device_path = "/" + "/".join(place)
    lines = [f"P: {device_path}", f"M: {name}"]
    number = re.search(r"\d+$", name)
    if number:
        lines.append(f"R: {number[0]}")
    lines += _identity(name, subsystem, properties)
    if subsystem:
        lines.append(f"U: {subsystem}")
    if driver:
        lines.append(f"V: {driver}")
    node = next((line[8:] for line in properties if line.startswith("DEVNAME=")), None)
    if node:
        lines.append(f"N: {node}")
    lines.append(f"E: DEVPATH={device_path}")
    if subsystem:
        lines.append(f"E: SUBSYSTEM={subsystem}")
    return lines + [f"E: {line}" for line in properties]


def _identity(name: str, subsystem: str, properties: list[str]) -> list[str]:
    """The database key: a node's numbers, or subsystem and name; and the node's numbers."""
    values = dict(line.split("=", 1) for line in properties if "=" in line)
    if "MAJOR" in values:
        kind = "b" if subsystem == "block" else "c"
        numbers = f"{values['MAJOR']}:{values['MINOR']}"
        return [f"J: {kind}{numbers}", f"D: {kind} {numbers}"]
    return [f"J: +{subsystem}:{name}"] if subsystem else []


def _resolve(sysfs: Filesystem, parts: list[str], task: Task) -> list[str]:
    """The path without links, as its parts below /sys."""
    done: list[str] = []
    todo = [part for part in parts if part]
    links = 0
    while todo:
        part = todo.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        attr = sysfs.lookup(task, _inode(sysfs, done, task), part.encode())
        if not stat.S_ISLNK(attr.mode):
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, "too many links")
        todo = sysfs.readlink(task, attr.ino).decode().split("/") + todo
    if not done:
        raise OSError(errno.ENODEV, "/sys itself")
    return done


def _inode(sysfs: Filesystem, parts: list[str], task: Task) -> int:
    inode = sysfs.root
    for part in parts:
        inode = sysfs.lookup(task, inode, part.encode()).ino
    return inode


def _link(sysfs: Filesystem, parts: list[str], task: Task) -> str:
    """The last part of a link's target; empty where there is no such link."""
    try:
        target = sysfs.readlink(task, _inode(sysfs, parts, task))
    except OSError:
        return ""
    return target.decode().rpartition("/")[2]


def _read(sysfs: Filesystem, parts: list[str], task: Task) -> str:
    handle = sysfs.open(task, _inode(sysfs, parts, task), 0)
    try:
        return sysfs.read(task, handle, 0, _READ).decode()
    finally:
        sysfs.release(handle)
