"""``hil boards``: the board files there are, or their schema."""

from __future__ import annotations

import argparse
import sys

from harness.cli.command import Command, add_boards_from, add_json, tell
from harness.cli.status import Status
from harness.errors import ConfigurationError
from harness.foreign import Shown, say


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_boards_from(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--schema", action="store_true", help="print the JSON schema for editors")
    what.add_argument("--names", action="store_true", help="print names only, one a line")
    add_json(what, "array: name, driver, description, file; name, file, error of a wrong one")


def _run(options: argparse.Namespace) -> int:
    from harness.boardfile.files import board_files

    if options.names:
        say(*sorted({path.stem for path in board_files(options.boards_from)}))
        return Status.GOOD
    from harness.boardfile import loading, schema

    if options.schema:
        say(Shown(schema.schema_text().rstrip("\n")))
        return Status.GOOD
    status = Status.GOOD
    described, lines = [], []
    for path in board_files(options.boards_from):
        try:
            loading.find(path.stem, options.boards_from)  # it may be there twice, or be anybody's
            board = loading.load(path)
        except ConfigurationError as error:
            say(f"{path.stem:<16} {error}", file=sys.stderr)
            described.append({"name": path.stem, "file": path, "error": str(error)})
            status = Status.USAGE
        else:
            name, driver, what = board.name, board.power.driver, " ".join(board.description.split())
            described.append({"name": name, "driver": driver, "description": what, "file": path})
            lines.append(f"{name:<16} {driver:<10} {what}")
    tell(options, described, *lines)
    return status


COMMAND = Command(
    "boards",
    "bring-up",
    "list the board files, or print their JSON schema",
    """
  hil boards                             name, power driver and description of each
  hil boards --names                     only the names, without reading the files
  hil boards --schema > board.schema.json
  HIL_BOARDS=~/lab hil boards            only those of a folder of your own, and `emulated`
""",
    _run,
    _add_arguments,
)
