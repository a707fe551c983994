"""``hil qemu``: the real stack, built to run on QEMU."""

from __future__ import annotations

import argparse
from typing import NoReturn

from harness.cli.command import Command, become


def _run(options: argparse.Namespace) -> NoReturn:
    become("emulation.qemu", options.words)


COMMAND = Command(
    "qemu",
    "software",
    "build the real stack, to run on QEMU as the board qemu-arm64",
    """
  hil qemu build --check                 what stands in the way; nothing is built
  hil qemu build                         all of it; where it was interrupted, it goes on
  hil qemu build --list                  the pieces, and what each took
  hil qemu build --help
""",
    _run,
    passes_on=True,
)
