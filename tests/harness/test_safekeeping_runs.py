"""Runs of pytest and ``hil restore``: whatever ends a run, the board is given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.support.killed_runs import ALL, QUICK, ROOT, SEED, End, EndedRuns, planned
from tests.pace import HANGS

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("HIL_KILLED_RUNS", "1"))
"""How many runs are killed; CI at night sets more, and then every other end comes eight times."""
ENDS = planned(KILLS, 1 if KILLS <= 2 else 8, SEED)


UNDECLARED = """
import pytest
from harness.formats.efi import GLOBAL_VARIABLE_GUID as GLOBAL

NEXT = f"/sys/firmware/efi/efivars/BootNext-{GLOBAL}"

def test_system_call(efivars):
    efivars.write("BootNext", b"\\1\\0", guid=GLOBAL)

def test_redirection(shell):
    shell.run(f"printf '\\\\7\\\\0\\\\0\\\\0\\\\1\\\\0' > {NEXT}").check()

def test_removal(shell):
    shell.run(f"rm {NEXT.replace('Next', 'Order')}").check()

def test_both_are_back(efivars):
    assert not efivars.exists("BootNext", GLOBAL)
    assert efivars.exists("BootOrder", GLOBAL)

def test_size_that_is_shown(efivars, shell):
    efivars.write("MovesTheCounter", b"x")
    shell.run(f": > {NEXT.replace('Next', 'Order')}").check()

def test_size_that_a_fresh_mount_shows(efivars):
    efivars.write("MovesTheCounter", b"x")
    efivars.unmount()
    efivars.mount()

@pytest.mark.foreign("BootNext", "BootOrder")
def test_declared(efivars):
    efivars.write("BootNext", b"\\1\\0", guid=GLOBAL)
    efivars.overwrite("BootOrder", b"\\1\\0", guid=GLOBAL)

def test_both_are_back_again(efivars):
    assert not efivars.exists("BootNext", GLOBAL)
    assert len(efivars.read("BootOrder", GLOBAL).data) > 2
"""


def test_undeclared_writes_fail_and_are_put_back(tmp_path: Path) -> None:
    (tmp_path / "test_undeclared.py").write_text(UNDECLARED)
    command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "-c", "/dev/null"]
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-rA"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    outcomes: dict[str, str] = {}
    for line in ended.stdout.splitlines():
        outcome, _, name = line.partition(" - ")[0].partition(" test_undeclared.py::")
        if outcome in {"PASSED", "FAILED", "ERROR"}:
            outcomes[name] = outcome
    assert outcomes == {
        "test_system_call": "FAILED",
        "test_redirection": "ERROR",
        "test_removal": "ERROR",
        "test_both_are_back": "PASSED",
        "test_size_that_is_shown": "PASSED",
        "test_size_that_a_fresh_mount_shows": "PASSED",
        "test_declared": "PASSED",
        "test_both_are_back_again": "PASSED",
    }
    assert "BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c, which its markers" in ended.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> EndedRuns:
    return EndedRuns(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def duration(runs: EndedRuns) -> float:
    """Of a run that nobody kills; it leaves the board as it was."""
    took = runs.duration()
    assert runs.digests() == runs.before
    return took


def until_test(run: subprocess.Popen[str], name: str) -> str:
    """Read pytest's output until it begins the test ``name``."""
    assert run.stdout is not None
    seen = ""
    for line in run.stdout:
        seen += line
        if name in line:
            break
    return seen


def test_a_run_leaves_nothing_to_restore(runs: EndedRuns, duration: float) -> None:
    answer = runs.restore("--list")
    # On a busy host it says what it waits for.
    said = [line for line in answer.stderr.splitlines() if not line.endswith(" ...")]
    assert (answer.returncode, said) == (0, [])
    assert "no run left anything to restore" in answer.stdout


def test_collecting_touches_nothing(runs: EndedRuns, duration: float) -> None:
    run = runs.start("--collect-only", "-q")
    output, _ = run.communicate(timeout=HANGS)
    assert run.returncode == 0, output
    assert "given back" not in output


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[EndedRuns, float]:
    """Of few runs each is a short one."""
    runs = EndedRuns(tmp_path_factory.mktemp("ended"), QUICK if KILLS <= 2 else ALL)
    return runs, runs.duration()


@pytest.mark.fault("R1")
@pytest.mark.parametrize(("how", "moment"), ENDS)
def test_however_a_run_ends_the_board_comes_back(
    ended: tuple[EndedRuns, float], how: End, moment: float
) -> None:
    runs, duration = ended
    found = runs.end(how, moment * duration)
    assert found.good, found


def test_ctrl_c_restores(runs: EndedRuns, duration: float) -> None:
    run = runs.start()
    seen = until_test(run, "test_somebodys PASSED")
    os.kill(run.pid, signal.SIGINT)
    rest, _ = run.communicate(timeout=HANGS)
    assert run.returncode == 2, seen + rest
    assert "SIGINT !!" in rest
    assert "NOT restored" not in rest
    assert "identical" in rest.partition("given back")[2]
    assert runs.digests() == runs.before
    assert not runs.snapshot.exists()


def test_the_next_run_restores_what_a_killed_one_left(runs: EndedRuns, duration: float) -> None:
    first = runs.start()
    until_test(first, "test_boot_entries[2] PASSED")
    runs.kill(first)
    kept = runs.snapshot.read_bytes()
    listed = runs.restore("--list")
    assert "snapshot of" in listed.stdout
    unasked = runs.restore()
    assert (unasked.returncode, "there is no terminal to ask at" in unasked.stderr) == (4, True)
    assert runs.snapshot.read_bytes() == kept
    second = runs.start()
    output, _ = second.communicate(timeout=HANGS)
    assert second.returncode == 0, output
    assert "an earlier run, begun" in output
    assert runs.digests() == runs.before
    assert not runs.snapshot.exists()
