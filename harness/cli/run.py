"""``hil run``: one command on a board."""

from __future__ import annotations

import argparse
import sys

from harness.arguments import some_seconds
from harness.cli.command import Command, add_board, add_link, opened
from harness.errors import ConfigurationError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    add_link(parser)
    parser.add_argument(
        "--timeout", type=some_seconds, default=60.0, metavar="S", help="seconds (default: 60)"
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="a POSIX shell command line"
    )


def _run(options: argparse.Namespace) -> int:
    command = options.command[options.command[:1] == ["--"] :]
    if not command:
        raise ConfigurationError("no command given", remedy="hil run BOARD COMMAND...")
    with opened(options, purpose="hil run") as board:
        board.shell.least_timeout = 0.0
        result = board.shell.run_isolated(" ".join(command), timeout=options.timeout)
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    return result.status


COMMAND = Command(
    "run",
    "board",
    "run one command on a board",
    """
  hil run desk3 uname -a
  hil run --link serial desk3 'efivar -l | wc -l'
  hil run --timeout 600 desk3 fwts uefirtvariable
  hil run emulated efibootmgr -v         a board in software, for this one command

exit status: the command's own
""",
    _run,
    _add_arguments,
)
