"""Two reports are compared test by test, and a difference needs its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.boardfile import loading
from tests.junit import Verdict, read_report
from tests.side_by_side import __main__ as command
from tests.side_by_side.verdicts import differences, read_reasons

_PASSED = '<testcase classname="tests.conformance.test_a.TestB" name="test_{}"/>'
_FAILED = (
    '<testcase classname="tests.conformance.test_a.TestB" name="test_{}">'
    '<failure message="assert 5 == 22&#10;more">trace</failure></testcase>'
)
_SKIPPED = (
    '<testcase classname="tests.conformance.test_a" name="test_{}"><skipped message='
    '"no efivar on this board (a tool); measured: none"/></testcase>'
)


def _write(path: Path, *cases: str) -> None:
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    _write(
        tmp_path / "mm-emulated.xml",
        *(_PASSED.format(name) for name in ("x", "y", "z")),
        '<testcase classname="tests.conformance.test_a" name="test_tool"/>',
    )
    _write(
        tmp_path / "mm-real.xml",
        _PASSED.format("x"),
        _FAILED.format("y"),
        _PASSED.format("y"),
        _FAILED.format("z"),
        _SKIPPED.format("tool"),
    )
    return tmp_path


def test_only_what_differs_is_found(reports: Path) -> None:
    found = differences(
        "mm", read_report(reports / "mm-emulated.xml"), read_report(reports / "mm-real.xml")
    )
    assert [(one.test, one.real.verdict, one.opposed) for one in found] == [
        ("test_a.py::TestB::test_y", Verdict.FAILED, True),
        ("test_a.py::TestB::test_z", Verdict.FAILED, True),
        ("test_a.py::test_tool", Verdict.SKIPPED, False),
    ]
    assert found[0].real.why == "assert 5 == 22"
    assert found[2].real.why == "efivar"


@pytest.mark.parametrize(
    ("covered", "status", "end"),
    [
        (
            ["test_a.py::TestB::test_?"],
            0,
            "SIDE BY SIDE 2 agree, 2 differ, 0 without a reason, 0 failed once",
        ),
        (["*test_y"], 1, "SIDE BY SIDE 2 agree, 2 differ, 1 without a reason, 0 failed once"),
    ],
)
def test_a_difference_needs_a_reason(
    reports: Path,
    covered: list[str],
    status: int,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = reports / "reasons.toml"
    reasons.write_text(f'[[reason]]\ntests = {covered}\nconfigurations = ["mm*"]\nwhy = "known"\n')
    monkeypatch.setattr(command, "_REASONS", reasons)
    assert command.main(["--reports", str(reports), "mm"]) == status
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == end
    assert "| `mm` | 4 passed, 0 failed, 0 skipped | 1 passed, 2 failed, 1 skipped |" in printed
    assert "| `mm` | 1 | passed | skipped | efivar |" in printed


def test_what_failed_once_is_told_and_differs_no_more(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = reports / "reasons.toml"
    reasons.write_text('[[reason]]\ntests = ["*test_z"]\nwhy = "known"\n')
    monkeypatch.setattr(command, "_REASONS", reasons)
    _write(reports / "mm-real-again.xml", _PASSED.format("y"))
    assert command.main(["--reports", str(reports), "--again", "mm"]) == 0
    printed = capsys.readouterr().out
    assert "| `mm` | `test_a.py::TestB::test_y` | real | assert 5 == 22 | passed |" in printed
    assert printed.endswith("3 agree, 1 differ, 0 without a reason, 1 failed once\n")


def test_what_has_no_reason_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the emulated board, which failed it according to a report that is made up."""
    test = "test_small_reads_continue_where_the_last_one_ended"
    for kind, case in (("emulated", _FAILED), ("real", _PASSED)):
        case = case.replace("test_a.TestB", "test_reads.TestOffset").replace("test_{}", test)
        _write(tmp_path / f"mm-{kind}.xml", case)
    assert command.main(["--reports", str(tmp_path), "--again", "mm"]) == 0
    told = capsys.readouterr()
    assert (
        f"| `mm` | `test_reads.py::TestOffset::{test}` | emulated | assert 5 == 22 | passed |"
        in told.out
    )
    assert told.out.endswith("1 agree, 0 differ, 0 without a reason, 1 failed once\n")
    assert "mm emulated, again: 100 % of the tests, 0 failed, " in told.err


def test_both_boards_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The emulated board for real; the real firmware only as far as its report that is there."""
    _write(tmp_path / "mm-real.xml", _PASSED.format("x"))
    one = "tests/conformance/test_reads.py::TestOffset"
    assert command.main(["--reports", str(tmp_path), "--tests", one, "mm"]) == 0
    ran = read_report(tmp_path / "mm-emulated.xml")
    assert ran
    assert {outcome.verdict for outcome in ran.values()} == {Verdict.PASSED}
    assert "passed | not run" in capsys.readouterr().out


@pytest.mark.parametrize("name", command.CONFIGURATIONS)
def test_the_real_board_differs_in_its_images_only(name: str, tmp_path: Path) -> None:
    file = loading.load(command.write_real_board_file(name, tmp_path))
    assert file.power.options.images == name


def test_every_reason_names_a_configuration_and_says_why() -> None:
    for reason in read_reasons(command._REASONS):
        assert len(reason.why) > 20
        assert reason.tests
        assert reason.configurations
