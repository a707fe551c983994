"""What a test says it costs, and the order in which tests run: what is cheap first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import pytest

from harness.consents import Consent
from harness.resources import suite_relative

ENFORCE: Final = "hil_enforce_cost"
"""The ini option: a test that takes more than it declares fails."""
UNDECLARED_BYTES: Final = 512
"""What a test that may write and declares nothing is taken to cost where that is not enforced."""
_FILLS: Final = 2048
_BOOT_WRITES: Final = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """Store bytes (an upper bound) and RPMB writes; ``rpmb_writes`` is None where the test leaves
    that to an estimate, ``declared`` False where there is no ``cost`` marker."""

    store_bytes: int
    rpmb_writes: int | None
    declared: bool

    def writes(self, per_byte: float) -> int:
        """RPMB writes as declared, or as the store bytes let expect."""
        if self.rpmb_writes is not None:
            return self.rpmb_writes
        return round(self.store_bytes * per_byte)


_NOTHING: Final = Cost(0, 0, declared=True)


class Rank(IntEnum):
    """The cheaper, the earlier."""

    PLAIN = 0
    DISTURBS = 1
    POWER = 2
    WEAR = 3
    DESTRUCTIVE = 4


def cost_of(item: pytest.Item) -> Cost:
    """The nearest ``cost`` marker. Raises :class:`pytest.UsageError` for a misspelt one."""
    marker = item.get_closest_marker("cost")
    if marker is None:
        unknown_cost = may_write(item) and not item.config.getini(ENFORCE)
        return Cost(UNDECLARED_BYTES if unknown_cost else 0, None, declared=False)
    unknown = marker.kwargs.keys() - {"store_bytes", "rpmb_writes", "story", "each"}
    if marker.args or unknown:
        raise pytest.UsageError(
            f"{item.nodeid}: cost takes store_bytes=N and rpmb_writes=N, "
            f"not {', '.join([*map(repr, marker.args), *sorted(unknown)])}"
        )
    return Cost(
        marker.kwargs.get("store_bytes", 0), marker.kwargs.get("rpmb_writes"), declared=True
    )


def may_write(item: pytest.Item) -> bool:
    """Whether the test needs that consent."""
    return any(Consent.WRITE_RPMB in one.args for one in item.iter_markers("consents"))


def cost_after(item: pytest.Item, told: Collection[str]) -> Cost:
    """:func:`cost_of`; where the test's story (:func:`story_of`) was ``told`` already only what
    ``each`` of its tests takes."""
    if story_of(item) not in told:
        return cost_of(item)
    marker = item.get_closest_marker("cost")
    each = marker.kwargs.get("each", 0) if marker is not None else 0
    return Cost(each, None, declared=True) if each else _NOTHING


def story_of(item: pytest.Item) -> str | None:
    """The story of a test: a fixture that many tests judge, and the first of them pays for."""
    marker = item.get_closest_marker("cost")
    name = marker.kwargs.get("story") if marker is not None else None
    return None if name is None else f"{group(item)}::{name}"


def rpmb_writes(item: pytest.Item, per_byte: float, told: Collection[str] = ()) -> int:
    """RPMB writes to expect of a test, those of the boots that it makes included."""
    cost = cost_after(item, told)
    boots = _BOOT_WRITES if item.get_closest_marker("power") and cost is not _NOTHING else 0
    return cost.writes(per_byte) + boots


def rank(item: pytest.Item) -> Rank:
    """How late a test runs."""
    if item.get_closest_marker("destructive"):
        return Rank.DESTRUCTIVE
    if item.get_closest_marker("wear") or cost_of(item).store_bytes >= _FILLS:
        return Rank.WEAR
    if item.get_closest_marker("power"):
        return Rank.POWER
    return Rank.DISTURBS if item.get_closest_marker("disturbs") else Rank.PLAIN


def group(item: pytest.Item) -> str:
    """The group of a test: its file."""
    return suite_relative(item.nodeid, item.path).partition("::")[0]
