"""What a test is called in results: by its place in the suite, which outlives a move of both."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SUITE: Final = Path(__file__).parents[2] / "tests" / "conformance"
"""The folder of the conformance tests."""


def suite_id(nodeid: str, file: Path) -> str:
    """The id in results of a test in ``file``: of one of the suite ``test_x.py::test``, relative
    to the suite; of any other ``nodeid``, pytest's own."""
    if not file.is_relative_to(SUITE):
        return nodeid
    return "::".join([file.relative_to(SUITE).as_posix(), *nodeid.split("::", 1)[1:]])
