"""What a test is called in results: by its place in the suite, which outlives a move of both."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

SUITE: Final = Path(__file__).parents[2] / "tests" / "conformance"
"""The folder of the conformance tests."""


def suite_id(test: pytest.Item) -> str:
    """The id of a test in results: of one of the suite ``test_x.py::test``, relative to the
    suite; of any other pytest's own."""
    return _relative(test.nodeid, test.path)


def suite_id_of(nodeid: str, root: Path) -> str:
    """:func:`suite_id` of a test of which there is only pytest's id, relative to ``root``."""
    return _relative(nodeid, root / nodeid.partition("::")[0])


def _relative(nodeid: str, file: Path) -> str:
    if not file.is_relative_to(SUITE):
        return nodeid
    return "::".join([file.relative_to(SUITE).as_posix(), *nodeid.split("::", 1)[1:]])
