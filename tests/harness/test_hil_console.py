"""``hil console``: a person, and a pipe, at a real terminal of their own and a serial line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.support.line import Line
from tests.harness.support.running_board import RunningBoard
from tests.harness.support.screen import PATIENCE, Screen

ESCAPE = "\x1d"
CID = "aa015851454d55212101deadbeef2900"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIL_LEASES", str(tmp_path / "leases"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["bash", "--norc", "-i"], environment={"PS1": "board# "})
    yield line
    line.close()


@pytest.fixture
def screens() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def _board_file(folder: Path, port: str) -> Path:
    path = folder / "desk3.toml"
    path.write_text(f'emmc_cid = "{CID}"\n[serial]\nport = "{port}"\n[power]\ndriver = "manual"\n')
    return path


def _command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "harness", "console", *map(str, words)]


def _screen(screens: contextlib.ExitStack, *words: str | Path) -> Screen:
    screen = Screen(_command(*words), {**os.environ, "TERM": "vt100"})
    screens.callback(screen.close)
    return screen


def _log(tmp_path: Path) -> str:
    logs = sorted((tmp_path / "state" / "stmm-hil" / CID / "console").glob("boot-*.log"))
    return "".join(log.read_text() for log in logs)


def test_a_person_logs_in_leaves_and_finds_it_logged(
    tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    state = tmp_path / "board"
    state.mkdir()
    board = RunningBoard(state)
    screens.callback(board.close)
    screen = _screen(screens, board.file())
    screen.expect(r"\^\] leaves")
    screen.expect("stmm-board login: ")
    screen.type("root\r")
    screen.expect(r":~# ")
    screen.type("echo answer-$((40+2))\x03")  # ^C is the board's
    screen.expect(r"\^C")
    screen.type("echo answer-$((40+2))\r")
    screen.expect("answer-42\r\n")
    screen.type("reboot\r")
    screen.expect("U-Boot 20")
    screen.expect("stmm-board login: ")
    screen.type(ESCAPE + "q")
    assert screen.end() == 0
    assert screen.attributes() == screen.before
    stamped = r"\[(\d+\.\d+) \d{4}-\d\d-\d\dT[^]]*\] (?:\x1b\[\?2004l\s)?answer-42"
    answers = re.findall(stamped, _log(tmp_path))
    assert len(answers) == 1
    assert 0 < float(answers[0]) <= time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "harness", "log", "--boot", "-2", board.file()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "answer-42" in shown.stdout
    assert "restarted" in shown.stdout.splitlines()[0]


def test_the_escape_alone_leaves(line: Line, tmp_path: Path, screens: contextlib.ExitStack) -> None:
    screen = _screen(screens, _board_file(tmp_path, line.device))
    screen.expect("board login: ")
    screen.type(ESCAPE)
    assert screen.end() == 0
    assert screen.attributes() == screen.before


def test_what_else_the_escape_does(
    line: Line, tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    screen = _screen(screens, _board_file(tmp_path, line.device))
    screen.expect("board login: ")
    screen.type(ESCAPE + "?")
    screen.expect("magic SysRq")
    screen.type(ESCAPE + "b")
    screen.expect("break sent")
    screen.type(ESCAPE + "sh")
    screen.expect("SysRq h sent")
    screen.type(ESCAPE + "l")
    screen.type(ESCAPE + "x")
    screen.expect("back at the board")
    screen.type("\r")
    screen.expect("board login: ")
    screen.type(ESCAPE + ESCAPE)
    assert screen.end() == 0
    # The board's terminal shows what it got, between any two words of ours: SysRq's key and ^].
    shown = re.sub(r"\r\n\[hil: .*?\]\r\n", "", screen.text, flags=re.DOTALL)
    assert "h^]" in shown


def test_a_signal_gives_the_terminal_back(
    line: Line, tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    screen = _screen(screens, _board_file(tmp_path, line.device))
    screen.expect("board login: ")
    assert screen.attributes() != screen.before
    screen.program.send_signal(signal.SIGTERM)
    assert screen.end() == 128 + signal.SIGTERM
    assert screen.attributes() == screen.before


def test_somebody_takes_the_board_away(
    line: Line, tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    file = _board_file(tmp_path, line.device)
    screen = _screen(screens, file)
    screen.expect("board login: ")
    refused = subprocess.run(
        _command(file), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
    )
    assert refused.returncode == 1
    assert f"process {screen.program.pid}, hil console" in refused.stderr
    subprocess.run(
        [sys.executable, "-m", "harness", "lease", "break", "--reason", "demo", file],
        timeout=PATIENCE,
        check=True,
    )
    assert screen.end() == 1
    assert "the lease was broken: by " in screen.text
    assert screen.attributes() == screen.before


def test_only_watching_sends_nothing(
    line: Line, tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    screen = _screen(screens, "--read-only", _board_file(tmp_path, line.device))
    screen.expect("board login: ")
    screen.type("x\r")
    screen.expect("nothing was sent")
    line.print_from_kernel("[    5.000000] mmc0: event\r\n")
    screen.expect("mmc0: event")
    screen.type(ESCAPE + "q")
    assert screen.end() == 0
    assert line.sent == 0


def test_watching_while_another_holds_the_board(
    line: Line, tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    file = _board_file(tmp_path, line.device)
    holder = _screen(screens, file)
    holder.expect("board login: ")
    watcher = _screen(screens, "--read-only", file)
    watcher.expect(f"process {holder.program.pid}, hil console")
    line.print_from_kernel("\r\n[    5.000000] mmc0: event\r\n")
    watcher.expect("mmc0: event")
    watcher.program.send_signal(signal.SIGINT)
    assert watcher.end() == 130


def test_an_adapter_that_vanishes_is_waited_for(
    tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    port = tmp_path / "by-id"
    first = Line(["cat"])
    port.symlink_to(first.device)
    screen = _screen(screens, _board_file(tmp_path, str(port)))
    screen.expect("board login: ")
    port.unlink()
    first.close()
    screen.expect("is gone or takes no bytes")
    screen.expect(f"{port} is not there; waiting for it")
    second = Line(["cat"])
    screens.callback(second.close)
    port.symlink_to(second.device)
    screen.expect(f"{port} is there")
    screen.expect("board login: ")
    screen.type(ESCAPE + "q")
    assert screen.end() == 0


def test_an_adapter_that_is_not_there_yet(
    line: Line, tmp_path: Path, screens: contextlib.ExitStack
) -> None:
    port = tmp_path / "by-id"
    screen = _screen(screens, _board_file(tmp_path, str(port)))
    screen.expect("is not there; waiting for it")
    port.symlink_to(line.device)
    screen.expect("board login: ")
    screen.type(ESCAPE + "q")
    assert screen.end() == 0


class _Pipe:
    """``hil console`` between two pipes."""

    def __init__(self, *words: str | Path) -> None:
        self.text = b""
        self._program = subprocess.Popen(
            _command(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, text: str) -> None:
        assert self._program.stdin is not None
        self._program.stdin.write(text.encode())
        self._program.stdin.flush()

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            threading.Event().wait(0.02)

    def end(self) -> tuple[int, str]:
        assert self._program.stdin is not None
        assert self._program.stderr is not None
        self._program.stdin.close()
        errors = self._program.stderr.read().decode()
        self._reader.join()
        return self._program.wait(PATIENCE), errors

    def _read(self) -> None:
        assert self._program.stdout is not None
        while data := os.read(self._program.stdout.fileno(), 4096):
            self.text += data


def test_a_pipe_ends_when_the_board_is_silent(line: Line, tmp_path: Path) -> None:
    pipe = _Pipe("--quiet", "5", _board_file(tmp_path, line.device))
    pipe.expect(b"board login: ")
    pipe.send("root\r")
    pipe.expect(b"board# ")
    pipe.send("echo answer-$((40+2))\r")
    assert pipe.end() == (0, "")
    assert b"answer-42" in pipe.text
    assert b"leaves" not in pipe.text
    assert "answer-42" in _log(tmp_path)


def test_a_pipe_does_not_wait_for_ever(tmp_path: Path) -> None:
    file = _board_file(tmp_path, str(tmp_path / "by-id"))
    file.write_text(file.read_text() + "[timeouts]\nadapter = 0.3\n")
    status, errors = _Pipe(file).end()
    assert status == 1
    assert "by-id is not there" in errors


def test_a_board_without_console_says_so(tmp_path: Path) -> None:
    file = tmp_path / "desk3.toml"
    file.write_text(
        f'emmc_cid = "{CID}"\n[ssh]\nhost = "10.0.0.9"\nknown_hosts = "/dev/null"\n'
        '[power]\ndriver = "manual"\n'
    )
    status, errors = _Pipe(file).end()
    assert status == 4
    assert "this board has no console" in errors


@contextlib.contextmanager
def _babbling() -> Iterator[str]:
    """The device of a console that is never silent."""
    master, slave = os.openpty()
    tty.setraw(slave)
    over = threading.Event()

    def speak() -> None:
        while not over.wait(0.05):
            os.write(master, b"[    1.000000] still here\r\n")

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        yield os.ttyname(slave)
    finally:
        over.set()
        speaker.join()
        os.close(master)
        os.close(slave)


@pytest.mark.fault("C6")
def test_nothing_to_send_to_a_board_that_babbles(tmp_path: Path) -> None:
    with _babbling() as device:
        done = subprocess.run(
            _command(_board_file(tmp_path, device)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0
    assert b"still here" in done.stdout


@pytest.mark.fault("C6")
def test_an_answer_has_an_end(tmp_path: Path) -> None:
    with _babbling() as device:
        pipe = _Pipe("--longest", "2", _board_file(tmp_path, device))
        pipe.send("reset\r")
        begun = time.monotonic()
        assert pipe.end() == (0, "")
    assert 2 <= time.monotonic() - begun < PATIENCE
    assert b"still here" in pipe.text
