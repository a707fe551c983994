"""seccomp: the filter that turns some system calls into notifications, and the notifications.

Layouts: include/uapi/linux/seccomp.h, filter.h, bpf_common.h; identical on x86_64 and aarch64.
Calls that the filter does not name cost nothing: the kernel caches that they are always allowed
(Linux 5.11).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from typing import Final, NamedTuple

from emulation.userland.jail.syscalls import Architecture, prompt_ioctl, raw

_LD_W_ABS, _AND_K, _JEQ_K, _JGT_K, _JGE_K, _RET_K = 0x20, 0x54, 0x15, 0x25, 0x35, 0x06
_RET_ERRNO: Final = 0x00050000
_RET_NOTIFY: Final = 0x7FC00000
_RET_ALLOW: Final = 0x7FFF0000

_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_SET_MODE_FILTER: Final = 1
_FLAG_NEW_LISTENER: Final = 1 << 3

_NOTIF = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_ADDFD = struct.Struct("<QIIII")
_CONTINUE: Final = 1
_ADDFD_FLAG_SEND: Final = 2


def _ioc(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("!") << 8 | number


NOTIF_RECV: Final = _ioc(3, 0, _NOTIF.size)
NOTIF_SEND: Final = _ioc(3, 1, _RESPONSE.size)
NOTIF_ID_VALID: Final = _ioc(1, 2, 8)
NOTIF_ADDFD: Final = _ioc(1, 3, _ADDFD.size)
NOTIF_SET_FLAGS: Final = _ioc(1, 4, 8)
_SYNC_WAKE_UP: Final = 1

NOTIFIED: Final = (
    "open", "creat", "openat", "openat2", "statfs", "fstatfs", "mount", "umount2", "uname",
    "syslog", "init_module", "finit_module", "delete_module", "reboot", "lseek", "sethostname",
    "fstat",
)  # fmt: skip
"""Always notified."""

SOMETIMES: Final = ("ioctl", "write", "writev", "newfstatat", "statx")
"""Notified for some arguments."""

LONGEST_WRITE: Final = (1 << 20) - 4096
"""Bytes of write(2) that FUSE carries in one request wherever the buffer begins: 256 pages is the
kernel's limit (FUSE_MAX_MAX_PAGES, fs.fuse.max_pages_limit)."""

_AT_EMPTY_PATH: Final = 0x1000
_FLAGS_ARGUMENT: Final = {"newfstatat": 3, "statx": 2}

UNSUPPORTED: Final = (
    "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr",
    "statmount", "listmount", "open_tree_attr", "file_getattr", "file_setattr", "io_uring_setup",
    "add_key", "request_key", "keyctl",
)  # fmt: skip
"""Answered ENOSYS, so that callers fall back on mount(2), ioctl(2) and openat(2); the keys of the
user who runs the board would be its root's, too."""

_X32_BIT: Final = 0x40000000
"""Marks system calls of x86_64's second set of numbers (arch/x86/include/uapi/asm/unistd.h)."""

IOCTL_TYPES: Final = (0xA4, 0xB3, 0x12)
"""TEE, MMC and block device ioctls, by the type byte of the request."""

IOCTL_REQUESTS: Final = (0x40086602, 0x401C5820)
"""FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR: the VFS wants CAP_LINUX_IMMUTABLE of the host."""


