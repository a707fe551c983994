"""How signed variables came about: the writes of rows that were taken.

A signed variable cannot be made up; a row that succeeded tells which update of ``auth/`` made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        self._made: dict[str, dict[int, bytes]] = {}
        for row in rows:
            self._learn(row, auth)

    def __contains__(self, file: str) -> bool:
        return file in self._made

    def find(self, file: str, size: int | None) -> bytes | None:
        """What to write for a file of ``size`` bytes; of any size when that is None."""
        made = self._made.get(file, {})
        if size is None:
            return next(iter(made.values()), None)
        return made.get(size)

    def _learn(self, row: Row, auth: Sequence[Path]) -> None:
        file = named_file(row) if row.replay and not row.is_command and row.op else None
        if file is None or not any(".auth" in step for step in row.op):
            return
        try:
            made = plan(row, file, auth)
        except (NotUnderstood, CannotTake):
            return
        size = row.facts.get("st_size")
        for write in needs.successful(row, made):
            signed = write.attributes & AUTHENTICATED and not write.attributes & APPEND
            if signed and isinstance(size, int):
                content = write.attributes.to_bytes(4, "little") + write.data
                self._made.setdefault(file, {}).setdefault(size, content)
