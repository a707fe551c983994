"""The little of the VFS that stands between system calls and a file system of the model.

Only what the real kernel does before the transport is asked: descriptors, O_CREAT and O_EXCL,
umask, access modes, positions of a file that cannot seek.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from itertools import count

from emulation.linux.efivarfs import Efivarfs
from emulation.linux.kernel import Task
from emulation.linux.vfs import Attr

UMASK = 0o022


@dataclass
class _File:
    ino: int
    handle: int
    flags: int
    position: int = 0


class Vfs:
    """System calls of one process in the directory of one file system."""

    def __init__(self, filesystem: Efivarfs, task: Task | None = None) -> None:
        self.fs = filesystem
        self.task = task or Task(100)
        self._files: dict[int, _File] = {}
        self._numbers = count(3)

    def open(self, name: str | bytes, flags: int, mode: int = 0o777) -> int:
        raw = os.fsencode(name)
        try:
            attr = self._lookup(raw)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            attr, handle = self.fs.create(self.task, self.fs.root, raw, mode & ~UMASK, flags)
        else:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise OSError(errno.EEXIST, "exists")
            handle = self.fs.open(self.task, attr.ino, flags & ~(os.O_CREAT | os.O_TRUNC))
            if flags & os.O_TRUNC:
                self.fs.setattr(self.task, attr.ino, size=0)
        number = next(self._numbers)
        self._files[number] = _File(attr.ino, handle, flags)
        return number

    def close(self, fd: int) -> None:
        self.fs.release(self._files.pop(fd).handle)

    def write(self, fd: int, data: bytes) -> int:
        file = self._files[fd]
        if file.flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        return self.fs.write(self.task, file.handle, file.position, data)

    def read(self, fd: int, size: int) -> bytes:
        file = self._files[fd]
        data = self.pread(fd, size, file.position)
        file.position += len(data)
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        file = self._files[fd]
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, "not open for reading")
        return self.fs.read(self.task, file.handle, offset, size)

    def lseek(self, fd: int) -> int:
        raise OSError(errno.ESPIPE, "efivarfs files do not seek")

    def fstat(self, fd: int) -> Attr:
        return self.fs.getattr(self.task, self._files[fd].ino)

    def stat(self, name: str | bytes) -> Attr:
        return self._lookup(os.fsencode(name))

    def exists(self, name: str | bytes) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def unlink(self, name: str | bytes) -> None:
        self.fs.unlink(self.task, self.fs.root, os.fsencode(name))

    def truncate(self, name: str | bytes, size: int) -> None:
        self.fs.setattr(self.task, self._lookup(os.fsencode(name)).ino, size=size)

    def getflags(self, name: str | bytes) -> int:
        return self.fs.getflags(self.task, self.stat(name).ino)

    def setflags(self, name: str | bytes, flags: int) -> None:
        self.fs.setflags(self.task, self.stat(name).ino, flags)

    def listing(self) -> list[str]:
        entries = self.fs.readdir(self.task, self.fs.root)
        return [os.fsdecode(entry.name) for entry in entries]

    def read_file(self, name: str | bytes) -> bytes:
        fd = self.open(name, os.O_RDONLY)
        try:
            return self.read(fd, 1 << 20)
        finally:
            self.close(fd)

    def write_file(self, name: str | bytes, content: bytes) -> int:
        fd = self.open(name, os.O_WRONLY | os.O_CREAT)
        try:
            return self.write(fd, content)
        finally:
            self.close(fd)

    def _lookup(self, name: bytes) -> Attr:
        return self.fs.lookup(self.task, self.fs.root, name)
