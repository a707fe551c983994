"""The board's serial port: a paced line to a pseudo-terminal of the host, and the board's tty.

``SerialLine`` is the cable with its adapter: it exists as long as the supervisor, survives power
cuts of the board, and moves 10 bits a byte at the configured rate.  ``BoardTty`` is the UART driver
of one power-on: it joins the line with a terminal of the board's devpts, on which a getty runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Final

from emulation.userland.jail.spawner import Pty, Spawner

BITS_PER_BYTE: Final = 10
"""8N1: start bit, eight data bits, stop bit."""

TICK: Final = 0.004
"""Seconds between two deliveries while the line is busy; about 46 bytes at 115200 baud."""

READ_SIZE: Final = 4096

TTY_BACKLOG: Final = 256
"""Bytes of terminal output on the way; more, and the writing program waits, as on a UART."""


class PacedQueue:
    """Delivers bytes at a line rate; ``baud`` 0 means at once. Belongs to one event loop."""

    def __init__(
        self, baud: int, deliver: Callable[[bytes], None], *, drained: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._byte_time = BITS_PER_BYTE / baud if baud else 0.0
        self._deliver = deliver
        self._drained = drained
        self._queue = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._line_free = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, data: bytes) -> None:
        """Append; returns at once."""
        if not self._byte_time:
            self._deliver(data)
            self._drained()
            return
        self._queue += data
        if self._timer is None and self._queue:
            self._line_free = max(self._line_free, self._loop.time())
            self._schedule()

    def clear(self) -> None:
        """Forget what has not left yet."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        ready = self._line_free + min(TICK, len(self._queue) * self._byte_time)
        self._timer = self._loop.call_at(ready, self._tick)

    def _tick(self) -> None:
        self._timer = None
        due = max(1, int((self._loop.time() - self._line_free) / self._byte_time))
        chunk = bytes(self._queue[:due])
        del self._queue[:due]
        self._line_free += len(chunk) * self._byte_time
        if self._queue:
            self._schedule()
        self._deliver(chunk)
        if len(self._queue) < TTY_BACKLOG:
            self._drained()


class SerialLine:
    """The host's end: a raw pseudo-terminal behind a stable symbolic link.

    The slave stays open here, so that programs may close and open it again.  Bytes that nobody
    reads are lost, oldest first, as on a cable with nothing at the end.
    """

    def __init__(self, link: Path, *, baud: int = 115200) -> None:
        self.link = link
        self._loop = asyncio.get_running_loop()
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.device = os.ttyname(self._slave)
        fresh = link.with_name(link.name + ".new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.device)
        fresh.rename(link)
        self._plugged = True
        self._receiver: Callable[[bytes], None] | None = None
        self._sender_ready: Callable[[], None] | None = None
        self._to_host = PacedQueue(baud, self._deliver, drained=self._resume_sender)
        self._to_board = PacedQueue(baud, self._receive, drained=self._resume_reading)
        self._resume_reading()

    @property
    def backlog(self) -> int:
        """Bytes of the board still on their way."""
        return len(self._to_host)

    def transmit(self, data: bytes) -> None:
        """Send from the board to the host; into the void once unplugged."""
        if self._plugged:
            self._to_host.push(data)

    def connect(
        self, receiver: Callable[[bytes], None] | None, ready: Callable[[], None] | None
    ) -> None:
        """Who takes the host's bytes, and who is told when output may go on; None: powered off,
        bytes fall on the floor."""
        self._receiver, self._sender_ready = receiver, ready

    def silence(self) -> None:
        """The board lost power in the middle of a character: nothing queued arrives."""
        self.connect(None, None)
        self._to_host.clear()
        self._to_board.clear()
        self._resume_reading()

    def close(self) -> None:
        """Unplug: the link disappears, a program that has it open sees a hang-up."""
        self.silence()
        self._plugged = False
        self._loop.remove_reader(self._master)
        with contextlib.suppress(OSError):
            if str(self.link.readlink()) == self.device:
                self.link.unlink()
        os.close(self._slave)
        os.close(self._master)

    def _deliver(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:
                termios.tcflush(self._slave, termios.TCIFLUSH)
                with contextlib.suppress(BlockingIOError):
                    os.write(self._master, data)
                return

    def _readable(self) -> None:
        try:
            data = os.read(self._master, READ_SIZE)
        except BlockingIOError:
            return
        self._to_board.push(data)
        if len(self._to_board) >= READ_SIZE:
            self._loop.remove_reader(self._master)

    def _resume_reading(self) -> None:
        self._loop.add_reader(self._master, self._readable)

    def _receive(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver(data)

    def _resume_sender(self) -> None:
        if self._sender_ready is not None:
            self._sender_ready()


class BoardTty:
    """The UART of one power-on: carries a terminal of the board over the line."""

    def __init__(self, line: SerialLine, spawner: Spawner) -> None:
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._pty: Pty = spawner.open_pty()
        os.set_blocking(self._pty.master, False)
        self._open = True
        line.connect(self._from_host, self._resume)
        self._resume()

    @property
    def slave(self) -> int:
        """Descriptor of the terminal for the getty."""
        return self._pty.slave

    @property
    def name(self) -> str:
        """The terminal's path in the board."""
        return self._pty.name

    def close(self) -> None:
        """Power off; idempotent."""
        if self._open:
            self._open = False
            self._line.connect(None, None)
            self._loop.remove_reader(self._pty.master)
            os.close(self._pty.master)
            os.close(self._pty.slave)

    def _resume(self) -> None:
        if self._open and self._line.backlog < TTY_BACKLOG:
            self._loop.add_reader(self._pty.master, self._from_board)

    def _from_board(self) -> None:
        try:
            data = os.read(self._pty.master, TTY_BACKLOG)
        except BlockingIOError:
            return
        self._line.transmit(data)
        if self._line.backlog >= TTY_BACKLOG:
            self._loop.remove_reader(self._pty.master)

    def _from_host(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):  # input overrun: the rest is lost
            os.write(self._pty.master, data)
