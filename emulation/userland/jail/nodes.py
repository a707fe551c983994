"""Device nodes of the board: a small file system that stat(2) sees; open(2) is answered elsewhere.

mknod(2) is refused in a user namespace.  A FUSE file shows type, number, owner and mode of a
device node; the kernel would not open it, but the open never gets there: the supervisor answers it.
The content of a block device is a second, ordinary file that nobody sees by name: the supervisor
gives it to who opens the node, and reading, writing and seeking are the kernel's business.  Of a
character device every open(2) has such a file of its own, which cannot be read or written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from emulation.linux.devices import DeviceNode, Storage
from emulation.linux.kernel import Task
from emulation.linux.vfs import Attr, Entry, PlainFilesystem, StatFs

_ROOT = 1
_CONTENT = "c"
_OPENED = "o"
_OPENED_INODES = 1 << 20


class _NoContent:
    """What a driver without read and write operations gives (K6 fs/read_write.c)."""

    size = 0

    def read(self, offset: int, size: int) -> bytes:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def write(self, offset: int, data: bytes) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@dataclass(frozen=True)
class NodeTree(PlainFilesystem):
    """Implements :class:`emulation.linux.vfs.Filesystem`.

    ``names``: name in this file system -> inode; node n is called ``str(n)``, and its content, if
    it has any, has the name that :meth:`content` tells.  ``handles``: open contents.  ``closing``:
    what is to happen when an open character device is closed, by inode.
    """

    read_only = False
    write_moves_offset = True

    attributes: dict[int, Attr]
    numbers: dict[str, int]
    names: dict[str, int]
    storages: dict[int, Storage]
    handles: dict[int, Storage] = field(default_factory=dict)
    closing: dict[int, Callable[[], None]] = field(default_factory=dict)
    root: int = _ROOT
    _inodes: dict[int, int] = field(default_factory=dict)
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
                shown = numbers[node.path]
                attributes[ino] = Attr(ino, stat.S_IFREG | 0o600, 1, 0, 0, size, now, shown=shown)
                storages[ino] = node.storage
        return cls(attributes, numbers, names, storages)

    def content(self, node: DeviceNode) -> str:
        """Name of the file that holds what ``node`` stores."""
        ino = self.numbers[node.path]
        return next(name for name, number in self.names.items() if number == ino) + _CONTENT

    def opened(self, node: DeviceNode, closed: Callable[[], None]) -> str:
        """Name of a new file that stands for one open file of a character device; ``closed`` is
        called when its last descriptor is gone, or by :meth:`forget`."""
        number = next(self._handle_numbers)
        ino, name = _OPENED_INODES + number, f"{_OPENED}{number}"
        shown = self.numbers[node.path]  # fuser(1) compares these
        now = self.attributes[_ROOT].mtime
        self.attributes[ino] = Attr(ino, stat.S_IFREG | 0o600, 1, 0, 0, 0, now, shown=shown)
        self.names[name], self.storages[ino], self.closing[ino] = ino, _NoContent(), closed
        return name

    def forget(self, name: str) -> None:
        """The file of :meth:`opened` is closed, or was never opened."""
        ino = self.names.pop(name)
        del self.storages[ino], self.attributes[ino]
        self.closing.pop(ino)()

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
        self._inodes[handle] = ino
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
        ino = self._inodes.pop(handle, 0)
        if ino in self.closing and ino not in self._inodes.values():
            self.forget(next(name for name, number in self.names.items() if number == ino))

    def statfs(self, task: Task) -> StatFs:
        """As the devtmpfs that the nodes stand in."""
        return StatFs(0x01021994, 4096, 0, 0, 0, 0, 0, 255, 4096)

    def may_sleep(self, operation: str) -> bool:
        """Storage is a file of the host."""
        return operation in ("read", "write")
