"""What a test cost: RPMB write counter and free space of the store, read cheaply."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.capabilities import EFIVARS_PATH, Capability
from harness.errors import HilError

if TYPE_CHECKING:
    from harness.board.board import Board

_COUNTER: Final = re.compile(r"Counter value: 0x([0-9a-fA-F]+)")
# One round trip; the store is asked only when the counter has moved.
_READ: Final = f"""c=$(mmc rpmb read-counter {{device}} 2>&1); echo "$c"; moved=
case $c in *"{{known}}"*) ;; *) moved=yes; stat -f -c 'free %S %b %f' {EFIVARS_PATH};; esac
"""
_UNKNOWN: Final = "no counter yet"
_FREE: Final = re.compile(r"free (\d+) (\d+) (\d+)")


@dataclass(frozen=True, slots=True)
class Reading:
    """RPMB write counter and free bytes of the store; None where the board does not tell."""

    counter: int | None
    free: int | None


class Meter:
    """Reads the board of ``board()``. Errors make a reading unknown: it must not fail a test."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._last = Reading(None, None)

    @property
    def last(self) -> Reading:
        """What was read last."""
        return self._last

    def script(self) -> str:
        """Shell commands whose output :meth:`take` understands: nothing for a board that must be
        asked otherwise."""
        if not self._has_mmc():
            return ""
        last = self._last.counter
        known = _UNKNOWN if last is None else f"{last:#010x}"
        return _READ.format(device=self._board.rpmb.device, known=known)

    def take(self, text: str) -> Reading:
        """The reading in what :meth:`script` printed; other lines are passed over."""
        try:
            self._last = self._understood(text) if self._has_mmc() else self._slowly()
        except HilError:
            self._last = Reading(None, None)
        return self._last

    def read(self) -> Reading:
        """Counter and free bytes now. Where the counter has not moved, nothing was written and
        the free bytes are those of the last reading."""
        try:
            script = self.script()
            return self.take(self._board.shell.run(script).text if script else "")
        except HilError:
            self._last = Reading(None, None)
        return self._last

    def figures(self) -> bool:
        """Whether the board shows free space, and as it is now."""
        has = self._board.capabilities.has
        return has(Capability.QUERY_VARIABLE_INFO) and has(Capability.STATFS_IS_LIVE)

    def _has_mmc(self) -> bool:
        has = self._board.capabilities.has
        return has(Capability.MMC_UTILS) and has(Capability.RPMB_ACCESS)

    def _understood(self, text: str) -> Reading:
        counter = _COUNTER.search(text)
        if counter is None:
            return Reading(None, None)
        space = _FREE.search(text)
        free = self._last.free if space is None else int(space[1]) * int(space[3])
        if space is not None and not int(space[2]):
            free = None
        return Reading(int(counter[1], 16), free)

    def _slowly(self) -> Reading:
        """A board without mmc-utils starts a python for each counter: only after a write."""
        has = self._board.capabilities.has
        free = None
        if has(Capability.QUERY_VARIABLE_INFO):
            try:
                space = self._board.efivars.space()
            except OSError:
                return Reading(self._last.counter, None)
            free = space.free if space.total else None
            if free == self._last.free and self._last.counter is not None:
                return self._last
        counter = self._board.rpmb.counter() if has(Capability.RPMB_ACCESS) else None
        return Reading(counter, free)
