"""MM communication messages of the SMM variable service.

A message is an MM header (24 bytes), a function header (16 bytes) and a payload; all fields are
little-endian. Each payload is one dataclass with ``pack`` and ``unpack``.

Sources: stack 4.1 to 4.3; EDK2 MdeModulePkg/Include/Guid/SmmVariableCommon.h; Linux
drivers/firmware/efi/stmm/mm_communication.h.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self
from uuid import UUID

from harness.formats.efi import EfiStatus, decode_name, encode_name

Buffer = bytes | bytearray | memoryview

MM_VARIABLE_GUID: Final = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
END_OF_DXE_EVENT_GUID: Final = UUID("02ce967a-dd7e-4ffc-9ee7-810cf0470880")
EXIT_BOOT_SERVICES_EVENT_GUID: Final = UUID("27abf055-b1b8-4c26-8048-748f37baa2df")

COMM_BUFFER_SIZE: Final = 16384
"""Bytes of the non-secure buffer that OP-TEE shares with StandaloneMM."""

MM_HEADER_SIZE: Final = 24
FUNCTION_HEADER_SIZE: Final = 16
PAYLOAD_OFFSET: Final = MM_HEADER_SIZE + FUNCTION_HEADER_SIZE

ACCESS_VARIABLE_SIZE: Final = 36
"""Offset of the name; Linux allocates four bytes more (its structure is padded to 40)."""
GET_NEXT_SIZE: Final = 24
QUERY_SIZE: Final = 32
PAYLOAD_SIZE_SIZE: Final = 8
LOCK_VARIABLE_SIZE: Final = 24
VAR_CHECK_PROPERTY_SIZE: Final = 48
RUNTIME_CACHE_INFO_SIZE: Final = 32
"""With the 7 bytes that pad its last field: EDK2 asks for sizeof."""

PROPERTY_REVISION: Final = 1

CLIENT_ACCESS_SIZE: Final = 40
"""What Linux and U-Boot count for ACCESS_VARIABLE: their structure is padded."""
CLIENT_MIN_DATA: Final = 0x20
"""Least bytes of data that a reported payload size must leave room for (K6 tee_stmm_efi.c)."""
PAYLOAD_FUDGE: Final = 2
"""Clients subtract it from the reported payload size: EDK2 counts its header too large."""

_ALL_ONES: Final = (1 << 64) - 1
# The constants are negative ints in a switch over a u64, so they are sign-extended; OP-TEE fills
# only 32 bits of the value, so on 64-bit none of the three negative cases is ever met.
_SPM_STATUS: Final = {
    0: EfiStatus.SUCCESS,
    -2 & _ALL_ONES: EfiStatus.INVALID_PARAMETER,
    -3 & _ALL_ONES: EfiStatus.ACCESS_DENIED,
    -5 & _ALL_ONES: EfiStatus.OUT_OF_RESOURCES,
}


def spm_status(value: int) -> EfiStatus:
    """What Linux and U-Boot make of the partition manager's code, a u64 (stack 5.2)."""
    return _SPM_STATUS.get(value, EfiStatus.ACCESS_DENIED)


class VariableFunction(IntEnum):
    """Functions of the SMM variable protocol."""

    GET_VARIABLE = 1
    GET_NEXT_VARIABLE_NAME = 2
    SET_VARIABLE = 3
    QUERY_VARIABLE_INFO = 4
    READY_TO_BOOT = 5
    EXIT_BOOT_SERVICE = 6
    GET_STATISTICS = 7
    LOCK_VARIABLE = 8
    VAR_CHECK_PROPERTY_SET = 9
    VAR_CHECK_PROPERTY_GET = 10
    GET_PAYLOAD_SIZE = 11
    INIT_RUNTIME_VARIABLE_CACHE = 12
    SYNC_RUNTIME_CACHE = 13
    GET_RUNTIME_CACHE_INFO = 14


class VariableProperty(IntFlag):
    """Property bits of VAR_CHECK_VARIABLE_PROPERTY."""

    READ_ONLY = 1


