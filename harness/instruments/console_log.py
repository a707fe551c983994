"""What the serial console printed during a test, and the lines of it that fail the test.

It hears what the kernel log does not keep: the secure world, firmware, and a kernel's last words.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.instruments.kernel_log import BAD_PATTERNS, bad_lines
from harness.links.console import Console
from harness.links.readable import without_escapes

CONSOLE_PATTERNS: tuple[str, ...] = (
    *BAD_PATTERNS,
    r"E/(?:TC|LD|TA):.*\b(?i:abort|panic)",
    r"(?i:tee[-_]stmm[-_]efi.*(?:error|failed))",
    r"(?i:error.* mmcblk\d+rpmb|mmcblk\d+rpmb.*error)",
    r"Synchronous Exception at",
    r"^### ERROR ### Please RESET the board",
)
"""Beside the kernel's own: OP-TEE's aborts and panics (core/kernel/abort.c), errors of the driver
and of the RPMB partition, exceptions of EDK II and of U-Boot."""

AROUND = 4
"""Lines before and after a bad one that are shown."""

# The receiver's frames share the console with the kernel, mostly without line feeds.
_FRAME = re.compile(rb"\x1e[^\x1e\x1f]*\x1f|\x06")


@dataclass(frozen=True, slots=True)
class BadConsole:
    """``bad`` are the lines that fail a test; ``shown`` those and what surrounds them."""

    bad: tuple[str, ...]
    shown: tuple[str, ...]


class ConsoleLog:
    """The console's text since the last look. Never waits and never types."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._mark = console.mark()

    def of(self, console: Console) -> bool:
        """Whether it listens to this console: links are made afresh when they move."""
        return self._console is console

    def new_lines(self) -> list[str]:
        """Whole lines since the last look, without frames and escape sequences."""
        data = self._console.since(self._mark)
        end = data.rfind(b"\n") + 1
        self._mark += end
        return readable(data[:end])


def readable(data: bytes) -> list[str]:
    """The lines that somebody wrote to be read: without the harness's frames, without escape
    sequences, none of them empty."""
    text = without_escapes(_FRAME.sub(b"\n", data)).decode("utf-8", "backslashreplace")
    return [line for line in (part.strip("\r ") for part in text.split("\n")) if line]


def bad_console(lines: list[str], *, allowed: Iterable[str] = ()) -> BadConsole | None:
    """The lines that match :data:`CONSOLE_PATTERNS` and none of the ``allowed`` regular
    expressions, with the lines around; None if there are none."""
    bad = bad_lines(lines, allowed=allowed, patterns=CONSOLE_PATTERNS)
    if not bad:
        return None
    places = [number for number, line in enumerate(lines) if line in set(bad)]
    near = {place + step for place in places for step in range(-AROUND, AROUND + 1)}
    shown = tuple(line for number, line in enumerate(lines) if number in near)
    return BadConsole(tuple(bad), shown)
