"""One open file on the board: each method is one system call there, and raises its errno."""

import contextlib
from collections.abc import Iterator
from itertools import count

from harness.instruments.outcomes import succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.probe.steps import Outcome, Step

_NUMBERS = count(1)


class Descriptor:
    """A descriptor of the board, made by :func:`opened`.

    Failed calls raise :class:`OSError` with the errno that the target saw; what the probe's
    back-end cannot do raises :class:`harness.errors.MissingCapability` (a skip).
    """

    def __init__(self, probe: Probe, name: str) -> None:
        self._probe = probe
        self._name = name

    def write(self, data: bytes, *, timeout: float = 30.0) -> int:
        """One write(2); the bytes that it took."""
        return self._take(do.Write(self._name, data), timeout).value or 0

    def writev(self, *parts: bytes) -> int:
        """One writev(2); the bytes that it took."""
        return self._take(do.Writev(self._name, parts), 30.0).value or 0

    def pwrite(self, data: bytes, offset: int) -> int:
        """One pwrite(2); the bytes that it took."""
        return self._take(do.Pwrite(self._name, data, offset), 30.0).value or 0

    def read(self, size: int) -> bytes:
        """One read(2) of at most ``size`` bytes."""
        return self._take(do.Read(self._name, size)).data

    def pread(self, size: int, offset: int) -> bytes:
        """One pread(2) of at most ``size`` bytes."""
        return self._take(do.Pread(self._name, size, offset)).data

    def seek(self, offset: int, whence: int = 0) -> int:
        """lseek(2); the new offset."""
        return self._take(do.Lseek(self._name, offset, whence)).value or 0

    def size(self) -> int:
        """The size that fstat(2) shows, in bytes."""
        return self._take(do.Fstat(self._name)).value or 0

    def truncate(self, size: int) -> None:
        """ftruncate(2)."""
        self._take(do.Ftruncate(self._name, size))

    def flags(self) -> int:
        """FS_IOC_GETFLAGS."""
        return self._take(do.GetFlags(self._name)).value or 0

    def set_flags(self, flags: int) -> None:
        """FS_IOC_SETFLAGS."""
        self._take(do.SetFlags(self._name, flags))

    def _take(self, step: Step, timeout: float = 15.0) -> Outcome:
        (outcome,) = self._probe.steps([step], timeout=timeout)
        succeeded(outcome)
        return outcome


@contextlib.contextmanager
def opened(
    probe: Probe, path: str, flags: str = "O_RDONLY", mode: int = 0o644
) -> Iterator[Descriptor]:
    """The file at ``path``, opened as open(2) with ``flags`` does, closed at the end."""
    name = f"d{next(_NUMBERS)}"
    (outcome,) = probe.steps([do.Open(name, path, flags, mode)])
    succeeded(outcome)
    try:
        yield Descriptor(probe, name)
    finally:
        probe.steps([do.Close(name)])
