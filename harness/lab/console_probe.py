"""What is at the other end of a serial adapter: the baud rate, a firmware, a kernel or a login
prompt. Types nothing but line feeds."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.links.address import SerialAddress
from harness.links.console import Console, Stage, without_escapes

COMMON_BAUDS = (115200, 1500000, 921600, 57600, 38400, 9600)
"""Rates that arm64 boards use, the usual one first (bit/s)."""

_READABLE_SHARE = 0.9
_ENOUGH_BYTES = 4
_NUDGE_SECONDS = 0.3
_BOOTED_SECONDS = 0.8
_BANNER = re.compile(
    r"U-Boot (?:SPL |TPL )?\d{4}\.\S+|BL31: v\S+|OP-TEE version: \S+|EDK ?II? \S+|"
    r"Linux version \S+|\S+ login:"
)


@dataclass(frozen=True, slots=True)
class ConsoleReport:
    """``baud`` is None where nothing readable arrived; ``silent`` says that nothing arrived at
    all. ``banners`` are the lines that name firmware, kernel or host."""

    baud: int | None
    stage: Stage
    banners: tuple[str, ...]
    tail: str
    silent: bool

    def __str__(self) -> str:
        if self.silent:
            return "silent: is the board on, are TX and RX the right way round?"
        if self.baud is None:
            return f"unreadable at every usual rate; {self.tail}"
        named = f" ({'; '.join(self.banners)})" if self.banners else ""
        return f"{self.baud} baud, at its {self.stage} stage{named}"


def probe_console(
    address: SerialAddress, *, bauds: Sequence[int] = COMMON_BAUDS, seconds: float = 1.5
) -> ConsoleReport:
    """Listen at each rate for up to ``seconds``, typing a line feed where nothing comes by itself.

    The rate of ``address`` is tried first. Raises as :class:`Console` where the device cannot be
    opened.
    """
    heard = b""
    for baud in dict.fromkeys((address.baud, *bauds)):
        console = Console(replace(address, baud=baud, capture=None))
        try:
            text = _listen(console, seconds)
            if _is_readable(text):
                return _report(console, baud, text)
            heard += text
        finally:
            console.close()
    tail = repr(heard[-40:])
    return ConsoleReport(None, Stage.SILENT, (), f"received {tail}", silent=not heard)


def _listen(console: Console, seconds: float) -> bytes:
    """What comes until a prompt stands there or the time is over, after what was waiting when
    the device was opened."""
    deadline = time.monotonic() + seconds
    while (now := time.monotonic()) < deadline:
        mark = console.mark()
        until = min(deadline, now + _NUDGE_SECONDS)
        quiet = not console.wait_for_data(mark, timeout=until - now)
        # A key would stop a firmware that counts down to the boot, and may block the port of a
        # kernel that has not opened it yet.
        booting = console.stage is Stage.KERNEL and console.quiet_seconds < _BOOTED_SECONDS
        if quiet and not booting and console.stage is not Stage.FIRMWARE:
            console.write(b"\n")
        if console.stage in {Stage.LOGIN, Stage.SHELL} and _is_readable(console.since(0)):
            break
    return console.since(0)


def _is_readable(data: bytes) -> bool:
    """Whether it is text: the wrong rate makes bytes beyond ASCII and control characters."""
    data = without_escapes(data)
    if len(data) < _ENOUGH_BYTES:
        return False
    readable = sum(byte in b"\t\n\r\b\a" or 32 <= byte < 127 for byte in data)
    return readable >= _READABLE_SHARE * len(data)


def _report(console: Console, baud: int, data: bytes) -> ConsoleReport:
    text = without_escapes(data).decode("utf-8", "replace")
    banners = tuple(dict.fromkeys(_BANNER.findall(text)))
    return ConsoleReport(baud, console.stage, banners, console.tail(), silent=False)
