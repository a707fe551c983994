"""``hil console``: type at a board's serial console, or watch it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.arguments import seconds
from harness.cli.command import Command, add_board, board_file
from harness.cli.status import Status
from harness.foreign import say

if TYPE_CHECKING:
    from pathlib import Path

    from harness.board.board import Board
    from harness.lab.console_session import ConsoleSession
    from harness.lab.lease import BoardHeld


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    parser.add_argument("--read-only", action="store_true", help="send nothing")
    parser.add_argument(
        "--wait", type=seconds, default=0.0, metavar="S", help="wait S seconds for who holds it"
    )
    parser.add_argument(
        "--quiet",
        type=seconds,
        default=1.0,
        metavar="S",
        help="from a pipe: end after its end and S seconds of silence (default: 1)",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=60.0,
        metavar="S",
        help="from a pipe: end S seconds after its end if the board talks on (default: 60)",
    )


def _run(options: argparse.Namespace) -> int:
    from harness.board.board import Board
    from harness.board.state_dir import console_logs
    from harness.lab.lease import BoardHeld, lease_board, waiting_line

    file = board_file(options)
    board = Board(file)
    folder = console_logs(board.power, file)
    try:
        lease = lease_board(
            file,
            purpose="hil console",
            timeout=options.wait,
            waiting=lambda status: say(waiting_line(file.name, status), file=sys.stderr),
        )
    except BoardHeld as held:
        if not options.read_only:
            raise
        return _watch_the_holder(held, folder)
    with lease:
        try:
            session = _session(options, board, folder)
            lease.watch(session.end)
            session.run()
        finally:
            board.close()
    return Status.GOOD


def _session(options: argparse.Namespace, board: Board, folder: Path) -> ConsoleSession:
    from dataclasses import replace

    from harness.cli.progress import progress
    from harness.errors import ConfigurationError
    from harness.lab.adapter import wait_for_port
    from harness.lab.console_session import ConsoleSession
    from harness.links.console import Console
    from harness.power.driver import PowerState

    made_by_power = board.file.serial is None and board.file.labgrid is None
    if made_by_power and board.power.state() is PowerState.OFF:
        # Its console is where its power is: it is made by whoever switches it on.
        with progress(f"{board.name}: switching on"):
            board.power.on(board.file.timeouts.power)

    def connect() -> Console:
        address = board.links.find().serial
        if address is None:
            raise ConfigurationError(
                "this board has no console",
                remedy="name its serial adapter in [serial] of the board file",
                board=board.name,
            )
        wait_for_port(address.url, timeout=0.0)
        return Console(replace(address, capture=folder))

    return ConsoleSession(
        connect,
        read_only=options.read_only,
        quiet=options.quiet,
        longest=options.longest,
        patience=board.file.timeouts.adapter,
    )


def _watch_the_holder(held: BoardHeld, folder: Path) -> int:
    from harness.lab.boot_logs import follow

    say(f"hil: {held.what}; what it logs in {folder} is shown, ^C leaves", file=sys.stderr)
    for _, line in follow(folder):
        say(line.text)
    return Status.GOOD


COMMAND = Command(
    "console",
    "board",
    "the serial console of a board, logged; leave with ^]",
    """
  hil console desk3                      type at the board; ^] leaves, ^] ? tells what else
  hil console --read-only desk3          only watch, also while somebody else holds the board
  echo reset | hil console desk3         send it, print the answer, end when the board is silent
  hil console emulated                   a board in software, from power-on

everything the board says is kept, with times, in one file a boot: hil log BOARD
""",
    _run,
    _add_arguments,
)
