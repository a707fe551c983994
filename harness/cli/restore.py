"""``hil restore``: gives a board back as the snapshot of an ended run has it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.cli.command import (
    Command,
    add_board,
    add_json,
    add_link,
    board_file,
    tell,
)
from harness.cli.status import Status
from harness.errors import ConfigurationError, LinkError
from harness.foreign import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.board.board import Board
    from harness.boardfile.sections import BoardFile
    from harness.safekeeping.restore import Restoration
    from harness.safekeeping.snapshot import Snapshot


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    add_link(parser)
    parser.add_argument(
        "--list", action="store_true", help="show what differs from the snapshot; write nothing"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before writing")
    add_json(
        parser,
        "object: board, snapshot (null: nothing to restore), complete; did, variables; asks"
        " nothing, so give --list or --yes",
    )


def _run(options: argparse.Namespace) -> int:
    from harness.lab.lease import leased

    if options.json and not (options.list or options.yes):
        raise ConfigurationError("--json asks nothing", remedy="give --list, or --yes")
    file = board_file(options)
    with leased(file, purpose="hil restore"):
        return _restore_leased(file, options)


def _restore_leased(file: BoardFile, options: argparse.Namespace) -> int:
    from harness.board import state_dir as place
    from harness.board.board import Board
    from harness.cli.progress import progress
    from harness.safekeeping import snapshot
    from harness.safekeeping.restore import table

    board = Board(file, link=options.link, assume_yes=options.yes)
    try:
        with progress(f"{board.name}: waiting for it to answer"):
            _reach(board)
        claim = place.Claim(board.power, board.file)
        kept = snapshot.pending(claim.directory)
        if kept is None:
            tell(
                options,
                {"board": board.name, "snapshot": None, "complete": True},
                f"{board.name}: no run left anything to restore",
            )
            return Status.GOOD
        if not options.json:
            say(
                f"{board.name}: snapshot of {kept.taken}, {len(kept.variables)} variables, "
                f"CID {kept.cid}"
            )
        report, did = _look(board, kept) if options.list else _carry_out(board, kept, options.yes)
        described = _described(board, kept, report, did)
        tell(options, described, *did, *table(report, everything=True))
        return Status.GOOD if report.complete else Status.BAD
    finally:
        board.close()


def _reach(board: Board) -> None:
    from harness.board.recovery import recover

    try:
        board.start()
        board.check_right_board()
        board.wait_until_ready()
    except LinkError as error:
        say(f"{board.name}: {error.what}; trying to recover it", file=sys.stderr)
        say(f"{board.name}: {recover(board).helped}", file=sys.stderr)


def _look(board: Board, kept: Snapshot) -> tuple[Restoration, Sequence[str]]:
    from harness.cli.progress import progress
    from harness.safekeeping.restore import judge

    with progress(f"{board.name}: reading its variables"):
        return judge(board, kept), ()


def _carry_out(board: Board, kept: Snapshot, yes: bool) -> tuple[Restoration, Sequence[str]]:
    from harness.board import state_dir as place
    from harness.cli.progress import progress
    from harness.safekeeping import snapshot
    from harness.safekeeping.restore import restore_whatever_it_takes, table

    if not yes:
        say(*table(_look(board, kept)[0]))
        _confirm(board)
    try:
        with progress(f"{board.name}: giving its variables back"):
            report, did = restore_whatever_it_takes(board, kept)
    except KeyboardInterrupt:
        again = f"cut short between two variables; the rest waits for: hil restore {board.name}"
        say(f"{board.name}: {again}", file=sys.stderr)
        raise
    if report.finished:
        snapshot.finish(place.directory(board.power, board.file))
    return report, did


def _described(
    board: Board, kept: Snapshot, report: Restoration, did: Sequence[str]
) -> dict[str, object]:
    return {
        "board": board.name,
        "snapshot": {"taken": kept.taken, "cid": kept.cid, "variables": len(kept.variables)},
        "complete": report.complete,
        "did": did,
        "variables": [
            {
                "name": str(line.name).encode("utf-8", "backslashreplace").decode(),
                "verdict": line.fate,
                "deed": line.deed,
                "reason": line.reason,
            }
            for line in report.lines
        ],
    }


def _confirm(board: Board) -> None:
    """Ask at the terminal. Raises :class:`ConfigurationError` unless the answer is yes."""
    asked = sys.stdin.isatty() and sys.stdout.isatty()
    if asked and input(f"Restore {board.name}? [y/N] ").strip().lower() in {"y", "yes"}:
        return
    raise ConfigurationError(
        "nothing was written" if asked else "there is no terminal to ask at",
        remedy="say y, or give --yes",
        board=board.name,
    )


COMMAND = Command(
    "restore",
    "board",
    "give a board its variables back after a run that was killed",
    """
  hil restore --list desk3               what differs from the snapshot; writes nothing
  hil restore desk3                      shows it, asks, and puts it back
  hil restore --yes --link serial desk3
""",
    _run,
    _add_arguments,
    "Restores the snapshot that a test run took before its first test and could not restore"
    " itself. Exit status 0 when everything that was changed is back, 1 when something is not.",
)
