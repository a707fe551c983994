"""What StandaloneMM keeps in flash: volume, variable store, variables, fault tolerant write.

All fields are little-endian; offsets in the docstrings are bytes.

Sources: stack 4.11 and 4.13; EDK2 MdeModulePkg/Include/Guid/VariableFormat.h and
SystemNvDataGuid.h; PI 1.8 volume 3 (firmware volume header).
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

Buffer = bytes | bytearray | memoryview

BLOCK_SIZE: Final = 4096
VOLUME_SIZE: Final = 0xC000
VARIABLE_AREA_SIZE: Final = 0x4000
WORKING_OFFSET: Final = 0x4000
WORKING_SIZE: Final = 0x4000
SPARE_OFFSET: Final = 0x8000
SPARE_SIZE: Final = 0x4000

SYSTEM_NV_DATA_FV_GUID: Final = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED_VARIABLE_GUID: Final = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
WORKING_BLOCK_GUID: Final = UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95")
FTW_CALLER_GUID: Final = UUID("3aade4ec-63cc-4a48-a928-5a374dd463eb")

# --- firmware volume and variable store headers ------------------------------------------------

VOLUME_HEADER_SIZE: Final = 72
STORE_HEADER_SIZE: Final = 28
STORE_SIZE: Final = VARIABLE_AREA_SIZE - VOLUME_HEADER_SIZE
FIRST_VARIABLE_OFFSET: Final = VOLUME_HEADER_SIZE + STORE_HEADER_SIZE

VOLUME_SIGNATURE: Final = b"_FVH"
VOLUME_ATTRIBUTES: Final = 0x0E36
VOLUME_REVISION: Final = 2
STORE_FORMATTED: Final = 0x5A
STORE_HEALTHY: Final = 0xFE

_VOLUME = struct.Struct("<16s16sQ4sIHHHBBIIII")
_STORE = struct.Struct("<16sIBBHI")


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """EFI_FIRMWARE_VOLUME_HEADER with its one-entry block map, 72 bytes."""

    guid: UUID = SYSTEM_NV_DATA_FV_GUID
    length: int = VOLUME_SIZE
    signature: bytes = VOLUME_SIGNATURE
    attributes: int = VOLUME_ATTRIBUTES
    header_length: int = VOLUME_HEADER_SIZE
    checksum: int = 0
    revision: int = VOLUME_REVISION

    def pack(self) -> bytes:
        """The header with the checksum that makes its 16-bit sum zero."""
        blank = self._pack(0)
        words = struct.unpack(f"<{VOLUME_HEADER_SIZE // 2}H", blank)
        return self._pack(-sum(words) & 0xFFFF)

    def _pack(self, checksum: int) -> bytes:
        return _VOLUME.pack(
            bytes(16),
            self.guid.bytes_le,
            self.length,
            self.signature,
            self.attributes,
            self.header_length,
            checksum,
            0,
            0,
            self.revision,
            self.length // BLOCK_SIZE,
            BLOCK_SIZE,
            0,
            0,
        )

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read a header; struct.error if there are fewer than 72 bytes."""
        _, guid, length, signature, attributes, size, checksum, _, _, revision, *_ = (
            _VOLUME.unpack_from(raw)
        )
        return cls(UUID(bytes_le=guid), length, signature, attributes, size, checksum, revision)


def checksum_ok(raw: Buffer) -> bool:
    """True if the 16-bit words of the 72-byte volume header add up to zero."""
    words: tuple[int, ...] = struct.unpack_from(f"<{VOLUME_HEADER_SIZE // 2}H", raw)
    return sum(words) & 0xFFFF == 0


@dataclass(frozen=True, slots=True)
class StoreHeader:
    """VARIABLE_STORE_HEADER, 28 bytes; ``size`` counts the header too."""

    guid: UUID = AUTHENTICATED_VARIABLE_GUID
    size: int = STORE_SIZE
    format: int = STORE_FORMATTED
    state: int = STORE_HEALTHY

    def pack(self) -> bytes:
        """The header."""
        return _STORE.pack(self.guid.bytes_le, self.size, self.format, self.state, 0, 0)

    @classmethod
    def unpack(cls, raw: Buffer, offset: int = 0) -> Self:
        """Read a header; struct.error if there are fewer than 28 bytes."""
        guid, size, fmt, state, _, _ = _STORE.unpack_from(raw, offset)
        return cls(UUID(bytes_le=guid), size, fmt, state)


# --- variables ----------------------------------------------------------------------------------

VARIABLE_HEADER_SIZE: Final = 60
VARIABLE_STATE_OFFSET: Final = 2
VARIABLE_START_ID: Final = 0x55AA

STATE_BLANK: Final = 0xFF
STATE_HEADER_VALID: Final = 0x7F
STATE_ADDED: Final = 0x3F
STATE_IN_DELETED_TRANSITION: Final = 0xFE
"""A mask: an added variable in transition is 0x3E."""
STATE_DELETED: Final = 0xFD
"""A mask: a deleted variable is 0x3D or 0x3C."""
STATE_ADDED_IN_TRANSITION: Final = STATE_ADDED & STATE_IN_DELETED_TRANSITION

