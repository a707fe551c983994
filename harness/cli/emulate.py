"""``hil emulate``: a board in software."""

from __future__ import annotations

import argparse
from typing import NoReturn

from harness.cli.command import Command, become


def _run(options: argparse.Namespace) -> NoReturn:
    become("emulation", options.words)


COMMAND = Command(
    "emulate",
    "software",
    "start an emulated board and print how to log in",
    """
  hil emulate                            until ^C; its flash is kept for the next time
  hil emulate --state /tmp/board --port 2222
  hil emulate -o variant=mm -o userland=busybox
  hil emulate --help                     all of its options
""",
    _run,
    passes_on=True,
)
