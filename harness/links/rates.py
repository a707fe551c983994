"""The rate of a serial line: which rates are usual, and the search for the right one while a
login waits.

A board may speak at one rate in its firmware and at another in Linux (U-Boot's 115200 and
``console=ttyS2,1500000``), and its board file can be wrong.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from harness.errors import LinkError, LinkRefused
from harness.links.readable import is_garbled, is_readable

if TYPE_CHECKING:
    from harness.links.console import Console

COMMON_BAUDS = (115200, 1500000, 921600, 57600, 38400, 9600)
"""Rates that arm64 boards use, the usual one first (bit/s)."""

ERASE_LINE = b"\x15"  # what the wrong rate may have typed must not become a command

_ENOUGH_TEXT = 16  # bytes that prove a rate without a prompt
_ENOUGH_GARBAGE = 16  # bytes that refute a rate at which nothing readable has come yet
_MUCH_GARBAGE = 48  # ... one at which it has: a power cut leaves some bytes of it, too

# Seconds in which a line feed may remain without an answer at a rate
_SILENT_AT_A_PROVED_RATE = 12.0
_SILENT_AT_FIRST = (1.5, 4.0)  # at the board file's rate, by the time that is left
_SILENT_AT_OTHERS = (0.3, 1.0)


def in_order(*first: int) -> list[int]:
    """The rates to try: ``first``, then the usual ones."""
    return list(dict.fromkeys((*first, *COMMON_BAUDS)))


def correction(found: int, configured: int) -> str:
    """What the user is told where the board file's rate is not the one that answers."""
    return f"console speaks at {found} baud, the board file says {configured}: correct it"


class RateSearch:
    """Changes the rate of ``console`` while it shows no more than noise, or nothing in answer to
    line feeds; who waits for a prompt asks :meth:`moved` at every turn. ``end`` (monotonic
    seconds) is when the waiting is over."""

    def __init__(self, console: Console, *, end: float) -> None:
        self._console = console
        self._end = end
        self.start = console.last_words
        """The console's position from which on what came is of the present rate."""
        self._asked: float | None = None
        self._patience = 0.0
        self._visited: set[int] = set()  # since something readable came
        self._tried = {console.address.baud: None}
        self._fixed = ""  # why no other rate can be tried

    @property
    def changed(self) -> bool:
        """Whether the rate is another one than the board file's."""
        return self._console.address.baud != self._console.configured_baud

    @property
    def told(self) -> str:
        """For the error when no prompt came: the rates tried, or why no others were."""
        if len(self._tried) > 1:
            return f"; no prompt at any rate tried: {', '.join(map(str, self._tried))} baud"
        return f"; no other rate was tried: {self._fixed}" if self._fixed else ""

    @property
    def next_look(self) -> float:
        """When silence will have lasted too long (monotonic seconds)."""
        if self._asked is None or self._fixed:
            return math.inf
        return self._asked + self._patience

    def asked(self) -> None:
        """A line feed was typed, which a prompt would answer."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._patience = self._silence()

    def answered(self) -> None:
        """A prompt, or text: this is the rate, now."""
        self.start = self._console.mark()
        self._asked = None
        self._visited.clear()
        self._console.heard_at_this_rate()

    def moved(self) -> bool:
        """Whether the rate had to be changed: what came before ``start`` no longer counts. Raises
        ``LinkLost`` when the adapter is gone."""
        if self._fixed or not self._is_wrong():
            return False
        if time.monotonic() + self._console.rate_change_seconds >= self._end:
            self._fixed = "too little time was left"
            return False
        start = self._console.mark()
        try:
            self._console.change_rate(self._next())
        except LinkRefused as refusal:
            self._fixed = refusal.what
            return False
        self.start = start
        self._tried[self._console.address.baud] = None
        self._asked = None
        return True

    def give_up(self) -> None:
        """Back to the rate at which something readable came last, else to the board file's; never
        raises."""
        console = self._console
        baud = next(iter(console.proved_bauds), console.configured_baud)
        if baud != console.address.baud:
            with contextlib.suppress(LinkError):
                console.change_rate(baud)

    def _is_wrong(self) -> bool:
        shown = self._console.text_since(self.start)
        if is_readable(shown[-_MUCH_GARBAGE:], enough=_ENOUGH_TEXT):
            self.answered()
            return False
        proved = self._console.address.baud in self._console.proved_bauds
        enough = _MUCH_GARBAGE if proved else _ENOUGH_GARBAGE
        if len(shown) >= enough and is_garbled(shown[-enough:]):
            return True
        return time.monotonic() >= self.next_look

    def _silence(self) -> float:
        baud = self._console.address.baud
        if baud in self._console.proved_bauds:
            return _SILENT_AT_A_PROVED_RATE
        least, most = _SILENT_AT_OTHERS if self.changed else _SILENT_AT_FIRST
        untried = max(1, len(self._rates()) - len(self._visited))
        return min(most, max(least, (self._end - time.monotonic()) / untried))

    def _rates(self) -> list[int]:
        """Those first at which this console has been heard: its firmware's and its system's."""
        return in_order(*self._console.proved_bauds, self._console.configured_baud)

    def _next(self) -> int:
        present = self._console.address.baud
        self._visited.add(present)
        if self._visited.issuperset(self._rates()):
            self._visited = {present}
        return next(baud for baud in self._rates() if baud not in self._visited)
