"""How signed variables came about: the writes of rows that were taken.

A signed variable cannot be made up; a row that succeeded tells which update of ``auth/`` made it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.truth import needs
from harness.truth.rows import Row
from harness.truth.steps import (
    APPEND,
    AUTHENTICATED,
    GLOBAL_GUID,
    CannotTake,
    NotUnderstood,
    named_file,
    plan,
)

PLATFORM_KEY = f"PK-{GLOBAL_GUID}"


class Recipes:
    """File contents (attributes and signed update) by the file and the size they led to."""

    def __init__(self, rows: Iterable[Row], auth: Sequence[Path]) -> None:
        self._made: dict[str, list[_Made]] = {}
        for row in rows:
            self._learn(row, auth)

    def __contains__(self, file: str) -> bool:
        return file in self._made

    def find(self, file: str, size: int | None, before: Row | None) -> bytes | None:
        """What to write for a file of ``size`` bytes (of any size when that is None), as a row
        ``before`` the given one, or one of another group, did."""
        for made in self._made.get(file, ()):
            later = (
                before is not None
                and made.row.group == before.group
                and (made.row.number or 0) >= (before.number or 0)
            )
            if not later and size in (None, made.size):
                return made.content
        return None

    def _learn(self, row: Row, auth: Sequence[Path]) -> None:
        file = named_file(row) if row.replay and not row.is_command and row.op else None
        if file is None or not any(".auth" in step for step in row.op):
            return
        try:
            written = plan(row, file, auth)
        except (NotUnderstood, CannotTake):
            return
        size = row.facts.get("st_size")
        for write in needs.successful(row, written):
            signed = write.attributes & AUTHENTICATED and not write.attributes & APPEND
            if signed and isinstance(size, int):
                content = write.attributes.to_bytes(4, "little") + write.data
                self._made.setdefault(file, []).append(_Made(row, size, content))


@dataclass(frozen=True)
class _Made:
    row: Row
    size: int
    content: bytes
