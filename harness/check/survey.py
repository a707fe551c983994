"""What the steps of one check share: the board, the ways to it, and what was read from it."""

from functools import cached_property
from typing import Self

from harness.board.board import Board
from harness.boardfile.sections import BoardFile
from harness.check.target import Target, look
from harness.lab.lease import Lease
from harness.links.address import SerialAddress
from harness.links.console import Console
from harness.links.names import LinkName
from harness.power.driver import Endpoints
from harness.shell import Shell


class Survey:
    """A context manager over one board. Nothing is opened before a step asks for it; what a step
    found that others need it leaves here."""

    def __init__(self, file: BoardFile, link: LinkName | None) -> None:
        self.file = file
        self.board: Board = Board(file, link=link)
        self.serial: SerialAddress | None = None
        self.recording: Console | None = None
        """An open console from before the power was switched on: it hears the whole boot."""
        self.lease: Lease | None = None
        self.switched_on = False
        self.console_text = ""
        self.user: tuple[str, str] = ("", "")
        """Whom the login step logged in as: name and number."""
        self.key_programmed: bool | None = None
        """None: nobody could look."""
        self.set_variable_ms: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.recording is not None:
            self.recording.close()
        self.board.close()
        if self.lease is not None:
            self.lease.release()

    @cached_property
    def endpoints(self) -> Endpoints:
        """Where the board's links are. Raises :class:`harness.errors.HostError` for an adapter
        that is not there."""
        return self.board.links.find(just_switched_on=self.switched_on)

    @property
    def shell(self) -> Shell:
        """The link that the login step chose."""
        return self.board.shell

    @cached_property
    def target(self) -> Target:
        """What the board tells of itself; read once."""
        return look(self.shell)

    def again(self) -> Target:
        """What the board tells of itself now."""
        self.__dict__.pop("target", None)
        return self.target

    def console_lines(self, *words: str) -> list[str]:
        """Lines heard on the console that hold one of ``words``."""
        return [
            line.strip()
            for line in self.console_text.splitlines()
            if any(word in line for word in words)
        ]

    def without_serial(self) -> None:
        """Go on without the console, whose adapter cannot be opened."""
        self.board.links.do_without("serial")
        self.__dict__.pop("endpoints", None)
