"""The serial line: pace, re-opening, loss of power, and a terminal carried over it."""

from __future__ import annotations

import asyncio
import os
import select
import time
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from emulation.userland.access.console import BoardTty, PacedQueue, SerialLine
from emulation.userland.jail.spawner import Pty
from tests.pace import within


class OnlyTerminals:
    """As much of the board as the line needs."""

    def spawn(self, *arguments: object, **options: object) -> int:
        raise NotImplementedError

    def signal(self, pid: int, number: int) -> None:
        raise NotImplementedError

    def open_pty(self) -> Pty:
        master, slave = os.openpty()
        return Pty(master, slave, os.ttyname(slave))


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 20)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), seconds)


def read_available(descriptor: int) -> bytes:
    data = b""
    while select.select([descriptor], [], [], 0)[0]:
        data += os.read(descriptor, 65536)
    return data


def open_raw(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(descriptor)
    return descriptor


@pytest.mark.parametrize(("baud", "size"), [(115200, 5000), (9600, 400)])
def test_bytes_arrive_at_the_line_rate(tmp_path: Path, baud: int, size: int) -> None:
    async def body() -> None:
        line = SerialLine(tmp_path / "serial", baud=baud)
        host = open_raw(line.link)
        payload = os.urandom(size)
        received = bytearray()
        start = time.monotonic()
        line.transmit(payload)

        def complete() -> bool:
            received.extend(read_available(host))
            return len(received) >= size

        wire = size * 10 / baud
        with within(wire * 1.25 + 0.05, waiting=wire):
            await until(complete)
        assert bytes(received) == payload
        assert wire <= time.monotonic() - start + 0.001
        os.close(host)
        line.close()

    run(body)


def test_idle_line_delivers_a_byte_at_once() -> None:
    async def body() -> None:
        arrived: list[bytes] = []
        queue = PacedQueue(115200, arrived.append, drained=lambda: None)
        for _ in range(5):
            arrived.clear()
            with within(0.02):
                queue.push(b"x")
                await until(lambda: bool(arrived))

    run(body)


def test_input_is_paced_and_none_is_lost(tmp_path: Path) -> None:
    async def body() -> None:
        line = SerialLine(tmp_path / "serial", baud=115200)
        received = bytearray()
        line.connect(received.extend, None)
        host = os.open(line.link, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(host)
        payload = os.urandom(6000)
        start = time.monotonic()
        await asyncio.to_thread(os.write, host, payload)
        await until(lambda: len(received) >= len(payload))
        assert bytes(received) == payload
        assert time.monotonic() - start > 6000 * 10 / 115200 * 0.9
        os.close(host)
        line.close()

    run(body)


def test_link_may_be_closed_and_opened_again(tmp_path: Path) -> None:
    async def body() -> None:
        line = SerialLine(tmp_path / "serial", baud=0)
        for text in (b"first", b"second"):
            host = open_raw(line.link)
            line.transmit(text)
            await until(lambda: bool(select.select([host], [], [], 0)[0]))  # noqa: B023
            assert read_available(host) == text
            os.close(host)
        line.close()
        assert not line.link.is_symlink()

    run(body)


def test_what_nobody_reads_does_not_stop_the_board(tmp_path: Path) -> None:
    async def body() -> None:
        line = SerialLine(tmp_path / "serial", baud=0)
        for number in range(400):
            line.transmit(b"%06d" % number + bytes(1000))
        host = os.open(line.link, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        await until(lambda: b"000399" in read_available(host))
        os.close(host)
        line.close()

    run(body)


def test_power_cut_drops_what_is_queued(tmp_path: Path) -> None:
    async def body() -> None:
        line = SerialLine(tmp_path / "serial", baud=9600)
        host = open_raw(line.link)
        line.transmit(bytes(2000))
        await asyncio.sleep(0.05)
        line.silence()
        read_available(host)
        await asyncio.sleep(0.1)
        assert read_available(host) == b""
        line.transmit(b"again")
        received = bytearray()

        def complete() -> bool:
            received.extend(read_available(host))
            return bytes(received) == b"again"

        await until(complete)
        os.close(host)
        line.close()

    run(body)


def test_terminal_echo_and_back_pressure(tmp_path: Path) -> None:
    async def body() -> None:
        line = SerialLine(tmp_path / "serial", baud=115200)
        board = BoardTty(line, OnlyTerminals())
        host = open_raw(line.link)
        os.write(host, b"root\r")
        received = bytearray()

        def echoed() -> bool:
            received.extend(read_available(host))
            return b"root\r\n" in received

        await until(echoed)
        assert os.read(board.slave, 100) == b"root\n"

        writing = asyncio.create_task(asyncio.to_thread(_write_all, board.slave, b"y" * 20000))
        start = time.monotonic()
        await writing
        assert time.monotonic() - start > 0.5, "a program must not outrun the line"
        os.close(host)
        board.close()
        line.close()

    run(body)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
