"""Device nodes of the board: a small file system that stat(2) sees; open(2) is answered elsewhere.

mknod(2) is refused in a user namespace.  A FUSE file shows type, number, owner and mode of a
device node; the kernel would not open it, but the open never gets there: the supervisor answers it.
The content of a block device is a second, ordinary file that nobody sees by name: the supervisor
gives it to who opens the node, and reading, writing and seeking are the kernel's business.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from emulation.linux.devices import DeviceNode, Storage
from emulation.linux.kernel import Task
from emulation.linux.vfs import Attr, Entry, PlainFilesystem, StatFs

_ROOT = 1
_CONTENT = "c"


@dataclass(frozen=True)
class NodeTree(PlainFilesystem):
    """Implements :class:`emulation.linux.vfs.Filesystem`.

    ``names``: name in this file system -> inode; node n is called ``str(n)``, and its content, if
    it has any, has the name that :meth:`content` tells.  ``handles``: open contents.
    """

    read_only = False
    write_moves_offset = True

    attributes: dict[int, Attr]
    numbers: dict[str, int]
    names: dict[str, int]
    storages: dict[int, Storage]
    handles: dict[int, Storage] = field(default_factory=dict)
    root: int = _ROOT
    _handle_numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @classmethod
    def of(cls, nodes: Sequence[DeviceNode], now: float) -> NodeTree:
        """One file a node; ``now``: the time stamp they all get, seconds since the epoch."""
        attributes = {_ROOT: Attr(_ROOT, stat.S_IFDIR | 0o755, 2, 0, 0, 0, now)}
        numbers, names, storages = {}, {}, {}
        inodes = count(_ROOT + 1)
        for index, node in enumerate(nodes):
            kind = stat.S_IFCHR if node.storage is None else stat.S_IFBLK
            number = os.makedev(node.major, node.minor)
            ino = numbers[node.path] = names[str(index)] = next(inodes)
            attributes[ino] = Attr(ino, kind | node.mode, 1, node.uid, node.gid, 0, now, number)
            if node.storage is not None:
                ino = names[f"{index}{_CONTENT}"] = next(inodes)
                size = node.storage.size
                attributes[ino] = Attr(ino, stat.S_IFREG | 0o600, 1, 0, 0, size, now)
                storages[ino] = node.storage
        return cls(attributes, numbers, names, storages)

    def content(self, node: DeviceNode) -> str:
        """Name of the file that holds what ``node`` stores."""
        ino = self.numbers[node.path]
        return next(name for name, number in self.names.items() if number == ino) + _CONTENT

    def status(self, node: DeviceNode) -> Attr:
        """Owner and mode of ``node`` as they are now."""
        return self.attributes[self.numbers[node.path]]

    def lookup(self, task: Task, parent: int, name: bytes) -> Attr:
        """A node or a content."""
        return self.getattr(task, self.names.get(os.fsdecode(name), 0))

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
        """All nodes and contents."""
        return [
            Entry(name.encode(), number, self.attributes[number].mode)
            for name, number in self.names.items()
        ]

    def open(self, task: Task, ino: int, flags: int) -> int:
        """Contents only: nothing opens a node here."""
        if ino not in self.storages:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        handle = next(self._handle_numbers)
        self.handles[handle] = self.storages[ino]
        return handle

    def read(self, task: Task, handle: int, offset: int, size: int) -> bytes:
        """From the storage."""
        return self.handles[handle].read(offset, size)

    def write(self, task: Task, handle: int, offset: int, data: bytes) -> int:
        """To the storage."""
        return self.handles[handle].write(offset, data)

    def release(self, handle: int) -> None:
        """The descriptor and its duplicates are closed."""
        self.handles.pop(handle, None)

    def statfs(self, task: Task) -> StatFs:
        """As the devtmpfs that the nodes stand in."""
        return StatFs(0x01021994, 4096, 0, 0, 0, 0, 0, 255, 4096)

    def may_sleep(self, operation: str) -> bool:
        """Storage is a file of the host."""
        return operation in ("read", "write")
