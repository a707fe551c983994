"""What those who answer the board need of the jail, which they do not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Scheduler(Protocol):
    """What a FUSE connection needs: threads for calls that sleep, a watch on signals."""

    def run_later(self, work: Callable[[], None]) -> None:
        """Run ``work`` on a worker thread, soon."""

    def watch(self, still_needed: Callable[[], bool]) -> None:
        """Call ``still_needed`` now and then, in the jail thread, until it returns False."""

    def has_fatal_signal(self, pid: int) -> bool:
        """Whether the board's thread ``pid`` is about to be killed, or gone."""


class Supervisor(Scheduler, Protocol):
    """What answering system calls needs of the jail."""

    def request(self, message: tuple[object, ...], done: Callable[[object, int], None]) -> None:
        """Ask PID 1; ``done(value, errno)`` is called in the jail thread."""

    def open_content(self, name: str, flags: int, done: Callable[[int, int], None]) -> None:
        """Have PID 1 open a file of the node tree; ``done(fd, errno)`` is called in the jail
        thread and closes the descriptor."""

    def on_ready(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ``ready(events)`` in the jail thread when epoll says so; replaces, 0 removes."""
