"""The file system that OP-TEE keeps in an RPMB: partition header, file allocation table, names.

Source: OT41 core/tee/tee_rpmb_fs.c; stack 2.1, 2.3.  Everything is little-endian.
"""

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Self
from uuid import UUID

MAGIC: Final = 0x52504D42
VERSION: Final = 2
FAT_START: Final = 512
"""Byte address of the first table entry."""
FEK_SIZE: Final = 16

_HEADER: Final = struct.Struct(
    "<"
    "I"  # magic
    "I"  # version
    "I"  # write counter, unused
    "I"  # byte address of the table
    "112s"  # reserved
)


@dataclass(frozen=True, slots=True)
class PartitionHeader:
    """The first 128 bytes of the partition."""

    magic: int = MAGIC
    version: int = VERSION
    write_counter: int = 0
    fat_start: int = FAT_START
    reserved: bytes = bytes(112)

    SIZE = _HEADER.size

    def pack(self) -> bytes:
        """The 128 bytes."""
        return _HEADER.pack(
            self.magic, self.version, self.write_counter, self.fat_start, self.reserved
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The header in front of ``raw``; ``struct.error`` if it is cut short."""
        return cls(*_HEADER.unpack_from(raw))


class FatFlags(IntFlag):
    """Flags of a table entry."""

    ACTIVE = 1
    LAST_ENTRY = 2


UNUSED: Final = FatFlags(0)
"""Flags of an entry that may be taken."""

_ENTRY: Final = struct.Struct(
    "<"
    "I"  # byte address of the data
    "I"  # bytes of data
    "I"  # flags
    "I"  # unused; a write counter before OP-TEE 4.1
    "16s"  # file encryption key, encrypted
    "224s"  # name, padded with zeros
)


@dataclass(frozen=True, slots=True)
class FatEntry:
    """One entry of the table, 256 bytes; ``name`` without its padding."""

    start_address: int = 0
    data_size: int = 0
    flags: FatFlags = UNUSED
    unused: int = 0
    fek: bytes = bytes(FEK_SIZE)
    name: str = ""

    SIZE = _ENTRY.size

    @property
    def active(self) -> bool:
        """Whether the entry describes a file."""
        return bool(self.flags & FatFlags.ACTIVE)

    @property
    def last(self) -> bool:
        """Whether the table ends with this entry."""
        return bool(self.flags & FatFlags.LAST_ENTRY)

    def pack(self) -> bytes:
        """The 256 bytes."""
        return _ENTRY.pack(
            self.start_address,
            self.data_size,
            self.flags,
            self.unused,
            self.fek,
            self.name.encode("latin-1"),
        )

    @classmethod
    def unpack(cls, raw: bytes | memoryview, offset: int = 0) -> Self:
        """The entry at ``offset`` bytes; ``struct.error`` if it is cut short."""
        start, size, flags, unused, fek, name = _ENTRY.unpack_from(raw, offset)
        text = name.partition(b"\0")[0].decode("latin-1")
        return cls(start, size, FatFlags(flags), unused, fek, text)


def file_name(owner: UUID, object_id: bytes) -> str:
    """The name of a trusted application's object.

    TEE_UUID fields are native little-endian words, so its bytes differ from the text's order.
    """
    return f"/{owner.bytes_le.hex().upper()}/{object_id.hex().upper()}"
