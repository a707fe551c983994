"""The board's /sys: a tree of directories, attributes and links that follows the model.

A directory's content is made when it is looked at, so devices and drivers come and go by
themselves.  Source: K6 fs/sysfs, fs/kernfs; truth p2a, p2c, log-kernel-rpmb-y for the paths.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from emulation.linux.kernel import Task
from emulation.linux.vfs import Attr, Entry, PlainFilesystem, StatFs

SYSFS_MAGIC: Final = 0x62656572


@dataclass(frozen=True)
class Attribute:
    """A file: ``show`` makes its text, ``store`` takes what one write(2) carried.

    ``store`` acts for the task that writes and may sleep; both raise OSError.
    """

    show: Callable[[], str | bytes] | None = None
    store: Callable[[bytes, Task], None] | None = None
    mode: int | None = None

    @property
    def permissions(self) -> int:
        """Permission bits: as given, or what show and store suggest."""
        if self.mode is not None:
            return self.mode
        return (0o444 if self.show else 0) | (0o200 if self.store else 0)


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Directory:
    """A directory; ``content`` is asked at every look."""

    content: Callable[[], Mapping[str, Node]]
    is_mount_point: bool = False
    """Made to mount upon (sysfs_create_mount_point): it is and stays empty."""

    @classmethod
    def of(cls, content: Tree) -> Directory:
        """A directory that never changes; a mapping inside is such a one."""
        nodes = {
            name: cls.of(node) if isinstance(node, Mapping) else node
            for name, node in content.items()
        }
        return cls(lambda: nodes)

    @classmethod
    def mount_point(cls) -> Directory:
        """An empty directory to mount upon."""
        return cls(dict, is_mount_point=True)


Node = Attribute | Link | Directory
Tree = Mapping[str, "Node | Tree"]


def text(value: str) -> Attribute:
    """An attribute with a fixed value, given without its line end."""
    return Attribute(lambda: f"{value}\n")


_Path = tuple[str, ...]


@dataclass
class _Handle:
    path: _Path
    content: bytes | None = None


class Sysfs(PlainFilesystem):
    """A :class:`Directory` as a file system (emulation.linux.vfs.Filesystem)."""

    read_only = False
    write_moves_offset = True

    def __init__(self, root: Directory, *, booted: float) -> None:
        self._tree = root
        self._booted = booted
        self._numbers = count(1)
        self._inodes: dict[int, _Path] = {}
        self._by_path: dict[_Path, int] = {}
        self._handles: dict[int, _Handle] = {}
        self._handle_numbers = count(1)
        self.root = self._number(())

    def lookup(self, task: Task, parent: int, name: bytes) -> Attr:
        path = (*self._path(parent), name.decode("utf-8", "surrogateescape"))
        self._node(path)
        return self.getattr(task, self._number(path))

    def getattr(self, task: Task, ino: int) -> Attr:
        node = self._node(self._path(ino))
        links, size = 1, 0
        if isinstance(node, Directory):
            links = 2 + sum(isinstance(child, Directory) for child in node.content().values())
        elif isinstance(node, Attribute):
            size = 4096
        return Attr(ino, _mode(node), links, 0, 0, size, self._booted)

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
        """Truncation means nothing to an attribute; owners and modes stay."""
        if mode is not None or uid is not None or gid is not None:
            raise OSError(errno.EPERM, "sysfs")
        return self.getattr(task, ino)

    def readdir(self, task: Task, ino: int) -> list[Entry]:
        path = self._path(ino)
        node = self._node(path)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR, "not a directory")
        return [
            Entry(
                name.encode("utf-8", "surrogateescape"), self._number((*path, name)), _mode(child)
            )
            for name, child in node.content().items()
        ]

    def readlink(self, task: Task, ino: int) -> bytes:
        node = self._node(self._path(ino))
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, "not a link")
        return node.target.encode()

    def open(self, task: Task, ino: int, flags: int) -> int:
        """See Filesystem; an attribute without ``store`` cannot be opened for writing."""
        path = self._path(ino)
        node = self._node(path)
        if isinstance(node, Attribute):
            writing = flags & 3 != 0
            reading = flags & 3 != 1
            if (writing and node.store is None) or (reading and node.show is None):
                raise OSError(errno.EACCES, "the attribute has no such operation")
        handle = next(self._handle_numbers)
        self._handles[handle] = _Handle(path)
        return handle

    def create(
        self, task: Task, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        """Nothing is created in sysfs, and in a mount point nothing is even looked up."""
        node = self._node(self._path(parent))
        empty = isinstance(node, Directory) and node.is_mount_point
        raise OSError(errno.ENOENT if empty else errno.EACCES, "sysfs")

    def read(self, task: Task, handle: int, offset: int, size: int) -> bytes:
        """See Filesystem; a read from the start asks the model again."""
        opened = self._handles[handle]
        if opened.content is None or offset == 0:
            node = self._node(opened.path)
            if not isinstance(node, Attribute) or node.show is None:
                raise OSError(errno.EIO, "not readable")
            shown = node.show()
            opened.content = shown if isinstance(shown, bytes) else shown.encode()
        return opened.content[offset : offset + size]

    def write(self, task: Task, handle: int, offset: int, data: bytes) -> int:
        node = self._node(self._handles[handle].path)
        if not isinstance(node, Attribute) or node.store is None:
            raise OSError(errno.EIO, "not writable")
        node.store(data, task)
        return len(data)

    def release(self, handle: int) -> None:
        self._handles.pop(handle, None)

    def statfs(self, task: Task) -> StatFs:
        return StatFs(SYSFS_MAGIC, 4096, 0, 0, 0, 0, 0, 255, 4096)

    def may_sleep(self, operation: str) -> bool:
        """Binding and unbinding drivers talk to the secure world."""
        return operation == "write"

    def _path(self, ino: int) -> _Path:
        if ino not in self._inodes:
            raise OSError(errno.ENOENT, "stale inode")
        return self._inodes[ino]

    def _number(self, path: _Path) -> int:
        if path not in self._by_path:
            number = next(self._numbers)
            self._by_path[path] = number
            self._inodes[number] = path
        return self._by_path[path]

    def _node(self, path: _Path) -> Node:
        node: Node = self._tree
        for name in path:
            if not isinstance(node, Directory):
                raise OSError(errno.ENOTDIR, "not a directory")
            content = node.content()
            if name not in content:
                raise OSError(errno.ENOENT, "no such attribute")
            node = content[name]
        return node


def _mode(node: Node) -> int:
    if isinstance(node, Directory):
        return stat.S_IFDIR | 0o755
    if isinstance(node, Link):
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | node.permissions
