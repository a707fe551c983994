"""``hil power``: switch a board's power."""

from __future__ import annotations

import argparse

from harness.cli.command import Command, add_board, add_json, board_file, tell
from harness.cli.status import Status
from harness.errors import ConfigurationError, PowerError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("on", "off", "cycle", "state"))
    add_board(parser)
    add_json(parser, "object: board, state; cannot_tell, where the hardware has no means to")


def _run(options: argparse.Namespace) -> int:
    from harness.cli.progress import progress
    from harness.lab.lease import leased
    from harness.lab.powering import power_of
    from harness.power.driver import PowerState
    from harness.power.registry import driver_of

    board = board_file(options)
    if starts_by := driver_of(board.power).starts_by:
        raise ConfigurationError(
            f"board {board.name} lives only as long as the process that emulates it",
            remedy=f"{starts_by}; its power is its process",
        )
    driver = power_of(board)
    switched = ""
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
            switched = f"switched {options.action}; "
        state = driver.verify()
    finally:
        driver.close()
    found = {"board": board.name, "state": state}
    shown = f"power {state}"
    if state is PowerState.UNKNOWN:
        why = driver_of(board.power).cannot_tell(board.power)
        if not why:
            raise PowerError(
                f"driver {board.power.driver!r} did not confirm the state of the power",
                remedy="look at the outlet itself",
                board=board.name,
            )
        found["cannot_tell"] = why
        shown = f"{switched}power {state}: driver {board.power.driver!r} cannot tell ({why})"
    tell(options, found, f"{board.name}: {shown}")
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
