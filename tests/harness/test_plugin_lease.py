"""A run of pytest and the lease of its board: told who holds it, waiting for it, robbed of it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.boardfile import loading
from harness.lab.lease import (
    LEASES_ENVIRONMENT,
    TOKEN_ENVIRONMENT,
    LeaseBroken,
    LeaseDesk,
    Status,
    _user,
    lease_board,
)
from harness.lab.things import things_of
from tests.harness.support.runs import ROOT, board_file
from tests.harness.support.watched import Watched

_SECONDS = 200.0
INNER = """
import pytest
from harness.formats.efi import GLOBAL_VARIABLE_GUID as GLOBAL

def test_first(efivars):
    efivars.write("Own", b"x")

@pytest.mark.foreign("BootNext")
@pytest.mark.cost(store_bytes=80)
def test_is_robbed(efivars, shell, record_testsuite_property):
    efivars.write("BootNext", b"\\\\0\\\\0", guid=GLOBAL)
    with open("robbed", "w"):
        pass
    shell.run("sleep 300", timeout=300)

def test_is_not_run_any_more(board):
    with open("went on", "w"):
        pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leases")
    (folder / "test_inner.py").write_text(INNER)
    return folder


@pytest.fixture(scope="module")
def board(folder: Path) -> Path:
    """A board that keeps its flash: a physical thing, which two runs cannot have at once."""
    return board_file(folder, 'driver = "emulated"', 'driver = "emulated"\nstate = "flash"')


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    leases = {LEASES_ENVIRONMENT: str(folder / "desk"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **leases, "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def desk(folder: Path) -> LeaseDesk:
    return LeaseDesk(folder / "desk")


def _pytest(board: Path, *words: str) -> list[str | Path]:
    plain = ["-p", "no:cacheprovider", "--rootdir", ".", "-c", "/dev/null"]
    return ["-m", "pytest", "-p", "harness.pytest_plugin", *plain, "--board", board, *words]


@dataclass(frozen=True)
class Robbed:
    """The run that waited for its board, got it, and was robbed of it."""

    waiting: str
    output: str
    status: int
    names: str


@pytest.fixture(scope="module")
def robbed(folder: Path, board: Path, environment: dict[str, str], desk: LeaseDesk) -> Robbed:
    things = things_of(loading.load(board))
    lease = desk.acquire(things, board="desk3", purpose="soldering", timeout=0)
    tests = [f"test_inner.py::{name}" for name in ("test_first", "test_is_robbed")]
    tests.append("test_inner.py::test_is_not_run_any_more")
    run = Watched(folder, environment, *_pytest(board, "--wait-for-board", "80", *tests))
    try:
        waiting = run.until("waiting for board")
        lease.release()
        deadline = time.monotonic() + _SECONDS
        while not (folder / "robbed").exists():
            assert run.process.poll() is None, run.end() and run.output
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        names = str(desk.status(things).holders[0])
        desk.break_lease(things, reason="the demo is at three", timeout=_SECONDS)
        status = run.end()
    finally:
        run.process.kill()
    return Robbed(waiting, run.output, status, names)


def test_who_waits_sees_its_place_and_who_holds_the_board(robbed: Robbed) -> None:
    assert "place 1; held by " in robbed.waiting
    assert f"(process {os.getpid()}, soldering) as board desk3 since " in robbed.waiting


def test_the_lease_says_what_is_run(robbed: Robbed) -> None:
    assert "pytest -p harness.pytest_plugin" in robbed.names


def test_a_run_whose_lease_is_broken_ends_and_says_why(robbed: Robbed) -> None:
    assert robbed.status == pytest.ExitCode.INTERRUPTED, robbed.output
    assert "the lease was broken: by " in robbed.output
    assert ": the demo is at three (board emulated)" in robbed.output
    assert "1 passed" in robbed.output


def test_no_test_runs_on_a_board_that_was_taken_away(robbed: Robbed, folder: Path) -> None:
    assert not (folder / "went on").exists()


def test_the_board_is_given_back_before_who_broke_the_lease_gets_it(
    robbed: Robbed, folder: Path
) -> None:
    assert "variables of the board, given back" in robbed.output
    assert "BootNext" in robbed.output
    assert not (folder / "flash" / "safekeeping" / "snapshot.json").exists()


def test_afterwards_nobody_holds_it(robbed: Robbed, desk: LeaseDesk) -> None:
    assert desk.all() == Status((), ())


def test_a_held_board_ends_the_run_before_it_is_touched(
    tmp_path: Path, folder: Path, environment: dict[str, str], desk: LeaseDesk
) -> None:
    board = board_file(tmp_path, 'driver = "emulated"', 'driver = "emulated"\nstate = "flash"')
    things = things_of(loading.load(board))
    with desk.acquire(things, board="desk3", purpose="soldering", timeout=0):
        run = Watched(folder, environment, *_pytest(board, "test_inner.py"))
        assert run.end() == pytest.ExitCode.INTERRUPTED, run.output
    assert f"held by {_user()} (process {os.getpid()}, soldering)" in run.output
    assert "Fault: lab. Next: wait for it (pytest --wait-for-board SECONDS" in run.output
    assert "hil lease break emulated" in run.output
    assert not (tmp_path / "flash").exists()


@pytest.mark.parametrize("words", [("run", "true"), ("power", "cycle"), ("restore",)])
def test_commands_respect_the_lease(
    tmp_path: Path, environment: dict[str, str], desk: LeaseDesk, words: tuple[str, ...]
) -> None:
    path = tmp_path / "desk3.toml"
    path.write_text(
        'emmc_cid = "15010038474e4433520155aabbccdd00"\n'
        '[serial]\nport = "/dev/ttyNONE"\n'
        '[power]\ndriver = "command"\n[power.options]\non = "touch on"\noff = "touch off"\n'
    )
    command, *rest = words
    target = str(path)
    order = [command, *rest, target] if command == "power" else [command, target, *rest]
    with desk.acquire(things_of(loading.load(path)), board="x", purpose="soldering", timeout=0):
        done = Watched(tmp_path, environment, "-m", "harness", *order)
        assert done.end() == 1, done.output
    assert "the board is held by " in done.output
    assert "soldering" in done.output
    assert not (tmp_path / "off").exists()


def test_a_board_of_ones_own_costs_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASES_ENVIRONMENT, str(tmp_path / "desk"))
    file = loading.load(ROOT / "boards" / "emulated.toml")
    with lease_board(file, purpose="one"), lease_board(file, purpose="two"):
        pass
    assert not (tmp_path / "desk").exists()


def test_what_a_holder_starts_may_use_the_board(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = LeaseDesk(tmp_path)
    monkeypatch.setenv(LEASES_ENVIRONMENT, str(tmp_path))
    file = loading.load(board)
    things = things_of(file)
    with desk.acquire(things, board="outer", purpose="hil lease hold", timeout=0) as outer:
        monkeypatch.setenv(TOKEN_ENVIRONMENT, outer.token)
        with lease_board(file, purpose="inner") as inner:
            inner.check()
            desk._tell(outer.holder, "by root: maintenance")
            with pytest.raises(LeaseBroken, match="by root: maintenance"):
                inner.check()
        assert [holder.board for holder in desk.status(things).holders] == ["outer"]


_ROBBED = """
import sys, threading
from pathlib import Path
from harness.boardfile import loading
from harness.lab.lease import LeaseBroken, LeaseDesk, Status, leased

try:
    with leased(loading.load(Path(sys.argv[1])), purpose="x") as lease:
        LeaseDesk()._tell(lease.holder, "by root: fire")
        threading.Event().wait(200)
except LeaseBroken as broken:
    print(broken)
assert LeaseDesk().all() == Status((), ())
# Once, and nobody who comes later.
threading.Event().wait(1)
print("went on")
"""


def test_a_broken_lease_ends_what_is_going_on(board: Path, environment: dict[str, str]) -> None:
    """In a process of its own: it is interrupted."""
    run = Watched(board.parent, environment, "-c", _ROBBED, board)
    assert run.end() == 0, run.output
    assert "by root: fire" in run.output
    assert run.output.endswith("went on\n")
