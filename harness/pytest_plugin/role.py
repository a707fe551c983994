"""What this process is in a run on several boards, and what passes between them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

BOARD_FIXTURE: Final = "hil_board"
"""The fixture that makes a test one that runs on the board."""
BOARD_INPUT: Final = "hil_board"
"""What a worker is told: the path of its board file."""
FIRST_INPUT: Final = "hil_first"
"""... and whether it is the first."""
SHARE_INPUT: Final = "hil_share"
"""... and, where boards share the tests, which share it runs of how many."""
OUTPUT: Final = "hil"
"""What it hands back at its end."""
RESULT: Final = "hil_result"
"""What each of its reports carries."""
ENDED_BY_LAB: Final = int(pytest.ExitCode.TESTS_FAILED)
"""Exit status of a worker that lost its board; pytest-xdist would stop all for that of ^C."""


def board_of_worker(config: pytest.Config) -> Path | None:
    """The board file of this process, where it is one board's worker among several."""
    path = getattr(config, "workerinput", {}).get(BOARD_INPUT)
    return None if path is None else Path(path)


def name_of_worker(config: pytest.Config) -> str | None:
    """What its board is called in this run: boards made from one file have a number behind it.
    None in a process that is no board's worker."""
    if board_of_worker(config) is None:
        return None
    return str(config.workerinput["workerid"])  # type: ignore[attr-defined]


def is_first_worker(config: pytest.Config) -> bool:
    """Whether the worker also runs what needs no board."""
    return bool(getattr(config, "workerinput", {}).get(FIRST_INPUT))


def share_of_worker(config: pytest.Config) -> tuple[int, int] | None:
    """Which share of the tests, from 0, of how many; None where every board runs all."""
    share = getattr(config, "workerinput", {}).get(SHARE_INPUT)
    return None if share is None else (share[0], share[1])
