"""``hil restore``: gives a board back as the snapshot of an ended run has it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.cli.bench import add_board, add_command, add_link
from harness.errors import ConfigurationError, LinkError

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.boardfile.sections import BoardFile
    from harness.cli.bench import Commands
    from harness.safekeeping.snapshot import Snapshot

_EXAMPLES = """
  hil restore --list desk3               what differs from the snapshot; writes nothing
  hil restore desk3                      shows it, asks, and puts it back
  hil restore --yes --link serial desk3
"""
_BACK = 0
_NOT_BACK = 1


def add(commands: Commands) -> None:
    """The parser of ``hil restore``."""
    parser = add_command(
        commands,
        "restore",
        "give a board its variables back after a run that was killed",
        _EXAMPLES,
        description="Restores the snapshot that a test run took before its first test and could "
        "not restore itself. Exit status 0 when everything that was changed is back, 1 when "
        "something is not.",
    )
    add_board(parser)
    add_link(parser)
    parser.add_argument(
        "--list", action="store_true", help="show what differs from the snapshot; write nothing"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before writing")
    parser.set_defaults(run=_restore)


def _restore(options: argparse.Namespace) -> int:
    from harness.boardfile import loading
    from harness.lab.lease import leased

    file = loading.load(loading.find(options.board))
    with leased(file, purpose="hil restore"):
        return _restore_leased(file, options)


def _restore_leased(file: BoardFile, options: argparse.Namespace) -> int:
    from harness.board import state_dir as place
    from harness.board.board import Board
    from harness.cli.progress import progress
    from harness.safekeeping import snapshot

    board = Board(file, link=options.link, assume_yes=options.yes)
    try:
        with progress(f"{board.name}: waiting for it to answer"):
            _reach(board)
        claim = place.Claim(board)
        kept = snapshot.pending(claim.directory)
        if kept is None:
            print(f"{board.name}: no run left anything to restore")
            return _BACK
        print(
            f"{board.name}: snapshot of {kept.taken}, {len(kept.variables)} variables, "
            f"CID {kept.cid}"
        )
        return _show(board, kept) if options.list else _carry_out(board, kept, yes=options.yes)
    finally:
        board.close()


def _reach(board: Board) -> None:
    from harness.board.recovery import recover

    try:
        board.start()
        board.check_right_board()
        board.wait_until_ready()
    except LinkError as error:
        print(f"{board.name}: {error.what}; trying to recover it", file=sys.stderr)
        print(f"{board.name}: {recover(board).helped}", file=sys.stderr)


def _show(board: Board, kept: Snapshot) -> int:
    from harness.cli.progress import progress
    from harness.safekeeping.restore import judge, table

    with progress(f"{board.name}: reading its variables"):
        report = judge(board, kept)
    print("\n".join(table(report, everything=True)))
    return _BACK if report.complete else _NOT_BACK


def _carry_out(board: Board, kept: Snapshot, *, yes: bool) -> int:
    from harness.board import state_dir as place
    from harness.cli.progress import progress
    from harness.safekeeping import snapshot
    from harness.safekeeping.restore import judge, restore_whatever_it_takes, table

    if not yes:
        with progress(f"{board.name}: reading its variables"):
            differences = table(judge(board, kept))
        print("\n".join(differences))
        _confirm(board)
    with progress(f"{board.name}: giving its variables back"):
        report, did = restore_whatever_it_takes(board, kept)
    print("\n".join([*did, *table(report, everything=True)]))
    if report.finished:
        snapshot.finish(place.directory(board))
    return _BACK if report.complete else _NOT_BACK


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
