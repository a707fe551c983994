"""FUSE, spoken directly over /dev/fuse: a file system of the model as a real mount.

Structures and numbers: include/uapi/linux/fuse.h, protocol 7.31 (Linux 5.4).  They are the same on
every 64-bit architecture.  Entries and attributes are not cached, so a change made by the model
is visible at once; files are FOPEN_DIRECT_IO, so one write(2) is one request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from emulation.faults import PowerLost
from emulation.linux.kernel import Killed, Task, running
from emulation.linux.vfs import Attr, Entry, Filesystem
from emulation.userland.jail.supervisor import Scheduler
from emulation.userland.jail.syscalls import encode_dev

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _READLINK, _SYMLINK = 1, 2, 3, 4, 5, 6
_MKNOD, _MKDIR, _UNLINK, _RMDIR, _RENAME, _LINK = 8, 9, 10, 11, 12, 13
_OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC = 14, 15, 16, 17, 18, 20
_SETXATTR, _LISTXATTR, _REMOVEXATTR = 21, 23, 24
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _CREATE = 26, 27, 28, 29, 35
_INTERRUPT, _DESTROY, _IOCTL, _BATCH_FORGET, _RENAME2 = 36, 38, 39, 42, 45

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY_HEAD = struct.Struct("<QQQQII")
_ATTR_HEAD = struct.Struct("<QII")
_KSTATFS = struct.Struct("<QQQQQIIII24x")
_SETATTR_IN = struct.Struct("<IIQQQQQQIIIIIIII")
_OPEN_IN = struct.Struct("<II")
_OPEN_OUT = struct.Struct("<QII")
_CREATE_IN = struct.Struct("<IIII")
_MKNOD_IN = struct.Struct("<IIII")
_READ_IN = struct.Struct("<QQIIQII")
_WRITE_IN = struct.Struct("<QQIIQII")
_FSYNC_IN = struct.Struct("<QII")
_RELEASE_IN = struct.Struct("<QIIQ")
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_IOCTL_IN = struct.Struct("<QIIQII")
_IOCTL_OUT = struct.Struct("<iIII")
_DIRENT = struct.Struct("<QQII")
_FSXATTR = struct.Struct("<IIIII8x")

_MINOR: Final = 31
_MAX_WRITE: Final = 1 << 20
_PAGE: Final = 4096
_BUFFER_SIZE: Final = _MAX_WRITE + _PAGE
_ROOT_NODE: Final = 1
_FOREVER: Final = 1 << 20
"""Seconds; longer than any power-on."""

_FUSE_ASYNC_READ = 1 << 0
_FUSE_BIG_WRITES = 1 << 5
_FUSE_HAS_IOCTL_DIR = 1 << 11
_FUSE_PARALLEL_DIROPS = 1 << 18
_FUSE_MAX_PAGES = 1 << 22
_WANTED = (
    _FUSE_ASYNC_READ
    | _FUSE_BIG_WRITES
    | _FUSE_HAS_IOCTL_DIR
    | _FUSE_PARALLEL_DIROPS
    | _FUSE_MAX_PAGES
)
_FOPEN_DIRECT_IO = 1

_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_SIZE = 1, 2, 4, 8
_FATTR_MTIME = 1 << 5

_IMMUTABLE: Final = 0x10
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
# FS_XFLAG_* bit -> FS_*_FL bit, for the flags both ioctls know (include/linux/fileattr.h).
_XFLAGS = {0x08: 0x10, 0x10: 0x20, 0x20: 0x08, 0x40: 0x80, 0x80: 0x40}
_XFLAG_COMMON = 0x8000 | 0x200 | sum(_XFLAGS)

# What the VFS answers where a file system lacks the operation; ENOSYS would make FUSE pretend.
_REFUSED = {
    _MKDIR: errno.EPERM,
    _SYMLINK: errno.EPERM,
    _LINK: errno.EPERM,
    _RENAME: errno.EPERM,
    _RENAME2: errno.EPERM,
    _RMDIR: errno.EPERM,
}

_SLEEPERS = {
    _LOOKUP: "lookup",
    _GETATTR: "getattr",
    _SETATTR: "setattr",
    _UNLINK: "unlink",
    _OPEN: "open",
    _READ: "read",
    _WRITE: "write",
    _STATFS: "statfs",
    _FSYNC: "fsync",
    _RELEASE: "release",
    _READDIR: "readdir",
    _CREATE: "create",
    _MKNOD: "mknod",
    _READLINK: "readlink",
}


def flags_from_xattr(fsxattr: bytes) -> int:
    """FS_*_FL flags that FS_IOC_FSSETXATTR asks for; EOPNOTSUPP for what has no such flag
    (fileattr_has_fsx)."""
    xflags, extsize, _, projid, cowextsize = _FSXATTR.unpack_from(fsxattr)
    if xflags & ~_XFLAG_COMMON or extsize or projid or cowextsize:
        raise OSError(errno.EOPNOTSUPP, "extended attributes of the inode")
    return sum(flag for xflag, flag in _XFLAGS.items() if xflags & xflag)


@dataclass(frozen=True, slots=True)
class _Offset:
    """Where an open file is: as the host's kernel counts, and as the modelled one does."""

    shown: int
    real: int


