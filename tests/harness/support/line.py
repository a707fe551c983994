"""A serial line made of two pseudo terminals, with everything that happens to real ones."""

from __future__ import annotations

import math
import os
import pty
import random
import select
import signal
import subprocess
import sys
import threading
import time
import tty
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

GETTY = Path(__file__).with_name("getty.py")


@dataclass
class Weather:
    """What the line does to its bytes. Losses are probabilities a character; ``noise`` is the
    interval of kernel messages in seconds (0: none); ``baud`` paces the line (0: not); ``delay``
    are the least and the most seconds by which each burst comes later."""

    lost_input: float = 0.0
    lost_output: float = 0.0
    noise: float = 0.0
    escapes: bool = False
    baud: int = 0
    delay: tuple[float, float] = (0.0, 0.0)
    cut: bool = False
    random: random.Random = field(default_factory=lambda: random.Random(1))


class Line:
    """``device`` is the host's end; at the other are ``program``, by itself a login program, and
    ``shell``."""

    def __init__(
        self,
        shell: list[str],
        *,
        user: str = "root",
        password: str = "",
        environment: dict[str, str] | None = None,
        program: Path = GETTY,
    ) -> None:
        self.weather = Weather()
        self.sent = 0  # characters, host to board
        self.received = 0
        self.garbled = False  # as at the wrong rate
        self._host, host_slave = pty.openpty()
        self._board, board_slave = pty.openpty()
        tty.setraw(host_slave)
        self.device = os.ttyname(host_slave)
        self._slaves = [host_slave, board_slave]
        name = os.ttyname(board_slave)
        home = dict(os.environ, TERM="vt100", **(environment or {}))
        self.getty = subprocess.Popen(
            [sys.executable, str(program), name, user, password, *shell], env=home
        )
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def print_from_kernel(self, text: str) -> None:
        os.write(self._host, text.encode())

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join(5)
        for fd in [self._host, self._board, *self._slaves, self._stop_read, self._stop_write]:
            os.close(fd)
        self.getty.send_signal(signal.SIGKILL)
        self.getty.wait()

    def _carry(self) -> None:
        to_board, to_host = _Way(self._board), _Way(self._host)
        next_noise = time.monotonic()
        while True:
            weather = self.weather
            now = time.monotonic()
            if weather.noise and now >= next_noise:
                next_noise = now + weather.noise
                os.write(self._host, f"[{now:12.6f}] mmc0: something happened, x = 7\r\n".encode())
            due = [next_noise] if weather.noise else []
            due += [way.deliver() for way in (to_board, to_host)]
            timeout = min(due) - time.monotonic()
            if weather.cut:
                timeout = 0.05
            watched = [self._stop_read] + ([] if weather.cut else [self._host, self._board])
            readable, _, _ = select.select(watched, [], [], min(max(timeout, 0.0), 1.0))
            if self._stop_read in readable:
                return
            if self.weather.cut:
                continue
            size = 16 if weather.noise or weather.baud else 4096
            if self._host in readable:
                data = os.read(self._host, size)
                self.sent += len(data)
                to_board.take(len(data), self._through(data, weather.lost_input), weather)
            if self._board in readable:
                data = os.read(self._board, size)
                self.received += len(data)
                through = self._through(data, weather.lost_output)
                if weather.escapes and weather.random.random() < 0.1:
                    through = b"\x1b[?2004h\x1b[01;32m" + through + b"\x1b[0m"
                to_host.take(len(data), through, weather)

    def _through(self, data: bytes, loss: float) -> bytes:
        if self.garbled:
            return bytes(0x80 | byte >> 1 for byte in data)
        if not loss:
            return data
        return bytes(byte for byte in data if self.weather.random.random() >= loss)


class _Way:
    """One direction: what is on its way to ``fd``, and when it is there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._free = 0.0  # when the last bit of what is on its way has passed
        self._queue: deque[tuple[float, bytes]] = deque()

    def take(self, characters: int, data: bytes, weather: Weather) -> None:
        """Send ``data``, which was that many characters before some were lost."""
        self._free = max(self._free, time.monotonic())
        if weather.baud:
            self._free += characters * 10 / weather.baud
        late = weather.random.uniform(*weather.delay) if any(weather.delay) else 0.0
        last = self._queue[-1][0] if self._queue else 0.0
        self._queue.append((max(self._free + late, last), data))

    def deliver(self) -> float:
        """Hand over what has arrived; returns when the next arrives."""
        while self._queue and self._queue[0][0] <= time.monotonic():
            os.write(self._fd, self._queue.popleft()[1])
        return self._queue[0][0] if self._queue else math.inf
