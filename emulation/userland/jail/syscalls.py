"""System call numbers and the calls that Python lacks, by ctypes; x86_64 and aarch64.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.  Only the
standard library is used, because PID 1 and the board's own programs run this file without
site-packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# name: (x86_64, aarch64); None where the architecture has no such call.
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "write": (1, 64),
    "open": (2, None),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "ioctl": (16, 29),
    "writev": (20, 66),
    "uname": (63, 160),
    "creat": (85, None),
    "syslog": (103, 116),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "unshare": (272, 97),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "seccomp": (317, 277),
    "statx": (332, 291),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_tree_attr": (467, 467),
    "file_getattr": (468, 468),
    "file_setattr": (469, 469),
}


@dataclass(frozen=True)
class Architecture:
    """What differs between hosts: ``audit`` is AUDIT_ARCH_* (include/uapi/linux/audit.h)."""

    name: str
    audit: int
    numbers: dict[str, int]


def _column(index: int) -> dict[str, int]:
    return {name: pair[index] for name, pair in _NUMBERS.items() if pair[index] is not None}  # type: ignore[misc]


X86_64: Final = Architecture("x86_64", 0xC000003E, _column(0))
AARCH64: Final = Architecture("aarch64", 0xC00000B7, _column(1))
_ARCHITECTURES: Final = {"x86_64": X86_64, "aarch64": AARCH64}


def host_architecture() -> Architecture:
    """The architecture of this machine; ``OSError(ENOSYS)`` for one nobody wrote the numbers of."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call numbers for {machine}")
    return _ARCHITECTURES[machine]


CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOATIME: Final = 1024
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_UNBINDABLE: Final = 1 << 17
MS_RELATIME: Final = 1 << 21
CHANGES_A_MOUNT: Final = (
    MS_REMOUNT | MS_BIND | MS_MOVE | MS_SHARED | MS_SLAVE | MS_PRIVATE | MS_UNBINDABLE
)
PER_MOUNT: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME
MNT_DETACH: Final = 2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_SYSCALL_NUMBERS: Final = (
    host_architecture().numbers if platform.machine() in _ARCHITECTURES else {}
)


