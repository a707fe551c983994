"""efivarfs, where FUSE differs: seeks, writes that no request carries, the immutable flag."""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from emulation.linux.efivarfs import REFUSED_WRITE
from emulation.linux.kernel import Task
from emulation.userland.jail.caller import CAP_LINUX_IMMUTABLE, Proceed
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.fuse import FS_IOC_SETFLAGS, flags_from_xattr

_IOVEC: Final = struct.Struct("<QQ")
_IOV_MAX: Final = 1024
"""struct iovec: address, length; and how many writev(2) takes (include/uapi/linux/uio.h)."""


def lseek(call: Call) -> None:
    """lseek(2), also of a character device."""
    link = call.caller.descriptor(call.args[0])
    device = call.shared.files.get(link)
    of_driver = device is not None and device[0].storage is None
    if not of_driver and not call.shared.mounts.is_variable(link):
        raise Proceed
    raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))  # no llseek (K6 fs/efivarfs/file.c)


def write(call: Call) -> None:
    """A write(2) of nothing, or of more than one FUSE request carries."""
    _, address, length = call.args[:3]
    task, ino = _written_variable(call)
    data = call.caller.memory.read(address, min(length, REFUSED_WRITE))

    def work() -> None:
        call.reply(call.shared.handlers.write_efivarfs(task, ino, data))

    call.run(task, work)


def writev(call: Call) -> None:
    """writev(2) of several parts: each is a write by itself, because efivarfs has no write_iter
    (K6 fs/read_write.c, do_loop_readv_writev)."""
    _, address, count = call.args[:3]
    memory = call.caller.memory
    task, ino = _written_variable(call)
    if count > _IOV_MAX:
        raise Proceed  # EINVAL
    vector = list(_IOVEC.iter_unpack(memory.read(address, count * _IOVEC.size)))
    if not sum(length for _, length in vector):
        raise Proceed  # 0
    parts = [
        memory.read(base, min(length, REFUSED_WRITE))
        for number, (base, length) in enumerate(vector)
        if length or number == 0
    ]

    def work() -> None:
        written = 0
        for part in parts:
            try:
                written += call.shared.handlers.write_efivarfs(task, ino, part)
            except OSError:
                if not written:
                    raise
                break
        call.reply(written)

    call.run(task, work)


def _written_variable(call: Call) -> tuple[Task, int]:
    """Who writes, and to which inode; Proceed where that is no variable open for writing."""
    mounts, caller, fd = call.shared.mounts, call.caller, call.args[0]
    if not mounts.is_variable(caller.descriptor(fd)):
        raise Proceed
    opened = mounts.opened(caller, fd)
    if int(opened.info["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
        raise Proceed  # EBADF
    task = caller.task()
    return task, opened.inode(task)


def set_flags(call: Call, request: int) -> None:
    """FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR, whose capability the VFS wants of the host."""
    caller, (fd, _, argument) = call.caller, call.args[:3]
    opened = call.shared.mounts.opened(caller, fd)
    if opened.entry.read_only:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if request == FS_IOC_SETFLAGS:
        flags = struct.unpack("<I", caller.memory.read(argument, 4))[0]
    else:
        flags = flags_from_xattr(caller.memory.read(argument, 28))
    filesystem = opened.mount.filesystem
    task = caller.task()
    ino = opened.inode(task)
    task.capable = caller.has_capability(CAP_LINUX_IMMUTABLE)
    if not task.capable and filesystem.getattr(task, ino).uid != task.uid:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def work() -> None:
        filesystem.setflags(task, ino, flags)
        call.reply(0)

    call.run(task, work, sleeps=filesystem.may_sleep("setflags"))
