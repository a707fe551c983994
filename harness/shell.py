"""What every link offers: run a command on the board, move bytes, open an isolated lane.

Tests and instruments know only this interface; ``harness.links.ssh`` and
``harness.links.serial`` implement it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from harness.errors import CommandFailed


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one command: exit status (0..255; 128+n for signal n), both streams as
    bytes, and its duration in seconds as seen from the host."""

    command: str
    status: int
    stdout: bytes
    stderr: bytes
    duration: float

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def text(self) -> str:
        """Standard output as UTF-8 (undecodable bytes escaped), trailing newlines removed."""
        return self.stdout.decode("utf-8", "backslashreplace").rstrip("\n")

    @property
    def error_text(self) -> str:
        return self.stderr.decode("utf-8", "backslashreplace").rstrip("\n")

    def check(self) -> Result:
        """Return self; raise :class:`CommandFailed` unless the status is 0."""
        if not self.ok:
            raise CommandFailed(
                f"exit status {self.status}: {self.error_text or self.text or 'no output'}",
                remedy="read the output above; run the command by hand with `hil shell`",
                status=self.status,
                stdout=self.stdout,
                stderr=self.stderr,
                command=self.command,
            )
        return self


@runtime_checkable
class Shell(Protocol):
    """A way to act on the board. Execution is at most once on every implementation.

    Every method raises :class:`harness.errors.LinkError` subclasses: ``LinkLost`` when the
    command certainly did not run, ``OutcomeUnknown`` when it may have, ``LinkTimeout`` when it
    was still running at the deadline (the lane it ran on has then been thrown away).
    """

    least_timeout: float
    """Seconds below which no timeout goes: on a slow board a SetVariable takes longer than what
    callers think long enough. 0 unless the board file says otherwise."""

    @property
    def name(self) -> str:
        """``ssh root@host:port`` or ``serial /dev/ttyUSB0``; used in messages."""
        ...

    def run(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        """Run a POSIX shell command line on the persistent lane. State such as ``cd`` does not
        leak between commands."""
        ...

    def run_isolated(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        """Run on a fresh lane: for anything that may hang or be killed, or change its session."""
        ...

    def read_file(self, path: str, *, timeout: float = 10.0) -> bytes:
        """The whole file. Raises ``FileNotFoundError``/``PermissionError``/``OSError`` with the
        target's errno."""
        ...

    def write_file(
        self, path: str, data: bytes, *, mode: int = 0o644, timeout: float = 30.0
    ) -> None:
        """Create or replace an ordinary file (not a variable) and verify its content."""
        ...

    def reconnect(self, *, deadline: float) -> None:
        """Throw away all lanes and connect afresh within ``deadline`` seconds (after a reboot);
        a refused connection is retried fast."""
        ...

    def close(self) -> None:
        """Give everything back; never raises, never waits longer than two seconds."""
        ...
