"""What is at the other end of a serial adapter: the baud rate, a firmware, a kernel or a login
prompt. Types nothing but line feeds and, at another rate than the first, the key that erases a
line."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.errors import LinkRefused
from harness.links.address import SerialAddress
from harness.links.console import Console, Stage
from harness.links.rates import COMMON_BAUDS, ERASE_LINE
from harness.links.readable import is_readable

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
    console = Console(replace(address, capture=None))
    try:
        for baud in dict.fromkeys((address.baud, *bauds)):
            if baud != address.baud:
                try:
                    console.change_rate(baud)
                except LinkRefused:  # another side sets the rate: there is one to listen at
                    break
            mark = 0 if baud == address.baud else console.mark()
            text = _listen(console, mark, seconds)
            if is_readable(text):
                return _report(console, baud, text)
            heard += text
    finally:
        console.close()
    tail = repr(heard[-40:])
    return ConsoleReport(None, Stage.SILENT, (), f"received {tail}", silent=not heard)


def _listen(console: Console, start: int, seconds: float) -> bytes:
    """What comes after ``start`` until a prompt stands there or the time is over."""
    deadline = time.monotonic() + seconds
    changed = console.address.baud != console.configured_baud
    while (now := time.monotonic()) < deadline:
        mark = console.mark()
        until = min(deadline, now + _NUDGE_SECONDS)
        quiet = not console.wait_for_data(mark, timeout=until - now)
        # A key would stop a firmware that counts down to the boot, and may block the port of a
        # kernel that has not opened it yet.
        booting = console.stage is Stage.KERNEL and console.quiet_seconds < _BOOTED_SECONDS
        if quiet and not booting and console.stage is not Stage.FIRMWARE:
            console.write(ERASE_LINE + b"\n" if changed else b"\n")
        if console.stage in {Stage.LOGIN, Stage.PASSWORD, Stage.SHELL} and is_readable(
            console.text_since(start)
        ):
            break
    return console.text_since(start)


def _report(console: Console, baud: int, data: bytes) -> ConsoleReport:
    text = data.decode("utf-8", "replace")
    banners = tuple(dict.fromkeys(_BANNER.findall(text)))
    return ConsoleReport(baud, console.stage, banners, console.tail(), silent=False)
