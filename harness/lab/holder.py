"""Files that their holder keeps locked, and that say who that is.

A lock is one of fcntl(2)'s open file description locks: it dies with its process, whatever
happened to that. Only the file's owner can write-lock it, so whose lock it is the kernel says;
what stands in the file is its owner's word about itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pwd
import re
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from harness.foreign import escaped

# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
# openat2(2): its number, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH.
_OPENAT2, _OWN_GROUND = 437, 0x01 | 0x04 | 0x08
_MOST_BYTES = 32768
_MOST_THINGS = 100
_MOST_CHARS = 300
_NOT_SEEN = 0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds or waits. ``uid``, the name before the @ of ``user``, ``held`` and ``since`` (in
    seconds from 1970 on) are what the kernel says, ``ticket`` is the place in the queue; the rest
    is the owner's own account: the process (0: not one that is seen from here), and what for."""

    user: str
    pid: int
    board: str
    purpose: str
    since: float
    things: tuple[str, ...]
    uid: int
    ticket: str
    held: bool
    proof: str
    """Digest of the token that the holder gives to what it starts."""

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.since))
        process = f"process {self.pid}" if self.pid != _NOT_SEEN else "a process not seen from here"
        return (
            f"{self.user} ({process}, {self.purpose}) as board {self.board} "
            f"since {clock}, {_duration(time.time() - self.since)}"
        )


@cache
def user_name(uid: int) -> str:
    """The name of a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return f"uid {uid}"


def digest(thing: str) -> str:
    """What stands for a thing in names and records, which everybody can read: its kind, and a
    digest of all that may be private."""
    kind = thing.split(" ")[0] if re.match(r"[a-z]{1,12} ", thing) else "thing"
    return f"{kind}-{sha256(thing.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"


def open_in(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of what is called ``name`` in the directory ``folder``, which may be anything
    and anybody's: nothing is followed or waited for, nor asked of a file system mounted there."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    how = struct.pack("QQQ", flags, 0, _OWN_GROUND)
    opened: int = _libc().syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(folder),
        ctypes.c_char_p(os.fsencode(name)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if opened >= 0:
        return opened
    if (number := ctypes.get_errno()) not in {errno.ENOSYS, errno.EPERM}:
        raise OSError(number, os.strerror(number), name)
    return os.open(name, flags, dir_fd=folder)  # a container that does not know the call


@contextlib.contextmanager
def regular(folder: int, name: str, owner: int) -> Iterator[int]:
    """A descriptor of an ordinary file of ``owner``. Raises OSError, and ValueError where it is
    something else."""
    descriptor = open_in(folder, name)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_uid != owner:
            raise ValueError("another user's file")
        yield descriptor
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock a file for as long as ``descriptor`` is open (an open file description lock, fcntl(2)).
    Raises BlockingIOError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def write(descriptor: int, holder: Holder) -> None:
    """Say in a locked file who keeps it so."""
    said = {
        "pid": holder.pid,
        "pid_namespace": _pid_namespace(),
        "host": socket.gethostname(),
        "board": holder.board,
        "purpose": holder.purpose,
        "things": holder.things,
        "proof": holder.proof,
    }
    os.pwrite(descriptor, json.dumps(said).encode(), 0)


def holder_of(folder: int, name: str, owner: int) -> Holder | None:
    """Who keeps a file of ``owner`` locked; None when nobody does. Raises OSError, and ValueError
    for what is no record. Only looks: a trial lock would be in the way."""
    with regular(folder, name, owner) as descriptor:
        if not _is_locked(descriptor):
            return None
        text, status = os.pread(descriptor, _MOST_BYTES + 1, 0), os.fstat(descriptor)
    if len(text) > _MOST_BYTES:
        raise ValueError("too long for a record")
    try:
        return _described(json.loads(text), name, status)
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError("not a record") from error


def keepers(folder: int, name: str, owner: int) -> Iterator[int]:
    """Descriptors (pidfds, to be closed) of the processes that keep a file of ``owner`` locked:
    those of ``owner`` whose open file has the lock, by the kernel's own account (proc(5), fdinfo).
    Other users' processes are not seen, except by root. Our own is not among them."""
    with regular(folder, name, owner) as wanted:
        file = os.fstat(wanted)
    for place in Path("/proc").glob("[0-9]*"):
        try:
            process = os.pidfd_open(int(place.name))
        except OSError:
            continue
        # The process is pinned first: what /proc says under its number is about it as long as it
        # lives, and a signal reaches nobody else.
        if int(place.name) != os.getpid() and _keeps(place, file, owner):
            yield process
        else:
            os.close(process)


def end(process: int, number: int) -> None:
    """Send a signal to a process by its pidfd, and close that."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(process, number)
    os.close(process)


def _keeps(process: Path, file: os.stat_result, owner: int) -> bool:
    with contextlib.suppress(OSError):
        if process.stat().st_uid != owner:
            return False  # a descriptor can be passed to somebody who knows nothing of it
        for opened in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(opened.stat(), file):
                    info = (process / "fdinfo" / opened.name).read_text("ascii")
                    if re.search(r"^lock:.* OFDLCK .* WRITE ", info, re.MULTILINE):
                        return True
    return False


def _is_locked(descriptor: int) -> bool:
    # Would a *read* lock be refused? Whoever can read the file can read-lock it: no proof.
    asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _described(said: object, name: str, status: os.stat_result) -> Holder:
    """What the owner of a ticket says about itself, as far as it can be so."""
    if not isinstance(said, dict):
        raise TypeError
    words = [said[key] for key in ("host", "board", "purpose", "proof")]
    things, pid = said["things"], said["pid"]
    if not isinstance(things, list) or len(things) > _MOST_THINGS:
        raise TypeError
    if not all(isinstance(word, str) for word in (*words, *things)):
        raise TypeError
    if type(pid) is not int:
        raise TypeError
    host, board, purpose, proof = words
    owner = status.st_uid
    ticket, _, state = name.partition(".")
    return Holder(
        user=f"{user_name(owner)}@{escaped(host, most=64)}",
        pid=pid if _is_process_of(pid, owner, said.get("pid_namespace")) else _NOT_SEEN,
        board=escaped(board, most=_MOST_CHARS),
        purpose=escaped(purpose, most=_MOST_CHARS),
        since=status.st_ctime,
        things=tuple(escaped(thing, most=_MOST_CHARS) for thing in things),
        uid=owner,
        ticket=ticket,
        held=state == "held",
        proof=proof,
    )


def _is_process_of(pid: int, owner: int, namespace: object) -> bool:
    """Whether that process, of that user, is seen from here: nobody is shown as another's."""
    with contextlib.suppress(OSError):
        seen = 0 < pid < 2**31 and namespace == _pid_namespace()
        return seen and Path(f"/proc/{pid}").stat().st_uid == owner
    return False


@cache
def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return " ".join(parts) or f"{rest} s"
