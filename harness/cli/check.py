"""``hil check``: where a board stops, from the cable up."""

from __future__ import annotations

import argparse

from harness.cli.command import Command, add_board, add_json, add_link, board_file
from harness.cli.status import Status
from harness.foreign import Shown, say


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    add_link(parser)
    add_json(parser, "object: board, verdict, first_failure, seconds, steps; nothing else")


def _run(options: argparse.Namespace) -> int:
    import time

    from harness.check.show import Screen, as_json
    from harness.check.walk import walk
    from harness.cli.progress import progress

    file = board_file(options)
    screen = Screen()
    started = time.monotonic()
    if options.json:
        with progress(f"{file.name}: looking"):
            report = walk(file, link=options.link)
        say(Shown(as_json(report, time.monotonic() - started)))
    else:
        report = walk(file, link=options.link, begun=screen.begun, done=screen.done)
        screen.summary(report, time.monotonic() - started)
    return Status.BAD if report.failed else Status.GOOD


COMMAND = Command(
    "check",
    "bring-up",
    "walk a board from the cable up, and say where it stops and why",
    """
  hil check desk3                        from the cable up; the first `fail` names the cause
  hil check --link serial desk3          ... looking over the console
  hil check --json desk3 | jq .first_failure

exit status: 0 nothing failed, 1 something did, 4 the board file is wrong
""",
    _run,
    _add_arguments,
)
