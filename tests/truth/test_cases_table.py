"""docs/cases.md says what the tests' markers say, and every case has a test or a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import inventory
from tests.cases.collecting import Collected
from tests.cases.inventory import Case, Pain, Reasons
from tests.cases.table import DOCUMENT, Coverage, render


@pytest.fixture(scope="module")
def coverage() -> Coverage:
    return Coverage.gather()


def test_every_case_and_known_bug_has_a_test_or_a_reason(coverage: Coverage) -> None:
    problems = coverage.problems()
    assert not problems, "\n".join(["", *problems])


def test_the_document_is_up_to_date(coverage: Coverage) -> None:
    assert DOCUMENT.read_text("utf-8") == render(coverage), "run python -m tests.cases --write"


def test_the_inventory_is_whole() -> None:
    assert list(inventory.cases()) == list(range(1, 447))
    assert list(inventory.pains()) == list(range(1, 27))


def made_up(*items: Collected, reasons: dict[int, str] | None = None) -> Coverage:
    return Coverage(
        {number: Case(number, "Group", "VAR", "do | it", "done", "here") for number in (1, 2)},
        {1: Pain(1, "issue", "symptom", "test")},
        Reasons(reasons or {}, {1: "nobody can"}),
        items,
        {"tests/conformance/test_x.py::test_one": {"attr-002"}},
    )


ONE = Collected("tests/conformance/test_x.py", "test_one", (1,), ())


def test_a_case_without_test_and_reason_is_a_problem() -> None:
    assert made_up(ONE).problems() == [
        "case 2: no test is marked with it and reasons.toml gives no reason"
    ]


def test_a_stale_reason_is_a_problem() -> None:
    problems = made_up(ONE, reasons={1: "old", 2: "no hardware"}).problems()
    assert problems == ["case 1: a test covers it, so its reason in reasons.toml is stale"]


def test_a_number_that_is_no_case_is_a_problem() -> None:
    wrong = Collected("tests/harness/test_y.py", "TestIt::test_two", (2, 999), (77,))
    problems = made_up(ONE, wrong, reasons={3: "typing error"}).problems()
    assert problems == [
        "reasons.toml: no case 3",
        "tests/harness/test_y.py::TestIt::test_two: no case 999",
        "tests/harness/test_y.py::TestIt::test_two: no pain 77",
    ]


def test_a_case_shows_its_tests_or_its_reason() -> None:
    text = render(made_up(ONE, ONE, reasons={2: "no hardware"}))
    assert (
        "| 001 | do \\| it | done | `conformance/test_x.py`: test_one (2 items) | attr-002 |"
        in text
    )
    assert "| 002 | do \\| it | done | none: no hardware |  |" in text


def test_a_number_has_one_reason(tmp_path: Path) -> None:
    path = tmp_path / "reasons.toml"
    path.write_text(
        '[[case]]\nwhy = "a"\nnumbers = [1, 2]\n[[case]]\nwhy = "b"\nnumbers = [2]\n', "utf-8"
    )
    with pytest.raises(ValueError, match="2 has two reasons: 'a', 'b'"):
        inventory.reasons(path)
