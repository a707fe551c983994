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


@dataclass(frozen=True)
class Program:
    """What to start and as whom; ``argv[0]`` is looked up in the PATH of ``env``."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    controlling_tty: bool = False


class Spawner(Protocol):
    """Starts and signals processes of the board. Raises ``OSError`` when the board is off."""

    def spawn(self, program: Program, fds: Sequence[int], on_exit: Callable[[int], None]) -> int:
        """Start it in a new session with ``fds`` as 0, 1, 2; ``on_exit`` gets the wait status from
        some thread. Returns the board's process id.

        A program that cannot be executed says so on descriptor 2 and exits with 126 or 127."""

    def signal(self, pid: int, number: int) -> None:
        """kill(2) inside the board; a negative ``pid`` is a process group, -1 everything."""

    def open_pty(self) -> Pty:
        """A new pseudo-terminal; the caller closes both descriptors."""