_MM_HEADER = struct.Struct("<16sQ")
_FUNCTION_HEADER = struct.Struct("<QQ")
_ACCESS = struct.Struct("<16sQQI")
_NAME = struct.Struct("<16sQ")
_QUERY = struct.Struct("<QQQI4x")
_U64 = struct.Struct("<Q")
_PROPERTY = struct.Struct("<16sQHHIQQ")
_CACHE_INFO = struct.Struct("<QQQB7x")


@dataclass(frozen=True, slots=True)
class Message:
    """One MM message. ``status`` is the raw 64-bit ReturnStatus."""

    function: int
    payload: bytes = b""
    status: int = 0
    header_guid: UUID = MM_VARIABLE_GUID

    def pack(self) -> bytes:
        """The message; MessageLength counts everything after offset 24."""
        return b"".join(
            (
                _MM_HEADER.pack(
                    self.header_guid.bytes_le, FUNCTION_HEADER_SIZE + len(self.payload)
                ),
                _FUNCTION_HEADER.pack(self.function, self.status),
                self.payload,
            )
        )

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read a message; the payload is what MessageLength says, cut at the end of ``raw``.

        struct.error if ``raw`` is shorter than the 40 header bytes.
        """
        guid, length = _MM_HEADER.unpack_from(raw)
        function, status = _FUNCTION_HEADER.unpack_from(raw, MM_HEADER_SIZE)
        payload = bytes(raw[PAYLOAD_OFFSET : MM_HEADER_SIZE + length])
        return cls(function, payload, status, UUID(bytes_le=guid))


@dataclass(frozen=True, slots=True)
class AccessVariable:
    """SMM_VARIABLE_COMMUNICATE_ACCESS_VARIABLE, for functions 1 and 3.

    ``data_size`` is the capacity (get) or the size (set, and every answer); ``data`` may be
    shorter in a request for reading.
    """

    guid: UUID
    name: str
    data_size: int = 0
    attributes: int = 0
    data: bytes = b""

    def pack(self, *, slack: int = 0) -> bytes:
        """The payload with room for ``data_size`` bytes and ``slack`` zero bytes at the end."""
        name = encode_name(self.name)
        header = _ACCESS.pack(self.guid.bytes_le, self.data_size, len(name), self.attributes)
        return header + name + self.data.ljust(self.data_size, b"\0") + bytes(slack)

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload; ``data`` is cut where the payload ends."""
        guid, data_size, name_size, attributes = _ACCESS.unpack_from(payload)
        start = ACCESS_VARIABLE_SIZE + name_size
        return cls(
            UUID(bytes_le=guid),
            decode_name(payload[ACCESS_VARIABLE_SIZE:start]),
            data_size,
            attributes,
            bytes(payload[start : start + data_size]),
        )

    @staticmethod
    def unpack_header(payload: Buffer) -> tuple[bytes, int, int, int]:
        """(GUID bytes, DataSize, NameSize, Attributes) without looking at what follows."""
        return _ACCESS.unpack_from(payload)

    @staticmethod
    def pack_answer(payload: bytearray, data_size: int, attributes: int) -> None:
        """Write the two fields that firmware answers into ``payload``, in place."""
        _U64.pack_into(payload, 16, data_size)
        struct.pack_into("<I", payload, 32, attributes)


@dataclass(frozen=True, slots=True)
class GetNextVariableName:
    """SMM_VARIABLE_COMMUNICATE_GET_NEXT_VARIABLE_NAME.

    ``name_size`` is the capacity in bytes (request) or the size needed (answer); both count the
    NUL.
    """

    guid: UUID
    name: str
    name_size: int

    def pack(self) -> bytes:
        """The payload with room for ``name_size`` bytes of name."""
        header = _NAME.pack(self.guid.bytes_le, self.name_size)
        return header + encode_name(self.name).ljust(self.name_size, b"\0")

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload."""
        guid, size = _NAME.unpack_from(payload)
        name = decode_name(payload[GET_NEXT_SIZE : GET_NEXT_SIZE + size])
        return cls(UUID(bytes_le=guid), name, size)

    @staticmethod
    def unpack_header(payload: Buffer) -> tuple[bytes, int]:
        """(GUID bytes, NameSize)."""
        return _NAME.unpack_from(payload)

    @staticmethod
    def pack_header(payload: bytearray, guid: bytes, name_size: int) -> None:
        """Write the answer's GUID and NameSize in place."""
        _NAME.pack_into(payload, 0, guid, name_size)


