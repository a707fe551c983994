"""A subcommand of ``hil``, and what several of them share. What is slow is imported by the
function that runs, so that ``hil --help`` is immediate."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from harness.foreign import Shown, say
from harness.links.names import LINKS

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.boardfile.sections import BoardFile

GROUPS = ("board", "bring-up", "tests", "software")
"""As ``hil --help`` shows them."""


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


class Command(NamedTuple):  # a dataclass would import inspect, which takes 10 ms
    """One subcommand. ``help`` is its line in ``hil --help`` and, without a ``description``, the
    head of its own; ``examples`` are lines of which the first is in ``hil --help`` too. ``run``
    returns the exit status (:class:`harness.cli.status.Status`). One that ``passes_on`` what
    stands behind its name, ``--help`` included, finds that in ``options.words``."""

    name: str
    group: str
    help: str
    examples: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments
    description: str | None = None
    passes_on: bool = False


def add_board(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """The board that a subcommand is about."""
    add_boards_from(parser)
    parser.add_argument(
        "board",
        metavar="BOARD",
        nargs=None if needed else "?",
        help="name from `hil boards`, or a path",
    )


def add_boards_from(parser: argparse.ArgumentParser) -> None:
    """Whose board files are taken."""
    parser.add_argument(
        "--boards-from",
        metavar="DIR",
        help="take board files from DIR only, as with HIL_BOARDS=DIR",
    )


def add_link(parser: argparse.ArgumentParser) -> None:
    """Over which link it talks to the board."""
    parser.add_argument("--link", choices=LINKS, help="default: ssh where there is one")


def add_json(parser: argparse._ActionsContainer, shape: str) -> None:
    """Its list or verdict for programs; ``shape`` says what is in it."""
    parser.add_argument("--json", action="store_true", help=f"print one JSON {shape}")


def tell(options: argparse.Namespace, described: object, *lines: str) -> None:
    """A list or a verdict: ``described`` for programs, ``lines`` for people."""
    shown = [json.dumps(described, indent=2, default=str)] if options.json else lines
    for line in shown:
        say(Shown(line) if options.json else line)


def board_file(options: argparse.Namespace) -> BoardFile:
    """That of the board which a command names. Raises :class:`ConfigurationError`."""
    from harness.boardfile import loading

    return loading.load(loading.find(options.board, options.boards_from))


@contextlib.contextmanager
def opened(options: argparse.Namespace, *, purpose: str) -> Iterator[Board]:
    """The board that a command names, leased, and reached on the link it asks for."""
    from harness.board.board import Board
    from harness.cli.progress import progress
    from harness.lab.lease import leased

    file = board_file(options)
    with leased(file, purpose=purpose), contextlib.ExitStack() as stack:
        with progress(f"{file.name}: waiting for it to answer"):
            board = stack.enter_context(Board(file, link=options.link))
        yield board


def become(module: str, words: Sequence[str]) -> NoReturn:
    """Go on as a program of ours; never as one of the same name in the current folder."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *words])
