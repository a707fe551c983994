"""Where what others wrote comes in (board files, known_hosts, the command line): what Python's
errors mean there, and files that are read whole, whatever they are.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from harness.errors import ConfigurationError

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

AT_THE_EDGE = (OSError, ValueError, RecursionError, OverflowError, MemoryError)
"""What hostile input raises somewhere below; of UnicodeError the base is ValueError."""


def meaning(error: BaseException) -> str:
    """What one of :data:`AT_THE_EDGE` says of the input, as the end of a sentence."""
    match error:
        case OSError():
            return error.strerror or str(error)
        case UnicodeDecodeError():
            return f"not UTF-8 text (byte 0x{error.object[error.start]:02x})"
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it needs more memory than there is"
        case _:
            return str(error).partition(";")[0] or type(error).__name__


@contextlib.contextmanager
def reading(what: str, path: object, *, remedy: str) -> Iterator[None]:
    """What goes wrong inside is the fault of the file at ``path``, which is ``what`` (``the board
    file``). Raises :class:`ConfigurationError`."""
    try:
        yield
    except AT_THE_EDGE as error:
        raise ConfigurationError(
            f"cannot read {what} {path}: {meaning(error)}", remedy=remedy
        ) from error


def read_regular(path: Path, *, limit: int) -> bytes:
    """All of a regular file of at most ``limit`` bytes; never waits. Raises OSError and
    ValueError, which :func:`reading` explains."""
    # Looked at before it is opened: to open a serial adapter or a watchdog is to use it.
    _require_regular(path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        _require_regular(os.fstat(descriptor).st_mode)
        parts, left = [], limit + 1
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    if not left:
        raise ValueError(f"it is larger than {limit >> 10} KiB")
    return b"".join(parts)


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"it is {kind}, not a file")
