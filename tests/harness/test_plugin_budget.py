"""Store space and RPMB writes as budgets of a run: planned before, enforced at each test, kept in a
ledger."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.support.runs import Run, board_file, inner_run

SPACE = """
import pytest

pytestmark = pytest.mark.consents("write_rpmb")

@pytest.mark.cost(store_bytes=4064)
@pytest.mark.parametrize("number", range(4))
def test_large(efivars, number):
    efivars.write("Large", bytes(3992))

@pytest.mark.power
def test_late(board):
    pass

@pytest.mark.cost(store_bytes=100)
def test_declared(efivars):
    efivars.write("A", b"x")

def test_undeclared(efivars):
    efivars.write("A", b"x")

@pytest.mark.cost(store_bytes=68)
def test_more_than_declared(efivars):
    efivars.write("A", b"more than that")

@pytest.mark.cost(store_bytes=0)
def test_identical_and_refused_writes_take_nothing(efivars):
    with pytest.raises(OSError):
        efivars.write("A", b"x", attributes=0x80)

@pytest.fixture(scope="session")
def told(board):
    board.efivars.write("A", b"x")

@pytest.mark.cost(store_bytes=68, story="told")
class TestStory:
    def test_first_judge(self, told):
        pass

    def test_second_judge(self, told, efivars):
        efivars.write("A", b"x")

@pytest.mark.cost(bytes=5)
def test_misspelt(board):
    pass
"""
SPACE_WITHOUT_MISSPELT = SPACE.partition("@pytest.mark.cost(bytes=5)")[0]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("space")
    return inner_run(folder, SPACE_WITHOUT_MISSPELT, board_file(folder), "-o hil_enforce_cost=true")


class TestSpace:
    def test_room_is_won_back_between_tests(self, space: Run) -> None:
        assert re.search(r"test takes up to 4064 bytes.*-> reclaimed 1\d{4} bytes", space.output)
        assert all(space.outcomes[f"test_large[{n}]"] == ("passed", "") for n in range(4))

    def test_boot_options_are_as_before_a_reclaim(self, space: Run) -> None:
        assert "14 identical" in space.output

    def test_the_header_says_what_it_will_cost(self, space: Run) -> None:
        assert re.search(r"this run about \d{5} \(1 reclaims of the store\)", space.output)

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("test_undeclared", "took 68 store bytes and declares no cost"),
            ("test_more_than_declared", "took 80 store bytes, declares 68"),
            ("test_second_judge", "took 68 store bytes, declares 0"),
        ],
    )
    def test_more_than_declared_fails(self, space: Run, name: str, why: str) -> None:
        outcome, message = space.outcomes[name]
        assert outcome == "error"
        assert why in message

    @pytest.mark.parametrize(
        "name",
        ["test_declared", "test_identical_and_refused_writes_take_nothing", "test_first_judge"],
    )
    def test_what_was_declared_passes(self, space: Run, name: str) -> None:
        assert space.outcomes[name] == ("passed", "")

    def test_expensive_tests_come_last(self, space: Run) -> None:
        order = list(space.outcomes)
        places = [order.index(name) for name in ("test_declared", "test_late", "test_large[0]")]
        assert places == sorted(places)


LIMITED = """
import pytest

pytestmark = pytest.mark.consents("write_rpmb")

@pytest.mark.cost(store_bytes=64, rpmb_writes=250)
@pytest.mark.parametrize("number", range(3))
def test_writes(efivars, number):
    efivars.write("A", bytes(4))

@pytest.mark.cost(store_bytes=15000)
def test_needs_a_reclaim(board):
    raise AssertionError("was run")

@pytest.mark.cost(store_bytes=15200)
def test_fills(board):
    raise AssertionError("was run")
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two runs on one flash: with a budget, and without the consent that a reclaim needs."""
    folder = tmp_path_factory.mktemp("limited")
    state = f'driver = "emulated"\nstate = "{folder}/state"'
    first = board_file(folder, 'driver = "emulated"', state, top="rpmb_write_budget = 300")
    one = inner_run(folder, LIMITED, first)
    second = board_file(
        folder,
        *('driver = "emulated"', state),
        *("power_cycle = true", "power_cycle = false"),
    )
    return one, inner_run(folder, LIMITED, second)


class TestWear:
    def test_the_run_stops_at_its_budget(self, limited: tuple[Run, Run]) -> None:
        outcome, message = limited[0].outcomes["test_needs_a_reclaim"]
        assert outcome == "skipped"
        assert "of the budget of 300 are spent" in message

    def test_where_nothing_can_be_reclaimed_is_said(self, limited: tuple[Run, Run]) -> None:
        outcome, message = limited[1].outcomes["test_fills"]
        assert outcome == "skipped"
        assert re.search(r"15200 bytes of the store.*does not consent to power_cycle", message)

    def test_the_ledger_goes_on_over_runs(self, limited: tuple[Run, Run]) -> None:
        counts = [
            re.search(r"RPMB writes: (\d+)[^;]*; (\d+) in all", run.output) for run in limited
        ]
        assert counts[0] is not None
        assert counts[1] is not None
        assert int(counts[1][2]) == int(counts[0][1]) + int(counts[1][1])

    def test_nobody_else_wrote(self, limited: tuple[Run, Run]) -> None:
        assert "wear: " not in limited[1].output


def test_a_misspelt_cost_is_an_error_before_the_first_test(tmp_path: Path) -> None:
    run = inner_run(tmp_path, SPACE, board_file(tmp_path))
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert "cost takes store_bytes=N and rpmb_writes=N, not bytes" in run.output


def test_a_run_that_writes_nothing_wears_nothing(tmp_path: Path) -> None:
    """Not even to measure what takes a write to measure."""
    test = "def test_reads(efivars):\n    assert efivars.names()\n"
    run = inner_run(tmp_path, test, board_file(tmp_path), "-o hil_enforce_cost=true")
    assert run.outcomes["test_reads"] == ("passed", "")
    assert re.search(r"^RPMB writes: 0; ", run.output, re.MULTILINE)
