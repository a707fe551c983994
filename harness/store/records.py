"""Sizes of the records in which StandaloneMM keeps variables (contract 4.13)."""

from __future__ import annotations

from harness.formats import variable_store as layout


def record_size(name: str, data: int) -> int:
    """Bytes of a variable record with ``data`` bytes, its alignment included."""
    characters = len(name.encode("utf-16-le", "surrogatepass")) // 2
    return layout.align(layout.VARIABLE_HEADER_SIZE + 2 * (characters + 1) + data)


def data_for(name: str, record: int) -> int:
    """How much data makes a record of exactly ``record`` bytes, a multiple of four."""
    return record - record_size(name, 0)


SMALLEST_RECORD = record_size("F", 1)
"""Bytes of free space that the smallest filler takes."""
LARGEST_FILLER = 4000
"""Bytes of a record that takes room; larger ones are slow."""
