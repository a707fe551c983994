"""Free space of the variable store, to the byte, and where the next record will lie."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from threading import Event
from typing import TYPE_CHECKING

from harness.capabilities import Capability
from harness.errors import TargetError
from harness.store import records as store_space

if TYPE_CHECKING:
    from harness.board.board import Board

HALF_SECTOR = 256
"""Bytes of an RPMB block: a change within one is one RPMB write (contract 2.4)."""

_MARK = b"x"
_MARKS = count()
_CACHED_SECONDS = 3.0
_POLL_SECONDS = 0.02


class SpaceGauge:
    """Reads the free space as the firmware has it now; needs ``query_variable_info``.

    Linux 7 answers statfs(2) from a cache (K7 fs/efivarfs/super.c asks the firmware five times in
    two seconds); that it drops unwritten files is how it is told from 6. There every reading
    writes a mark, a new variable of our own of :attr:`MARK_BYTES`, and waits until the figures
    move; what it returns already lacks the mark.
    """

    MARK_BYTES = store_space.record_size("g00", len(_MARK))

    def __init__(self, board: Board) -> None:
        self._board = board

    def free(self) -> int:
        """Free bytes now. Raises :class:`TargetError` when the figures do not follow the mark."""
        if not self._cached:
            return self._board.efivars.space().free
        before = self._board.efivars.space().free
        self._mark()
        deadline = time.monotonic() + _CACHED_SECONDS
        while (free := self._board.efivars.space().free) == before:
            if time.monotonic() >= deadline:
                raise TargetError(
                    f"df shows {before} bytes free before and after a new variable",
                    remedy="does the firmware's QueryVariableInfo count? Try `hil shell` and df",
                )
            Event().wait(_POLL_SECONDS)
        return free

    def taken_by(self, action: Callable[[], object]) -> int:
        """How many bytes fewer are free after ``action`` (negative: more)."""
        before = self.free()
        action()
        return before - self.free() - (self.MARK_BYTES if self._cached else 0)

    def settles_at(self, expected: int) -> int:
        """``expected`` as soon as statfs(2) says so, what it says after a while otherwise; for a
        store that has no room for a mark."""
        deadline = time.monotonic() + (_CACHED_SECONDS if self._cached else 0)
        while (free := self._board.efivars.space().free) != expected:
            if time.monotonic() >= deadline:
                break
            Event().wait(_POLL_SECONDS)
        return free

    def free_in_half_sector(self, room: int) -> tuple[int, int]:
        """Write marks until ``room`` bytes (at most 180) are left of the half sector that the next
        record begins in; returns the free bytes and what is left of it. It is none at the end of
        a block of flash, where a record is cut instead of crossing; at most nine marks."""
        while True:
            free = self.free()
            position = store_space.position(free)
            left = HALF_SECTOR - position % HALF_SECTOR
            if left >= room and (position + left) % store_space.BLOCK:
                return free, left
            self._mark()

    @property
    def _cached(self) -> bool:
        return not self._board.capabilities.has(Capability.UNCOMMITTED_FILES_STAY)

    def _mark(self) -> None:
        self._board.efivars.write(f"g{next(_MARKS) % 100:02}", _MARK)
