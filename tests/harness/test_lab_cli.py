"""``hil discover`` and ``hil lease``: what a lab engineer types, on a udev database of its own and
with a whole board behind the adapter."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.boardfile import loading
from harness.lab.console_probe import probe_console
from harness.links.address import SerialAddress
from harness.links.console import Stage
from tests.harness.support.line import Line
from tests.harness.support.udev_bench import run
from tests.pace import HANGS

_HIL = [sys.executable, "-m", "harness"]
_DISCOVER = """
import sys
from harness.cli.main import main
bench.serial_adapter("ttyUSB0", serial="A1", terminal=sys.argv[1])
sys.exit(main(["discover", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def board_serial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The serial device of a board that has booted."""
    state = tmp_path_factory.mktemp("board")
    with subprocess.Popen(
        [sys.executable, "-m", "emulation", "--json", "--control", "--state", str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as emulator:
        assert emulator.stdout is not None
        yield os.path.realpath(json.loads(emulator.stdout.readline())["serial"])
        emulator.terminate()


def test_discover_tells_what_is_at_the_other_end(board_serial: str) -> None:
    shown = run(_DISCOVER, board_serial, "--probe").splitlines()
    assert shown[:2] == [
        f"serial adapter {board_serial} (FTDI Serial adapter)",
        '    udev = { serial = "A1" }',
    ]
    assert "console:  115200 baud, at its" in shown[2]


def test_discover_for_programs(board_serial: str) -> None:
    (found,) = json.loads(run(_DISCOVER, board_serial, "--probe", "--json"))
    assert (found["kind"], found["node"]) == ("serial adapter", board_serial)
    assert found["udev"] == {"serial": "A1"}
    assert found["console"].startswith("115200 baud, at its")


def test_discover_says_why_an_adapter_is_named_by_its_port() -> None:
    twins = "".join(
        f"bench.serial_adapter('ttyUSB{n}', port='1-{n}', serial='0001')\n" for n in (1, 2)
    )
    shown = run(f"from harness.cli.main import main\n{twins}main(['discover'])").splitlines()
    assert shown[1] == '    udev = { path = "pci-0000:00:14.0-usb-0:1:1.0" }'
    assert shown[-1] == "several adapters have the serial number 0001: they are named by their port"


def test_discover_writes_a_board_file_that_loads(
    board_serial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    shown = run(_DISCOVER, board_serial, "--write", "found")
    assert "next: hil check found" in shown
    file = loading.load(tmp_path / "found.toml")
    assert file.emmc_cid == "aa015851454d55212101deadbeef2900"
    assert file.serial is not None
    assert file.serial.udev is not None
    assert file.serial.udev.serial == "A1"
    assert not any(file.consents.values())


def test_discover_does_not_write_over_a_board_file(
    board_serial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    (tmp_path / "found.toml").write_text("name = 'mine'\n")
    script = _DISCOVER.replace("sys.exit(main", "print(main")
    assert run(script, board_serial, "--write", "found").splitlines()[-1] == "4"
    assert (tmp_path / "found.toml").read_text() == "name = 'mine'\n"


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["bash", "--norc", "-i"], environment={"PS1": "board# "})
    yield line
    line.close()


def test_a_login_prompt_is_recognised_at_once(line: Line) -> None:
    report = probe_console(SerialAddress(line.device))
    assert (report.baud, report.stage) == (115200, Stage.LOGIN)
    assert report.banners == ("board login:",)


def test_the_right_rate_is_found(line: Line) -> None:
    class AtItsRate(threading.Thread):
        """Garbles the line unless the host's end runs at 57600."""

        def run(self) -> None:
            while not stop.wait(0.01):
                speed = termios.tcgetattr(line._slaves[0])[5]
                line.garbled = speed != termios.B57600

    stop = threading.Event()
    watcher = AtItsRate()
    watcher.start()
    try:
        report = probe_console(SerialAddress(line.device), bauds=(115200, 57600), seconds=0.7)
    finally:
        stop.set()
        watcher.join()
    assert (report.baud, report.stage) == (57600, Stage.LOGIN)


def test_a_silent_console_says_so() -> None:
    board, adapter = pty.openpty()
    tty.setraw(adapter)
    try:
        report = probe_console(SerialAddress(os.ttyname(adapter)), bauds=(), seconds=0.3)
    finally:
        os.close(board)
        os.close(adapter)
    assert report.silent
    assert str(report).startswith("silent")


# --- lease --------------------------------------------------------------------------------------


@pytest.fixture
def bench_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIL_LEASES", str(tmp_path / "leases"))
    path = tmp_path / "desk3.toml"
    path.write_text(
        'emmc_cid = "aa015851454d55212101deadbeef2900"\n'
        '[serial]\nport = "socket://10.0.0.9:4001"\n'
        '[power]\ndriver = "command"\noptions = { on = "pdu 4 on", off = "pdu 4 off" }\n'
    )
    return path


def _hil(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_HIL, *map(str, words)], capture_output=True, text=True, timeout=HANGS, check=False
    )


def test_a_held_board_is_shown_refused_and_given_back(bench_board: Path) -> None:
    assert _hil("lease", "show").stdout == "nobody holds or waits for a board\n"
    with subprocess.Popen(
        [*_HIL, "lease", "hold", bench_board], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert "is held" in holder.stdout.readline()
        assert f"process {holder.pid}, hil lease hold" in _hil("lease", "show").stdout
        status = json.loads(_hil("lease", "show", "--json").stdout)
        assert (status["holders"][0]["pid"], status["queue"]) == (holder.pid, [])
        assert "token" not in status["holders"][0]  # with it anybody could use the board
        # Another board file with the same outlet.
        twin = bench_board.with_name("twin.toml")
        twin.write_text(bench_board.read_text().replace("10.0.0.9", "10.0.0.10"))
        refused = _hil("lease", "hold", twin, "true")
        assert refused.returncode == 1
        assert f"process {holder.pid}" in refused.stderr
        holder.send_signal(signal.SIGINT)
        assert holder.wait(10) == 130
    assert _hil("lease", "hold", bench_board, "true").returncode == 0


def test_the_status_of_the_command_is_passed_on(bench_board: Path) -> None:
    assert _hil("lease", "hold", bench_board, "sh", "-c", "exit 7").returncode == 7
    missing = _hil("lease", "hold", bench_board, "no-such-program")
    assert missing.returncode == 4
    assert "cannot run no-such-program" in missing.stderr


def test_a_broken_lease_ends_the_command_with_a_clear_message(bench_board: Path) -> None:
    with subprocess.Popen(
        [*_HIL, "lease", "hold", bench_board, "sh", "-c", "echo up; exec sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        assert "taken from" in _hil("lease", "break", "--reason", "demo", bench_board).stdout
        _, errors = holder.communicate(timeout=HANGS)
    assert holder.returncode == 1
    assert "the lease was broken: by " in errors
    assert ": demo" in errors
