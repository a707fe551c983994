"""Messages between the supervisor, the zygote and PID 1: marshalled tuples with descriptors."""

from __future__ import annotations

import array
import marshal
import os
import socket
from typing import Any

_LIMIT = 1 << 18
_MAX_FDS = 64


def send(sock: socket.socket, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
    """One message; raises ``OSError`` (EMSGSIZE above the socket's buffer size)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([marshal.dumps(message)], rights)


def receive(sock: socket.socket) -> tuple[tuple[Any, ...], list[int]] | None:
    """The next message and its descriptors (close-on-exec); None at the end."""
    data, ancillary, _, _ = sock.recvmsg(
        _LIMIT, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        return None
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return marshal.loads(data), list(fds)


def store(value: Any) -> int:
    """A memfd that holds a value of any size."""
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    os.write(fd, marshal.dumps(value))
    return fd


def load(fd: int) -> Any:
    """What :func:`store` put into ``fd``, which is closed."""
    try:
        return marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    finally:
        os.close(fd)
