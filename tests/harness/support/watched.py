"""A process whose output is read line by line, with a deadline."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

SECONDS = 200.0
"""How long a line, or the end, may take on a busy host."""


class Watched:
    """``python`` with ``words``, in a session of its own."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *words: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def until(self, text: str) -> str:
        """The first line that has ``text``."""
        while (line := self._lines.get(timeout=SECONDS)) is not None:
            self.output += line
            if text in line:
                return line
        pytest.fail(f"{text!r} never came: {self.output}")

    def end(self) -> int:
        """Read to its end; the exit status."""
        while (line := self._lines.get(timeout=SECONDS)) is not None:
            self.output += line
        return self.process.wait(SECONDS)
