"""The board's side of a console on a pseudo terminal, as a script; everything typed is kept."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Sequence
from typing import Self


class Scripted:
    """``device`` is the harness's end. ``answer`` gets everything typed so far and returns what
    the board says now (b"" for nothing)."""

    def __init__(self, first: bytes, answer: Callable[[bytes], bytes] = lambda typed: b"") -> None:
        self._board, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.device = os.ttyname(self._slave)
        self.typed = b""
        self._answer = answer
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first,), daemon=True)
        self._thread.start()

    def say(self, text: bytes) -> None:
        os.write(self._board, text)

    def _run(self, first: bytes) -> None:
        self.say(first)
        while not self._over.is_set():
            if select.select([self._board], [], [], 0.02)[0]:
                self.typed += os.read(self._board, 4096)
            if said := self._answer(self.typed):
                self.say(said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._board)
        os.close(self._slave)


class OnTerminal:
    """A real program on a pseudo terminal whose host's end is relayed to ``device``, as by an
    adapter; ``typed`` is what crossed to it. ``baud`` paces both ways."""

    def __init__(
        self, command: Callable[[str], Sequence[str]], *, baud: int = 0, **environment: str
    ) -> None:
        self._board, board_slave = pty.openpty()
        self._host, host_slave = pty.openpty()
        tty.setraw(host_slave)
        self.device = os.ttyname(host_slave)
        self._slaves = [board_slave, host_slave]
        self.typed = b""
        self._pace = 10 / baud if baud else 0.0
        self.process = subprocess.Popen(
            command(os.ttyname(board_slave)),
            env=dict(os.environ, TERM="vt220", **environment),
            stdin=board_slave,
            stdout=board_slave,
            stderr=board_slave,
            start_new_session=True,
        )
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._carry, args=ends, daemon=True)
            for ends in ((self._host, self._board), (self._board, self._host))
        ]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: int, target: int) -> None:
        while not self._over.is_set():
            if not select.select([source], [], [], 0.05)[0]:
                continue
            data = os.read(source, max(1, int(0.005 / self._pace)) if self._pace else 4096)
            if source == self._host:
                self.typed += data
            time.sleep(len(data) * self._pace)
            os.write(target, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for fd in (self._board, self._host, *self._slaves):
            os.close(fd)
