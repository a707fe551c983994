"""Variable properties and the checks that EndOfDxe arms.

Source: stack 4.10; ED MdeModulePkg/Library/VarCheckLib and VarCheckUefiLib.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from emulation.stmm.refusal import refuse_if
from emulation.stmm.store import APPEND, AT, BS, HR, NV, RT, Change, Key
from harness.formats.efi import (
    GLOBAL_VARIABLE_GUID,
    HARDWARE_ERROR_VARIABLE_GUID,
    IMAGE_SECURITY_DATABASE_GUID,
    EfiStatus,
    decode_name,
    encode_name,
)

READ_ONLY: Final = 1
_ACCESS: Final = BS | RT
_UNLIMITED: Final = (1 << 64) - 1
_HEX_DIGITS: Final = frozenset("0123456789ABCDEF")

DataCheck = Callable[[bytes, int], bool]
"""(data, the property's smallest size) -> whether the data is well-formed."""


@dataclass(frozen=True, slots=True)
class Property:
    """VAR_CHECK_VARIABLE_PROPERTY without its revision; sizes in bytes."""

    property: int
    attributes: int
    min_size: int
    max_size: int


class VarCheck:
    """Properties are kept from the start; ``armed`` makes SetVariable obey them."""

    def __init__(self) -> None:
        self.armed = False
        self._properties: dict[Key, Property] = {}
        self._locked: set[Key] = set()

    def set_property(self, name: bytes, guid: bytes, prop: Property) -> None:
        """Remember a property until the partition restarts."""
        self._properties[name, guid] = prop

    def lock(self, name: bytes, guid: bytes) -> None:
        """Refuse every further change of a variable (variable policy LOCK_NOW)."""
        self._locked.add((name, guid))

    def property_of(self, name: bytes, guid: bytes) -> Property | None:
        """The property set by somebody, else the one the UEFI specification defines."""
        own = self._properties.get((name, guid))
        if own is not None:
            return own
        defined = _defined(name, guid)
        return None if defined is None else defined[0]

    def check(self, change: Change) -> None:
        """Rule 13 of SetVariable, of a value without authentication descriptor. Raises Refused."""
        if not self.armed:
            return
        prop = self.property_of(*change.key)
        if prop is not None:
            refuse_if(prop.property & READ_ONLY, EfiStatus.WRITE_PROTECTED)
            unfit = not change.deletes and not _fits(prop, change)
            refuse_if(unfit, EfiStatus.INVALID_PARAMETER)
        refuse_if(change.key in self._locked, EfiStatus.WRITE_PROTECTED)
        if not change.deletes:
            refuse_if(not _is_as_defined(change), EfiStatus.INVALID_PARAMETER)


def _fits(prop: Property, change: Change) -> bool:
    if prop.attributes and change.attributes & ~APPEND != prop.attributes:
        return False
    return not change.data or prop.min_size <= len(change.data) <= prop.max_size


def _is_as_defined(change: Change) -> bool:
    defined = _defined(*change.key)
    if change.attributes & HR and (defined is None or defined[0] is not _HARDWARE_ERROR[0]):
        return False
    if change.guid not in _DEFINED:
        return True
    if defined is None:
        return False
    prop, well_formed = defined
    return not change.data or well_formed is None or well_formed(change.data, prop.min_size)


def _ascii_string(data: bytes, _: int) -> bool:
    return b"\0" in data


def _array(data: bytes, item: int) -> bool:
    return len(data) % item == 0


def _device_path(data: bytes, _: int) -> bool:
    position = 0
    while position + 4 <= len(data):
        kind, subtype, length = struct.unpack_from("<BBH", data, position)
        if length < 4 or position + length > len(data):
            return False
        if (kind, subtype) == (0x7F, 0xFF):
            return True
        position += length
    return False


def _load_option(data: bytes, minimum: int) -> bool:
    (path_size,) = struct.unpack_from("<H", data, 4)
    end = minimum
    while data[end : end + 2] != b"\0\0":
        if end + 2 > len(data):
            return False
        end += 2
    path = data[end + 2 : end + 2 + path_size]
    return len(path) == path_size >= 4 and _device_path(path, 0)


def _key_option(data: bytes, minimum: int) -> bool:
    return (len(data) - minimum) % 4 == 0


_Defined = tuple[Property, DataCheck | None]


def _plain(attributes: int, size: int, largest: int | None = None) -> Property:
    return Property(0, attributes, size, size if largest is None else largest)


def _read_only(minimum: int, largest: int) -> Property:
    return Property(READ_ONLY, _ACCESS, minimum, largest)


_ALL: Final = NV | _ACCESS
_SIGNED: Final = _ALL | AT
_SIGNATURES: Final[_Defined] = (_plain(_SIGNED, 1, _UNLIMITED), None)
_DEFAULTS: Final[_Defined] = (_read_only(1, _UNLIMITED), None)
_MODE: Final[_Defined] = (_read_only(1, 1), None)
_HARDWARE_ERROR: Final[_Defined] = (_plain(_ALL | HR, 1, _UNLIMITED), None)
_OPTION: Final[_Defined] = (_plain(_ALL, 6, _UNLIMITED), _load_option)
_PATH: Final[_Defined] = (_plain(_ALL, 4, _UNLIMITED), _device_path)
_VOLATILE_PATH: Final[_Defined] = (_plain(_ACCESS, 4, _UNLIMITED), _device_path)
_ORDER: Final[_Defined] = (_plain(_ALL, 2, _UNLIMITED), _array)
_KEY_OPTION_SIZE: Final = 14

_GLOBAL: Final[Mapping[str, _Defined]] = {
    "LangCodes": (_plain(_ACCESS, 1, _UNLIMITED), _ascii_string),
    "Lang": (_plain(_ALL, 1, _UNLIMITED), _ascii_string),
    "Timeout": (_plain(_ALL, 2), None),
    "PlatformLangCodes": (_plain(_ACCESS, 1, _UNLIMITED), _ascii_string),
    "PlatformLang": (_plain(_ALL, 1, _UNLIMITED), _ascii_string),
    "ConIn": _PATH,
    "ConOut": _PATH,
    "ErrOut": _PATH,
    "ConInDev": _VOLATILE_PATH,
    "ConOutDev": _VOLATILE_PATH,
    "ErrOutDev": _VOLATILE_PATH,
    "BootOrder": _ORDER,
    "BootNext": (_plain(_ALL, 2), None),
    "BootCurrent": (_plain(_ACCESS, 2), None),
    "BootOptionSupport": (_plain(_ACCESS, 4), None),
    "DriverOrder": _ORDER,
    "SysPrepOrder": _ORDER,
    "HwErrRecSupport": (_plain(_ALL, 2), None),
    "SetupMode": _MODE,
    "AuditMode": (_plain(_ACCESS, 1), None),
    "DeployedMode": (_plain(_ACCESS, 1), None),
    "KEK": _SIGNATURES,
    "PK": _SIGNATURES,
    "SignatureSupport": (_read_only(16, _UNLIMITED), _array),
    "SecureBoot": _MODE,
    "KEKDefault": _DEFAULTS,
    "PKDefault": _DEFAULTS,
    "dbDefault": _DEFAULTS,
    "dbxDefault": _DEFAULTS,
    "dbtDefault": _DEFAULTS,
    "OsIndicationsSupported": (_plain(_ACCESS, 8), None),
    "OsIndications": (_plain(_ALL, 8), None),
    "VendorKeys": _MODE,
}
_GLOBAL_NUMBERED: Final[Mapping[str, _Defined]] = {
    "Boot####": _OPTION,
    "Driver####": _OPTION,
    "SysPrep####": _OPTION,
    "Key####": (
        _plain(_ALL, _KEY_OPTION_SIZE, _KEY_OPTION_SIZE + 12),
        _key_option,
    ),
    "PlatformRecovery####": (_plain(_ACCESS, 6, _UNLIMITED), _load_option),
}
_IMAGE_SECURITY: Final[Mapping[str, _Defined]] = {
    "db": _SIGNATURES,
    "dbx": _SIGNATURES,
    "dbt": _SIGNATURES,
}

_DEFINED: Final[Mapping[bytes, Mapping[bytes, _Defined]]] = {
    guid.bytes_le: {encode_name(name): entry for name, entry in names.items()}
    for guid, names in (
        (GLOBAL_VARIABLE_GUID, {**_GLOBAL, **_GLOBAL_NUMBERED}),
        (IMAGE_SECURITY_DATABASE_GUID, _IMAGE_SECURITY),
        (HARDWARE_ERROR_VARIABLE_GUID, {"HwErrRec####": _HARDWARE_ERROR}),
    )
}


def _defined(name: bytes, guid: bytes) -> _Defined | None:
    """What the UEFI specification says of a variable; #### are four upper-case hex digits."""
    names = _DEFINED.get(guid)
    if names is None:
        return None
    text = decode_name(name)
    if len(text) > 4 and _HEX_DIGITS.issuperset(text[-4:]):
        numbered = names.get(encode_name(text[:-4] + "####"))
        if numbered is not None:
            return numbered
    return names.get(name)
