"""The serial link on bad lines, and consoles that cannot be opened."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import (
    HostError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    OutcomeUnknown,
)
from harness.links.address import Login, SerialAddress
from harness.links.console import Console, Stage
from harness.links.serial import SerialShell
from tests.harness.support.line import Line, Weather
from tests.pace import slowness, within

BASH = ["bash", "--norc", "-i"]
ADDRESS_LOGIN = Login("root", "secret")


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(BASH, password="secret", environment={"PS1": "board# "})
    yield line
    line.close()


@pytest.fixture
def shell(line: Line, tmp_path: Path) -> Iterator[SerialShell]:
    shell = SerialShell.open(
        SerialAddress(line.device, login=ADDRESS_LOGIN, capture=tmp_path / "console.log")
    )
    yield shell
    shell.close()


def test_files_survive_a_bad_line(line: Line, shell: SerialShell, tmp_path: Path) -> None:
    line.weather = Weather(lost_input=0.002, lost_output=0.002, noise=0.05)
    data = bytes(range(256)) * 8
    shell.write_file(str(tmp_path / "file"), data)
    assert (tmp_path / "file").read_bytes() == data
    assert shell.read_file(str(tmp_path / "file"), timeout=30) == data


def test_a_short_command_waits_for_nothing(line: Line, shell: SerialShell) -> None:
    shell.run("true")
    before = slowness()
    times = sorted(shell.run("true").duration for _ in range(30))
    assert times[15] < 0.05 * max(before, slowness())


def test_login_on_an_idle_prompt_takes_no_fixed_wait(line: Line, shell: SerialShell) -> None:
    deadline = time.monotonic() + 10
    while shell.console.stage is not Stage.LOGIN:
        assert time.monotonic() < deadline
        shell.console.wait_for_data(shell.console.mark(), timeout=0.05)
    with within(1.5):
        shell.run("true")


def test_wrong_password_is_refused(line: Line) -> None:
    shell = SerialShell.open(SerialAddress(line.device, login=Login("root", "guess")))
    with pytest.raises(LinkRefused, match="login of user 'root'"):
        shell.run("true", timeout=20)
    shell.close()


def test_dead_line_ends_at_the_timeout(line: Line, shell: SerialShell) -> None:
    shell.run("true")
    line.weather = Weather(cut=True)
    with within(1.3, waiting=0.8), pytest.raises(LinkTimeout, match="did not answer"):
        shell.run("true", timeout=0.8)
    with within(1.3, waiting=0.8), pytest.raises(LinkLost):
        shell.run("true", timeout=0.8)
    line.weather = Weather()
    shell.reconnect(deadline=10)
    assert shell.run("echo back").text == "back"


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_killed_receiver_leaves_the_outcome_unknown(line: Line, shell: SerialShell) -> None:
    receiver = int(shell.run("echo $PPID").text)  # the loader's parent: the login shell
    children = Path(f"/proc/{receiver}/task/{receiver}/children").read_text(encoding="ascii")
    timer = threading.Timer(0.3, _kill, [int(children)])
    timer.start()
    with pytest.raises(OutcomeUnknown, match="was killed while the command ran"):
        shell.run("sleep 1.5", timeout=9)
    timer.join()
    assert shell.run("echo again", timeout=20).text == "again"


def test_reboot_in_mid_command_leaves_the_outcome_unknown(line: Line, shell: SerialShell) -> None:
    shell.run("true")
    text = "\r\nU-Boot 2025.01 (board)\r\n"
    timer = threading.Timer(0.2, line.print_from_kernel, [text])
    timer.start()
    with pytest.raises(OutcomeUnknown, match="firmware"):
        shell.run("sleep 3", timeout=5)
    timer.join()


def test_stages_follow_the_boot(line: Line) -> None:
    console = Console(SerialAddress(line.device))
    for text, stage in [
        ("\r\nNOTICE:  BL1: v2.10\r\n", Stage.FIRMWARE),
        ("\r\nU-Boot 2025.01\r\nHit any key to stop autoboot: 3", Stage.FIRMWARE),
        ("\r\nStarting kernel ...\r\n\r\n", Stage.KERNEL),
        ("[    0.000000] Linux version 6.6.1\r\n[    1.5] more\r\n", Stage.KERNEL),
        ("\r\nBoard ttyS0\r\n\r\nboard login: ", Stage.LOGIN),
        ("root\r\n\x1b[?2004h\x1b[1mroot@board\x1b[0m:~# ", Stage.SHELL),
        ("\r\n[   99.000000] usb: noise\r\n", Stage.SHELL),
        ("\r\n=> ", Stage.FIRMWARE),
    ]:
        mark = console.mark()
        line.print_from_kernel(text)
        console.wait_for_data(mark + len(text) - 1, timeout=5)
        assert console.stage is stage, text
    console.close()


def test_capture_has_every_line_with_both_clocks(
    line: Line, shell: SerialShell, tmp_path: Path
) -> None:
    before = time.monotonic()
    shell.run("true")
    line.print_from_kernel("[   12.000000] mmc0: event\r\n")
    shell.console.wait_for(r"mmc0: event", timeout=5, since=0)
    shell.close()
    lines = (tmp_path / "console.log").read_bytes().split(b"\n")
    (event,) = [one for one in lines if b"mmc0: event" in one]
    clock, wall = event[1:].split(b"]")[0].split(b" ")
    assert before <= float(clock) <= time.monotonic()
    assert wall.startswith(b"20")
    assert all(one.startswith(b"[") for one in lines if one)


def test_missing_device() -> None:
    with pytest.raises(HostError, match=r"does not exist.*Next: plug the adapter in"):
        Console(SerialAddress("/dev/ttyUSB99"))


def test_busy_device_says_who_holds_it(line: Line) -> None:
    holder = Console(SerialAddress(line.device))
    try:
        with pytest.raises(LinkRefused, match=rf"busy: held by .*pid {os.getpid()}"):
            Console(SerialAddress(line.device))
    finally:
        holder.close()
    Console(SerialAddress(line.device)).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every device")
def test_no_permission_names_the_group() -> None:
    with pytest.raises(HostError, match="add yourself to the group"):
        Console(SerialAddress("/dev/ttyS0"))


def test_not_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match="cannot be opened"):
        Console(SerialAddress(str(tmp_path / "file")))


def test_refused_socket_url() -> None:
    with pytest.raises(LinkRefused, match=r"socket://127\.0\.0\.1:9"):
        Console(SerialAddress("socket://127.0.0.1:9"))


def test_socket_url_works(line: Line) -> None:
    """As from ser2net: a program connects a TCP port to the line."""
    device = os.open(line.device, os.O_RDWR | os.O_NOCTTY)
    program = (
        "import os, select, socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept(); d = int(sys.argv[1])\n"
        "while True:\n"
        "    for f in select.select([c, d], [], [])[0]:\n"
        "        if f is c:\n"
        "            b = c.recv(999) or sys.exit(); os.write(d, b)\n"
        "        else: c.sendall(os.read(d, 999))\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(device)], stdout=subprocess.PIPE, pass_fds=[device]
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    shell = SerialShell.open(SerialAddress(f"socket://127.0.0.1:{port}", login=ADDRESS_LOGIN))
    assert shell.run("echo over tcp").text == "over tcp"
    shell.close()
    server.kill()
    server.wait()
    server.stdout.close()
    os.close(device)


def test_a_vanished_adapter_is_told_and_waited_for(tmp_path: Path) -> None:
    first, first_slave = pty.openpty()
    link = tmp_path / "ttyUSB"
    link.symlink_to(os.ttyname(first_slave))
    console = Console(SerialAddress(str(link)))
    os.close(first)
    os.close(first_slave)
    with pytest.raises(LinkLost, match=r"gone or takes no bytes"):
        console.wait_for("x", timeout=5)
    link.unlink()
    second, second_slave = pty.openpty()
    timer = threading.Timer(0.3, lambda: link.symlink_to(os.ttyname(second_slave)))
    timer.start()
    console.reopen(timeout=5)
    mark = console.mark()
    os.write(second, b"hello")
    assert console.wait_for("hello", timeout=5, since=mark) == "hello"
    console.close()
    os.close(second)
    os.close(second_slave)