def raw(name: str, *arguments: int | bytes | None) -> int:
    """System call ``name``; integers are passed as 64 bits. Raises ``OSError``."""
    values = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result: int = _libc.syscall(ctypes.c_long(_SYSCALL_NUMBERS[name]), *values)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def prctl(option: int, value: int | bytes) -> None:
    """prctl(2) with one argument."""
    if _libc.prctl(option, value if isinstance(value, bytes) else ctypes.c_ulong(value), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")


def unshare(flags: int) -> None:
    """unshare(2)."""
    raw("unshare", flags)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


# Calls that return at once keep the interpreter's lock: to give it away costs far more than they
# do when other threads want it.
_prompt = ctypes.PyDLL(None, use_errno=True)
_vm_readv = _prompt.process_vm_readv
_vm_writev = _prompt.process_vm_writev
for _function in (_vm_readv, _vm_writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.POINTER(_Iovec),
        ctypes.c_ulong, ctypes.c_ulong,
    )  # fmt: skip

_prompt_ioctl = _prompt.ioctl
_prompt_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_prompt_readlink = _prompt.readlink
_prompt_readlink.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_prompt_readlink.restype = ctypes.c_ssize_t


def prompt_ioctl(fd: int, request: int, buffer: bytearray) -> None:
    """ioctl(2) that does not sleep, on a buffer of its argument's size; raises ``OSError``."""
    argument = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    if _prompt_ioctl(fd, request, argument) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def prompt_readlink(path: str) -> str:
    """readlink(2) where it does not sleep, as in /proc; raises ``OSError``."""
    target = ctypes.create_string_buffer(_PATH_MAX)
    length = _prompt_readlink(os.fsencode(path), target, _PATH_MAX)
    if length < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return os.fsdecode(target.raw[:length])


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PATH_MAX: Final = 4096
_U64: Final = 1 << 64


class _Transfer(threading.local):
    """Buffer and vectors of one thread for copies of up to :data:`_TRANSFER` bytes: to make them
    anew costs more than the copy."""

    def __init__(self) -> None:
        self.bytes = bytearray(_TRANSFER)
        self._buffer = (ctypes.c_char * _TRANSFER).from_buffer(self.bytes)
        self.view = memoryview(self.bytes)
        self._local = _Iovec(ctypes.addressof(self._buffer), 0)
        self._remote = _Iovec(0, 0)
        self._references = ctypes.byref(self._local), ctypes.byref(self._remote)

    def read(self, pid: int, address: int, size: int) -> int:
        """process_vm_readv(2) into the buffer: its result."""
        return self._move(_vm_readv, pid, address, size)

    def write(self, pid: int, address: int, data: bytes) -> int:
        """process_vm_writev(2) by way of the buffer: its result."""
        self.view[: len(data)] = data
        return self._move(_vm_writev, pid, address, len(data))

    def _move(self, call: Callable[..., int], pid: int, address: int, size: int) -> int:
        self._local.length = self._remote.length = size
        self._remote.base = address % _U64
        local, remote = self._references
        return call(pid, local, 1, remote, 1, 0)


_TRANSFER: Final = 1 << 14
_transfer = _Transfer()


class ProcessMemory:
    """Memory of a process of the board; the supervisor may read it because it owns the board's
    user namespace."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``; raises ``OSError(EFAULT)`` if any is not mapped."""
        if size == 0:
            return b""
        data = self._read_some(address, size)
        if len(data) != size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``; raises ``OSError(EFAULT)``."""
        if not data:
            return
        size = len(data)
        if size > _TRANSFER:
            self.write(address, data[:_TRANSFER])
            self.write(address + _TRANSFER, data[_TRANSFER:])
            return
        if _transfer.write(self._pid, address, data) != size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def read_string(self, address: int, limit: int = _PATH_MAX) -> bytes:
        """A C string without its NUL; ENAMETOOLONG when longer than ``limit`` with it."""
        text = b""
        while len(text) < limit:
            # Never across a page, which may be the last one mapped.
            chunk = min(256, _PAGE - (address + len(text)) % _PAGE)
            data = self._read_some(address + len(text), chunk)
            if not data:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            end = data.find(0)
            if end >= 0:
                return text + data[:end]
            text += data
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def _read_some(self, address: int, size: int) -> bytes:
        transfer = _transfer
        count = transfer.read(self._pid, address, min(size, _TRANSFER))
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "process_vm_readv")
        data = bytes(transfer.view[:count])
        if count == _TRANSFER < size:
            # What is not mapped behind it shortens the answer, as it does within one call.
            with contextlib.suppress(OSError):
                data += self._read_some(address + count, size - count)
        return data


def read_path(pid: int, address: int) -> bytes | None:
    """A string of up to 255 bytes within one page of another process; None: ask
    :class:`ProcessMemory`."""
    size = min(256, _PAGE - address % _PAGE)
    transfer = _transfer
    if transfer.read(pid, address, size) != size:
        return None
    end = transfer.bytes.find(0, 0, size)
    return bytes(transfer.view[:end]) if end >= 0 else None


def encode_dev(major: int, minor: int) -> int:
    """new_encode_dev(): a device number as FUSE and statfs' f_fsid carry it."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def pack_statfs(*fields: int) -> bytes:
    """struct statfs of a 64-bit kernel: type, bsize, blocks, bfree, bavail, files, ffree, fsid,
    namelen, frsize, flags; the same 120 bytes on x86_64 and aarch64
    (include/uapi/asm-generic/statfs.h; arch/x86 uses it)."""
    return struct.pack("<qqQQQQQQqqq32x", *fields)


_BLOCK: Final = 4096
_STATX_BASIC_STATS: Final = 0x7FF
_STAT_X86_64: Final = struct.Struct("<QQQIII4xQqqqqQqQqQ24x")
_STAT_GENERIC: Final = struct.Struct("<QQIIIIQ8xqi4xqqQqQqQ8x")
_STATX: Final = struct.Struct("<IIQIIIH2xQQQQqI4x16xqI4xqI4xIIII112x")


@dataclass(frozen=True)
class NodeStat:
    """What stat(2) says of a device node; numbers as makedev() has them, times in seconds."""

    dev: int
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    time: float

    def pack(self, architecture: Architecture) -> bytes:
        """struct stat (arch/x86/include/uapi/asm/stat.h, include/uapi/asm-generic/stat.h)."""
        dev, rdev = (encode_dev(os.major(n), os.minor(n)) for n in (self.dev, self.rdev))
        times = self._time * 3
        if architecture is X86_64:
            owner = (1, self.mode, self.uid, self.gid)
            return _STAT_X86_64.pack(dev, self.ino, *owner, rdev, 0, _BLOCK, 0, *times)
        owner = (self.mode, 1, self.uid, self.gid)
        return _STAT_GENERIC.pack(dev, self.ino, *owner, rdev, 0, _BLOCK, 0, *times)

    def pack_statx(self) -> bytes:
        """struct statx, 256 bytes (include/uapi/linux/stat.h)."""
        numbers = [f(n) for n in (self.rdev, self.dev) for f in (os.major, os.minor)]
        return _STATX.pack(
            _STATX_BASIC_STATS, _BLOCK, 0, 1, self.uid, self.gid, self.mode, self.ino, 0, 0, 0,
            *self._time * 3, *numbers,
        )  # fmt: skip

    @property
    def _time(self) -> tuple[int, int]:
        seconds = int(self.time)
        return seconds, int((self.time - seconds) * 1e9)


UTSNAME_FIELD: Final = 65
"""Bytes of each of the six strings of struct new_utsname."""


def pack_utsname(*strings: str) -> bytes:
    """struct new_utsname of sysname, nodename, release, version, machine, domainname."""
    return b"".join(s.encode()[: UTSNAME_FIELD - 1].ljust(UTSNAME_FIELD, b"\0") for s in strings)
