"""UEFI basics: status codes, variable attributes, GUIDs, EFI_TIME and CHAR16 names.

Sources: UEFI 2.10, sections 8.2 and 8.3 and appendix D; stack 4.
"""

import struct
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self
from uuid import UUID

ERROR_BIT: Final = 1 << 63
"""The bit that tells an EFI error from a success, in 64-bit firmware."""


class EfiStatus(IntEnum):
    """EFI_STATUS of 64-bit firmware.

    A value that has no name here is kept as an ``UNKNOWN_…`` member, because firmware may answer
    anything.
    """

    SUCCESS = 0
    LOAD_ERROR = ERROR_BIT | 1
    INVALID_PARAMETER = ERROR_BIT | 2
    UNSUPPORTED = ERROR_BIT | 3
    BAD_BUFFER_SIZE = ERROR_BIT | 4
    BUFFER_TOO_SMALL = ERROR_BIT | 5
    NOT_READY = ERROR_BIT | 6
    DEVICE_ERROR = ERROR_BIT | 7
    WRITE_PROTECTED = ERROR_BIT | 8
    OUT_OF_RESOURCES = ERROR_BIT | 9
    VOLUME_CORRUPTED = ERROR_BIT | 10
    NOT_FOUND = ERROR_BIT | 14
    ACCESS_DENIED = ERROR_BIT | 15
    TIMEOUT = ERROR_BIT | 18
    NOT_STARTED = ERROR_BIT | 19
    ALREADY_STARTED = ERROR_BIT | 20
    ABORTED = ERROR_BIT | 21
    SECURITY_VIOLATION = ERROR_BIT | 26

    @property
    def is_error(self) -> bool:
        """True if the error bit is set."""
        return bool(self & ERROR_BIT)

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            return None
        unknown = int.__new__(cls, value)
        unknown._name_ = f"UNKNOWN_{value:X}"
        unknown._value_ = value
        return unknown


class Attributes(IntFlag):
    """Attributes of a variable (UEFI 8.2); unknown bits are kept."""

    NON_VOLATILE = 0x01
    BOOTSERVICE_ACCESS = 0x02
    RUNTIME_ACCESS = 0x04
    HARDWARE_ERROR_RECORD = 0x08
    AUTHENTICATED_WRITE_ACCESS = 0x10
    TIME_BASED_AUTHENTICATED_WRITE_ACCESS = 0x20
    APPEND_WRITE = 0x40


GLOBAL_VARIABLE_GUID: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE_GUID: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
HARDWARE_ERROR_VARIABLE_GUID: Final = UUID("414e6bdd-e47b-47cc-b244-bb61020cf516")
SECURE_BOOT_ENABLE_GUID: Final = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
CUSTOM_MODE_GUID: Final = UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
CERT_DB_GUID: Final = UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a")
VENDOR_KEYS_NV_GUID: Final = UUID("9073e4e0-60ec-4b6e-9903-4c223c260f3c")
VARIABLE_ERROR_FLAG_GUID: Final = UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa")
MEMORY_OVERWRITE_CONTROL_GUID: Final = UUID("e20939be-32d4-41be-a150-897f85d49829")
MEMORY_OVERWRITE_LOCK_GUID: Final = UUID("bb983ccf-151d-40e1-a07b-4a17be168292")
LINUX_RANDOM_SEED_GUID: Final = UUID("1ce1e5bc-7ceb-42f2-81e5-8aadf180f57b")
LINUX_CRASH_GUID: Final = UUID("cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0")


def encode_name(name: str) -> bytes:
    """CHAR16 string with its terminating NUL, little-endian.

    Lone surrogates pass unchanged: a variable's name is any sequence of 16-bit units.
    """
    return name.encode("utf-16-le", "surrogatepass") + b"\0\0"


def decode_name(raw: bytes | bytearray | memoryview) -> str:
    """The text of a CHAR16 string up to its first NUL, or up to its end if it has none.

    An odd byte at the end is ignored.
    """
    text = bytes(raw[: len(raw) & ~1]).decode("utf-16-le", "surrogatepass")
    return text.partition("\0")[0]


_TIME = struct.Struct("<HBBBBBBIhBB")


@dataclass(frozen=True, slots=True)
class EfiTime:
    """EFI_TIME, 16 bytes (UEFI 8.3). ``timezone`` is in minutes from UTC."""

    year: int = 0
    month: int = 0
    day: int = 0
    hour: int = 0
    minute: int = 0
    second: int = 0
    pad1: int = 0
    nanosecond: int = 0
    timezone: int = 0
    daylight: int = 0
    pad2: int = 0

    SIZE = _TIME.size

    @classmethod
    def unpack(cls, raw: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Read a time; struct.error if fewer than 16 bytes are left."""
        return cls(*_TIME.unpack_from(raw, offset))

    def pack(self) -> bytes:
        """The 16 bytes."""
        return _TIME.pack(*astuple(self))
