"""The serial link: a shell on a noisy console."""

from __future__ import annotations

from harness.links.address import SerialAddress
from harness.links.console import Console, Stage
from harness.shell import Result

__all__ = ["Console", "SerialShell", "Stage"]


class SerialShell:
    """:class:`harness.shell.Shell` over a :class:`Console`. Logs in at the first use."""

    def __init__(self, console: Console, *, login_timeout: float = 30.0) -> None:
        self.console = console

    @classmethod
    def open(cls, address: SerialAddress) -> SerialShell:
        """Open the device and wrap it; raises as :class:`Console`."""
        return cls(Console(address))

    @property
    def name(self) -> str:
        return self.console.name

    def run(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        raise NotImplementedError

    def run_isolated(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        raise NotImplementedError

    def read_file(self, path: str, *, timeout: float = 10.0) -> bytes:
        raise NotImplementedError

    def write_file(
        self, path: str, data: bytes, *, mode: int = 0o644, timeout: float = 30.0
    ) -> None:
        raise NotImplementedError

    def reconnect(self, *, deadline: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
