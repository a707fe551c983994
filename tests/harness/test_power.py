"""Power drivers for real boards, on real commands and a real terminal."""

from __future__ import annotations

import os
import pty
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import MissingCapability, PowerError
from harness.power.command import CommandPower, CommandPowerOptions
from harness.power.driver import PowerState
from harness.power.manual import ManualPower
from tests.pace import until, within


def outlet(tmp_path: Path, **changes: object) -> CommandPower:
    """An outlet that is a file: its lines are what was done to it."""
    log = tmp_path / "outlet"
    values: dict[str, object] = {
        "on": f"echo on >> {log}",
        "off": f"echo off >> {log}",
        "status": f"tail -n 1 {log}",
        "off_seconds": 0.05,
        **changes,
    }
    return CommandPower(CommandPowerOptions.model_validate(values), board="desk")


def test_commands_switch_and_the_state_is_verified(tmp_path: Path) -> None:
    power = outlet(tmp_path)
    power.on(5)
    assert power.state() is PowerState.ON
    power.cycle(5)
    power.off(5)
    assert power.state() is PowerState.OFF
    assert (tmp_path / "outlet").read_text().split() == ["on", "off", "on", "off"]


def test_own_cycle_command_is_used(tmp_path: Path) -> None:
    power = outlet(tmp_path, cycle=f"echo on >> {tmp_path}/outlet")
    power.cycle(5)
    assert (tmp_path / "outlet").read_text().split() == ["on"]


def test_without_status_the_state_is_unknown(tmp_path: Path) -> None:
    power = outlet(tmp_path, status=None)
    power.on(5)
    assert power.state() is PowerState.UNKNOWN


def test_an_outlet_that_does_not_switch_is_noticed(tmp_path: Path) -> None:
    power = outlet(tmp_path, off="true")
    power.on(5)
    with pytest.raises(PowerError, match="power is on after the command that switches it off"):
        power.off(5)


def test_a_failing_command_shows_its_words(tmp_path: Path) -> None:
    client = tmp_path / "pdu"
    client.write_text("echo no such outlet >&2; exit 3")
    power = outlet(tmp_path, on=f"sh {client}")
    with pytest.raises(PowerError, match=r"status 3: no such outlet .*board desk"):
        power.on(5)


def test_a_hanging_command_is_ended_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    power = outlet(tmp_path, on=f"sleep 60 & echo $! > {pid_file}; wait", timeout=0.5)
    with within(3, waiting=0.5), pytest.raises(PowerError, match=r"did not end within 0.5 s"):
        power.on(5)
    child = int(pid_file.read_text())
    until(lambda: not _runs(child))  # a killed process takes a moment to die


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A person's end of a terminal, and the path of the other."""
    person, screen = pty.openpty()
    yield person, os.ttyname(screen)
    os.close(person)
    os.close(screen)


def test_a_person_is_asked_and_waited_for(terminal: tuple[int, str]) -> None:
    person, screen = terminal
    power = ManualPower(board="desk", terminal=screen)

    def answer() -> None:
        assert b"Board desk: switch the power OFF" in os.read(person, 1000)
        os.write(person, b"\n")

    thread = threading.Thread(target=answer)
    thread.start()
    power.off(5)
    thread.join()
    assert power.state() is PowerState.OFF


def test_a_person_who_does_not_answer_is_not_waited_for(terminal: tuple[int, str]) -> None:
    power = ManualPower(board="desk", terminal=terminal[1])
    with pytest.raises(PowerError, match=r"nobody answered within 0.2 s"):
        power.cycle(0.2)


def test_without_a_terminal_or_with_yes_nobody_is_asked(tmp_path: Path) -> None:
    with pytest.raises(MissingCapability, match="there is no terminal to ask at"):
        ManualPower(board="desk", terminal=str(tmp_path / "none")).off(5)
    with pytest.raises(MissingCapability, match="nobody answers in a run with --yes"):
        ManualPower(board="desk", assume_yes=True).cycle(5)


def test_a_board_that_may_be_on_is_not_asked_for() -> None:
    ManualPower(board="desk", assume_yes=True).on(5)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
