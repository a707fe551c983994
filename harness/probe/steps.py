"""The steps a target probe can take and what comes back: one raw system call each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One of the classes below."""


@dataclass(frozen=True, slots=True)
class Open(Step):
    """``open(2)``; the descriptor is kept under the name ``fd`` until :class:`Close`.

    ``flags`` are names joined by ``|`` (``"O_WRONLY|O_CREAT"``), because their numbers differ
    between architectures.
    """

    fd: str
    path: str
    flags: str = "O_RDONLY"
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Write(Step):
    """One ``write(2)`` of all of ``data``; value = bytes written."""

    fd: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Writev(Step):
    """One ``writev(2)``; value = bytes written."""

    fd: str
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Pwrite(Step):
    """One ``pwrite(2)`` of all of ``data``; value = bytes written."""

    fd: str
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Read(Step):
    """One ``read(2)`` of at most ``size`` bytes; value = bytes read."""

    fd: str
    size: int


@dataclass(frozen=True, slots=True)
class Pread(Step):
    """One ``pread(2)``; value = bytes read."""

    fd: str
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Lseek(Step):
    """``lseek(2)``; ``whence`` 0 SEEK_SET, 1 SEEK_CUR, 2 SEEK_END; value = new offset."""

    fd: str
    offset: int
    whence: int = 0


@dataclass(frozen=True, slots=True)
class Fstat(Step):
    """``fstat(2)`` of a descriptor; value = st_size, ``fields`` has the rest."""

    fd: str


@dataclass(frozen=True, slots=True)
class Stat(Step):
    """``lstat(2)`` of a path; value = st_size, ``fields`` has the rest."""

    path: str


@dataclass(frozen=True, slots=True)
class Close(Step):
    """``close(2)``."""

    fd: str


@dataclass(frozen=True, slots=True)
class Unlink(Step):
    """``unlink(2)``."""

    path: str


@dataclass(frozen=True, slots=True)
class Truncate(Step):
    """``truncate(2)``."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Ftruncate(Step):
    """``ftruncate(2)``."""

    fd: str
    size: int


@dataclass(frozen=True, slots=True)
class Rename(Step):
    """``rename(2)``."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Link(Step):
    """``link(2)``."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Symlink(Step):
    """``symlink(2)``: ``path`` will point to ``target``."""

    target: str
    path: str


@dataclass(frozen=True, slots=True)
class Mkdir(Step):
    """``mkdir(2)``."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Rmdir(Step):
    """``rmdir(2)``."""

    path: str


@dataclass(frozen=True, slots=True)
class Mknod(Step):
    """``mknod(2)``; ``mode`` includes the type (``0o010644`` is a fifo)."""

    path: str
    mode: int
    device: int = 0


@dataclass(frozen=True, slots=True)
class GetFlags(Step):
    """``ioctl(FS_IOC_GETFLAGS)`` on a descriptor; value = flags (immutable is 0x10)."""

    fd: str


@dataclass(frozen=True, slots=True)
class SetFlags(Step):
    """``ioctl(FS_IOC_SETFLAGS)`` on a descriptor."""

    fd: str
    flags: int


@dataclass(frozen=True, slots=True)
class StatFs(Step):
    """``statfs(2)``; value = f_type, ``fields`` has bsize, blocks, bfree, bavail, files, ffree."""

    path: str


@dataclass(frozen=True, slots=True)
class ListDir(Step):
    """Names in a directory, sorted, without ``.`` and ``..``; value = their number."""

    path: str


@dataclass(frozen=True, slots=True)
class SystemCall(Step):
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
class Mmap(Step):
    """``mmap(2)`` of the first ``size`` bytes; ``protection`` and ``sharing`` are PROT_ and MAP_
    flags."""

    fd: str
    size: int
    protection: int = 1
    sharing: int = 1


@dataclass(frozen=True, slots=True)
class Poll(Step):
    """``poll(2)`` of one descriptor, in milliseconds; value = the events that came back. Only
    python3 takes it."""

    fd: str
    events: int
    timeout: int = 0


@dataclass(frozen=True, slots=True)
class SignalledWrite(Step):
    """``write(2)`` during which a signal with a handler arrives, ``after`` microseconds; value =
    bytes written. Only python3 takes it."""

    fd: str
    data: bytes
    after: int = 1000


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
