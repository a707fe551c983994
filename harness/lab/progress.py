"""Something is being done that may take a while: say so before anybody wonders."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, TextIO

PATIENCE: Final = 2.0
"""Seconds that a person waits without being told what for."""

_TICK: Final = 1.0
_CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def progress(what: str, output: TextIO | None = None) -> Iterator[None]:
    """While the block runs: after two seconds ``what`` is written to ``output`` (standard error).
    On a terminal it counts the seconds and is gone afterwards; elsewhere it is one plain line.
    """
    shown = sys.stderr if output is None else output
    over = threading.Event()
    writer = threading.Thread(target=_write, args=(what, shown, over), daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def _write(what: str, output: TextIO, over: threading.Event) -> None:
    begun = time.monotonic()
    if over.wait(PATIENCE):
        return
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        if not output.isatty():
            print(f"{what} ...", file=output, flush=True)
            return
        while True:
            output.write(f"{_CLEAR}{what} ... {time.monotonic() - begun:.0f} s")
            output.flush()
            if over.wait(_TICK):
                break
        output.write(_CLEAR)
        output.flush()
