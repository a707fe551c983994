"""``hil log``: what a board said on its console."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.cli.command import Command, add_board, add_json, board_file, tell
from harness.cli.status import Status
from harness.errors import ConfigurationError, LabError
from harness.foreign import Shown, painted, say

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.boardfile.sections import BoardFile
    from harness.lab.boot_logs import BootLog, Line

_BAD, _NEAR = "31;1", "33"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--boot", default="-1", metavar="N", help="its number; -1: the newest (default); all"
    )
    which.add_argument("--list", action="store_true", help="one line a boot")
    which.add_argument("--follow", action="store_true", help="the newest, and what comes; ^C ends")
    add_json(
        parser,
        "array of boots: number, started, seconds, ended, bad, file, and without --list lines:"
        " seconds, utc, text",
    )


def _run(options: argparse.Namespace) -> int:
    from harness.board.state_dir import console_logs
    from harness.lab import boot_logs
    from harness.lab.powering import power_of

    file = board_file(options)
    folder = console_logs(power_of(file), file)
    if options.follow:
        if options.json:
            raise ConfigurationError(
                "--follow has no end, a JSON array has one", remedy="give one of the two"
            )
        return _follow(folder, file)
    kept = boot_logs.boots(folder)
    if not kept:
        raise LabError(
            f"nothing was heard of it yet: {folder} has no log",
            remedy="`hil console`, and every command and run that uses its console, write one",
            board=file.name,
        )
    if not options.list:
        kept = boot_logs.choose(kept, options.boot)
    if options.json:
        tell(options, [_described(boot, file, lines=not options.list) for boot in kept])
    elif options.list:
        _list(kept, file)
    else:
        for boot in kept:
            _show(boot, file)
    return Status.GOOD


def _described(boot: BootLog, file: BoardFile, *, lines: bool) -> dict[str, object]:
    from dataclasses import asdict

    described: dict[str, object] = {
        "number": boot.number,
        "started": boot.started,
        "seconds": boot.seconds,
        "ended": boot.ended,
        "bad": boot.bad(allowed=file.kernel_log_allowed),
        "file": boot.path,
    }
    return described | ({"lines": [asdict(line) for line in boot.lines]} if lines else {})


def _list(kept: Iterable[BootLog], file: BoardFile) -> None:
    say(f"{'boot':>4}  {'started (UTC)':<19}  {'seconds':>9}  {'ended':<11}  log")
    for boot in kept:
        started = boot.started.replace("T", " ")
        say(f"{boot.number:>4}  {started:<19}  {boot.seconds:>9.1f}  {boot.ended:<11}  {boot.path}")
        bad = boot.bad(allowed=file.kernel_log_allowed)
        if bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            say(Shown(f"      bad: {painted(bad[0], _BAD, sys.stdout)}{more}"))


def _show(boot: BootLog, file: BoardFile) -> None:
    from harness.lab.boot_logs import near_bad

    say(f"boot {boot.number}, {boot.started} UTC, {boot.ended}: {boot.path}")
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
            say(f"boot {number}, {line.utc[:19]} UTC")
        bad = bad_lines([line.text], allowed=file.kernel_log_allowed, patterns=CONSOLE_PATTERNS)
        _print_line(line, began, _BAD if bad else "")
    return Status.GOOD


def _print_line(line: Line, began: float, colour: str) -> None:
    say(Shown(f"{line.seconds - began:12.6f}  {painted(line.text, colour, sys.stdout)}"))


COMMAND = Command(
    "log",
    "board",
    "what a board said on its console, boot by boot",
    """
  hil log desk3                          what the board said in its newest boot
  hil log --list desk3                   every boot: when, how long, how it ended, what was bad
  hil log --boot -2 desk3                the boot before the newest; a number from --list; all
  hil log --follow desk3                 go on with what a run or a console hears now
  hil log desk3 | grep -i optee
""",
    _run,
    _add_arguments,
)
