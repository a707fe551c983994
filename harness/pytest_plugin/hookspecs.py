"""What a plugin may add to a run: five hooks, called where the board is (in the process of pytest;
with several boards in the worker of each). The run's own parts are plugins of them, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.board.standing import Standing
    from harness.errors import HilError


@dataclass(frozen=True, slots=True)
class Look:
    """A part of the one round trip after each test: shell commands (sh, as root), and who gets
    what they print. They print whole lines, leave directory and variables of the shell alone,
    and must be right: the shell refuses all parts where the syntax of one is wrong.

    In a part that is trylast ``$moved`` is empty where nothing was written to the store since the
    last look: what only a write can change need not be looked at then."""

    script: str
    take: Callable[[str], object]


def pytest_hil_begin(board: Board, items: Sequence[pytest.Item]) -> None:
    """The board answers and is the right one; ``items`` are the tests that will run on it.

    Called once, before the first of them, when the board's variables are in the snapshot. An error
    of the harness is a usage error (of several boards it ends that board's run), any other ends
    pytest. The variables are given back all the same."""


def pytest_hil_look(board: Board, item: pytest.Item) -> Look | None:
    """What to read in the one round trip after each test, when its own fixtures are gone and what
    it left on the board is still there; after the board was mended once more.

    The write counter is read by a tryfirst, other people's variables by a trylast. Not called for
    a board that has to be recovered first. An error, also of ``take``, fails the test at its
    teardown, and the board is recovered before the next one."""


def pytest_hil_tidying(board: Board, item: pytest.Item, standing: Standing) -> None:
    """After each test and the looks: ``standing`` is how the test left the board. The run itself
    deletes own variables and brings back the standard state: a tryfirst sees the board before
    that, a trylast afterwards. Other people's variables are judged when all others are done.

    Not called for a board that has to be recovered first. An error fails the test at its
    teardown, and what would have followed is left undone."""


def pytest_hil_restoring(board: Board, interrupted: bool, lost: HilError | None) -> None:
    """Once after the last test and all fixtures, before the board gets its variables back, which
    the outermost wrapper does whatever the others do. ``interrupted``: a command may have been
    broken off; ``lost``: why the board must not be asked anything any more.

    An error is told in the summary; of one that is not the harness's or the system's the run
    fails."""


def pytest_hil_close(board: Board) -> None:
    """Last of all, while the board still answers and is still held; not for a board that was lost.
    The wear of the run is recorded first (tryfirst). Errors as of pytest_hil_restoring."""
