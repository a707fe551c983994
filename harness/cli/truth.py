"""``hil truth``: a board beside what a real one was recorded doing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli.command import Command, add_board, add_json, add_link, board_file, tell
from harness.cli.status import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.truth.results import GroupResult


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    add_link(parser)
    parser.add_argument(
        "--rows", metavar="DIR", help="folder of recorded groups (default: tests/truth)"
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME",
        help="only this group; may be repeated",
    )
    add_json(parser, "object: board, agree, rows; a row: group, id, verdict, reason, differences")


def _run(options: argparse.Namespace) -> int:
    from pathlib import Path

    from harness.cli.progress import progress
    from harness.lab.lease import leased
    from harness.truth.report import all_agree, replay

    board = board_file(options)
    folder = None if options.rows is None else Path(options.rows)
    with leased(board, purpose="hil truth"), progress(f"{board.name}: replaying") as say:
        results = replay(
            board,
            folder,
            link=options.link,
            only=options.group,
            say=(lambda _: None) if options.json else say,
        )
    agree = all_agree(results)
    tell(options, {"board": board.name, "agree": agree, "rows": _rows(results)})
    return Status.GOOD if agree else Status.BAD


def _rows(results: Sequence[GroupResult]) -> list[dict[str, object]]:
    return [
        {
            "group": result.group,
            "id": one.row.id,
            "verdict": one.verdict,
            "reason": one.reason,
            "differences": [str(difference) for difference in one.differences],
        }
        for result in results
        for one in result.results
    ]


COMMAND = Command(
    "truth",
    "tests",
    "replay what a real stack was recorded doing, and compare",
    """
  hil truth emulated
  hil truth --link serial desk3
  hil truth --group GROUP --rows DIR desk3

exit status: 0 everything that was not skipped agreed, 1 something differed
""",
    _run,
    _add_arguments,
)
