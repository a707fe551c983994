"""What root of the board tries against the host: each attempt is held by the walls, and gets
through where the one that should hold it is taken down (docs/safety.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.emulation.conftest import need_dev_fuse
from tests.emulation.walls.attempts import ATTEMPTS, Attempt, possible
from tests.emulation.walls.bench import Bench
from tests.emulation.walls.breaches import NONE


def _rows(*, breached: bool) -> list[object]:
    """Those that may share a board behind each other."""
    rows = [attempt for attempt in ATTEMPTS if not breached or attempt.breach != NONE]
    boards = [
        (row.alone, repr(row.given), repr(row.breach) if breached else "", row.options)
        for row in rows
    ]
    order = sorted(range(len(rows)), key=boards.__getitem__)
    return [
        pytest.param(row, id=row.name, marks=[pytest.mark.fault(*row.faults)] if row.faults else [])
        for row in (rows[number] for number in order)
    ]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture(autouse=True)
def able(request: pytest.FixtureRequest) -> None:
    need_dev_fuse()
    if reason := possible(request.getfixturevalue("attempt"), root=os.geteuid() == 0):
        pytest.skip(reason)


@pytest.mark.parametrize("attempt", _rows(breached=False))
def test_held(bench: Bench, attempt: Attempt) -> None:
    assert bench.tried(attempt, NONE) == "", bench.said


@pytest.mark.slow
@pytest.mark.parametrize("attempt", _rows(breached=True))
def test_gets_through_without_its_wall(bench: Bench, attempt: Attempt) -> None:
    assert bench.tried(attempt, attempt.breach) != "", bench.said
