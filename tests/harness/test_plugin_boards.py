"""Several boards in one run of pytest: every board's results, and nobody's trouble but its own."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.boardfile import loading
from harness.lab.lease import LEASES_ENVIRONMENT, LeaseDesk
from harness.lab.things import things_of
from harness.pytest_plugin.boards import board_files
from harness.pytest_plugin.sharing import copies, deal
from tests.harness.support.ktap import Line, parse_ktap
from tests.harness.support.runs import ROOT
from tests.harness.support.watched import SECONDS, Watched

pytestmark = pytest.mark.long

INNER = """
import pytest
from harness.errors import WrongBoard

@pytest.mark.cost(store_bytes=200)
@pytest.mark.parametrize("second", [b"two", b"more"])
def test_appends(efivars, second):
    efivars.write("Appended", b"one")
    efivars.append("Appended", second)
    assert efivars.read("Appended").data == b"one" + second

def test_measures(board, measurement):
    measurement("answer", len(board.name), "ms")

@pytest.mark.disturbs
def test_loses_its_board(board):
    if board.name == "beta":
        raise WrongBoard("planted", remedy="none")

@pytest.mark.power
def test_comes_last(board):
    pass

def test_without_a_board():
    pass
"""


@dataclass(frozen=True)
class Run:
    status: int
    output: str
    suites: dict[str, ET.Element]
    ktap: dict[str, Line]

    def outcomes(self, board: str) -> dict[str, str]:
        """Of each test of a board, by the JUnit XML."""
        verdicts = {}
        for case in self.suites[board].iter("testcase"):
            tags = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
            verdicts[str(case.get("name"))] = tags[0] if tags else "passed"
        return verdicts


def _board(folder: Path, name: str, options: str = "", keeps: str = "") -> Path:
    text = (ROOT / "boards" / "emulated.toml").read_text()
    text = text.replace('name = "emulated"', f'name = "{name}"')
    text = text.replace('driver = "emulated"', f'driver = "emulated"\n{keeps}')
    text = text.replace("[power.options]", f"[power.options]\n{options}")
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def _start(folder: Path, *words: str) -> Watched:
    leases = {LEASES_ENVIRONMENT: str(folder / "desk"), "PYTHONPATH": str(ROOT)}
    plain = ["-p", "no:cacheprovider", "--rootdir", ".", "-c", "/dev/null"]
    return Watched(
        folder,
        {**os.environ, **leases, "PYTHONUNBUFFERED": "1"},
        *("-m", "pytest", "-p", "harness.pytest_plugin", *plain, *words),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three boards: one is healthy, one a mutant that gets lost, one is somebody else's."""
    folder = tmp_path_factory.mktemp("boards")
    boards = folder / "boards"
    boards.mkdir()
    _board(boards, "alpha")
    _board(boards, "beta", 'mutant = "append_replaces"')
    others = things_of(loading.load(_board(boards, "gamma", keeps='state = "flash"')))
    (folder / "test_inner.py").write_text(INNER)
    with LeaseDesk(folder / "desk").acquire(others, board="x", purpose="soldering", timeout=0):
        words = ["--board", "boards", "--junitxml=r.xml", "--ktap=r.ktap", "test_inner.py"]
        process = _start(folder, *words)
        status = process.end()
    root = ET.parse(folder / "r.xml").getroot()
    suites = {str(suite.get("name")): suite for suite in root.iter("testsuite")}
    ktap = {line.name: line for line in parse_ktap((folder / "r.ktap").read_text())}
    return Run(status, process.output, suites, ktap)


def test_every_board_runs_every_test_and_ids_name_the_board(run: Run) -> None:
    assert run.outcomes("alpha") == {
        "test_appends[alpha-two]": "passed",
        "test_appends[alpha-more]": "passed",
        "test_measures[alpha]": "passed",
        "test_loses_its_board[alpha]": "passed",
        "test_comes_last[alpha]": "passed",
        "test_without_a_board": "passed",
    }, run.output


def test_what_a_mutant_fails_and_a_lost_board_ends_is_its_own(run: Run) -> None:
    assert run.outcomes("beta") == {
        "test_appends[beta-two]": "failure",
        "test_appends[beta-more]": "failure",
        "test_measures[beta]": "passed",
        "test_loses_its_board[beta]": "failure",
        "test_comes_last[beta]": "error",
    }, run.output
    assert "FAILED test_inner.py::test_appends[beta-two]" in run.output
    assert "firmware: test_inner.py::test_appends[beta-more]: " in run.output
    assert re.search(r"^beta: planted\. Fault: lab", run.output, re.MULTILINE)


