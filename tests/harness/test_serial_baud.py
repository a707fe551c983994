"""A console that speaks at another rate than its board file says, or at one rate in its firmware
and at another in Linux."""

from __future__ import annotations

import os
import socket
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import serial
from serial.rfc2217 import PortManager

from harness.board.board import Board
from harness.boardfile import loading
from harness.errors import LinkLost, LinkRefused
from harness.links import login, rates
from harness.links.address import SerialAddress
from harness.links.console import Console, Stage
from harness.links.firmware_prompt import FirmwarePrompt
from harness.links.rates import COMMON_BAUDS, ERASE_LINE
from harness.links.readable import is_garbled, is_readable
from harness.links.serial import SerialShell
from tests.harness.support.line import Line
from tests.pace import until

ALL_TRIED = f"no prompt at any rate tried: {', '.join(map(str, COMMON_BAUDS))} baud"


class RatedLine(Line):
    """Bytes pass undamaged only while the host's end runs at ``board_speed`` (0: never)."""

    board_speed = termios.B115200

    def _through(self, data: bytes, loss: float) -> bytes:
        self.garbled = termios.tcgetattr(self._slaves[0])[5] != self.board_speed
        return super()._through(data, loss)

    def board_prints(self, text: str) -> None:
        os.write(self._host, self._through(text.encode(), 0.0))


@pytest.fixture
def line() -> Iterator[RatedLine]:
    line = RatedLine(["sh", "-i"], environment={"PS1": "board# "})
    yield line
    line.close()


@contextmanager
def opened(address: SerialAddress, login_timeout: float = 60.0) -> Iterator[SerialShell]:
    console = Console(address)
    shell = SerialShell(console, login_timeout=login_timeout)
    try:
        yield shell
    finally:
        shell.close()
        console.close()


def answers(shell: SerialShell) -> bool:
    return shell.run("echo $((6 * 7))", timeout=60).text == "42"


@pytest.fixture
def rate_changes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rates that consoles are set to."""
    changes: list[int] = []
    change = Console.change_rate

    def watched(console: Console, baud: int) -> None:
        changes.append(baud)
        change(console, baud)

    monkeypatch.setattr(Console, "change_rate", watched)
    return changes


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing login takes all of its time: give it little, and each rate its share."""
    monkeypatch.setattr(rates, "_SILENT_AT_FIRST", (0.2, 0.3))
    monkeypatch.setattr(rates, "_SILENT_AT_OTHERS", (0.1, 0.2))


def test_the_rate_at_which_a_prompt_answers_is_found(
    line: RatedLine, rate_changes: list[int]
) -> None:
    line.board_speed = termios.B921600
    with opened(SerialAddress(line.device)) as shell:
        assert answers(shell)
        assert shell.login_baud == shell.console.address.baud == 921600
        assert rate_changes[:2] == [1500000, 921600]
        found = list(rate_changes)
        assert answers(shell)
    assert rate_changes == found, "once found, the rate is kept"


