"""What root of the board tries against the host: each attempt is held by the walls, and gets
through where the one that should hold it is taken down (docs/safety.md)."""

from __future__ import annotations

import os

import pytest

from tests.emulation.conftest import need_dev_fuse
from tests.emulation.walls.attempts import ATTEMPTS, Attempt, possible
from tests.emulation.walls.bench import tried
from tests.emulation.walls.breaches import NONE


def _rows(*, breached: bool) -> list[object]:
    return [
        pytest.param(attempt, id=attempt.name, marks=pytest.mark.fault(*attempt.faults))
        if attempt.faults
        else pytest.param(attempt, id=attempt.name)
        for attempt in ATTEMPTS
        if not breached or attempt.breach != NONE
    ]


@pytest.fixture(autouse=True)
def able(request: pytest.FixtureRequest) -> None:
    need_dev_fuse()
    if reason := possible(request.getfixturevalue("attempt"), root=os.geteuid() == 0):
        pytest.skip(reason)


@pytest.mark.parametrize("attempt", _rows(breached=False))
def test_held(attempt: Attempt) -> None:
    assert tried(attempt, NONE) == ""


@pytest.mark.parametrize("attempt", _rows(breached=True))
def test_gets_through_without_its_wall(attempt: Attempt) -> None:
    assert tried(attempt, attempt.breach) != ""
