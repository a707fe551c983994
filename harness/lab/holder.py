"""Files that their holder keeps locked, and that say who that is.

A lock is one of fcntl(2)'s open file description locks: it dies with its process, whatever
happened to that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds or waits: the user, the process, what for, since when (seconds since 1970)."""

    user: str
    pid: int
    board: str
    purpose: str
    since: float
    things: tuple[str, ...]
    token: str

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.since))
        return (
            f"{self.user} (process {self.pid}, {self.purpose}) as board {self.board} "
            f"since {clock}, {_duration(time.time() - self.since)}"
        )


def lock(descriptor: int) -> None:
    """Lock a file for as long as ``descriptor`` is open (an open file description lock, fcntl(2)).
    Raises BlockingIOError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def write(descriptor: int, holder: Holder) -> None:
    """Say in a locked file who keeps it so."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def holder_of(path: Path) -> Holder | None:
    """Who keeps ``path`` locked; None when nobody does. Only looks: a trial lock would be in the
    way of who wants the lease in that instant."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return None
        raise
    try:
        return _read(descriptor) if _is_locked(descriptor) else None
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _read(descriptor: int) -> Holder | None:
    """What its holder wrote into a locked file; a placeholder for the instant before it did."""
    try:
        values = json.loads(os.pread(descriptor, 65536, 0))
        values["things"] = tuple(values["things"])
        return Holder(**values)
    except (ValueError, TypeError, KeyError):
        return Holder("somebody", 0, "?", "just now", time.time(), (), "unknown")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return " ".join(parts) or f"{rest} s"