@dataclass(frozen=True, slots=True)
class QueryVariableInfo:
    """SMM_VARIABLE_COMMUNICATE_QUERY_VARIABLE_INFO; sizes in bytes."""

    attributes: int
    maximum_storage: int = 0
    remaining_storage: int = 0
    maximum_variable: int = 0

    def pack(self) -> bytes:
        """The payload, 32 bytes."""
        return _QUERY.pack(
            self.maximum_storage, self.remaining_storage, self.maximum_variable, self.attributes
        )

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload."""
        maximum, remaining, largest, attributes = _QUERY.unpack_from(payload)
        return cls(attributes, maximum, remaining, largest)


@dataclass(frozen=True, slots=True)
class PayloadSize:
    """SMM_VARIABLE_COMMUNICATE_GET_PAYLOAD_SIZE; bytes."""

    size: int = 0

    def pack(self) -> bytes:
        """The payload, 8 bytes."""
        return _U64.pack(self.size)

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload."""
        return cls(*_U64.unpack_from(payload))


@dataclass(frozen=True, slots=True)
class LockVariable:
    """SMM_VARIABLE_COMMUNICATE_LOCK_VARIABLE."""

    guid: UUID
    name: str

    def pack(self) -> bytes:
        """The payload."""
        name = encode_name(self.name)
        return _NAME.pack(self.guid.bytes_le, len(name)) + name

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload."""
        guid, size = _NAME.unpack_from(payload)
        name = decode_name(payload[LOCK_VARIABLE_SIZE : LOCK_VARIABLE_SIZE + size])
        return cls(UUID(bytes_le=guid), name)


@dataclass(frozen=True, slots=True)
class VarCheckProperty:
    """SMM_VARIABLE_COMMUNICATE_VAR_CHECK_VARIABLE_PROPERTY; sizes in bytes."""

    guid: UUID
    name: str
    revision: int = PROPERTY_REVISION
    property: int = 0
    attributes: int = 0
    min_size: int = 0
    max_size: int = 0

    def pack(self) -> bytes:
        """The payload."""
        name = encode_name(self.name)
        header = _PROPERTY.pack(
            self.guid.bytes_le,
            len(name),
            self.revision,
            self.property,
            self.attributes,
            self.min_size,
            self.max_size,
        )
        return header + name

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload."""
        guid, size, *values = _PROPERTY.unpack_from(payload)
        name = decode_name(payload[VAR_CHECK_PROPERTY_SIZE : VAR_CHECK_PROPERTY_SIZE + size])
        return cls(UUID(bytes_le=guid), name, *values)

    @staticmethod
    def unpack_header(payload: Buffer) -> tuple[bytes, int, int, int, int, int, int]:
        """(GUID bytes, NameSize, revision, property, attributes, min, max)."""
        return _PROPERTY.unpack_from(payload)

    @staticmethod
    def pack_answer(
        payload: bytearray, prop: int, attributes: int, min_size: int, max_size: int
    ) -> None:
        """Write the answered property in place."""
        struct.pack_into(
            "<HHIQQ", payload, 24, PROPERTY_REVISION, prop, attributes, min_size, max_size
        )


@dataclass(frozen=True, slots=True)
class RuntimeCacheInfo:
    """SMM_VARIABLE_COMMUNICATE_GET_RUNTIME_CACHE_INFO; sizes in bytes."""

    hob_total: int
    nv_total: int
    volatile_total: int
    authenticated: bool

    def pack(self) -> bytes:
        """The payload, 32 bytes."""
        return _CACHE_INFO.pack(
            self.hob_total, self.nv_total, self.volatile_total, self.authenticated
        )

    @classmethod
    def unpack(cls, payload: Buffer) -> Self:
        """Read the payload."""
        hob, nv, volatile, authenticated = _CACHE_INFO.unpack_from(payload)
        return cls(hob, nv, volatile, bool(authenticated))
