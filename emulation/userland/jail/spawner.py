"""What the SSH server, the console and the service manager need of the board: start a process.

:class:`emulation.userland.jail.jail.Jail` is reached through this interface, and tests may start
processes of the host instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class UserlandMissing(Exception):
    """The host lacks a program that the board's userland is made of; the text says which."""


@dataclass(frozen=True)
class Account:
    """A line of the board's passwd file. ``password`` is None for a locked account, empty when
    none is asked for."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    password: str | None = None
    gecos: str = ""


@dataclass(frozen=True)
class Pty:
    """A pseudo-terminal of the board's own devpts; ``name`` is its path there."""

    master: int
    slave: int
    name: str


class Spawner(Protocol):
    """Starts and signals processes of the board. Raises ``OSError`` when the board is off."""

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        fds: Sequence[int],
        controlling_tty: bool,
        uid: int,
        gid: int,
        on_exit: Callable[[int], None],
    ) -> int:
        """Start ``argv`` in a new session with ``fds`` as 0, 1, 2; ``on_exit`` gets the wait
        status from some thread. Returns the board's process id."""
        ...

    def signal(self, pid: int, number: int) -> None:
        """kill(2) inside the board; a negative ``pid`` is a process group, -1 everything."""
        ...

    def open_pty(self) -> Pty:
        """A new pseudo-terminal; the caller closes both descriptors."""
        ...
