"""Where board files are. Apart from what reads them, so that a shell may ask for their names while
somebody waits: this module imports nothing slow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from harness import resources

BOARDS_ENVIRONMENT = "HIL_BOARDS"


def board_files() -> Iterator[Path]:
    """All board files that are known by name, in ``$HIL_BOARDS`` (a directory), ``./boards`` and
    our own; earlier ones win."""
    folders = [Path("boards"), resources.boards()]
    if override := os.environ.get(BOARDS_ENVIRONMENT):
        folders.insert(0, Path(override))
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        yield from sorted(folder.glob("*.toml"))