_VARIABLE = struct.Struct("<HBBIQ16sIII16s")


@dataclass(frozen=True, slots=True)
class VariableHeader:
    """AUTHENTICATED_VARIABLE_HEADER, 60 bytes packed.

    ``name_size`` and ``data_size`` are bytes; the name's size counts its NUL. ``time`` is the raw
    EFI_TIME, ``guid`` the raw EFI_GUID.
    """

    state: int
    attributes: int
    name_size: int
    data_size: int
    guid: bytes
    time: bytes = bytes(16)
    monotonic_count: int = 0
    public_key_index: int = 0
    start_id: int = VARIABLE_START_ID

    def pack(self) -> bytes:
        """The header."""
        return _VARIABLE.pack(
            self.start_id,
            self.state,
            0,
            self.attributes,
            self.monotonic_count,
            self.time,
            self.public_key_index,
            self.name_size,
            self.data_size,
            self.guid,
        )

    @classmethod
    def unpack(cls, raw: Buffer, offset: int = 0) -> Self:
        """Read a header; struct.error if there are fewer than 60 bytes."""
        start, state, _, attributes, count, time, key, name_size, data_size, guid = (
            _VARIABLE.unpack_from(raw, offset)
        )
        return cls(state, attributes, name_size, data_size, guid, time, count, key, start)


def align(offset: int) -> int:
    """The next multiple of four, where the next variable's header begins."""
    return (offset + 3) & ~3


# --- fault tolerant write -----------------------------------------------------------------------

WORKING_HEADER_SIZE: Final = 32
WORKING_STATE_OFFSET: Final = 20
WORKING_VALID: Final = 0xFE
"""State byte with bit 0 (valid) cleared; bit 1 cleared means invalid."""
WORKING_BIT_VALID: Final = 0x01
WORKING_BIT_INVALID: Final = 0x02

WRITE_HEADER_SIZE: Final = 40
WRITE_RECORD_SIZE: Final = 40
WRITE_TOTAL_SIZE: Final = WRITE_HEADER_SIZE + WRITE_RECORD_SIZE

HEADER_ALLOCATED: Final = 0x01
WRITES_ALLOCATED: Final = 0x02
WRITES_COMPLETED: Final = 0x04
SPARE_COMPLETED: Final = 0x02
DESTINATION_COMPLETED: Final = 0x04

_WRITE_HEADER = struct.Struct("<B3x16s4xQQ")
_WRITE_RECORD = struct.Struct("<B7xQQQq")


def working_block_header() -> bytes:
    """EFI_FAULT_TOLERANT_WORKING_BLOCK_HEADER, 32 bytes, in its one valid form.

    The CRC-32 covers the header with CRC and state bytes erased (0xFF).
    """
    queue = struct.pack("<Q", WORKING_SIZE - WORKING_HEADER_SIZE)
    crc = zlib.crc32(WORKING_BLOCK_GUID.bytes_le + b"\xff" * 8 + queue)
    state = bytes([WORKING_VALID, 0xFF, 0xFF, 0xFF])
    return WORKING_BLOCK_GUID.bytes_le + struct.pack("<I", crc) + state + queue


@dataclass(frozen=True, slots=True)
class WriteHeader:
    """EFI_FAULT_TOLERANT_WRITE_HEADER, 40 bytes. A bit of ``state`` that is 0 is set."""

    state: int = 0xFF
    caller: UUID = FTW_CALLER_GUID
    writes: int = 1
    private_size: int = 0

    def pack(self) -> bytes:
        """The header; padding is left erased."""
        return b"".join(
            (
                bytes([self.state, 0xFF, 0xFF, 0xFF]),
                self.caller.bytes_le,
                b"\xff" * 4,
                struct.pack("<QQ", self.writes, self.private_size),
            )
        )

    @classmethod
    def unpack(cls, raw: Buffer, offset: int = 0) -> Self:
        """Read a header; struct.error if there are fewer than 40 bytes."""
        state, caller, writes, private = _WRITE_HEADER.unpack_from(raw, offset)
        return cls(state, UUID(bytes_le=caller), writes, private)

    def has(self, bit: int) -> bool:
        """True if ``bit`` is set, that is, written as 0."""
        return not self.state & bit

    @property
    def total_size(self) -> int:
        """Bytes of this header with all its records."""
        return WRITE_HEADER_SIZE + self.writes * (WRITE_RECORD_SIZE + self.private_size)


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """EFI_FAULT_TOLERANT_WRITE_RECORD, 40 bytes: where the spare block's content belongs."""

    state: int
    lba: int
    offset: int
    length: int
    relative_offset: int

    def pack(self) -> bytes:
        """The record; padding is left erased."""
        return b"".join(
            (
                bytes([self.state]),
                b"\xff" * 7,
                struct.pack("<QQQq", self.lba, self.offset, self.length, self.relative_offset),
            )
        )

    @classmethod
    def unpack(cls, raw: Buffer, offset: int = 0) -> Self:
        """Read a record; struct.error if there are fewer than 40 bytes."""
        return cls(*_WRITE_RECORD.unpack_from(raw, offset))

    def has(self, bit: int) -> bool:
        """True if ``bit`` is set, that is, written as 0."""
        return not self.state & bit
