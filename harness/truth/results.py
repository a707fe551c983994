"""How rows came out: agreed, or where they differed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from harness.truth import compare
from harness.truth.rows import Row


class Agreement(StrEnum):
    """What became of a row."""

    AGREED = "agreed"
    DIFFERED = "differed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Difference:
    """One step or fact that came out otherwise than recorded."""

    what: str
    expected: Any
    seen: Any

    def __str__(self) -> str:
        return f"{self.what}: expected {_shown(self.expected)}, seen {_shown(self.seen)}"


@dataclass(frozen=True)
class RowResult:
    """One row's verdict, with its differences or the reason for its skip."""

    row: Row
    verdict: Agreement
    differences: tuple[Difference, ...] = ()
    reason: str = ""


@dataclass
class GroupResult:
    """The results of a group's rows that count."""

    group: str
    results: list[RowResult] = field(default_factory=list)

    def count(self, verdict: Agreement) -> int:
        """How many rows came out so."""
        return sum(1 for result in self.results if result.verdict is verdict)


def caused(row: Row, during: Sequence[str]) -> Iterator[Difference]:
    """``dm`` and ``dmesg``: the kernel lines that a row caused."""
    for key in ("dm", "dmesg"):
        recorded = row.facts.get(key)
        if isinstance(recorded, list):
            yield from differs(key, compare.without_noise(recorded), list(during))


def differs(what: str, expected: Any, seen: Any) -> Iterator[Difference]:
    """A difference, if there is one."""
    if expected != seen:
        yield Difference(what, expected, seen)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."
