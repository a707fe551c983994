"""Boards that share the tests of a run: which of them runs which file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Final

import pytest

_LONG: Final = {"power": 4.0, "wear": 8.0}
"""What such a test takes, in tests without the marker."""


def share(items: Sequence[pytest.Item], index: int, of: int) -> list[pytest.Item]:
    """The items of share ``index`` (from 0) in their order. Files stay whole, because their tests
    share fixtures and boots; every process that collected the same files shares them alike."""
    weights: dict[Path, float] = {}
    for item in items:
        weights[item.path] = weights.get(item.path, 0.0) + _weight(item)
    mine = deal(weights, of)[index]
    return [item for item in items if item.path in mine]


def deal(weights: Mapping[Path, float], hands: int) -> list[set[Path]]:
    """Heavy ones first, each to whoever has least: no hand is heavier than the lightest one by
    more than one card."""
    dealt: list[set[Path]] = [set() for _ in range(hands)]
    held = [0.0] * hands
    for path in sorted(weights, key=lambda path: (-weights[path], path)):
        hand = held.index(min(held))
        dealt[hand].add(path)
        held[hand] += weights[path]
    return dealt


def copies(names: Sequence[str]) -> list[str]:
    """The names with a number where one was there before: ``desk, desk`` is ``desk, desk-2``."""
    told: list[str] = []
    for name in names:
        others = (f"{name}-{number}" for number in count(2))
        told.append(next(one for one in chain([name], others) if one not in told))
    return told


def _weight(item: pytest.Item) -> float:
    return max([1.0, *(_LONG[mark.name] for mark in item.iter_markers() if mark.name in _LONG)])
