"""A run of pytest on a board: what markers, cleaning up and a dying board do to it."""

from __future__ import annotations

import re

import pytest

from tests.harness.support.runs import Run, board_file, inner_run

INNER = """
import os
import signal
import threading

import pytest

from harness.errors import WrongBoard

def test_writes_and_leaves(efivars):
    efivars.write("Left", b"behind")

def test_what_was_left_is_gone(efivars):
    assert efivars.own() == []

@pytest.mark.disturbs
def test_unbinds(tee, efivars):
    tee.unbind()
    efivars.unmount()

def test_driver_is_bound_again(tee, efivars):
    assert tee.is_bound()
    assert efivars.mount_state().writable

def test_stops_the_supplicant_unmarked(tee):
    tee.unbind()
    tee.stop_supplicant()

def test_supplicant_runs_again(tee, efivars):
    assert tee.supplicant_pids()
    efivars.write("Again", b"x")

@pytest.mark.needs("kernel_routed_rpmb")
def test_needs_what_is_not_there():
    raise AssertionError("was run")

@pytest.mark.needs("kernel_routed_rpmb")
def test_needs_what_is_not_there_on_the_board(board):
    raise AssertionError("was run")

@pytest.mark.needs("kernel_routed_rmpb")
def test_misspelt_need(board):
    raise AssertionError("was run")

@pytest.mark.consents("program_key")
def test_lacks_a_consent(board):
    raise AssertionError("was run")

def test_asks_for_a_consent_in_the_middle(board):
    board.require_consent("program_key")

@pytest.mark.destructive
def test_destroys(board):
    raise AssertionError("was run")

def test_plants_a_kernel_line(shell):
    shell.run("echo 'BUG: planted' > /dev/kmsg").check()

@pytest.mark.allow_kernel_log("BUG: planted")
def test_plants_an_allowed_line(shell):
    shell.run("echo 'BUG: planted' > /dev/kmsg").check()

def test_dies_in_mid_command(board):
    killer = threading.Timer(0.3, os.kill, (board.power.pid, signal.SIGKILL))
    killer.start()
    try:
        board.shell.run("sleep 60", timeout=5)
    finally:
        killer.join()

def test_next_one_gets_a_board_with_power(board, efivars):
    efivars.write("Alive", b"x")
    assert efivars.read("Alive").data == b"x"

def test_without_a_board():
    pass

def test_finds_another_board(board):
    raise WrongBoard("planted", remedy="none")

def test_after_the_end(board):
    raise AssertionError("was run")

def test_after_the_end_without_a_board():
    pass
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("inner")
    board = board_file(
        folder,
        *("program_key = true", "program_key = false"),
        *("disposable = true", "disposable = false"),
    )
    # Named one by one they run in this order, and not the cheap ones first.
    names = [f"test_inner.py::{name}" for name in re.findall(r"def (test_\w+)", INNER)]
    return inner_run(folder, INNER, board, tests=" ".join(names))


@pytest.mark.parametrize(
    "name",
    [
        "test_writes_and_leaves",
        "test_what_was_left_is_gone",
        "test_unbinds",
        "test_driver_is_bound_again",
        "test_stops_the_supplicant_unmarked",
        "test_supplicant_runs_again",
        "test_plants_an_allowed_line",
        "test_next_one_gets_a_board_with_power",
        "test_without_a_board",
        "test_after_the_end_without_a_board",
    ],
)
def test_passes(run: Run, name: str) -> None:
    assert run.outcomes[name] == ("passed", ""), run.output


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_needs_what_is_not_there", "no kernel_routed_rpmb on this board"),
        ("test_needs_what_is_not_there_on_the_board", "no kernel_routed_rpmb on this board"),
        ("test_lacks_a_consent", "does not consent to program_key"),
        ("test_asks_for_a_consent_in_the_middle", "does not consent to program_key"),
        ("test_destroys", "disposable = true"),
    ],
)
def test_skips_and_says_why(run: Run, name: str, reason: str) -> None:
    outcome, message = run.outcomes[name]
    assert outcome == "skipped", run.output
    assert reason in message


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("test_misspelt_need", "error", "did you mean 'kernel_routed_rpmb'?"),
        ("test_plants_a_kernel_line", "failure", "BUG: planted"),
        ("test_finds_another_board", "failure", "lab error, the run ends here: planted"),
        ("test_after_the_end", "error", "lab error, not run: planted"),
    ],
)
def test_fails_and_says_why(run: Run, name: str, outcome: str, reason: str) -> None:
    seen, message = run.outcomes[name]
    assert seen == outcome, run.output
    assert reason in message


def test_a_board_that_dies_names_board_link_command_and_remedy(run: Run) -> None:
    outcome, message = run.outcomes["test_dies_in_mid_command"]
    assert outcome == "failure"
    assert re.search(r"board emulated, link ssh .*command 'sleep 60'.*Next: ", message), message


def test_the_header_says_which_board(run: Run) -> None:
    assert "board: emulated over ssh" in run.output
    assert re.search(r"firmware: EFI v2.*OP-TEE .*; kernel: Linux ", run.output), run.output
    assert "eMMC CID: aa0158" in run.output


def test_the_summary_says_what_was_done_to_the_board(run: Run) -> None:
    assert "test_stops_the_supplicant_unmarked left the board without: " in run.output
    assert "-> power on" in run.output


def test_a_run_that_lost_its_board_was_cut_short(run: Run) -> None:
    assert run.status == pytest.ExitCode.INTERRUPTED
