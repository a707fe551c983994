"""Something is being done that may take a while: say so before anybody wonders."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from harness.foreign import escaped, say

PATIENCE: Final = 2.0
"""Seconds that a person waits without being told what for."""

_TICK: Final = 1.0
_CLEAR: Final = "\r\x1b[K"


@contextlib.contextmanager
def progress(what: str, output: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """While the block runs: after two seconds ``what`` is written to ``output`` (standard error).
    On a terminal it counts the seconds and is gone afterwards; elsewhere it is one plain line.

    Yields a ``print`` for what is to be said meanwhile.
    """
    line = _Line(what, sys.stderr if output is None else output)
    writer = threading.Thread(target=line.write, daemon=True)
    writer.start()
    try:
        yield line.say
    finally:
        line.over.set()
        writer.join()


class _Line:
    def __init__(self, what: str, output: TextIO) -> None:
        self.over = threading.Event()
        self._what = escaped(what)
        self._output = output
        self._terminal = output.isatty()
        self._begun = time.monotonic()
        self._shown = False
        self._lock = threading.Lock()

    def write(self) -> None:
        """Until it is over."""
        if self.over.wait(PATIENCE):
            return
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            if not self._terminal:
                say(f"{self._what} ...", file=self._output)
                return
            while True:
                with self._lock:
                    seconds = time.monotonic() - self._begun
                    self._put(f"{_CLEAR}{self._what} ... {seconds:.0f} s")
                    self._shown = True
                if self.over.wait(_TICK):
                    break
            self._put(_CLEAR)

    def say(self, text: str) -> None:
        """Print to standard output, not behind the seconds."""
        with self._lock:
            if self._shown:
                self._put(_CLEAR)
            say(*text.split("\n"))

    def _put(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()
