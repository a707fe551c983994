"""What a test asks of the board by its markers."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

import pytest

from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import ConsentMissing
from harness.pytest_plugin.role import BOARD_FIXTURE

if TYPE_CHECKING:
    from harness.board.board import Board


def uses_board(item: pytest.Item) -> bool:
    """Whether a test runs on the board: by a fixture, or by what it asks of the board only."""
    return BOARD_FIXTURE in getattr(item, "fixturenames", ()) or any(
        item.get_closest_marker(marker) for marker in ("needs", "consents")
    )


def check_markers(board: Board, item: pytest.Item) -> None:
    """Raises MissingCapability and ConsentMissing where the board lacks what a test asks for."""
    if item.get_closest_marker("destructive") and not board.file.disposable:
        raise ConsentMissing(
            "the test may leave the board changed for ever",
            remedy="run it on a board whose file says disposable = true",
            board=board.name,
        )
    for marker in item.iter_markers("consents"):
        for consent in marker.args:
            board.require_consent(_named(Consent, consent, item))
    for marker in item.iter_markers("needs"):
        for capability in marker.args:
            board.capabilities.require(_named(Capability, capability, item))


_Name = TypeVar("_Name", Capability, Consent)


def _named(names: type[_Name], word: str, item: pytest.Item) -> _Name:
    """A capability or consent by its name; a misspelt one is the test's own error."""
    try:
        return names(word)
    except ValueError:
        near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.4)
        pytest.fail(
            f"{item.nodeid} is marked with {word!r}, which is no {names.__name__.lower()}"
            + (f"; did you mean {str(near[0])!r}?" if near else ""),
            pytrace=False,
        )
