"""SIGINT, SIGTERM and SIGHUP end what this process does in order: each is a KeyboardInterrupt, and
none tears what must be whole. A cancelled CI job and a closed terminal are as ^C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HURRY: Final = signal.SIGUSR1
"""What a process sends to one of its own that is already ending, for the user's second signal."""

# One ^C or one cancelled job reaches a process more than once: by its group, by its parent, as
# SIGTERM and as SIGHUP.
_SAME_SECONDS: Final = 1.0


class Interrupted(KeyboardInterrupt):
    """One of the signals; ``number`` is which."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class _State:
    """Of this process: only its main thread sees signals."""

    def __init__(self, *, told_by_parent: bool = False) -> None:
        self.last = 0.0
        self.count = 0
        # How many signals do not end what is going on, and how deep in what must be whole.
        self.patience = 0
        self.whole = 0
        self.waiting: int | None = None
        self.raised: int | None = None
        # Whether a second signal comes only as HURRY.
        self.told_by_parent = told_by_parent

    def take(self, number: int) -> None:
        if number == HURRY:
            self.count = max(self.count, 1) + 1
        else:
            now, last = time.monotonic(), self.last
            self.last = now
            if self.count and (self.told_by_parent or now - last < _SAME_SECONDS):
                return
            self.count += 1
        if self.count <= self.patience:
            return
        if self.whole:
            self.waiting = number
            return
        self.raised = number
        raise Interrupted(number)


_state = _State()


def _handle(number: int, frame: FrameType | None) -> None:
    _state.take(number)


def install(*, told_by_parent: bool = False) -> Callable[[], None]:
    """Make the signals interrupt this process from now on, except those that it was started to
    ignore (nohup); returns what brings back how it was. Of a process whose parent passes signals
    on, with ``told_by_parent``, only :data:`HURRY` is a second one. Does nothing outside the main
    thread, which has no signals."""
    global _state
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    numbers = (*ENDING, HURRY) if told_by_parent else ENDING
    outer = _state
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _handle)
    _state = _State(told_by_parent=told_by_parent)

    def restore() -> None:
        global _state
        _state = outer
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def check() -> None:
    """Raise an interruption again that came to nothing: where it was raised something caught all,
    or failed in a clean-up, or Python only prints what is raised (finalisers)."""
    if _state.raised is not None and not _state.patience:
        raise Interrupted(_state.raised)


def begin_ending() -> None:
    """Nothing is interrupted before :func:`ending`: what is on the way there is short."""
    _state.patience = sys.maxsize


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """What the first signal is about is going on, or would be: the first ends nothing any more,
    and each later one only the step that it finds. Afterwards one more is let pass: there is a
    summary to be written."""
    _state.count, _state.patience = min(_state.count, 1), 1
    try:
        yield
    finally:
        _state.patience = _state.count + 1


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """A signal waits until the enclosed is done (which must be bounded) and is raised then."""
    _state.whole += 1
    try:
        yield
    finally:
        _state.whole -= 1
        if not _state.whole and _state.waiting is not None:
            number, _state.waiting = _state.waiting, None
            raise Interrupted(number)
