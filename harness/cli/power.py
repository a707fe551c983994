"""``hil power``: switch a board's power."""

from __future__ import annotations

import argparse

from harness.cli.command import Command, add_board, add_json, board_file, tell
from harness.cli.status import Status
from harness.errors import ConfigurationError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("on", "off", "cycle", "state"))
    add_board(parser)
    add_json(parser, "object: board, state")


def _run(options: argparse.Namespace) -> int:
    from harness.cli.progress import progress
    from harness.lab.lease import leased
    from harness.lab.powering import power_of
    from harness.power.registry import driver_of

    board = board_file(options)
    if starts_by := driver_of(board.power).starts_by:
        raise ConfigurationError(
            f"board {board.name} lives only as long as the process that emulates it",
            remedy=f"{starts_by}; its power is its process",
        )
    driver = power_of(board)
    try:
        if options.action != "state":
            with (
                leased(board, purpose=f"hil power {options.action}"),
                progress(f"{board.name}: power {options.action}"),
            ):
                match options.action:
                    case "on":
                        driver.on(board.timeouts.power)
                    case "off":
                        driver.off(board.timeouts.power)
                    case "cycle":
                        driver.cycle(board.timeouts.power)
        state = driver.state()
    finally:
        driver.close()
    tell(options, {"board": board.name, "state": state}, f"{board.name}: power {state}")
    return Status.GOOD


COMMAND = Command(
    "power",
    "board",
    "switch a board's power",
    """
  hil power cycle desk3                  off, and on again
  hil power state desk3                  as its driver verified it
""",
    _run,
    _add_arguments,
)
