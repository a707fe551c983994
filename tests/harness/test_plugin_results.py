"""Results of a run: JUnit properties, limits of measurements, KTAP, groups, whose a failure is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.resources import conformance_suite, suite_relative
from tests.harness.support.ktap import Line, parse_ktap
from tests.harness.support.runs import ROOT, Run, board_file, inner_run
from tests.junit import read_report

_SUITE = conformance_suite()
INNER = """
import errno

import pytest

from harness.errors import FirmwareError, LabError

@pytest.mark.cases(341, 342)
@pytest.mark.pain(22)
def test_measures(measurement):
    measurement("answer", 41.5, "ms")
    measurement("unlimited", 7, "bytes")

def test_measures_too_much(measurement):
    measurement("answer", 43, "ms")

def test_names_no_unit(measurement):
    measurement("answer", 1, "")

def test_asserts(board):
    assert board is None

@pytest.mark.blame("kernel")
def test_asserts_about_the_kernel(board):
    assert board is None

def test_is_refused(efivars):
    efivars.read("NotThere")

def test_has_a_bug(board):
    board.no_such_thing

def test_finds_the_firmware_broken(board):
    raise FirmwareError("planted", remedy="none")

def test_finds_the_lab_broken(board):
    raise LabError("planted", remedy="none")

def test_plants_a_kernel_line(shell):
    shell.run("echo 'BUG: planted' > /dev/kmsg").check()

@pytest.mark.needs("efi_pstore")
def test_needs_what_the_board_file_denies(board):
    raise AssertionError("was run")

@pytest.mark.needs("kernel_routed_rpmb")
def test_needs_what_the_board_file_claims(board):
    pass

@pytest.mark.parametrize("name", ["a # b"])
def test_number_sign(name):
    pass

def test_asks_for_what_there_is(store):
    assert store.why_not() is None
    assert 10000 < store.free() < 16284
