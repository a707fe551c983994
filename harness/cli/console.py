"""The console's part of the command ``hil``: ``console`` and ``log``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.cli.bench import add_board, add_command

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.board.board import Board
    from harness.boardfile.sections import BoardFile
    from harness.cli.bench import Commands
    from harness.lab.boot_logs import BootLog, Line
    from harness.lab.console_session import ConsoleSession
    from harness.lab.lease import BoardHeld

_BAD, _NEAR, _PLAIN = "\x1b[31;1m", "\x1b[33m", "\x1b[0m"


# --- console ------------------------------------------------------------------------------------

_CONSOLE_EXAMPLES = """
  hil console desk3                      type at the board; ^] leaves, ^] ? tells what else
  hil console --read-only desk3          only watch, also while somebody else holds the board
  echo reset | hil console desk3         send it, print the answer, end when the board is silent
  hil console emulated                   a board in software, from power-on

everything the board says is kept, with times, in one file a boot: hil log BOARD
"""


def add_console(commands: Commands) -> None:
    """The parser of ``hil console``."""
    parser = add_command(
        commands,
        "console",
        "the serial console of a board, logged; leave with ^]",
        _CONSOLE_EXAMPLES,
    )
    add_board(parser)
    parser.add_argument("--read-only", action="store_true", help="send nothing")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="wait S seconds for who holds it"
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=1.0,
        metavar="S",
        help="from a pipe: end after its end and S seconds of silence (default: 1)",
    )
    parser.set_defaults(run=_console)


def _console(options: argparse.Namespace) -> int:
    from harness.board.board import Board
    from harness.board.state_dir import console_logs
    from harness.boardfile import loading
    from harness.lab.lease import BoardHeld, lease_board, waiting_line

    file = loading.load(loading.find(options.board))
    board = Board(file)
    folder = console_logs(board.power, file)
    try:
        lease = lease_board(
            file,
            purpose="hil console",
            timeout=options.wait,
            waiting=lambda status: print(waiting_line(file.name, status), file=sys.stderr),
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
    return 0


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
        address = board.find_links().serial
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
        patience=board.file.timeouts.adapter,
    )


def _watch_the_holder(held: BoardHeld, folder: Path) -> int:
    from harness.lab.boot_logs import follow

    print(f"hil: {held.what}; what it logs in {folder} is shown, ^C leaves", file=sys.stderr)
    for _, line in follow(folder):
        print(line.text, flush=True)
    return 0


# --- log ----------------------------------------------------------------------------------------

_LOG_EXAMPLES = """
  hil log desk3                          what the board said in its newest boot
  hil log --list desk3                   every boot: when, how long, how it ended, what was bad
  hil log --boot -2 desk3                the boot before the newest; a number from --list; all
  hil log --follow desk3                 go on with what a run or a console hears now
  hil log desk3 | grep -i optee
"""


def add_log(commands: Commands) -> None:
    """The parser of ``hil log``."""
    parser = add_command(
        commands,
        "log",
        "what a board said on its console, boot by boot",
        _LOG_EXAMPLES,
    )
    add_board(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--boot", default="-1", metavar="N", help="its number; -1: the newest (default); all"
    )
    which.add_argument("--list", action="store_true", help="one line a boot")
    which.add_argument("--follow", action="store_true", help="the newest, and what comes; ^C ends")
    parser.set_defaults(run=_log)


def _log(options: argparse.Namespace) -> int:
    from harness.board.state_dir import console_logs
    from harness.boardfile import loading
    from harness.errors import LabError
    from harness.lab import boot_logs
    from harness.lab.powering import power_of

    file = loading.load(loading.find(options.board))
    folder = console_logs(power_of(file), file)
    if options.follow:
        return _follow(folder, file)
    kept = boot_logs.boots(folder)
    if not kept:
        raise LabError(
            f"nothing was heard of it yet: {folder} has no log",
            remedy="`hil console`, and every command and run that uses its console, write one",
            board=file.name,
        )
    if options.list:
        _list(kept, file)
    else:
        for boot in boot_logs.choose(kept, options.boot):
            _show(boot, file)
    return 0


def _list(kept: Iterable[BootLog], file: BoardFile) -> None:
    print(f"{'boot':>4}  {'started (UTC)':<19}  {'seconds':>9}  {'ended':<11}  log")
    for boot in kept:
        started = boot.started.replace("T", " ")
        print(
            f"{boot.number:>4}  {started:<19}  {boot.seconds:>9.1f}  {boot.ended:<11}  {boot.path}"
        )
        bad = boot.bad(allowed=file.kernel_log_allowed)
        if bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            print(f"      bad: {_coloured(bad[0], _BAD)}{more}")


def _show(boot: BootLog, file: BoardFile) -> None:
    from harness.lab.boot_logs import near_bad

    print(f"boot {boot.number}, {boot.started} UTC, {boot.ended}: {boot.path}")
    bad = boot.bad(allowed=file.kernel_log_allowed)
    near = near_bad(boot.lines, bad)
    for place, line in enumerate(boot.lines):
        colour = _BAD if line.text in bad else _NEAR if place in near else ""
        _print_line(line, boot.lines[0].seconds, colour)


def _follow(folder: Path, file: BoardFile) -> int:
    from harness.instruments.console_log import CONSOLE_PATTERNS
    from harness.instruments.kernel_log import bad_lines
    from harness.lab.boot_logs import follow

    shown, began = 0, 0.0
    for number, line in follow(folder):
        if number != shown:
            shown, began = number, line.seconds
            print(f"boot {number}, {line.utc[:19]} UTC")
        bad = bad_lines([line.text], allowed=file.kernel_log_allowed, patterns=CONSOLE_PATTERNS)
        _print_line(line, began, _BAD if bad else "")
    return 0


def _print_line(line: Line, began: float, colour: str) -> None:
    print(f"{line.seconds - began:12.6f}  {_coloured(line.text, colour)}", flush=True)


def _coloured(text: str, colour: str) -> str:
    return f"{colour}{text}{_PLAIN}" if colour and sys.stdout.isatty() else text