def test_a_board_that_somebody_holds_costs_the_others_nothing(run: Run) -> None:
    assert run.outcomes("gamma") == {}
    assert re.search(r"^gamma: the board is held by .*, soldering\)", run.output, re.MULTILINE)


def test_the_run_was_not_complete(run: Run) -> None:
    assert run.status == pytest.ExitCode.INTERRUPTED, run.output


def test_the_summary_has_a_line_a_board(run: Run) -> None:
    table = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", run.output, re.MULTILINE)
    found = {name: tuple(map(int, rest)) for name, *rest in table}
    assert found["alpha"][:4] == (6, 0, 0, 0), run.output
    assert found["beta"][:4] == (1, 4, 0, 0)
    assert found["gamma"][:4] == (0, 0, 0, 5)
    assert found["alpha"][4] > 0


def test_forecast_and_groups_are_each_boards(run: Run) -> None:
    for board in ("alpha", "beta"):
        forecast = rf"^{board}: RPMB writes: \d+ so far; this run about \d+"
        assert re.search(forecast, run.output, re.MULTILINE), run.output
        assert f" {board}: groups " in run.output
        assert f" {board}: variables of the board, given back " in run.output


def test_junit_has_a_suite_a_board_with_its_properties(run: Run) -> None:
    assert run.suites.keys() == {"alpha", "beta", "gamma"}
    for board in ("alpha", "beta"):
        found = run.suites[board].findall("properties/property")
        properties = {one.get("name"): one.get("value") or "" for one in found}
        assert properties["board"] == board
        assert "EFI v2" in properties["firmware"]
        assert properties.keys() >= {"kernel", "link", "capabilities", "emmc_cid"}
    beta = run.suites["beta"]
    assert [beta.get(key) for key in ("tests", "failures", "errors")] == ["5", "3", "1"]


def test_ktap_has_a_test_a_board(run: Run) -> None:
    assert {name: line.ok for name, line in run.ktap.items()} == {
        "alpha": True,
        "beta": False,
        "gamma": False,
    }
    (group,) = run.ktap["beta"].subtests
    assert [line.name for line in group.subtests if line.ok] == ["test_measures[beta]"]


# --- ends ---------------------------------------------------------------------------------------

INTERRUPTED = """
import os
import signal

import pytest
from harness.formats.efi import GLOBAL_VARIABLE_GUID as GLOBAL

@pytest.mark.foreign("BootNext")
@pytest.mark.cost(store_bytes=80)
def test_sleeps(efivars, board):
    efivars.write("BootNext", b"\\0\\0", guid=GLOBAL)
    with open(f"reached-{board.name}", "w"):
        pass
    if board.name == "alpha":
        os.kill(os.getpid(), signal.SIGKILL)
    board.shell.run("sleep 300", timeout=300)

def test_is_not_run(board):
    pass
"""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """Two boards: the worker of one is killed, and then the run gets ^C."""
    folder = tmp_path_factory.mktemp("interrupted")
    names = ("alpha", "beta")
    options = [word for name in names for word in ("--board", str(_board(folder, name)))]
    (folder / "test_inner.py").write_text(INTERRUPTED)
    run = _start(folder, *options, "test_inner.py")
    try:
        run.until("worker alpha crashed")
        deadline = time.monotonic() + SECONDS
        while not (folder / "reached-beta").exists():
            assert run.process.poll() is None, run.end() and run.output
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        # Only the process that the user started: a terminal would tell all of them.
        run.process.send_signal(signal.SIGINT)
        status = run.end()
    finally:
        run.process.kill()
    return status, run.output


def test_a_killed_worker_does_not_stop_the_others(interrupted: tuple[int, str]) -> None:
    _, output = interrupted
    assert re.search(r"^alpha: its process ended: ", output, re.MULTILINE), output
    assert "lab: test_inner.py::test_sleeps[alpha]: the process that ran it died" in output


def test_an_interrupted_board_is_given_back(interrupted: tuple[int, str]) -> None:
    status, output = interrupted
    assert status == pytest.ExitCode.INTERRUPTED, output
    _, found, rest = output.partition(" beta: variables of the board, given back =")
    assert found, output
    assert "BootNext" in rest.partition("identical")[0], rest
    assert "NOT restored" not in output


