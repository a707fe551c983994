"""Free space of the variable store, to the byte, and where the next record will lie."""

from collections.abc import Callable
from itertools import count

from harness.board.board import Board
from harness.errors import TargetError
from harness.store.records import RECORDED, Geometry, record_size
from harness.store.space import is_live, space_once

_MARK = b"x"
_MARKS = count()


class SpaceGauge:
    """Reads the free space as the firmware has it now; needs ``query_variable_info``.

    Where statfs(2) answers from a cache (:data:`Capability.STATFS_IS_LIVE`) every reading writes a
    mark, a new variable of our own of :attr:`MARK_BYTES`, and waits until the figures move; what it
    returns already lacks the mark.
    """

    MARK_BYTES = record_size("g00", len(_MARK))

    def __init__(self, board: Board, geometry: Geometry = RECORDED) -> None:
        self._board = board
        self._geometry = geometry

    def free(self) -> int:
        """Free bytes now. Raises :class:`TargetError` when the figures do not follow the mark."""
        before = self._board.efivars.space().free
        if is_live(self._board):
            return before
        self._mark()
        free = space_once(self._board, lambda space: space.free != before).free
        if free == before:
            raise TargetError(
                f"df shows {before} bytes free before and after a new variable",
                remedy="does the firmware's QueryVariableInfo count? Try `hil shell` and df",
            )
        return free

    def taken_by(self, action: Callable[[], object]) -> int:
        """How many bytes fewer are free after ``action`` (negative: more)."""
        before = self.free()
        action()
        marks = 0 if is_live(self._board) else self.MARK_BYTES
        return before - self.free() - marks

    def settles_at(self, expected: int) -> int:
        """``expected`` as soon as statfs(2) says so, what it says after a while otherwise; for a
        store that has no room for a mark."""
        return space_once(self._board, lambda space: space.free == expected).free

    def free_in_half_sector(self, room: int) -> tuple[int, int]:
        """Write marks until ``room`` bytes (at most 180) are left of the half sector that the next
        record begins in; returns the free bytes and what is left of it. It is none at the end of
        a block of flash, where a record is cut instead of crossing; at most nine marks."""
        geometry = self._geometry
        while True:
            free = self.free()
            position = geometry.position(free)
            left = geometry.half_sector - position % geometry.half_sector
            if left >= room and (position + left) % geometry.block:
                return free, left
            self._mark()

    def _mark(self) -> None:
        self._board.efivars.write(f"g{next(_MARKS) % 100:02}", _MARK)
