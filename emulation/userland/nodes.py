"""Device nodes of the board: a small file system that stat(2) sees; open(2) is answered elsewhere.

mknod(2) is refused in a user namespace.  A FUSE file shows type, number, owner and mode of a
device node; the kernel would not open it, but the open never gets there: the supervisor answers it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

from emulation.linux.kernel import Task
from emulation.userland.fuse import Attr, Entry, StatFs
from emulation.userland.plan import DeviceNode

_ROOT = 1


@dataclass(frozen=True)
class NodeTree:
    """Implements :class:`emulation.userland.fuse.Filesystem`; node n is called ``str(n)``."""

    attributes: dict[int, Attr]
    numbers: dict[str, int]
    root: int = _ROOT

    @classmethod
    def of(cls, nodes: Sequence[DeviceNode], now: float) -> NodeTree:
        """One file a node; ``now``: the time stamp they all get, seconds since the epoch."""
        attributes = {_ROOT: Attr(_ROOT, stat.S_IFDIR | 0o755, 2, 0, 0, 0, now)}
        for index, node in enumerate(nodes):
            kind = stat.S_IFBLK if node.block else stat.S_IFCHR
            number = os.makedev(node.major, node.minor)
            ino = _ROOT + 1 + index
            attributes[ino] = Attr(ino, kind | node.mode, 1, node.uid, node.gid, 0, now, number)
        return cls(attributes, {node.path: _ROOT + 1 + i for i, node in enumerate(nodes)})

    def status(self, node: DeviceNode) -> Attr:
        """Owner and mode of ``node`` as they are now."""
        return self.attributes[self.numbers[node.path]]

    def lookup(self, task: Task, parent: int, name: bytes) -> Attr:
        """Names are decimal numbers, from 0."""
        if not name.isdigit():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.getattr(task, _ROOT + 1 + int(name))

    def getattr(self, task: Task, ino: int) -> Attr:
        """stat(2)."""
        try:
            return self.attributes[ino]
        except KeyError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    def setattr(
        self,
        task: Task,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        mtime: float | None = None,
    ) -> Attr:
        """chmod and chown, as udev rules do."""
        old = self.getattr(task, ino)
        new = replace(
            old,
            mode=old.mode if mode is None else stat.S_IFMT(old.mode) | stat.S_IMODE(mode),
            uid=old.uid if uid is None else uid,
            gid=old.gid if gid is None else gid,
            mtime=old.mtime if mtime is None else mtime,
        )
        self.attributes[ino] = new
        return new

    def readdir(self, task: Task, ino: int) -> list[Entry]:
        """All nodes."""
        return [
            Entry(str(attr.ino - _ROOT - 1).encode(), attr.ino, attr.mode)
            for attr in self.attributes.values()
            if attr.ino != _ROOT
        ]

    def readlink(self, task: Task, ino: int) -> bytes:
        """There are no links."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def open(self, task: Task, ino: int, flags: int) -> int:
        """Nothing opens a node here."""
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def create(
        self, task: Task, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        """Nobody sees this directory."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def read(self, task: Task, handle: int, offset: int, size: int) -> bytes:
        """Nothing is open."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def write(self, task: Task, handle: int, offset: int, data: bytes) -> int:
        """Nothing is open."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def release(self, handle: int) -> None:
        """Nothing is open."""

    def unlink(self, task: Task, parent: int, name: bytes) -> None:
        """Nodes stay."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def getflags(self, task: Task, ino: int) -> int:
        """Device nodes have no inode flags."""
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def setflags(self, task: Task, ino: int, flags: int) -> None:
        """Device nodes have no inode flags."""
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def statfs(self, task: Task) -> StatFs:
        """As the devtmpfs that the nodes stand in."""
        return StatFs(0x01021994, 4096, 0, 0, 0, 0, 0, 255, 4096)

    def may_sleep(self, operation: str) -> bool:
        """Never."""
        return False