"""
PINS = "[capabilities]\nefi_pstore = false\nkernel_routed_rpmb = true\n"
LIMITS = "[limits]\nanswer_ms = 42\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    board = board_file(folder, "[limits]", f"{PINS}\n{LIMITS}")
    return inner_run(folder, INNER, board, "--ktap results.ktap --capabilities pinned")


@pytest.fixture(scope="module")
def ktap(run: Run, folder: Path) -> dict[str, Line]:
    (group,) = parse_ktap((folder / "results.ktap").read_text())
    assert (group.ok, group.name) == (False, "test_inner.py")
    return {test.name: test for test in group.subtests}


class TestJUnit:
    def test_the_run_has_the_board_as_properties(self, run: Run) -> None:
        assert run.report is not None
        suite = {one.get("name"): one.get("value") or "" for one in run.report.iter("property")}
        assert suite["emmc_cid"] == "aa015851454d55212101deadbeef2900"
        assert suite["kernel"].startswith("Linux ")
        assert suite["link"].startswith("ssh ")
        assert "EFI v2" in suite["firmware"]
        assert "efivarfs" in suite["capabilities"].split()
        assert int(suite["rpmb_writes"]) >= 0

    def test_a_test_has_cases_and_measurements(self, run: Run) -> None:
        assert run.report is not None
        (case,) = (one for one in run.report.iter("testcase") if one.get("name") == "test_measures")
        found = {one.get("name"): one.get("value") for one in case.iter("property")}
        assert found.items() >= {
            ("cases", "341 342"),
            ("pain", "22"),
            ("measurement.answer_ms", "41.5"),
            ("measurement.unlimited_bytes", "7.0"),
            ("rpmb_writes", "0"),
            ("store_bytes", "0"),
        }


class TestMeasurements:
    def test_within_the_limit_passes(self, run: Run) -> None:
        assert run.outcomes["test_measures"] == ("passed", "")

    def test_above_the_limit_fails_with_file_and_key(self, run: Run) -> None:
        outcome, message = run.outcomes["test_measures_too_much"]
        assert outcome == "failure"
        assert re.search(r"answer is 43 ms; .*soft\.toml allows limits\.answer_ms = 42", message)

    def test_a_measurement_has_a_unit(self, run: Run) -> None:
        assert "cannot be called 'answer' in ''" in run.outcomes["test_names_no_unit"][1]

    def test_the_summary_has_range_and_limit(self, run: Run) -> None:
        assert "answer_ms: 41.5 to 43 in 2 values, limit 42" in run.output
        assert "unlimited_bytes: 7" in run.output


class TestPinned:
    def test_a_pin_is_believed(self, run: Run) -> None:
        assert run.outcomes["test_needs_what_the_board_file_denies"][0] == "skipped"
        assert run.outcomes["test_needs_what_the_board_file_claims"] == ("passed", "")

    def test_nothing_contradicts_it(self, run: Run) -> None:
        assert "contradicted" not in run.output

    def test_the_summary_counts_what_was_lacking(self, run: Run) -> None:
        assert re.search(r"skipped because the board lacks =+\nefi_pstore: 1\n", run.output)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("test_measures_too_much", "firmware"),
        ("test_asserts", "firmware"),
        ("test_asserts_about_the_kernel", "kernel"),
        ("test_is_refused", "firmware"),
        ("test_has_a_bug", "test"),
        ("test_finds_the_firmware_broken", "firmware"),
        ("test_finds_the_lab_broken", "lab"),
        ("test_plants_a_kernel_line", "kernel"),
    ],
)
def test_a_failure_says_whose_it_looks_like(run: Run, name: str, whose: str) -> None:
    assert re.search(rf"^{whose}: test_inner.py::{name}: ", run.output, re.MULTILINE), run.output


class TestKtap:
    def test_results_are_those_of_the_run(self, run: Run, ktap: dict[str, Line]) -> None:
        assert len(ktap) == len(run.outcomes)
        for name, test in ktap.items():
            outcome = run.outcomes.get(name, ("passed", ""))[0]
            assert test.ok == (outcome in {"passed", "skipped"}), name
            assert (test.directive == "SKIP") == (outcome == "skipped"), name

    def test_a_number_sign_in_a_name_begins_no_directive(self, ktap: dict[str, Line]) -> None:
        assert ktap["test_number_sign[a _ b]"].directive == ""

    def test_measurements_are_diagnostics(self, ktap: dict[str, Line]) -> None:
        assert "# measurement.answer_ms: 41.5" in ktap["test_measures"].diagnostics


def test_groups_have_counts_and_writes(run: Run) -> None:
    line = re.search(r"^test_inner.py +(\d+) +(\d+) +(\d+) +(\d+)$", run.output, re.MULTILINE)
    assert line is not None
    assert [int(line[column]) for column in (1, 2, 3)] == [4, 9, 1]


def test_a_test_can_ask_what_is_free(run: Run) -> None:
    assert run.outcomes["test_asks_for_what_there_is"] == ("passed", "")


class TestIds:
    @pytest.mark.parametrize("root", [ROOT, ROOT / "tests"])
    def test_results_name_a_test_by_its_place_in_the_suite(
        self, tmp_path: Path, root: Path
    ) -> None:
        name = "TestOffset::test_the_whole_file_and_then_its_end"
        words = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(root), "--board", "emulated"]
        words += ["--junitxml", str(tmp_path / "r.xml"), "--ktap", str(tmp_path / "r.ktap")]
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-v", *words, f"{_SUITE}/test_reads.py::{name}"],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stdout
        assert f"{_SUITE.relative_to(root)}/test_reads.py::{name} PASSED" in ended.stdout
        assert re.search(r"^test_reads.py +1 +0 +0 +\d+$", ended.stdout, re.MULTILINE)
        assert 'classname="test_reads.TestOffset"' in (tmp_path / "r.xml").read_text()
        assert list(read_report(tmp_path / "r.xml")) == [f"test_reads.py::{name}"]
        (group,) = parse_ktap((tmp_path / "r.ktap").read_text())
        assert group.name == "test_reads.py"
        assert [test.name for test in group.subtests] == [name]

    @pytest.mark.parametrize(
        ("nodeid", "file", "named"),
        [
            ("a/test_x.py::T::test[a::b]", _SUITE / "test_x.py", "test_x.py::T::test[a::b]"),
            ("test_x.py", _SUITE / "more" / "test_x.py", "more/test_x.py"),
            ("a/test_x.py::test", ROOT / "a" / "test_x.py", "a/test_x.py::test"),
        ],
    )
    def test_what_is_outside_of_the_suite_keeps_its_id(
        self, nodeid: str, file: Path, named: str
    ) -> None:
        assert suite_relative(nodeid, file) == named
