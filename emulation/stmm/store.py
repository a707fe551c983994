"""Records of a variable store, and where the next one goes.

Source: stack 4.11; ED MdeModulePkg/Universal/Variable/RuntimeDxe/VariableParsing.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from harness.formats.efi import Attributes, EfiTime
from harness.formats.variable_store import (
    STATE_ADDED,
    STATE_ADDED_IN_TRANSITION,
    STATE_BLANK,
    STORE_HEADER_SIZE,
    VARIABLE_HEADER_SIZE,
    VARIABLE_START_ID,
    VARIABLE_STATE_OFFSET,
    VariableHeader,
    align,
)

# Attributes as plain integers, which messages and flash hold.
NV: Final = int(Attributes.NON_VOLATILE)
BS: Final = int(Attributes.BOOTSERVICE_ACCESS)
RT: Final = int(Attributes.RUNTIME_ACCESS)
HR: Final = int(Attributes.HARDWARE_ERROR_RECORD)
AW: Final = int(Attributes.AUTHENTICATED_WRITE_ACCESS)
AT: Final = int(Attributes.TIME_BASED_AUTHENTICATED_WRITE_ACCESS)
APPEND: Final = int(Attributes.APPEND_WRITE)

_UNSET: Final = 0xFFFFFFFF

Key = tuple[bytes, bytes]
"""Name with NUL, GUID."""


@dataclass(frozen=True, slots=True)
class Change:
    """One SetVariable. ``time`` is the stamp of an authenticated one that was found good."""

    name: bytes
    guid: bytes
    attributes: int
    data: bytes
    time: bytes | None = None

    @property
    def key(self) -> Key:
        """Name and GUID."""
        return (self.name, self.guid)

    @property
    def append(self) -> bool:
        """Whether the data is appended."""
        return bool(self.attributes & APPEND)

    @property
    def deletes(self) -> bool:
        """Whether it takes the variable away."""
        return (not self.append and not self.data) or not self.attributes & (RT | BS)


@dataclass(slots=True)
class Record:
    """One variable of a store.

    ``offset`` counts from the store's header; ``name`` includes its NUL; ``raw`` is the record as
    stored (its state byte may be out of date), without padding.
    """

    offset: int
    state: int
    attributes: int
    guid: bytes
    name: bytes
    data: bytes
    time: bytes
    raw: bytes

    @property
    def size(self) -> int:
        """Bytes up to the next record's header."""
        return align(len(self.raw))

    @property
    def live(self) -> bool:
        """True if the state lets the variable be found."""
        return self.state in (STATE_ADDED, STATE_ADDED_IN_TRANSITION)

    def packed(self) -> bytes:
        """The record as a reclaim writes it: state added, padded with 0xFF."""
        raw = bytearray(self.raw)
        raw[VARIABLE_STATE_OFFSET] = STATE_ADDED
        return bytes(raw).ljust(self.size, b"\xff")

    @classmethod
    def build(cls, offset: int, change: Change, time: bytes) -> Record:
        """A new record, not yet stored: its state is blank."""
        name, guid, data = change.name, change.guid, change.data
        attributes = change.attributes & ~APPEND
        header = VariableHeader(STATE_BLANK, attributes, len(name), len(data), guid, time)
        raw = header.pack() + name + data
        return cls(offset, STATE_BLANK, attributes, guid, name, data, time, raw)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a variable is: its record, and an older one that a power cut left behind it."""

    store: VariableStore
    record: Record
    leftover: Record | None


class Variables(Protocol):
    """What authentication, languages and memory overwrite lock need of the variable service."""

    at_runtime: bool

    def find(self, name: bytes, guid: bytes) -> Record | None: ...
    def set(self, change: Change) -> None: ...
    def update(self, change: Change) -> None: ...
    def overwrite_volatile(self, record: Record, data: bytes) -> None: ...
    def lock(self, name: bytes, guid: bytes) -> None: ...
    def room_for(self, sizes: dict[bytes, int], guid: bytes) -> bool: ...


class VariableStore:
    """Records in the order they were added. ``size`` counts the 28 bytes of the store's header."""

    def __init__(self, size: int, *, volatile: bool) -> None:
        self.size = size
        self.volatile = volatile
        self.records: list[Record] = []
        self.last_offset = STORE_HEADER_SIZE

    @property
    def capacity(self) -> int:
        """Bytes for variables."""
        return self.size - STORE_HEADER_SIZE

    def load(self, image: bytes) -> None:
        """Read the records of a store's bytes, its header included."""
        self.records = list(_parse(image))
        self.last_offset = STORE_HEADER_SIZE
        if self.records:
            self.last_offset = self.records[-1].offset + self.records[-1].size

    def add(self, record: Record) -> None:
        """Append a stored record."""
        self.records.append(record)
        self.last_offset = record.offset + record.size

    def replace(self, records: list[Record]) -> None:
        """Make ``records`` the whole content, packed from the start, every one in state added."""
        self.records = []
        self.last_offset = STORE_HEADER_SIZE
        for record in records:
            record.offset = self.last_offset
            record.state = STATE_ADDED
            self.add(record)

    def find(self, name: bytes, guid: bytes, required: int = 0) -> Found | None:
        """The variable, if one is live with all attribute bits of ``required``."""
        leftover: Record | None = None
        for record in self.records:
            # EDK2 compares as many bytes as the record's name has: a bare header answers to any.
            if record.guid != guid or not name.startswith(record.name):
                continue
            if record.attributes & required != required:
                continue
            if record.state == STATE_ADDED:
                return Found(self, record, leftover)
            if record.state == STATE_ADDED_IN_TRANSITION:
                leftover = record
        return None if leftover is None else Found(self, leftover, None)

    def survivors(self, found: Found | None) -> list[Record]:
        """What a reclaim keeps, in its order, without the variable that is being replaced."""
        gone = () if found is None else (found.record, found.leftover)
        kept = [
            record
            for record in self.records
            if record.state == STATE_ADDED and not any(record is other for other in gone)
        ]
        known = {(record.guid, record.name) for record in kept}
        for record in self.records:
            if record.state != STATE_ADDED_IN_TRANSITION or any(record is r for r in gone):
                continue
            if (record.guid, record.name) not in known:
                known.add((record.guid, record.name))
                kept.append(record)
        return kept

    def used(self, *, all_records: bool) -> tuple[int, int]:
        """(common, hardware error) bytes taken by all records, or only by those that count."""
        common = hardware = 0
        for record in self.records:
            if not all_records and not self._counts(record):
                continue
            if record.attributes & HR:
                hardware += record.size
            else:
                common += record.size
        return common, hardware

    def _counts(self, record: Record) -> bool:
        if record.state != STATE_ADDED_IN_TRANSITION:
            return record.state == STATE_ADDED
        found = self.find(record.name, record.guid)
        return found is not None and found.record.state != STATE_ADDED


