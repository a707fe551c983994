"""What the VFS asks of a file system, and what it is told: inodes, names, struct statfs."""

import errno
import os
from dataclasses import dataclass
from typing import Protocol

from emulation.linux.kernel import Task


@dataclass(frozen=True)
class Attr:
    """What stat(2) shows; ``mtime`` in seconds since the epoch, ``rdev`` as makedev() has it;
    ``shown``: st_ino where it is another's."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime: float
    rdev: int = 0
    shown: int = 0


@dataclass(frozen=True)
class Entry:
    """A name in a directory; ``mode`` carries the file type. "." and ".." are not listed."""

    name: bytes
    ino: int
    mode: int


@dataclass(frozen=True)
class StatFs:
    """struct statfs without flags and id: block counts are in units of ``frsize`` bytes."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namelen: int
    frsize: int


class Filesystem(Protocol):
    """A file system of the model. Every method raises ``OSError`` with the errno the caller sees.

    The kernel has already checked permission bits, the mount's read-only flags and the length of
    names; the immutable flag and the model's own read-only flag are the file system's to check.
    """

    @property
    def root(self) -> int:
        """Inode number of the root directory."""

    @property
    def read_only(self) -> bool:
        """The superblock's own flag."""

    @property
    def write_moves_offset(self) -> bool:
        """Whether write(2) moves the offset of the open file, as it usually does."""

    def lookup(self, task: Task, parent: int, name: bytes) -> Attr:
        """The inode that ``name`` leads to; ENOENT."""

    def getattr(self, task: Task, ino: int) -> Attr:
        """stat(2) of an inode."""

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
        """chmod, chown, truncate, utimes; returns the new attributes."""

    def readdir(self, task: Task, ino: int) -> list[Entry]:
        """The entries of a directory, without "." and ".."."""

    def readlink(self, task: Task, ino: int) -> bytes:
        """Target of a symbolic link."""

    def open(self, task: Task, ino: int, flags: int) -> int:
        """A new handle for an existing file; ``flags`` as open(2) without O_CREAT and O_TRUNC."""

    def create(
        self, task: Task, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        """open(2) with O_CREAT of a name that lookup did not find; umask is already applied."""

    def read(self, task: Task, handle: int, offset: int, size: int) -> bytes:
        """At most ``size`` bytes; empty at the end."""

    def write(self, task: Task, handle: int, offset: int, data: bytes) -> int:
        """One write(2); the number of bytes taken."""

    def fsync(self, task: Task, handle: int) -> None:
        """fsync(2); EINVAL where the file system has none."""

    def release(self, handle: int) -> None:
        """The last descriptor of an open file is gone."""

    def unlink(self, task: Task, parent: int, name: bytes) -> None:
        """Remove a name."""

    def getflags(self, task: Task, ino: int) -> int:
        """FS_IOC_GETFLAGS; ENOTTY where the file system has none."""

    def setflags(self, task: Task, ino: int, flags: int) -> None:
        """FS_IOC_SETFLAGS, after the checks for a read-only mount and for ownership."""

    def statfs(self, task: Task) -> StatFs:
        """statfs(2)."""

    def may_sleep(self, operation: str) -> bool:
        """Whether the method named ``operation`` may wait for something other than computation."""


class PlainFilesystem:
    """What the VFS answers where a file system lacks the operation."""

    def readlink(self, task: Task, ino: int) -> bytes:
        """There are no links."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def create(
        self, task: Task, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        """Nothing is created."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def fsync(self, task: Task, handle: int) -> None:
        """Every write has arrived when it returns (noop_fsync)."""

    def unlink(self, task: Task, parent: int, name: bytes) -> None:
        """Nothing is removed."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def getflags(self, task: Task, ino: int) -> int:
        """There are no inode flags."""
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def setflags(self, task: Task, ino: int, flags: int) -> None:
        """There are no inode flags."""
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
