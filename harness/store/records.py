"""What a SetVariable takes from the store and costs in RPMB writes (contract 2.3, 3, 5.2).

Only to bring the board to a recorded state: what a row must come to is read from the row.
"""

from __future__ import annotations

from harness.formats import variable_store as layout
from harness.formats.authentication import Authentication2
from harness.truth.steps import APPEND, AUTHENTICATED, Written

SMALLEST_RECORD = layout.align(layout.VARIABLE_HEADER_SIZE + 2 * len("F\0") + 1)
"""Bytes of free space that the smallest filler takes."""
BLOCK = layout.BLOCK_SIZE
"""Bytes of a block of the flash driver, at whose ends it cuts a write."""
RELOCATION = 192
"""RPMB writes that OP-TEE needs to write the store's file anew (half sectors of 256 bytes)."""
_HALF_SECTOR = 256
_GUID_CHARS = 36
_CERTDB_NAME = "certdb"
# EFI: GUID, node size, name size, data size; then the name and a SHA-256 (contract 4.6).
_CERTDB_ENTRY = 16 + 4 + 4 + 4
_CERTDB_DIGEST = 32
_CERTDB_EMPTY = 4
_KEY_VARIABLES = ("PK", "KEK", "db", "dbx", "dbt", "dbr")


def record_size(name: str, data: int) -> int:
    """Bytes of a variable record with ``data`` bytes, its alignment included."""
    characters = len(name.encode("utf-16-le", "surrogatepass")) // 2
    return layout.align(layout.VARIABLE_HEADER_SIZE + 2 * (characters + 1) + data)


def variable_name(file: str) -> str:
    """The variable's name in a file name of efivarfs."""
    return file[: -_GUID_CHARS - 1]


def data_for(file: str, record: int) -> int:
    """How much data makes a record of exactly ``record`` bytes."""
    return record - record_size(variable_name(file), 0)


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


def position(free: int) -> int:
    """Offset in OP-TEE's file where the next record begins when ``free`` bytes are left."""
    return layout.VARIABLE_AREA_SIZE - free


def rpmb_writes(free: int, record: int, *, replaces: bool = False) -> int:
    """RPMB writes of a SetVariable whose record begins where ``free`` bytes are left: its pieces,
    the state byte that makes it count, and two state bytes of the one that it ``replaces``."""
    moved = RELOCATION * relocations(free, record)
    return moved + pieces(free, record) + (3 if replaces else 1)


def relocations(free: int, record: int) -> int:
    """How often OP-TEE writes its file anew for a record that begins where ``free`` bytes are
    left: once for each piece, cut at blocks of 4096, that crosses a half sector."""
    return sum(1 for begin, end in _pieces(free, record) if begin // _HALF_SECTOR != end)


def pieces(free: int, record: int) -> int:
    """Into how many flash writes the record is cut."""
    return len(_pieces(free, record))


def _pieces(free: int, record: int) -> list[tuple[int, int]]:
    begin = position(free)
    end = begin + record
    found = []
    while begin < end:
        stop = min(end, (begin // layout.BLOCK_SIZE + 1) * layout.BLOCK_SIZE)
        found.append((begin, (stop - 1) // _HALF_SECTOR))
        begin = stop
    return found