# --- how it is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("-n", "2"), "2 boards are 2 workers, one a board: leave out -n"),
        (("-p", "no:xdist"), "pip install pytest-xdist"),
    ],
)
def test_workers_are_one_a_board(tmp_path: Path, words: tuple[str, ...], answer: str) -> None:
    boards = [f"--board={_board(tmp_path, name)}" for name in ("alpha", "beta")]
    process = _start(tmp_path, *words, *boards)
    assert process.end() == pytest.ExitCode.USAGE_ERROR, process.output
    assert answer in process.output


@pytest.mark.parametrize(
    ("names", "keeps", "answer"),
    [
        (("alpha", "alpha"), "", "are both called alpha"),
        (("alpha", "beta"), 'state = "flash"', "alpha and beta share image /"),
    ],
)
def test_a_board_is_named_once(
    tmp_path: Path, names: tuple[str, ...], keeps: str, answer: str
) -> None:
    paths = [str(_board(tmp_path, name, keeps=keeps)) for name in names]
    with pytest.raises(pytest.UsageError, match=re.escape(answer)):
        board_files(paths)


def test_a_directory_of_one_board_is_that_board(tmp_path: Path) -> None:
    boards = tmp_path / "boards"
    boards.mkdir()
    _board(boards, "alpha")
    (tmp_path / "test_inner.py").write_text(INNER)
    words = ["--board", "boards", "--collect-only", "-q", "-p", "no:xdist"]
    process = _start(tmp_path, *words, "test_inner.py")
    assert process.end() == 0, process.output
    assert "test_inner.py::test_measures\n" in process.output


SHARED = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_on_a_board(board, number):
    with open("ran", "a") as file:
        print(f"{__name__}[{number}] pid", board.links.boot_id, file=file)

def test_without_a_board():
    pass
"""


def test_boards_share_the_tests(tmp_path: Path) -> None:
    _board(tmp_path, "alpha")
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(SHARED)
    boards = ["--board", "./alpha.toml", "--board", "./alpha.toml"]
    process = _start(tmp_path, *boards, "--share", "--junitxml=r.xml")
    assert process.end() == pytest.ExitCode.OK, process.output
    lines = (tmp_path / "ran").read_text().splitlines()
    expected = [f"test_{name}[{number}]" for name in ("one", "two") for number in range(3)]
    assert sorted(line.split()[0] for line in lines) == expected
    boots = {name: {line.split()[-1] for line in lines if name in line} for name in ("one", "two")}
    assert len(boots["one"]) == len(boots["two"]) == 1
    assert boots["one"] != boots["two"], "a board for each file"
    suites = {suite.get("name") for suite in ET.parse(tmp_path / "r.xml").iter("testsuite")}
    assert {"alpha", "alpha-2"} <= suites
    assert re.search(r"test_on_a_board\[alpha-2-0\]", (tmp_path / "r.xml").read_text())
    assert re.search(r"^8 passed|\b8 passed", process.output), process.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--board", "./alpha.toml", "--share"], "--share needs several boards"),
        (["--board", "./alpha.toml", "--board", "./alpha.toml"], "are both called alpha"),
        (["--board", "./desk.toml", "--board", "./desk.toml", "--share"], "are both called desk"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path: Path, words: list[str], told: str) -> None:
    _board(tmp_path, "alpha")
    _board(tmp_path, "desk", keeps='state = "flash"')
    (tmp_path / "test_one.py").write_text(SHARED)
    process = _start(tmp_path, *words)
    assert process.end() == pytest.ExitCode.USAGE_ERROR, process.output
    assert told in process.output


def test_files_are_dealt_so_that_nobody_has_much_more() -> None:
    weights = {
        Path(name): weight for name, weight in zip("abcdef", (9, 7, 4, 4, 3, 1), strict=True)
    }
    hands = deal(weights, 2)
    assert set.union(*hands) == set(weights)
    assert not set.intersection(*hands)
    assert [sum(weights[path] for path in hand) for hand in hands] == [14, 14]


def test_a_board_named_twice_has_two_names() -> None:
    assert copies(["desk", "desk-2", "desk", "x"]) == ["desk", "desk-2", "desk-3", "x"]
