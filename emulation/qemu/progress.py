"""Says how a build goes: one line that changes on a terminal, one a step elsewhere."""

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Self, TextIO

from emulation.qemu.pieces import Piece


def clock(seconds: float) -> str:
    """``3:07``"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Reporter:
    """Use as a context: a thread repeats the last line of the step's log on a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._head = ""
        self._log: Path | None = None
        self._word = ""
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._live:
            self._thread.join()
            self._clear()

    def piece(self, piece: Piece, number: int, count: int) -> None:
        with self._guard:
            self._head, self._log, self._word = f"[{number}/{count}] {piece.name}", None, ""
            self._begun = time.monotonic()
            self._line(f"{self._head}: {piece.says}")

    def step(self, name: str, log: Path | None) -> None:
        with self._guard:
            self._log, self._word = log, name
            if not self._live:
                self._line(f"  {name}")

    def said(self, text: str) -> None:
        with self._guard:
            self._log, self._word = None, text

    def built(self, piece: Piece, seconds: float) -> None:
        with self._guard:
            self._line(f"  {piece.name} built in {clock(seconds)}")
            self._head = ""

    def _line(self, text: str) -> None:
        self._clear()
        print(text, file=self._out, flush=True)

    def _clear(self) -> None:
        if self._live:
            self._out.write("\r\x1b[K")

    def _refresh(self) -> None:
        while not self._ended.wait(1.0):
            with self._guard:
                if self._head:
                    width = shutil.get_terminal_size().columns - 1
                    spent = clock(time.monotonic() - self._begun)
                    text = f"{self._head} {spent} {self._word} {_last_line(self._log)}"
                    self._clear()
                    self._out.write(text[:width])
                    self._out.flush()


def _last_line(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
