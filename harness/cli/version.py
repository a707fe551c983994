"""``hil version``"""

from __future__ import annotations

import argparse

from harness.cli.command import Command, add_json, tell
from harness.cli.status import Status


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "object: version")


def _run(options: argparse.Namespace) -> int:
    from importlib.metadata import version

    found = version("stmm-hil")
    tell(options, {"version": found}, f"stmm-hil {found}")
    return Status.GOOD


COMMAND = Command(
    "version",
    "software",
    "print the version",
    "\n  hil version\n",
    _run,
    _add_arguments,
)
