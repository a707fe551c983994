"""What a SetVariable takes from the store, and which free space a row found (stack 3, 5.2).

Only to bring the board to a recorded state: what a row must come to is read from the row.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from harness.formats.authentication import Authentication2
from harness.store.records import RECORDED, record_size
from harness.truth.rows import Row
from harness.truth.steps import APPEND, AUTHENTICATED, Written, variable_name

_CERTDB_NAME = "certdb"
# EFI: GUID, node size, name size, data size; then the name and a SHA-256 (stack 4.6).
_CERTDB_ENTRY = 16 + 4 + 4 + 4
_CERTDB_DIGEST = 32
_CERTDB_EMPTY = 4
_KEY_VARIABLES = ("PK", "KEK", "db", "dbx", "dbt", "dbr")
_DF = re.compile(r"^efivarfs +(\d+) +(\d+) +(\d+) +(\d+)% ", re.MULTILINE)


def taken(write: Written, stored: bytes | None, certdb: int) -> int:
    """Free space that one successful write takes; ``stored`` is the variable's file content
    before it (None when there is none), ``certdb`` the size of certdb's data."""
    name = variable_name(write.file)
    if write.attributes & AUTHENTICATED:
        return _taken_authenticated(write, stored, certdb)
    if write.attributes & APPEND:
        if not stored:
            return record_size(name, len(write.data)) if write.data else 0
        return record_size(name, len(stored) - 4 + len(write.data))
    if not write.data or stored == write.attributes.to_bytes(4, "little") + write.data:
        return 0
    return record_size(name, len(write.data))


def _taken_authenticated(write: Written, stored: bytes | None, certdb: int) -> int:
    name = variable_name(write.file)
    try:
        _, payload = Authentication2.split(write.data)
    except ValueError:
        return 0
    entry = _CERTDB_ENTRY + 2 * len(name) + _CERTDB_DIGEST
    private = name not in _KEY_VARIABLES
    if not payload and not write.attributes & APPEND:
        left = max(certdb - entry, _CERTDB_EMPTY)
        return record_size(_CERTDB_NAME, left) if private and stored else 0
    size = len(payload)
    if write.attributes & APPEND and stored:
        size += len(stored) - 4
    grown = record_size(_CERTDB_NAME, certdb + entry) if private and not stored else 0
    return record_size(name, size) + grown


def fitting(row: Row, write: Written | None) -> Callable[[int], bool] | None:
    """A test of the free space at which ``write`` costs what the row cost."""
    total = row.facts.get("rpmb_writes")
    if write is None or not isinstance(total, int) or not total:
        return None
    if write.attributes & AUTHENTICATED:
        return None
    relocations, rest = divmod(total, RECORDED.relocation)
    # One write a piece and one for the state byte; an overwrite marks the old record twice.
    pieces = rest - 1 if rest in (2, 3) else rest - 3
    size = record(write)

    def fits(free: int) -> bool:
        return (
            RECORDED.relocations(free, size) == relocations
            and RECORDED.pieces(free, size) == pieces
        )

    return fits


def record(write: Written) -> int:
    """Bytes of the record that a write makes."""
    return record_size(variable_name(write.file), len(write.data))


def free_of(outcome: Any) -> int | None:
    """Free bytes in the outcome of a statvfs; None without figures."""
    if isinstance(outcome, dict):
        return int(outcome["bfree"]) if outcome.get("blocks") else None
    if isinstance(outcome, list) and outcome and outcome[0]:
        return int(outcome[1])
    return None


def _df(free: int, total_shown: int) -> tuple[int, int, int, int]:
    """total, used, available and percentage as df(1) rounds them: up."""
    unit = 1 if total_shown == RECORDED.capacity else 1024
    used = RECORDED.capacity - free
    return (
        math.ceil(RECORDED.capacity / unit),
        math.ceil(used / unit),
        math.ceil(free / unit),
        math.ceil(100 * used / RECORDED.capacity),
    )


def shown_free(output: str, now: Callable[[], int | None]) -> int | None:
    """Free space that ``df`` showed, where it was more than nothing; what is free ``now`` where
    that fits."""
    shown = _DF.search(output)
    if not shown or shown[1] == "0":
        return None
    wanted = tuple(map(int, shown.groups()))
    seen = now()
    if seen is not None and _df(seen, wanted[0]) == wanted:
        return seen
    fitting = (free for free in range(0, RECORDED.capacity, 4) if _df(free, wanted[0]) == wanted)
    return max((free for free in fitting if seen is None or free < seen), default=None)
