"""The SSH link: one transport, three lanes."""

from __future__ import annotations

from harness.links.address import SshAddress
from harness.shell import Result


class SshShell:
    """:class:`harness.shell.Shell` over SSH. Connects at the first use."""

    def __init__(self, address: SshAddress, *, connect_timeout: float = 10.0) -> None:
        self.address = address

    @property
    def name(self) -> str:
        return f"ssh {self.address}"

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
