"""A serial console: one reader thread, everything captured with time stamps, the boot stage."""

from __future__ import annotations

from enum import StrEnum

from harness.links.address import SerialAddress


class Stage(StrEnum):
    """What is at the other end of the console, as far as its output tells."""

    SILENT = "silent"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    LOGIN = "login"
    SHELL = "shell"


class Console:
    """An open serial console. The device is opened exclusively, at construction.

    Raises ``HostError`` (device missing, no permission), ``LinkRefused`` (busy; says who
    holds it).
    """

    def __init__(self, address: SerialAddress) -> None:
        self.address = address

    @property
    def name(self) -> str:
        return f"serial {self.address}"

    @property
    def stage(self) -> Stage:
        raise NotImplementedError

    def mark(self) -> int:
        """The number of bytes received so far: a position for :meth:`since`."""
        raise NotImplementedError

    def since(self, mark: int) -> bytes:
        """Everything received after ``mark``."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        raise NotImplementedError

    def wait_for(self, pattern: str, *, timeout: float, since: int | None = None) -> str:
        """Wait until ``pattern`` (regular expression) appears after ``since`` (default: now);
        returns the match. Raises ``LinkTimeout`` with the last lines."""
        raise NotImplementedError

    def send_break(self, *, duration: float = 0.25) -> None:
        """Hold the line in break state for ``duration`` seconds."""
        raise NotImplementedError

    def sysrq(self, key: str) -> None:
        """Magic SysRq over serial: break, then ``key`` (K6 drivers/tty/serial, 5 s window)."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the reader and give the device back; never raises."""
        raise NotImplementedError
