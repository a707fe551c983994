"""The console's bad lines fail the test that caused them; its logs, one file a boot; break."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serial.rfc2217 import PortManager
from serial.urlhandler import protocol_loop

from harness.instruments.console_log import AROUND, ConsoleLog, bad_console
from harness.lab.boot_logs import boots, follow
from harness.links.address import SerialAddress
from harness.links.capture import KEEP_BYTES, Capture
from harness.links.console import Console
from tests.harness.support.line import Line
from tests.harness.support.runs import board_file, inner_run
from tests.pace import until, within

INNER = r"""
def says(shell, text):
    shell.run(f"printf '%s\\r\\n' '{text}' >/dev/tty").check()

def test_harmless(shell):
    says(shell, "E/TC:? 0 tee_rpmb: something went wrong")

def test_guilty(shell):
    says(shell, "before it")
    says(shell, "E/TC:0 0 Panic at core/kernel/panic.c:12 <fn>")
    says(shell, "after it")

def test_innocent(shell):
    assert shell.run("true").ok
"""


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["dash", "-i"])
    yield line
    line.close()


@pytest.fixture
def console(line: Line) -> Iterator[Console]:
    console = Console(SerialAddress(line.device))
    console.wait_for("login: $", timeout=10, since=0)
    yield console
    console.close()


@pytest.mark.parametrize(
    "text",
    [
        "[    1.000000] Kernel panic - not syncing: Attempted to kill init!",
        "[    1.000000] Internal error: Oops: 0000000096000004 [#1] SMP",
        "E/TC:0 0 Panic 'abort in static mode' at core/kernel/abort.c:61",
        "E/TC:0 0 User mode data-abort at address 0x0 (translation fault)",
        "I/TC: rpmb_dead: true",
        "[    9.000000] tee_stmm_efi optee-ta: tee_client_open_session failed, err: -22",
        "[    9.000000] I/O error, dev mmcblk0rpmb, sector 0",
        "Synchronous Exception at 0x00000000BF5A1234",
        "### ERROR ### Please RESET the board ###",
    ],
)
def test_bad_lines(text: str) -> None:
    around = [f"line {number}" for number in range(20)]
    found = bad_console([*around[:10], text, *around[10:]])
    assert found is not None
    assert found.bad == (text,)
    assert found.shown == (*around[10 - AROUND : 10], text, *around[10 : 10 + AROUND])
    assert bad_console([text], allowed=["."]) is None


def test_what_is_no_fault() -> None:
    assert (
        bad_console(["I/TC: OP-TEE version: 4.4.0", "[    1.0] mmcblk0rpmb: mmc0:0001 2.00 MiB"])
        is None
    )


def test_only_new_whole_lines_without_frames(line: Line, console: Console) -> None:
    log = ConsoleLog(console)
    mark = console.mark()
    line.print_from_kernel("\x1b[1mone\x1b[0m\r\n\x1eR1.0...77\x1f\n\x06two\r\nthr")
    console.wait_for("thr$", timeout=5, since=mark)
    assert log.new_lines() == ["one", "two"]
    mark = console.mark()
    line.print_from_kernel("ee\r\n")
    console.wait_for("ee", timeout=5, since=mark)
    assert log.new_lines() == ["three"]
    assert log.new_lines() == []


def test_the_guilty_test_fails(tmp_path: Path) -> None:
    run = inner_run(tmp_path, INNER, board_file(tmp_path), "--link serial")
    verdicts = {name: verdict for name, (verdict, _) in run.outcomes.items()}
    assert verdicts == {
        "test_harmless": "passed",
        "test_guilty": "failure",
        "test_innocent": "passed",
    }, run.output
    message = run.outcomes["test_guilty"][1]
    assert "the console has 'E/TC:0 0 Panic at" in message
    assert "before it" in run.output
    assert "after it" in run.output


def test_one_file_a_boot(line: Line, tmp_path: Path) -> None:
    console = Console(SerialAddress(line.device, capture=tmp_path / "logs"))
    before = time.monotonic()
    mark = console.mark()
    for boot in ("first", "second"):
        line.print_from_kernel(
            f"\r\nU-Boot SPL 2025.01\r\nU-Boot 2025.01\r\n[    0.000000] Booting Linux on physical"
            f" CPU 0x0\r\n[    0.000000] Linux version 6.12\r\n{boot} is up\r\n"
        )
    line.print_from_kernel("[    0.000000] Linux version 6.12, by kexec\r\nthird is up\r\n")
    console.wait_for("third is up\r\n", timeout=5, since=mark)
    console.close()
    texts = [path.read_text() for path in sorted((tmp_path / "logs").iterdir())][-3:]
    assert ["first is up" in text for text in texts] == [True, False, False]
    assert ["second is up" in text for text in texts] == [False, True, False]
    assert ["third is up" in text for text in texts] == [False, False, True]
    stamps = [float(row[1:].split()[0]) for text in texts for row in text.splitlines()]
    assert stamps == sorted(stamps)
    assert before <= stamps[-1] <= time.monotonic()


@pytest.mark.fault("C6")
@pytest.mark.parametrize("line", [b"[    7.000000] irq 5: nobody cared\r\n", b"x" * 4096])
def test_a_babbling_console_has_its_middle_cut(tmp_path: Path, line: bytes) -> None:
    """How it began and the last words are kept, and the folder's limit
    binds the newest, too."""
    folder = tmp_path / "logs"
    capture = Capture(folder)
    capture.write(b"U-Boot 2025.01\r\nthe first word\r\n")
    chunk = line * ((1 << 16) // len(line))
    for _ in range(1600 if len(line) > 100 else 700):
        capture.write(chunk)
        assert _size(folder) <= KEEP_BYTES
    capture.write(b"\r\nthe last word\r\n")
    capture.close()
    (log,) = boots(folder)
    texts = [one.text for one in log.lines]
    assert log.path.stat().st_size < KEEP_BYTES / 2
    assert "the first word" in texts
    assert texts[-1] == "the last word"
    assert any("left out" in text for text in texts)


@pytest.mark.fault("C6")
def test_many_long_boots_stay_within_the_limit(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    capture = Capture(folder)
    for boot in range(12):
        capture.write(b"U-Boot 2025.01\r\n[    0.000000] Linux version 6.12\r\nboot %d\r\n" % boot)
        for _ in range(1000):
            capture.write(b"x" * (1 << 14))
        capture.write(b"\r\n")
        assert _size(folder) <= KEEP_BYTES
    capture.close()
    assert any("boot 11" in line.text for line in boots(folder)[-1].lines)


def test_who_follows_a_log_that_is_cut_hears_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    capture = Capture(folder)
    capture.write(b"before\n" * 10)
    heard = follow(folder)
    for _ in range(10):
        next(heard)
    for _ in range(2000):
        capture.write(b"x" * (1 << 14))
    capture.write(b"\n")
    while "left out" not in next(heard)[1].text:
        pass
    capture.write(b"after\n")
    for _, line in heard:
        if line.text == "after":
            break


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class _Adapter(protocol_loop.Serial):
    """A serial port that keeps what happened to its line."""

    def __init__(self) -> None:
        self.events: list[str] = []
        super().__init__("loop://", timeout=0.05)

    def _update_break_state(self) -> None:
        self.events.append("break" if self.break_condition else "idle")


def test_sysrq_is_a_break_and_then_the_key() -> None:
    """Over RFC 2217, where the far end sees the break; a pseudo terminal has none."""
    adapter = _Adapter()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with contextlib.suppress(OSError), connection:
            connection.settimeout(0.05)
            sender = type("Sender", (), {"write": staticmethod(connection.sendall)})()
            manager = PortManager(adapter, sender)  # type: ignore[arg-type]
            while True:
                with contextlib.suppress(TimeoutError):
                    data = connection.recv(1024)
                    if not data:
                        return
                    typed = b"".join(manager.filter(data))
                    adapter.events += [chr(byte) for byte in typed]

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    console = Console(SerialAddress(f"rfc2217://127.0.0.1:{server.getsockname()[1]}"))
    adapter.events.clear()
    start = time.monotonic()
    with within(2.0, waiting=0.25):
        console.sysrq("b")
        until(lambda: "b" in adapter.events)
    assert adapter.events == ["break", "idle", "b"]
    assert time.monotonic() - start >= 0.25
    console.close()
    server.close()
    thread.join(5)


def test_break_on_a_pseudo_terminal_is_taken(line: Line, console: Console) -> None:
    sent = line.sent
    console.send_break(duration=0.01)
    console.sysrq("h")
    until(lambda: line.sent > sent)
    assert line.sent == sent + 1
