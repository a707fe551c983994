"""Where a path or a descriptor of the board leads: to which mount, and to which inode below it.

Everything that takes a path apart is here.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from emulation.linux.kernel import Task
from emulation.linux.vfs import Filesystem
from emulation.userland.jail.beneath import Tree, tree
from emulation.userland.jail.caller import Caller, Proceed
from emulation.userland.jail.layout import NODES_TARGET
from emulation.userland.jail.mounts import (
    BoardView,
    MountEntry,
    containing,
    parse_mountinfo,
    whole_lines,
)
from emulation.userland.jail.plan import FuseMount, JailPlan, SyscallHandlers

AT_FDCWD: Final = 0xFFFFFF9C

_MAXIMUM_STEPS: Final = 400
_PUBLIC: Final = frozenset(
    {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/run", "/tmp", "/var"}
)
"""Mounts of the jail that a board has too."""


def absolute(caller: Caller, path: bytes, directory: int = AT_FDCWD) -> str:
    """``path`` from the board's root, without "." and ".."; symlinks stay."""
    text = os.fsdecode(path)
    if not text.startswith("/"):
        if directory & 0xFFFFFFFF == AT_FDCWD:
            base = os.readlink(f"/proc/{caller.pid}/cwd")  # noqa: PTH115
        else:
            base = caller.descriptor(directory)
        text = f"{base}/{text}"
    return "/" + posixpath.normpath(text).lstrip("/")


def walk(filesystem: Filesystem, task: Task, inside: str) -> int:
    """The inode at path ``inside`` the file system; :class:`Proceed` where a link leads out."""
    trail = [filesystem.root]
    names = [name for name in inside.split("/") if name not in ("", ".")]
    links = 0
    while names:
        name = names.pop(0)
        if name == "..":
            if len(trail) == 1:
                raise Proceed
            trail.pop()
            continue
        attr = filesystem.lookup(task, trail[-1], os.fsencode(name))
        if stat.S_ISLNK(attr.mode):
            links += 1
            if links > 40:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.fsdecode(filesystem.readlink(task, attr.ino))
            if target.startswith("/"):
                raise Proceed
            names[:0] = [part for part in target.split("/") if part not in ("", ".")]
        else:
            trail.append(attr.ino)
    return trail[-1]


@dataclass(frozen=True)
class Named:
    """A path into a file system of the model; ``inside``: the way from the root of its mount."""

    entry: MountEntry
    mount: FuseMount
    inside: str

    def inode(self, task: Task) -> int:
        """Where the path ends; ENOENT."""
        return walk(self.mount.filesystem, task, self.inside)


@dataclass(frozen=True)
class Opened:
    """A descriptor of a file in a file system of the model; ``info`` is its fdinfo."""

    caller: Caller
    number: int
    info: dict[str, str]
    entry: MountEntry
    mount: FuseMount

    def inode(self, task: Task) -> int:
        """The open file's; by name before Linux 5.15."""
        if "ino" in self.info:
            return int(self.info["ino"])
        inside = posixpath.relpath(self.caller.descriptor(self.number), self.entry.path)
        return walk(self.mount.filesystem, task, inside)


class Mounts:
    """The board's mounts of file systems of the model.

    ``view``: the mount table as the board sees it; ``proc``: its /proc, where PID 1's table counts;
    ``nodes_device``: number of the file system that holds the device nodes.
    """

    def __init__(self, plan: JailPlan, handlers: SyscallHandlers, proc: Tree) -> None:
        self.proc = proc
        entries = self.table("1")
        last = {entry.path: entry for entry in entries}
        self.nodes_device = os.makedev(*map(int, last[NODES_TARGET].device.split(":")))
        devices = self._devices = {
            last[mount.target].device: mount for mount in plan.filesystems if mount.target in last
        }
        self.view = BoardView(
            {device: mount.type for device, mount in devices.items()},
            lambda device: devices[device].filesystem.read_only,
            lambda device: handlers.shown_options(devices[device].type),
        )
        targets = {mount.target for mount in plan.filesystems} | _PUBLIC
        self.view.hidden = {
            entry.id
            for entry in entries
            if entry.path not in targets or entry is not last[entry.path]
        }
        self.look_for_efivarfs()

    def table(self, pid: str) -> Sequence[MountEntry]:
        """The kernel's mount table of process ``pid`` of the board."""
        return parse_mountinfo(whole_lines(self.proc.read(f"{pid}/mountinfo")))

    def look_for_efivarfs(self) -> None:
        """Mounts of it came or went."""
        entries = self.view.apply(self.table("1"))
        self.efivarfs = {entry.path for entry in entries if entry.type == "efivarfs"}

    def is_variable(self, path: str) -> bool:
        """Whether ``path`` is a variable; the directory itself is an ordinary one."""
        return posixpath.dirname(path) in self.efivarfs

    def is_efivarfs(self, entry: MountEntry) -> bool:
        """Whether that is a mount of efivarfs."""
        mount = self._devices.get(entry.device)
        return mount is not None and mount.type == "efivarfs"

    def opened(self, caller: Caller, number: int) -> Opened:
        """Where a descriptor leads; :class:`Proceed` where to no file system of the model."""
        info = caller.descriptor_info(number)
        mount_id = int(info["mnt_id"])
        entry = next((entry for entry in caller.mounts() if entry.id == mount_id), None)
        mount = self._devices.get(entry.device) if entry else None
        if entry is None or mount is None:
            raise Proceed
        return Opened(caller, number, info, entry, mount)

    def named(self, caller: Caller, path: bytes) -> Named:
        """Where ``path`` leads; :class:`Proceed` where to no file system of the model.

        The supervisor may not look inside a FUSE mount of the board, so symlinks are followed up
        to its root only; :func:`walk` does the rest."""
        entries: Sequence[MountEntry] = caller.mounts()
        names = absolute(caller, path).split("/")[1:]
        done = "/"
        with tree(f"/proc/{caller.pid}/root", mounts=True) as root:
            return self._follow(entries, root, done, names)

    def _follow(
        self, entries: Sequence[MountEntry], root: Tree, done: str, names: list[str]
    ) -> Named:
        for _ in range(_MAXIMUM_STEPS):
            # A nested mount may begin further down the path.
            whole = posixpath.join(done, *names)
            entry = containing(entries, whole)
            mount = self._devices.get(entry.device) if entry else None
            if entry is not None and mount is not None:
                return Named(entry, mount, posixpath.relpath(whole, entry.path))
            if not names:
                raise Proceed
            step = posixpath.join(done, names.pop(0))
            try:
                target = root.readlink(step.lstrip("/"))
            except OSError:
                done = step  # no link, or no such name: the kernel will say
            else:
                whole = posixpath.normpath(posixpath.join(done, target, *names))
                done, names = "/", whole.lstrip("/").split("/")
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
