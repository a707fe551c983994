"""The power switch of the board that exists only in software."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.power.driver import PowerState
from harness.power.emulated import EmulatedPower, EmulatedPowerSection


def driver(state: Path | None = None, **options: str) -> EmulatedPower:
    section = EmulatedPowerSection(driver="emulated", state=state, options=dict(options))
    return EmulatedPower(section, board="soft")


@pytest.fixture
def power() -> Iterator[EmulatedPower]:
    power = driver()
    yield power
    power.close()


def greeting(power: EmulatedPower) -> bytes:
    """What the SSH port says; empty when it refuses."""
    ssh = power.endpoints().ssh
    assert ssh is not None
    try:
        with socket.create_connection((ssh.host, ssh.port), timeout=5) as connection:
            return connection.recv(64)
    except ConnectionRefusedError:
        return b""


def gone(pid: int, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_on_off_on_keeps_the_address(power: EmulatedPower) -> None:
    assert power.state() is PowerState.OFF
    power.on(30)
    before = power.endpoints()
    assert power.state() is PowerState.ON
    assert greeting(power).startswith(b"SSH-2.0")
    power.off(10)
    assert power.state() is PowerState.OFF
    assert greeting(power) == b""
    power.on(30)
    assert greeting(power).startswith(b"SSH-2.0")
    assert power.endpoints() == before


def test_a_killed_supervisor_is_noticed_and_replaced_on_the_same_flash(tmp_path: Path) -> None:
    power = driver(tmp_path)
    try:
        power.on(30)
        assert power.pid is not None
        first, before = power.pid, power.endpoints()
        os.kill(first, signal.SIGKILL)
        assert gone(first)
        assert power.state() is PowerState.OFF
        power.off(5)
        power.on(30)
        assert power.pid not in {None, first}
        assert power.endpoints() == before
        assert power.state() is PowerState.ON
    finally:
        power.close()
    assert any(tmp_path.iterdir()), "a given state directory stays"


def test_a_supervisor_that_hangs_is_ended_by_power_off(power: EmulatedPower) -> None:
    power.on(30)
    assert power.pid is not None
    pid = power.pid
    os.kill(pid, signal.SIGSTOP)
    power.off(0.5)
    assert gone(pid)
    assert power.state() is PowerState.OFF


def test_close_ends_the_board_and_removes_its_flash(power: EmulatedPower) -> None:
    power.on(30)
    assert power.pid is not None
    pid = power.pid
    endpoints = power.endpoints()
    assert endpoints.ssh is not None
    assert endpoints.ssh.key is not None
    assert endpoints.ssh.key.exists()
    power.close()
    assert gone(pid, 0.1)
    assert not endpoints.ssh.key.exists()


def test_the_board_dies_with_the_harness(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\nfrom tests.harness.test_power_emulated import driver\n"
        "power = driver(pathlib.Path(sys.argv[1]))\npower.on(30)\n"
        "print(power.pid, flush=True)\nsys.stdin.read()\n"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert harness.stdout is not None
    pid = int(harness.stdout.readline())
    harness.kill()
    harness.communicate()
    assert gone(pid)


def test_a_board_that_does_not_start_says_why() -> None:
    power = driver(no_such_option="1")
    try:
        with pytest.raises(HostError, match=r"did not start: .*no_such_option"):
            power.on(30)
    finally:
        power.close()
