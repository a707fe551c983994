"""A file system in memory for the tests of the transport; behaves like efivarfs where it matters:
flat, files are immutable when created, every write(2) replaces the content."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from emulation.linux.kernel import Task
from emulation.linux.vfs import Attr, Entry, StatFs

IMMUTABLE = 0x10


@dataclass
class Node:
    """A file or a directory; ``writes`` records every write(2) as (offset, data)."""

    attr: Attr
    content: bytes = b""
    flags: int = 0
    link: bytes = b""
    children: dict[bytes, int] = field(default_factory=dict)
    writes: list[tuple[int, bytes]] = field(default_factory=list)


class MemoryFilesystem:
    """Implements ``emulation.linux.vfs.Filesystem``."""

    root = 100

    write_moves_offset = True

    def __init__(self, *, immutable: bool = True, sleeping: frozenset[str] = frozenset()) -> None:
        self.nodes = {self.root: Node(Attr(self.root, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0.0))}
        self.handles: dict[int, int] = {}
        self.released = 0
        self.read_only = False
        self.immutable = immutable
        self.sleeping = sleeping
        self.space = (16284, 8000)
        self.on_write: Callable[[Task], None] | None = None
        self.on_statfs: Callable[[Task], None] | None = None
        self.callers: list[Task] = []
        self._lock = threading.Lock()
        self._next = self.root + 1

    def add(self, path: bytes, content: bytes = b"", *, link: bytes = b"", mode: int = 0) -> int:
        """A file, link, or (content and link empty, mode S_IFDIR) directory, with its parents."""
        *parents, name = path.split(b"/")
        parent = self.root
        for part in parents:
            known = self.nodes[parent].children.get(part)
            parent = known if known is not None else self._make(parent, part, stat.S_IFDIR | 0o755)
        if link:
            ino = self._make(parent, name, stat.S_IFLNK | 0o777)
            self.nodes[ino].link = link
            return ino
        ino = self._make(parent, name, mode or stat.S_IFREG | 0o644)
        self._set_content(ino, content)
        return ino

    def _make(self, parent: int, name: bytes, mode: int, uid: int = 0, gid: int = 0) -> int:
        with self._lock:
            ino = self._next
            self._next += 1
        self.nodes[ino] = Node(Attr(ino, mode, 1, uid, gid, 0, 1.5))
        self.nodes[parent].children[name] = ino
        return ino

    def _set_content(self, ino: int, content: bytes) -> None:
        node = self.nodes[ino]
        node.content = content
        node.attr = replace(node.attr, size=len(content))

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "read-only")

    def lookup(self, task: Task, parent: int, name: bytes) -> Attr:
        ino = self.nodes[parent].children.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, "no such name")
        return self.nodes[ino].attr

    def getattr(self, task: Task, ino: int) -> Attr:
        return self.nodes[ino].attr

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
        node = self.nodes[ino]
        attr = node.attr
        if mode is not None:
            attr = replace(attr, mode=stat.S_IFMT(attr.mode) | stat.S_IMODE(mode))
        if uid is not None:
            attr = replace(attr, uid=uid)
        if gid is not None:
            attr = replace(attr, gid=gid)
        if size is not None:
            attr = replace(attr, size=size)
        if mtime is not None:
            attr = replace(attr, mtime=mtime)
        node.attr = attr
        return attr

    def readdir(self, task: Task, ino: int) -> list[Entry]:
        return [
            Entry(name, child, self.nodes[child].attr.mode)
            for name, child in self.nodes[ino].children.items()
        ]

    def readlink(self, task: Task, ino: int) -> bytes:
        return self.nodes[ino].link

    def open(self, task: Task, ino: int, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._check_writable()
            if self.nodes[ino].flags & IMMUTABLE:
                raise OSError(errno.EPERM, "immutable")
        return self._handle(ino)

    def _handle(self, ino: int) -> int:
        with self._lock:
            handle = self._next
            self._next += 1
        self.handles[handle] = ino
        return handle

    def create(
        self, task: Task, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        self._check_writable()
        ino = self._make(parent, name, mode, task.uid, task.gid)
        if self.immutable:
            self.nodes[ino].flags = IMMUTABLE
        return self.nodes[ino].attr, self._handle(ino)

    def read(self, task: Task, handle: int, offset: int, size: int) -> bytes:
        return self.nodes[self.handles[handle]].content[offset : offset + size]

    def write(self, task: Task, handle: int, offset: int, data: bytes) -> int:
        self.callers.append(task)
        if self.on_write is not None:
            self.on_write(task)
        node = self.nodes[self.handles[handle]]
        node.writes.append((offset, data))
        self._set_content(self.handles[handle], data)
        return len(data)

    def fsync(self, task: Task, handle: int) -> None:
        raise OSError(errno.EINVAL, "no fsync")

    def release(self, handle: int) -> None:
        del self.handles[handle]
        self.released += 1

    def unlink(self, task: Task, parent: int, name: bytes) -> None:
        ino = self.nodes[parent].children[name]
        if self.nodes[ino].flags & IMMUTABLE:
            raise OSError(errno.EPERM, "immutable")
        del self.nodes[parent].children[name]

    def getflags(self, task: Task, ino: int) -> int:
        return self.nodes[ino].flags

    def setflags(self, task: Task, ino: int, flags: int) -> None:
        if flags & ~IMMUTABLE:
            raise OSError(errno.EOPNOTSUPP, "only the immutable flag")
        self.nodes[ino].flags = flags

    def statfs(self, task: Task) -> StatFs:
        if self.on_statfs is not None:
            self.on_statfs(task)
        total, free = self.space
        return StatFs(0xDE5E81E4, 1, total, free, free, 0, 0, 255, 1)

    def may_sleep(self, operation: str) -> bool:
        return operation in self.sleeping
