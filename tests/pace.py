"""Limits of time that hold beside other load: what a test allows grows with what the host lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

HANGS: Final = 250.0
"""Seconds after which a process that a test started will never end: less than pytest gives the test
(pyproject.toml), so that what it printed is shown."""
SPIN: Final = 0.02
"""Seconds of processor that one look takes: several turns of the scheduler."""


def slowness() -> float:
    """How many times longer than alone a stretch of work takes just now, at least 1."""
    started, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < SPIN:
        pass
    return max(1.0, (time.perf_counter() - started) / SPIN)


@contextmanager
def within(seconds: float, *, waiting: float = 0.0) -> Iterator[None]:
    """The block takes at most ``seconds`` on an idle host, of which it waits ``waiting``: what is
    more than that is work, and may take as much longer as any work does beside it."""
    before = slowness()
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    slower = max(before, slowness())
    assert took < waiting + (seconds - waiting) * slower, f"{took:.2f} s, {slower:.1f} times slower"


def until(condition: Callable[[], object], seconds: float = 30.0, step: float = 0.01) -> None:
    """Wait for it to be true, looking every ``step``; ``seconds`` later it never will be."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(step)