def _parse(image: bytes) -> Iterator[Record]:
    offset = STORE_HEADER_SIZE
    while offset + VARIABLE_HEADER_SIZE <= len(image):
        header = VariableHeader.unpack(image, offset)
        if header.start_id != VARIABLE_START_ID:
            return
        name_size, data_size = header.name_size, header.data_size
        if header.state == STATE_BLANK or _UNSET in (header.attributes, name_size, data_size):
            # Cut off while it was written: EDK2 takes such a record for a bare header.
            name_size = data_size = 0
        name_start = offset + VARIABLE_HEADER_SIZE
        data_start = name_start + name_size
        end = data_start + data_size
        yield Record(
            offset,
            header.state,
            header.attributes,
            header.guid,
            image[name_start:data_start],
            image[data_start:end],
            header.time,
            image[offset:end],
        )
        offset = align(end)


def is_not_later(first: bytes, second: bytes) -> bool:
    """True if EFI_TIME ``first`` is before or equal to ``second``, by date and time of day only.

    Source: EDK2 SecurityPkg AuthService.c:AuthServiceInternalCompareTimeStamp.
    """
    return _moment(first) <= _moment(second)


def _moment(raw: bytes) -> tuple[int, ...]:
    time = EfiTime.unpack(raw)
    return (time.year, time.month, time.day, time.hour, time.minute, time.second)
