"""``hil log``: what the console of a board said, boot by boot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.lab import boot_logs
from harness.links.capture import KEEP_BOOTS, Capture, boot_files
from tests.harness.support.line import Line
from tests.harness.support.screen import Screen

CID = "aa015851454d55212101deadbeef2900"
FIRMWARE = b"NOTICE:  BL1: v2.12\r\nU-Boot 2025.01\r\n[    0.000000] Linux version 6.12.1\r\n"
PANIC = b"[    1.000000] Kernel panic - not syncing: Attempted to kill init!\r\n"
HIL = [sys.executable, "-m", "harness"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the logs of the board are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "stmm-hil" / CID / "console"


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "desk3.toml"
    path.write_text(
        f'emmc_cid = "{CID}"\nkernel_log_allowed = ["known and harmless"]\n'
        '[serial]\nport = "/dev/ttyUSB0"\n[power]\ndriver = "manual"\n'
    )
    return path


@pytest.fixture
def three_boots(folder: Path) -> Path:
    """One that panicked, one that was cut short, one that goes on."""
    capture = Capture(folder)
    capture.write(b"".join(FIRMWARE + end for end in (PANIC, b"up\r\n", b"\x1b[1mfine\x1b[0m\r\n")))
    capture.write(b"[    7.000000] BUG: known and harmless\r\n")
    capture.close()
    return folder


def _log(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HIL, "log", *map(str, words)], capture_output=True, text=True)


def test_the_list_tells_how_each_boot_ended(three_boots: Path, board: Path) -> None:
    header, *lines = _log("--list", board).stdout.splitlines()
    assert header.split() == ["boot", "started", "(UTC)", "seconds", "ended", "log"]
    assert lines[1] == f"      bad: {PANIC.decode().strip()}"
    row = re.compile(r" +(\d+)  \d{4}-\d\d-\d\d [\d:]{8} +\d+\.\d  (.{11})  /")
    found = [row.match(line) for line in (lines[0], lines[2], lines[3])]
    assert [(match[1], match[2].strip()) for match in found if match] == [
        ("1", "panic"),
        ("2", "cut short"),
        ("3", "not over"),
    ]
    assert len(lines) == 4  # what the board file allows is not bad
    assert lines[0].endswith(str(three_boots / "boot-001.log"))


def test_one_boot_or_all(three_boots: Path, board: Path) -> None:
    newest = _log(board).stdout
    assert newest.splitlines()[0].startswith("boot 3, ")
    assert newest.splitlines()[4].split("  ")[-1] == "fine"
    assert _log("--boot", "3", board).stdout == _log("--boot=-1", board).stdout == newest
    assert "Kernel panic" in _log("--boot", "-3", board).stdout
    every = _log("--boot", "all", board).stdout
    assert [line[:7] for line in every.splitlines() if "boot-" in line] == [
        f"boot {number}," for number in (1, 2, 3)
    ]
    assert "\x1b" not in every
    wrong = _log("--boot", "9", board)
    assert wrong.returncode == 4
    assert "kept: 1 to 3" in wrong.stderr


def test_boots_for_programs(three_boots: Path, board: Path) -> None:
    first, _, newest = json.loads(_log("--list", "--json", board).stdout)
    assert (first["number"], first["ended"], first["bad"]) == (1, "panic", [PANIC.decode().strip()])
    assert (newest["bad"], "lines" in newest) == ([], False)
    (shown,) = json.loads(_log("--json", board).stdout)
    assert {**shown, "lines": None} == {**newest, "lines": None}
    assert shown["lines"][3]["text"] == "fine"
    assert _log("--follow", "--json", board).returncode == 4


def test_a_terminal_shows_bad_lines_and_those_around(three_boots: Path, board: Path) -> None:
    screen = Screen([*HIL, "log", "--boot", "1", str(board)])
    assert screen.end() == 0
    screen.close()
    assert f"\x1b[31;1m{PANIC.decode().strip()}\x1b[0m" in screen.text
    assert "\x1b[33mU-Boot 2025.01\x1b[0m" in screen.text


def test_nothing_was_heard_yet(folder: Path, board: Path) -> None:
    run = _log(board)
    assert run.returncode == 1
    assert f"{folder} has no log" in run.stderr


def test_following_goes_on_with_the_next_boot(folder: Path, board: Path) -> None:
    capture = Capture(folder)
    capture.write(FIRMWARE + b"first\r\n")
    screen = Screen([*HIL, "log", "--follow", str(board)], dict(os.environ))
    try:
        screen.expect("boot 1, .*")
        screen.expect("first\r\n")
        capture.write(b"second\r\n" + PANIC)
        screen.expect("second\r\n")
        screen.expect(r"\x1b\[31;1m.*Kernel panic")
        capture.write(FIRMWARE + b"third\r\n")
        screen.expect("boot 2, .*")
        screen.expect("third\r\n")
        screen.program.send_signal(signal.SIGINT)
        assert screen.end() == 130
    finally:
        screen.close()
        capture.close()


def test_frames_of_the_harness_are_left_out(folder: Path) -> None:
    capture = Capture(folder)
    capture.write(b"one\r\n\x1eR1.0...77\x1f\r\nlogin: ")
    capture.close()
    capture = Capture(folder)
    capture.write(b"two\r\n")
    capture.close()
    (boot,) = boot_logs.boots(folder)
    assert [line.text for line in boot.lines] == ["one", "login:", "two"]


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        (b"[    9.0] reboot: Restarting system\r\nI/TC: bye\r\n", "restarted"),
        (b"[    9.0] reboot: Power down\r\n", "powered off"),
        (b"resetting ...\r\n", "restarted"),
        (b"[    9.0] mmc0: event\r\n", "not over"),
    ],
)
def test_how_it_ended(folder: Path, last: bytes, ended: str) -> None:
    capture = Capture(folder)
    capture.write(FIRMWARE + last)
    capture.close()
    assert boot_logs.boots(folder)[0].ended == ended


def test_a_log_of_before_the_host_s_restart_is_not_continued(folder: Path) -> None:
    for text in (b"one\r\n", b"two\r\n"):
        capture = Capture(folder)
        capture.write(text)
        capture.close()
        os.utime(folder / "boot-001.log", (0, 0))
    assert [number for number, _ in boot_files(folder)] == [1, 2]


def test_the_oldest_boots_go(folder: Path) -> None:
    capture = Capture(folder)
    capture.write((FIRMWARE + b"up\r\n") * (KEEP_BOOTS + 5))
    capture.close()
    assert [number for number, _ in boot_files(folder)] == list(range(6, KEEP_BOOTS + 6))


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["dash", "-i"])
    yield line
    line.close()


def test_what_a_command_hears_is_one_log_a_boot(line: Line, folder: Path, board: Path) -> None:
    """Two commands over the same console, in one boot, by a board opened as commands do."""
    from harness.board.board import Board
    from harness.boardfile import loading

    board.write_text(board.read_text().replace("/dev/ttyUSB0", line.device))
    for word in ("first", "second"):
        opened = Board(loading.load(board))
        opened.links.find()
        with_console = opened.links.console
        mark = with_console.mark()
        line.print_from_kernel(f"\r\n[    1.000000] {word} was here\r\n")
        with_console.wait_for("was here\r\n", timeout=30, since=mark)
        opened.close()
    (boot,) = boot_logs.boots(folder)
    heard = [text.partition("] ")[2] for text in (line.text for line in boot.lines)]
    assert [text for text in heard if text] == ["first was here", "second was here"]
