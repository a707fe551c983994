"""The logs that a board's console left behind, one a boot: how long each was, how it ended, what in
it no healthy board prints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Final

from harness.errors import ConfigurationError
from harness.instruments.console_log import AROUND, CONSOLE_PATTERNS, readable
from harness.instruments.kernel_log import bad_lines
from harness.links.capture import boot_files

_RECORD: Final = re.compile(rb"^\[(\d+\.\d+) (\S+)\] ([^\n]*)", re.M)
# The last words of a kernel (K6 kernel/reboot.c, kernel/panic.c), of U-Boot and of a user.
_ENDS: Final = (
    ("panic", re.compile(r"Kernel panic|end Kernel panic")),
    ("powered off", re.compile(r"reboot: Power down|reboot: System halted")),
    ("restarted", re.compile(r"reboot: Restarting system|^resetting \.\.\.")),
)
_LAST_WORDS: Final = 40
"""Lines at the end among which the last words are: a secure world speaks after the kernel."""
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """One line without escape sequences; ``seconds`` is monotonic, ``utc`` ISO 8601."""

    seconds: float
    utc: str
    text: str


@dataclass(frozen=True)
class BootLog:
    """What was heard of one boot. ``newest``: nothing came after it."""

    number: int
    path: Path
    newest: bool

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """All lines but those that only carry the harness's own frames."""
        return tuple(_lines(self.path.read_bytes()))

    @property
    def started(self) -> str:
        """UTC of its first line, ISO 8601 in seconds; empty for an empty log."""
        return self.lines[0].utc[:19] if self.lines else ""

    @property
    def seconds(self) -> float:
        """From its first to its last line."""
        return self.lines[-1].seconds - self.lines[0].seconds if self.lines else 0.0

    @property
    def ended(self) -> str:
        """What the last lines tell: ``panic``, ``powered off``, ``restarted``; ``cut short`` where
        the next boot came without a word, ``not over`` for the newest."""
        last = [line.text for line in self.lines[-_LAST_WORDS:]]
        for name, pattern in _ENDS:
            if any(pattern.search(text) for text in last):
                return name
        return "not over" if self.newest else "cut short"

    def bad(self, *, allowed: Iterable[str] = ()) -> list[str]:
        """Its lines that fail a test, but for the ``allowed`` regular expressions."""
        return bad_lines(
            (line.text for line in self.lines), allowed=allowed, patterns=CONSOLE_PATTERNS
        )


def boots(folder: Path) -> list[BootLog]:
    """All logs in ``folder``, oldest first."""
    files = boot_files(folder)
    return [BootLog(number, path, newest=path == files[-1][1]) for number, path in files]


def choose(kept: Sequence[BootLog], which: str) -> list[BootLog]:
    """``all``, a number, or how far back: ``-1`` the newest. Raises
    :class:`ConfigurationError` where there is no such boot."""
    if which == "all":
        return list(kept)
    number = int(which) if re.fullmatch(r"-?\d+", which) else 0
    if number < 0 and -number <= len(kept):
        return [kept[number]]
    found = [boot for boot in kept if boot.number == number]
    if not found:
        numbers = f"{kept[0].number} to {kept[-1].number}" if kept else "none"
        raise ConfigurationError(
            f"there is no boot {which!r}; kept: {numbers}",
            remedy="give a number that `hil log --list` shows, -1 for the newest, or all",
        )
    return found


def near_bad(lines: Sequence[Line], bad: Iterable[str]) -> set[int]:
    """The numbers of the lines around bad ones, and of those themselves."""
    texts = set(bad)
    numbers = [number for number, line in enumerate(lines) if line.text in texts]
    return {number + step for number in numbers for step in range(-AROUND, AROUND + 1)}


def follow(folder: Path) -> Iterator[tuple[int, Line]]:
    """The lines of the newest boot and, for ever, those that come, each with its boot's number."""
    number, path, position = 0, folder, 0
    while True:
        # Listed before it is read: what a later boot follows is whole.
        later = [file for file in boot_files(folder) if file[0] > number]
        if number:
            data, position = _whole_lines(path, position)
            yield from ((number, line) for line in _lines(data))
        if later:
            (number, path), position = later[0 if number else -1], 0
        else:
            Event().wait(_POLL_SECONDS)


def _whole_lines(path: Path, position: int) -> tuple[bytes, int]:
    """Those after ``position``, and the position behind them; the log may have been cut."""
    with path.open("rb") as file:
        position = min(position, file.seek(0, os.SEEK_END))
        file.seek(position)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return data[:end], position + end


def _lines(data: bytes) -> Iterator[Line]:
    for record in _RECORD.finditer(data):
        for text in readable(record[3]):
            yield Line(float(record[1]), record[2].decode("ascii"), text)
