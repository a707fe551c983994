"""Messages between the supervisor, the zygote and PID 1: a JSON array a packet, with descriptors.

A packet of a socket that the board might get hold of is data and no more: bounded, and of the
types that its receiver asks for.  Only a plan, which the supervisor writes and none but its own
processes see, is marshalled.
"""

from __future__ import annotations

import array
import contextlib
import json
import marshal
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

_LIMIT: Final = 1 << 18
_MAX_FDS: Final = 64


class Malformed(Exception):
    """A packet that no program of ours sends."""


def send(sock: socket.socket, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
    """One message; raises ``OSError`` (EMSGSIZE above the socket's buffer size)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights)


def receive(sock: socket.socket) -> tuple[list[Any], list[int]] | None:
    """The next message and its descriptors (close-on-exec); None at the end.

    Raises :class:`Malformed` and ``OSError``."""
    data, ancillary, flags, _ = sock.recvmsg(
        _LIMIT, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("longer than any message")
        message = json.loads(data)
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            raise ValueError("no array that begins with a word")
    except (ValueError, RecursionError) as error:
        close_all(fds)
        raise Malformed(str(error)) from None
    return message, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close what came with a message and nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


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
