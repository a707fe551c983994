"""The wear ledger: what it says of the time between two runs, and what it survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HostError
from harness.store.wear import Entry, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "wear.jsonl")
    ledger.add(Entry("begin", 1000, "tests"))
    ledger.add(
        Entry("end", 5000, "tests", spent=4000, by_tests=3000, store_bytes=6000, unreclaimed=70)
    )
    return ledger


def test_a_board_without_history_has_nothing_odd(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "wear.jsonl")
    assert ledger.oddity(123456) is None
    assert (ledger.total(), ledger.unreclaimed(), ledger.writes_per_byte()) == (0, 0, None)


@pytest.mark.parametrize(
    ("counter", "says"),
    [
        (5000, None),
        (5002, None),  # two boots
        (5400, "400 RPMB writes by somebody else since the run that ended on "),
        (4999, "the RPMB write counter went back from 5000 "),
    ],
)
def test_the_counter_tells_of_others(ledger: Ledger, counter: int, says: str | None) -> None:
    oddity = ledger.oddity(counter)
    assert (oddity is None) == (says is None)
    assert oddity is None or oddity.startswith(str(says))


def test_a_run_that_did_not_end_is_told_from_others(ledger: Ledger) -> None:
    ledger.add(Entry("begin", 5000, "tests"))
    assert "which did not end" in (ledger.oddity(5400) or "")


def test_it_is_read_as_written(ledger: Ledger) -> None:
    again = Ledger(ledger.path)
    assert (again.total(), again.unreclaimed(), again.writes_per_byte()) == (4000, 70, 0.5)


def test_a_line_torn_by_a_crash_is_left_out(ledger: Ledger) -> None:
    text = ledger.path.read_text()
    ledger.path.write_text(text + text.splitlines()[0][:30])
    again = Ledger(ledger.path)
    assert again.total() == 4000
    again.add(Entry("end", 6000, "tests", spent=1000))
    assert Ledger(ledger.path).total() == 5000


def test_a_damaged_ledger_is_named(ledger: Ledger) -> None:
    ledger.path.write_text("nonsense\n" + ledger.path.read_text())
    with pytest.raises(HostError, match=r"wear\.jsonl: line 1 is no entry"):
        Ledger(ledger.path)