def test_the_configured_rate_is_the_only_one_where_it_works(
    line: RatedLine, rate_changes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: list[bytes] = []
    write = Console.write

    def watched(console: Console, data: bytes) -> None:
        typed.append(data)
        write(console, data)

    monkeypatch.setattr(Console, "write", watched)
    with opened(SerialAddress(line.device)) as shell:
        assert answers(shell)
        assert shell.login_baud == 115200
    assert not rate_changes
    assert ERASE_LINE + b"\n" not in typed


@pytest.mark.usefixtures("impatient")
def test_no_rate_answers(line: RatedLine) -> None:
    line.board_speed = 0
    with opened(SerialAddress(line.device), login_timeout=5.0) as shell:
        with pytest.raises(LinkLost) as error:
            shell.run("true", timeout=60)
        assert ALL_TRIED in str(error.value)
        assert shell.console.address.baud == 115200, "the board file's rate holds again"


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_silent_console_is_asked_at_every_rate(line: RatedLine) -> None:
    line.weather.cut = True
    with opened(SerialAddress(line.device), login_timeout=5.0) as shell:
        with pytest.raises(LinkLost) as error:
            shell.run("true", timeout=60)
        assert ALL_TRIED in str(error.value)


def test_the_search_ends_with_the_login(line: RatedLine, rate_changes: list[int]) -> None:
    line.weather.cut = True
    with opened(SerialAddress(line.device), login_timeout=0.5) as shell:
        with pytest.raises(LinkLost) as error:
            shell.run("true", timeout=60)
        assert "rate tried" not in str(error.value)
    assert not rate_changes


def test_linux_may_speak_faster_than_the_firmware(
    line: RatedLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U-Boot is read at 115200; what the kernel says at 1500000 is noise there."""
    monkeypatch.setattr(login, "BOOT_QUIET", 0.2)
    with opened(SerialAddress(line.device)) as shell:
        console = shell.console
        console.wait_for("login:", timeout=60, since=0)
        console.expect_boot()
        line.board_prints("\r\nU-Boot 2025.10 (Oct 01 2025)\r\nMMC: mmc@0: 0\r\n")
        line.board_prints("Starting kernel ...\r\n\r\n")
        until(lambda: console.stage is Stage.KERNEL)
        line.board_speed = termios.B1500000
        line.board_prints("[    0.000000] Linux version 6.12.0 (board)\r\n" * 3)
        assert answers(shell)
        assert shell.login_baud == 1500000


def test_the_firmware_is_reached_at_a_rate_of_its_own(line: RatedLine) -> None:
    """The board file has Linux's rate; U-Boot, at 115200, counts down."""
    line.board_speed = termios.B115200
    console = Console(SerialAddress(line.device, 1500000))
    try:
        console.wait_for_data(0, timeout=60)
        console.expect_boot()
        line.board_prints("\r\nU-Boot 2025.10 (Oct 01 2025)\r\nDRAM:  1 GiB\r\n")
        until(lambda: is_garbled(console.since(0)[-16:]))
        reach = threading.Thread(target=FirmwarePrompt(console).reach, kwargs={"timeout": 60})
        reach.start()
        until(lambda: console.address.baud == 115200)
        line.board_prints("Hit any key to stop autoboot:  2 ")
        until(lambda: line.sent > 0)
        line.board_prints("\b0 \r\n=> ")
        reach.join(60)
        assert console.stage is Stage.FIRMWARE
    finally:
        console.close()


def test_a_glitch_changes_no_rate(line: RatedLine, rate_changes: list[int]) -> None:
    with opened(SerialAddress(line.device)) as shell:
        os.write(line._host, b"\0\xff\0\x80\xfe")
        assert answers(shell)
    assert not rate_changes


def test_a_board_tells_what_to_correct_and_goes_on_at_the_rate_found(
    line: RatedLine, rate_changes: list[int], tmp_path: Path
) -> None:
    line.board_speed = termios.B1500000
    path = tmp_path / "desk.toml"
    path.write_text(
        'name = "desk"\nemmc_cid = "15010038474e4433520155aabbccdd00"\n'
        f'[power]\ndriver = "manual"\n[serial]\nport = "{line.device}"\n'
    )
    desk = Board(loading.load(path), link="serial")
    try:
        desk.links.find()
        assert desk.links.corrections == []
        desk.links._serial_link().run("true", timeout=60).check()
        told = ["console speaks at 1500000 baud, the board file says 115200: correct it"]
        assert desk.links.corrections == told
        desk.relink()
        assert desk.links.corrections == told
        rate_changes.clear()
        desk.links._serial_link().run("true", timeout=60).check()
        assert not rate_changes, "opened at that rate"
        assert desk.links.corrections == told
    finally:
        desk.close()


@pytest.mark.usefixtures("impatient")
def test_a_socket_has_no_rate_to_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"socket://127.0.0.1:{server.getsockname()[1]}"
        with (
            opened(SerialAddress(url), login_timeout=2.0) as shell,
            pytest.raises(LinkLost) as error,
        ):
            shell.run("true", timeout=60)
    assert "no other rate was tried: a socket:// console does not set the rate" in str(error.value)


class Adapter(serial.Serial):
    """The adapter of a serial server: a pseudo terminal, which has no modem lines. It takes the
    rates in ``taken``."""

    cts = dsr = ri = cd = False
    taken: frozenset[int] = frozenset(COMMON_BAUDS)

    def _reconfigure_port(self, force_update: bool = False) -> None:
        if self.baudrate not in self.taken:
            raise ValueError(f"no rate of this adapter: {self.baudrate}")
        super()._reconfigure_port(force_update)  # type: ignore[misc]

    def _update_rts_state(self) -> None:
        pass

    def _update_dtr_state(self) -> None:
        pass


class Client:
    """The server's connection: answers to commands and what the board says share it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock, suppress(OSError):
            self._end.sendall(data)


@contextmanager
def served(line: Line, adapter: type[Adapter] = Adapter) -> Iterator[str]:
    """A serial server (RFC 2217) before the line's device, for one client."""
    over = threading.Event()

    def serve() -> None:
        end, _ = server.accept()
        with end, suppress(OSError):
            client = Client(end)
            manager = PortManager(port, client)  # type: ignore[arg-type]
            threads.append(threading.Thread(target=forward, args=(manager, client)))
            threads[-1].start()
            while data := end.recv(1024):
                port.write(b"".join(manager.filter(data)))

    def forward(manager: PortManager, client: Client) -> None:
        while not over.is_set():
            if data := port.read(256):
                client.write(b"".join(manager.escape(data)))

    with (
        adapter(line.device, 115200, timeout=0.02) as port,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield f"rfc2217://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            for thread in threads:
                thread.join(60)


def test_a_serial_server_is_told_the_rate(line: RatedLine) -> None:
    line.board_speed = termios.B1500000
    with served(line) as url, opened(SerialAddress(url)) as shell:
        assert answers(shell)
        assert shell.login_baud == 1500000


@pytest.mark.slow
def test_a_serial_server_that_refuses_a_rate_keeps_the_former(line: RatedLine) -> None:
    class OneRate(Adapter):
        taken = frozenset({115200})

    with served(line, OneRate) as url:
        console = Console(SerialAddress(url))
        try:
            with pytest.raises(LinkRefused, match="does not take 1500000 baud"):
                console.change_rate(1500000)
            assert console.address.baud == 115200
            console.write(b"\n")
            console.wait_for("login:", timeout=60, since=0)
        finally:
            console.close()


def test_what_is_text_and_what_is_noise() -> None:
    assert is_readable(b"\r\nboard login: ")
    assert is_readable("Grüße, 板 login: ".encode())
    assert is_garbled(b"\0\xff\xf8\x80\0\0\x9c#")
    assert not is_readable(b"# ")
    assert not is_garbled(b"# ")
