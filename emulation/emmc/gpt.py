"""GUID partition table: what a factory writes on the card and what Linux reads from it.

Source: UEFI 2.10 5.2.3 and 5.3; K6 block/partitions/efi.c for what makes a table valid.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from harness.formats.mmc import MMC_SECTOR

ESP: Final = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
"""Type of an EFI system partition."""
ROOT_ARM64: Final = UUID("b921b045-1df0-41c3-af44-4c6f280d3fae")
"""Type of a root partition for aarch64 (UAPI discoverable partitions specification)."""

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_SIGNATURE: Final = b"EFI PART"
_REVISION: Final = 0x10000
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_ENTRIES: Final = 128
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY.size // MMC_SECTOR
_FIRST_USABLE: Final = 2 + _TABLE_SECTORS
_BOOT_RECORD: Final = struct.Struct("<446xB3sB3sII48x2s")
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_PROTECTIVE: Final = 0xEE


class Medium(Protocol):
    """Sectors by byte offset."""

    @property
    def sectors(self) -> int:
        """Size in sectors of 512 bytes."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``."""
        ...


@dataclass(frozen=True)
class Partition:
    """An entry in use: ``number`` counts from 1, ``first`` and ``last`` are sectors, inclusive."""

    number: int
    type: UUID
    guid: UUID
    first: int
    last: int
    name: str

    @property
    def sectors(self) -> int:
        """Size in sectors of 512 bytes."""
        return self.last - self.first + 1


def write_table(medium: Medium, disk: UUID, partitions: Sequence[Partition]) -> None:
    """Write boot record, primary table and backup; the last sector of the medium comes last."""
    table = bytearray(_ENTRIES * _ENTRY.size)
    for part in partitions:
        entry = (part.type.bytes_le, part.guid.bytes_le, part.first, part.last, 0)
        name = part.name.encode("utf-16-le")
        _ENTRY.pack_into(table, (part.number - 1) * _ENTRY.size, *entry, name)
    last = medium.sectors - 1
    size = min(last, 0xFFFFFFFF)
    record = _BOOT_RECORD.pack(
        0, b"\x00\x02\x00", _PROTECTIVE, b"\xff\xff\xff", 1, size, _BOOT_SIGNATURE
    )
    medium.write(0, record)
    medium.write(2 * MMC_SECTOR, bytes(table))
    medium.write(MMC_SECTOR, _header(1, last, 2, last, disk, table))
    medium.write((last - _TABLE_SECTORS) * MMC_SECTOR, bytes(table))
    medium.write(last * MMC_SECTOR, _header(last, 1, last - _TABLE_SECTORS, last, disk, table))


def read_table(medium: Medium) -> list[Partition]:
    """The partitions that Linux finds: none without a protective boot record or a valid table."""
    record = _BOOT_RECORD.unpack(medium.read(0, MMC_SECTOR))
    if record[2] != _PROTECTIVE or record[-1] != _BOOT_SIGNATURE:
        return []
    last = medium.sectors - 1
    for lba in (1, last):
        table = _valid_entries(medium, lba)
        if table is not None:
            found = [_partition(i, fields) for i, fields in enumerate(_ENTRY.iter_unpack(table))]
            return [part for part in found if part.type.int and part.first <= part.last <= last]
    return []


def _header(
    lba: int, other: int, entries: int, last: int, disk: UUID, table: bytes | bytearray
) -> bytes:
    def packed(check: int) -> bytes:
        return _HEADER.pack(
            _SIGNATURE, _REVISION, _HEADER.size, check, 0, lba, other, _FIRST_USABLE,
            last - _TABLE_SECTORS - 1, disk.bytes_le, entries, _ENTRIES, _ENTRY.size,
            zlib.crc32(table),
        )  # fmt: skip

    return packed(zlib.crc32(packed(0))).ljust(MMC_SECTOR, b"\0")


def _valid_entries(medium: Medium, lba: int) -> bytes | None:
    """The entry array of the table whose header is at ``lba``, if both checksums are right."""
    sector = medium.read(lba * MMC_SECTOR, MMC_SECTOR)
    fields = _HEADER.unpack_from(sector)
    signature, _, size, check, _, own, _, first, last, _, start, count, entry_size, crc = fields
    if signature != _SIGNATURE or not _HEADER.size <= size <= MMC_SECTOR or own != lba:
        return None
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) != check:
        return None
    if not first <= last < medium.sectors or entry_size != _ENTRY.size or count > _ENTRIES:
        return None
    table = medium.read(start * MMC_SECTOR, count * entry_size)
    return table if zlib.crc32(table) == crc else None


def _partition(index: int, fields: tuple[bytes, bytes, int, int, int, bytes]) -> Partition:
    kind, guid, first, last, _, name = fields
    text = name.decode("utf-16-le", "replace").partition("\0")[0]
    return Partition(index + 1, UUID(bytes_le=kind), UUID(bytes_le=guid), first, last, text)
