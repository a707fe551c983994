"""The steps a target probe can take and what comes back: one raw system call each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Open:
    """``open(2)``; the descriptor is kept under the name ``fd`` until :class:`Close`.

    ``flags`` are names joined by ``|`` (``"O_WRONLY|O_CREAT"``), because their numbers differ
    between architectures.
    """

    fd: str
    path: str
    flags: str = "O_RDONLY"
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Write:
    """One ``write(2)`` of all of ``data``; value = bytes written."""

    fd: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Writev:
    """One ``writev(2)``; value = bytes written."""

    fd: str
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Pwrite:
    """One ``pwrite(2)`` of all of ``data``; value = bytes written."""

    fd: str
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Read:
    """One ``read(2)`` of at most ``size`` bytes; value = bytes read."""

    fd: str
    size: int


@dataclass(frozen=True, slots=True)
class Pread:
    """One ``pread(2)``; value = bytes read."""

    fd: str
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Lseek:
    """``lseek(2)``; ``whence`` 0 SEEK_SET, 1 SEEK_CUR, 2 SEEK_END; value = new offset."""

    fd: str
    offset: int
    whence: int = 0


@dataclass(frozen=True, slots=True)
class Fstat:
    """``fstat(2)`` of a descriptor; value = st_size, ``fields`` has the rest."""

    fd: str


@dataclass(frozen=True, slots=True)
class Stat:
    """``lstat(2)`` of a path; value = st_size, ``fields`` has the rest."""

    path: str


@dataclass(frozen=True, slots=True)
class Close:
    """``close(2)``."""

    fd: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """``unlink(2)``."""

    path: str


@dataclass(frozen=True, slots=True)
class Truncate:
    """``truncate(2)``."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Ftruncate:
    """``ftruncate(2)``."""

    fd: str
    size: int


@dataclass(frozen=True, slots=True)
class Rename:
    """``rename(2)``."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Link:
    """``link(2)``."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Symlink:
    """``symlink(2)``: ``path`` will point to ``target``."""

    target: str
    path: str


@dataclass(frozen=True, slots=True)
class Mkdir:
    """``mkdir(2)``."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Rmdir:
    """``rmdir(2)``."""

    path: str


@dataclass(frozen=True, slots=True)
class Mknod:
    """``mknod(2)``; ``mode`` includes the type (``0o010644`` is a fifo)."""

    path: str
    mode: int
    device: int = 0


@dataclass(frozen=True, slots=True)
class GetFlags:
    """``ioctl(FS_IOC_GETFLAGS)`` on a descriptor; value = flags (immutable is 0x10)."""

    fd: str


@dataclass(frozen=True, slots=True)
class SetFlags:
    """``ioctl(FS_IOC_SETFLAGS)`` on a descriptor."""

    fd: str
    flags: int


@dataclass(frozen=True, slots=True)
class StatFs:
    """``statfs(2)``; value = f_type, ``fields`` has bsize, blocks, bfree, bavail, files, ffree."""

    path: str


@dataclass(frozen=True, slots=True)
class ListDir:
    """Names in a directory, sorted, without ``.`` and ``..``; value = their number."""

    path: str


@dataclass(frozen=True, slots=True)
class SystemCall:
    """Any other call, by its name in the C library (the helper knows those of ``MACHINES``); value
    = its result.

    Arguments: the descriptor ``fd`` first, if there is one; numbers; bytes stand for their address;
    None, once at most, for that of a buffer of ``room`` bytes, of which ``data`` has as many as
    the call returned.
    """

    name: str
    arguments: tuple[int | bytes | None, ...] = ()
    fd: str | None = None
    room: int = 0


@dataclass(frozen=True, slots=True)
class Mmap:
    """``mmap(2)`` of the first ``size`` bytes; ``protection`` and ``sharing`` are PROT_ and MAP_
    flags."""

    fd: str
    size: int
    protection: int = 1
    sharing: int = 1


@dataclass(frozen=True, slots=True)
class Poll:
    """``poll(2)`` of one descriptor, in milliseconds; value = the events that came back. Only
    python3 takes it."""

    fd: str
    events: int
    timeout: int = 0


@dataclass(frozen=True, slots=True)
class SignalledWrite:
    """``write(2)`` during which a signal with a handler arrives, ``after`` microseconds; value =
    bytes written. Only python3 takes it."""

    fd: str
    data: bytes
    after: int = 1000


Step = (
    Open
    | Write
    | Writev
    | Pwrite
    | Read
    | Pread
    | Lseek
    | Fstat
    | Stat
    | Close
    | Unlink
    | Truncate
    | Ftruncate
    | Rename
    | Link
    | Symlink
    | Mkdir
    | Rmdir
    | Mknod
    | GetFlags
    | SetFlags
    | StatFs
    | ListDir
    | SystemCall
    | Mmap
    | Poll
    | SignalledWrite
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step returned on the target.

    ``value`` is the call's result (None when it failed), ``data`` what it read, ``errno`` the
    name of the error (``"ENOSPC"``) or None. ``unsupported`` says why this back-end could not
    take the step at all; the caller counts it as a skip. A step that needs a descriptor whose
    open failed has errno ``"EBADF"``.
    """

    step: Step
    value: int | None = None
    data: bytes = b""
    errno: str | None = None
    unsupported: str | None = None
    names: tuple[bytes, ...] = ()
    fields: tuple[tuple[str, int], ...] = ()

    @property
    def ok(self) -> bool:
        return self.errno is None and self.unsupported is None

    def field(self, name: str) -> int:
        """One of ``fields``; raises KeyError."""
        return dict(self.fields)[name]
