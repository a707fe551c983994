"""Free space as statfs(2) shows it: at once, or from a cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Final

from harness.capabilities import Capability

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.instruments.efivars import Space

CACHED_SECONDS: Final = 3.0
"""How old figures from a cache may be, with a margin: Linux 7 asks the firmware five times in two
seconds (K7 fs/efivarfs/super.c)."""
_POLL_SECONDS: Final = 0.02


def is_live(board: Board) -> bool:
    """Whether the figures are those of now."""
    return board.capabilities.has(Capability.STATFS_IS_LIVE)


def space_once(board: Board, settled: Callable[[Space], bool]) -> Space:
    """The figures once they are ``settled``, or what they are when no cache can hold others."""
    space = board.efivars.space()
    if settled(space) or is_live(board):
        return space
    deadline = time.monotonic() + CACHED_SECONDS
    while not settled(space) and time.monotonic() < deadline:
        Event().wait(_POLL_SECONDS)
        space = board.efivars.space()
    return space