class FuseConnection:
    """Serves one mount. :meth:`serve` runs in the jail thread whenever the descriptor is
    readable; requests for which the file system may sleep are finished on worker threads."""

    def __init__(
        self, filesystem: Filesystem, fd: int, scheduler: Scheduler, pinned: Sequence[bytes] = ()
    ) -> None:
        """``pinned``: paths of directories on which something is mounted: they stay as they are,
        so the kernel need not ask for them on the way to every file below."""
        self.filesystem = filesystem
        self._fd = fd
        self._open_lock = threading.Lock()
        self._scheduler = scheduler
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._listings: dict[int, list[Entry]] = {}
        self._moved: dict[int, _Offset] = {}
        self._next_listing = 1
        self._sleeping: dict[int, Task] = {}
        self._tasks: dict[tuple[int, int, int], Task] = {}
        self._swap = {_ROOT_NODE: filesystem.root, filesystem.root: _ROOT_NODE}
        self._pinned = self._inodes_on(pinned)
        self._operations: dict[int, Callable[[Task, int, memoryview], tuple[bytes, ...]]] = {
            _INIT: self._init,
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _SETATTR: self._setattr,
            _READLINK: self._readlink,
            _UNLINK: self._unlink,
            _OPEN: self._open,
            _CREATE: self._create,
            _MKNOD: self._mknod,
            _READ: self._read,
            _WRITE: self._write,
            _STATFS: self._statfs,
            _FSYNC: self._fsync,
            _RELEASE: self._release,
            _OPENDIR: self._opendir,
            _READDIR: self._readdir,
            _RELEASEDIR: self._releasedir,
            _IOCTL: self._ioctl,
            _SETXATTR: self._change_xattr,
            _REMOVEXATTR: self._change_xattr,
            _LISTXATTR: self._listxattr,
        }

    def _inodes_on(self, paths: Sequence[bytes]) -> frozenset[int]:
        found: set[int] = set()
        task = Task.kernel()
        for path in paths:
            ino = self.filesystem.root
            found.add(ino)
            for name in path.split(b"/"):
                ino = self.filesystem.lookup(task, ino, name).ino
                found.add(ino)
        return frozenset(found)

    def fileno(self) -> int:
        """The /dev/fuse descriptor."""
        return self._fd

    def serve(self) -> bool:
        """Take one request; False when the mount is gone."""
        try:
            length = os.readv(self._fd, [self._view])
        except OSError as error:
            # ENOENT: the request was interrupted before it was read.
            return error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT)
        _, opcode, unique, node, uid, gid, pid, _, _ = _IN_HEADER.unpack_from(self._buffer)
        body = self._view[_IN_HEADER.size : length]
        if opcode in (_FORGET, _BATCH_FORGET, _DESTROY):
            return True
        if opcode == _INTERRUPT:
            self._interrupt(struct.unpack_from("<Q", body)[0])
            return True
        name = _SLEEPERS.get(opcode)
        if name is not None and self.filesystem.may_sleep(name):
            # The buffer is reused, and a task that sleeps needs a fatal event of its own.
            copy = memoryview(bytes(body))
            task = Task(pid, uid, gid, uid == 0)
            self._sleeping[unique] = task
            self._scheduler.run_later(lambda: self._sleep(opcode, unique, task, node, copy))
        else:
            self._answer(opcode, unique, self._task(pid, uid, gid), node, body)
        return True

    def close(self) -> None:
        """Abort the connection: every blocked caller gets ECONNABORTED."""
        with self._open_lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _task(self, pid: int, uid: int, gid: int) -> Task:
        key = (pid, uid, gid)
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) > 64:
                self._tasks.clear()
            task = self._tasks[key] = Task(pid, uid, gid, uid == 0)
        return task

    def _interrupt(self, unique: int) -> None:
        # The kernel tells of the first signal only, so a later fatal one must be looked for.
        if unique in self._sleeping and self._spare_life(unique):
            self._scheduler.watch(lambda: self._spare_life(unique))

    def _spare_life(self, unique: int) -> bool:
        """Deliver a fatal signal; whether there may still be one to come."""
        task = self._sleeping.get(unique)
        if task is None:
            return False
        if not self._scheduler.has_fatal_signal(task.pid):
            return True
        task.fatal.set()
        return False

    def _sleep(self, opcode: int, unique: int, task: Task, node: int, body: memoryview) -> None:
        try:
            with running(task):
                self._answer(opcode, unique, task, node, body)
        finally:
            self._sleeping.pop(unique, None)

    def _answer(self, opcode: int, unique: int, task: Task, node: int, body: memoryview) -> None:
        error = 0
        parts: tuple[bytes, ...] = ()
        try:
            operation = self._operations.get(opcode)
            if operation is None:
                error = _REFUSED.get(opcode, errno.ENOSYS)
            else:
                parts = operation(task, self._swap.get(node, node), body)
        except OSError as failure:
            error = failure.errno or errno.EIO
        except Killed:
            error = errno.EINTR
        except PowerLost:
            return
        except Exception:
            traceback.print_exc(file=sys.stderr)
            error = errno.EIO
        header = _OUT_HEADER.pack(_OUT_HEADER.size + sum(map(len, parts)), -error, unique)
        # The lock keeps a closed descriptor's number, perhaps in use again, from being written to;
        # an error means that the caller is gone, or the mount.
        with self._open_lock, contextlib.suppress(OSError):
            if self._fd >= 0:
                os.writev(self._fd, (header, *parts))

    # --- operations: (task, inode, request) -> reply ---

    def _init(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        major, minor, readahead, flags = _INIT_IN.unpack_from(body)
        if major != 7 or minor < _MINOR:
            raise OSError(errno.EPROTO, f"FUSE protocol {major}.{minor}; 7.{_MINOR} is needed")
        return (
            _INIT_OUT.pack(
                7, _MINOR, readahead, flags & _WANTED, 64, 48, _MAX_WRITE, 1, _MAX_WRITE // _PAGE,
                0, 0,
            ),
        )  # fmt: skip

    def _attr(self, attr: Attr) -> bytes:
        seconds = int(attr.mtime)
        nanoseconds = int((attr.mtime - seconds) * 1e9)
        rdev = encode_dev(os.major(attr.rdev), os.minor(attr.rdev))
        return _ATTR.pack(
            attr.shown or attr.ino, attr.size, 0, seconds, seconds, seconds, nanoseconds,
            nanoseconds, nanoseconds, attr.mode, attr.nlink, attr.uid, attr.gid, rdev, _PAGE, 0,
        )  # fmt: skip

    def _entry(self, attr: Attr) -> bytes:
        node = self._swap.get(attr.ino, attr.ino)
        valid = _FOREVER if attr.ino in self._pinned else 0
        return _ENTRY_HEAD.pack(node, 0, valid, valid, 0, 0) + self._attr(attr)

    def _lookup(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        return (self._entry(self.filesystem.lookup(task, ino, bytes(body[:-1]))),)

    def _getattr(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        valid = _FOREVER if ino in self._pinned else 0
        return (_ATTR_HEAD.pack(valid, 0, 0), self._attr(self.filesystem.getattr(task, ino)))

    def _setattr(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        fields = _SETATTR_IN.unpack_from(body)
        valid, size, mtime, mtime_ns = fields[0], fields[3], fields[6], fields[9]
        mode, uid, gid = fields[11], fields[13], fields[14]
        when: float | None = None
        if valid & _FATTR_MTIME:
            # The kernel fills in the time for "now" as well.
            when = mtime + mtime_ns / 1e9
        attr = self.filesystem.setattr(
            task,
            ino,
            mode=mode if valid & _FATTR_MODE else None,
            uid=uid if valid & _FATTR_UID else None,
            gid=gid if valid & _FATTR_GID else None,
            size=size if valid & _FATTR_SIZE else None,
            mtime=when,
        )
        return (_ATTR_HEAD.pack(0, 0, 0), self._attr(attr))

    def _readlink(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        return (self.filesystem.readlink(task, ino),)

    def _unlink(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        self.filesystem.unlink(task, ino, bytes(body[:-1]))
        return ()

    def _open(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        flags, _ = _OPEN_IN.unpack_from(body)
        return (_OPEN_OUT.pack(self.filesystem.open(task, ino, flags), _FOPEN_DIRECT_IO, 0),)

    def _create(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        flags, mode, _, _ = _CREATE_IN.unpack_from(body)
        name = bytes(body[_CREATE_IN.size : -1])
        attr, handle = self.filesystem.create(task, ino, name, mode, flags)
        return (self._entry(attr), _OPEN_OUT.pack(handle, _FOPEN_DIRECT_IO, 0))

    def _mknod(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        """A regular file is created (vfs_create); of other nodes there are none."""
        mode, _, _, _ = _MKNOD_IN.unpack_from(body)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "no such nodes")
        name = bytes(body[_MKNOD_IN.size : -1])
        attr, handle = self.filesystem.create(task, ino, name, mode, os.O_RDONLY)
        self.filesystem.release(handle)
        return (self._entry(attr),)

    def _read(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        handle, offset, size, *_ = _READ_IN.unpack_from(body)
        moved = self._moved.get(handle)
        if moved is None or offset != moved.shown:
            return (self.filesystem.read(task, handle, offset, size),)
        data = self.filesystem.read(task, handle, moved.real, size)
        self._moved[handle] = _Offset(moved.shown + len(data), moved.real + len(data))
        return (data,)

    def _write(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        handle, offset, size, *_ = _WRITE_IN.unpack_from(body)
        data = bytes(body[_WRITE_IN.size : _WRITE_IN.size + size])
        written = self.filesystem.write(task, handle, offset, data)
        if not self.filesystem.write_moves_offset:
            # The host's kernel moves it all the same: a later read(2) is put right here.
            moved = self._moved.get(handle)
            real = moved.real if moved is not None and moved.shown == offset else offset
            self._moved[handle] = _Offset(offset + written, real)
        return (struct.pack("<II", written, 0),)

    def _fsync(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        self.filesystem.fsync(task, _FSYNC_IN.unpack_from(body)[0])
        return ()

    def _release(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        handle = _RELEASE_IN.unpack_from(body)[0]
        self._moved.pop(handle, None)
        self.filesystem.release(handle)
        return ()

    def _statfs(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        st = self.filesystem.statfs(task)
        return (
            _KSTATFS.pack(
                st.blocks, st.bfree, st.bavail, st.files, st.ffree, st.bsize, st.namelen,
                st.frsize, 0,
            ),
        )  # fmt: skip

    def _opendir(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        handle = self._next_listing
        self._next_listing += 1
        self._listings[handle] = []
        return (_OPEN_OUT.pack(handle, 0, 0),)

    def _readdir(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        handle, offset, size, *_ = _READ_IN.unpack_from(body)
        if offset == 0:
            dots = [Entry(b".", ino, stat.S_IFDIR), Entry(b"..", ino, stat.S_IFDIR)]
            self._listings[handle] = dots + self.filesystem.readdir(task, ino)
        reply = bytearray()
        entries = self._listings[handle]
        for position in range(offset, len(entries)):
            entry = entries[position]
            length = _DIRENT.size + len(entry.name)
            padding = -length % 8
            if len(reply) + length + padding > size:
                break
            kind = stat.S_IFMT(entry.mode) >> 12
            reply += _DIRENT.pack(entry.ino, position + 1, len(entry.name), kind)
            reply += entry.name + bytes(padding)
        return (bytes(reply),)

    def _releasedir(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        self._listings.pop(_RELEASE_IN.unpack_from(body)[0], None)
        return ()

    def _change_xattr(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        """There are none, and xattr_permission() comes first (K6 fs/xattr.c). To look for one is
        left to FUSE, which learns once that it is in vain and asks at no write(2) again."""
        flags = 0
        with contextlib.suppress(OSError):
            flags = self.filesystem.getflags(task, ino)
        raise OSError(errno.EPERM if flags & _IMMUTABLE else errno.EOPNOTSUPP, "xattr")

    def _listxattr(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        (size,) = struct.unpack_from("<I", body)
        return () if size else (struct.pack("<II", 0, 0),)

    def _ioctl(self, task: Task, ino: int, body: memoryview) -> tuple[bytes, ...]:
        _, _, command, _, in_size, _ = _IOCTL_IN.unpack_from(body)
        argument = bytes(body[_IOCTL_IN.size : _IOCTL_IN.size + in_size])
        data = b""
        if command == FS_IOC_GETFLAGS:
            data = struct.pack("<I", self.filesystem.getflags(task, ino))
        elif command == FS_IOC_FSGETXATTR:
            flags = self.filesystem.getflags(task, ino)
            xflags = sum(xflag for xflag, flag in _XFLAGS.items() if flags & flag)
            data = _FSXATTR.pack(xflags, 0, 0, 0, 0)
        elif command == FS_IOC_SETFLAGS:
            self.filesystem.setflags(task, ino, struct.unpack_from("<I", argument)[0])
        elif command == FS_IOC_FSSETXATTR:
            self.filesystem.setflags(task, ino, flags_from_xattr(argument))
        else:
            raise OSError(errno.ENOTTY, f"ioctl {command:#x}")
        return (_IOCTL_OUT.pack(0, 0, 0, 0), data)
