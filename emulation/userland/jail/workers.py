"""Threads for model calls that sleep; there is always a free one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Workers:
    """Runs every piece of work at once: a sleeping call must not delay another.

    The threads are daemons and are used again; their number is that of the calls that ever slept
    at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0

    def run_later(self, work: Callable[[], None]) -> None:
        """Run ``work`` on some thread, soon; it must not raise."""
        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        self._queue.put(work)
        if start:
            threading.Thread(target=self._run, name="board-call", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._queue.get()()
            with self._lock:
                self._idle += 1