def build_filter(architecture: Architecture, cookie: int) -> bytes:
    """The BPF program (struct sock_filter, 8 bytes each).

    A call of :data:`UNSUPPORTED` or :data:`NOTIFIED` whose otherwise unused sixth argument is
    ``cookie`` (64 bits) is PID 1's own and allowed. Calls by the numbers of another architecture
    (int 0x80, x32, 32-bit programs) do not exist.
    """
    numbers = architecture.numbers
    code: list[tuple[int, int, int, int]] = []

    def returns(action: int) -> list[tuple[int, int, int, int]]:
        return [(_RET_K, 0, 0, action)]

    def load(offset: int) -> tuple[int, int, int, int]:
        return (_LD_W_ABS, 0, 0, offset)

    def when(value: int, then: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        return [(_JEQ_K, 0, len(then), value), *then]

    def argument(index: int) -> int:
        return _ARGS_OFFSET + 8 * index

    allow = returns(_RET_ALLOW)
    notify = returns(_RET_NOTIFY)

    def unless_cookie(action: int) -> list[tuple[int, int, int, int]]:
        low, high = cookie & 0xFFFFFFFF, cookie >> 32
        inner = [load(argument(5) + 4), *when(high, allow), *returns(action)]
        return [load(argument(5)), *when(low, inner), *returns(action)]

    unknown = returns(_RET_ERRNO | errno.ENOSYS)
    code += [load(_ARCH_OFFSET), (_JEQ_K, 1, 0, architecture.audit), *unknown, load(_NR_OFFSET)]
    code += [(_JGE_K, 0, 1, _X32_BIT), *unknown]
    ioctl = [load(argument(1))]
    for request in IOCTL_REQUESTS:
        ioctl += when(request, notify)
    ioctl += [(_AND_K, 0, 0, 0xFF00)]
    for kind in IOCTL_TYPES:
        ioctl += when(kind << 8, notify)
    code += when(numbers["ioctl"], [*ioctl, *allow])
    # write(2) of nothing never reaches FUSE, and a long one reaches it in pieces.
    too_long = [(_JGT_K, 0, len(notify), LONGEST_WRITE), *notify]
    huge = [load(argument(2) + 4), (_JEQ_K, len(notify), 0, 0), *notify]
    length = [*huge, load(argument(2)), *when(0, notify), *too_long, *allow]
    code += when(numbers["write"], length)
    # FUSE makes one write of all the parts.
    several = [load(argument(2)), (_JGT_K, 0, len(notify), 1), *notify, *allow]
    code += when(numbers["writev"], several)
    for name, index in _FLAGS_ARGUMENT.items():
        flags = [load(argument(index)), (_AND_K, 0, 0, _AT_EMPTY_PATH)]
        code += when(numbers[name], [*flags, *when(_AT_EMPTY_PATH, notify), *allow])
    for name in NOTIFIED:
        if name in numbers:
            action = unless_cookie(_RET_NOTIFY) if name in ("mount", "umount2") else notify
            code += when(numbers[name], action)
    for name in UNSUPPORTED:
        code += when(numbers[name], unless_cookie(_RET_ERRNO | errno.ENOSYS))
    code += allow
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: bytes) -> int:
    """Install the filter in this thread and its future children; returns the listener.

    Needs CAP_SYS_ADMIN in the user namespace (so that set-user-ID programs keep working, unlike
    with no_new_privs). Raises ``OSError``.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    return raw("seccomp", _SET_MODE_FILTER, _FLAG_NEW_LISTENER, ctypes.addressof(fprog))


class Notification(NamedTuple):
    """One system call that waits for an answer; ``pid`` is the thread as this process sees it."""

    id: int
    pid: int
    number: int
    args: tuple[int, ...]


class Listener:
    """The supervisor's end. Every answer returns False if the caller is gone (killed or
    interrupted by a signal), in which case nothing happened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._open_lock = threading.Lock()
        self._buffer = bytearray(_NOTIF.size)
        self._empty = bytes(_NOTIF.size)
        try:
            fcntl.ioctl(fd, NOTIF_SET_FLAGS, _SYNC_WAKE_UP)  # Linux 6.6: cheaper hand-over
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def fileno(self) -> int:
        """The listener's descriptor."""
        return self._fd

    def receive(self) -> Notification | None:
        """The next notification; None when its caller has gone meanwhile."""
        self._buffer[:] = self._empty  # the kernel wants zeroes
        try:
            prompt_ioctl(self._fd, NOTIF_RECV, self._buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        ident, pid, _, number, _, _, *args = _NOTIF.unpack(self._buffer)
        return Notification(ident, pid, number, tuple(args))

    def valid(self, ident: int) -> bool:
        """Whether the caller still waits."""
        return self._try(NOTIF_ID_VALID, struct.pack("<Q", ident))

    def proceed(self, ident: int) -> bool:
        """Let the kernel execute the call as it is."""
        return self._try(NOTIF_SEND, _RESPONSE.pack(ident, 0, 0, _CONTINUE))

    def reply(self, ident: int, value: int) -> bool:
        """The call returns ``value``."""
        return self._try(NOTIF_SEND, _RESPONSE.pack(ident, value, 0, 0))

    def fail(self, ident: int, number: int) -> bool:
        """The call fails with errno ``number``."""
        return self._try(NOTIF_SEND, _RESPONSE.pack(ident, 0, -number, 0))

    def reply_fd(self, ident: int, fd: int, *, cloexec: bool) -> bool:
        """The call returns a new descriptor, a duplicate of ``fd``; Linux 5.14."""
        flags = os.O_CLOEXEC if cloexec else 0
        return self._try(NOTIF_ADDFD, _ADDFD.pack(ident, _ADDFD_FLAG_SEND, fd, 0, flags))

    def close(self) -> None:
        """Waiting callers get ENOSYS."""
        with self._open_lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _try(self, request: int, argument: bytes) -> bool:
        with self._open_lock:
            if self._fd < 0:
                return False
            try:
                prompt_ioctl(self._fd, request, bytearray(argument))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                    return False
                raise
        return True
