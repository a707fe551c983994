"""File names of efivarfs and what the kernel checks by a variable's name.

Source: stack 6.2 to 6.4, K6 fs/efivarfs/inode.c, super.c and vars.c, lib/ucs2_string.c.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from harness.formats.efi import GLOBAL_VARIABLE_GUID, LINUX_CRASH_GUID

GUID_CHARS: Final = 36
NAME_MAX: Final = 255
"""Longest file name, bytes (VFS)."""

_GUID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_END_NODE_TYPES: Final = (0x7F, 0xFF)
_END_ENTIRE: Final = 0xFF
_NODE_HEADER: Final = 4
_LOAD_OPTION_FIXED: Final = 6


def char16_to_utf8(name: str) -> bytes:
    """UTF-8 of each CHAR16 on its own, as ucs2_as_utf8: a surrogate becomes three bytes."""
    units = memoryview(name.encode("utf-16-le", "surrogatepass")).cast("H")
    return "".join(map(chr, units)).encode("utf-8", "surrogatepass")


def listed_name(name: str, guid: UUID) -> bytes:
    """The file name under which an enumerated variable appears (efivar_get_utf8name)."""
    return char16_to_utf8(name).replace(b"/", b"!") + b"-" + str(guid).encode()


def is_valid_name(name: bytes) -> bool:
    """Whether a file may be created under ``name``: at least one byte, '-', a GUID."""
    return (
        len(name) >= GUID_CHARS + 2
        and name[-GUID_CHARS - 1 : -GUID_CHARS] == b"-"
        and _GUID.fullmatch(name[-GUID_CHARS:]) is not None
    )


def split_name(name: bytes) -> tuple[bytes, UUID]:
    """Variable part and GUID of a valid file name."""
    return name[: -GUID_CHARS - 1], UUID(name[-GUID_CHARS:].decode())


def created_variable_name(variable_part: bytes) -> str:
    """The CHAR16 name a created file stands for: every byte becomes one character.

    The kernel does not decode UTF-8 here, so such a name is listed differently after a remount.
    """
    return variable_part.decode("latin-1")


def lookup_key(name: bytes) -> bytes:
    """Equal for names that the directory takes for the same: the GUID's case does not count."""
    return name[:-GUID_CHARS] + name[-GUID_CHARS:].lower()


def is_removable(variable_part: bytes, guid: UUID) -> bool:
    """Whether a variable starts without the immutable flag (efivar_variable_is_removable)."""
    return any(
        rule.guid == guid and rule.matches(variable_part, len(variable_part)) for rule in _RULES
    )


def is_valid_content(name: str, guid: UUID, data: bytes) -> bool:
    """Whether the kernel passes ``data`` on to the firmware (efivar_validate).

    The kernel hands the matcher a length that counts the NUL, so a rule for one exact name never
    matches here; only the ``Boot*`` and ``Driver*`` rules have an effect (stack 6.4).
    """
    utf8 = char16_to_utf8(name)
    for rule in _RULES:
        if rule.guid == guid and rule.matches(utf8, len(utf8) + 1):
            return rule.check is None or rule.check(name, len(rule.prefix), data)
    return True


def _is_device_path(data: bytes) -> bool:
    offset = 0
    while offset + _NODE_HEADER <= len(data):
        length = int.from_bytes(data[offset + 2 : offset + 4], "little")
        if length < _NODE_HEADER or offset + length > len(data):
            return False
        if data[offset] in _END_NODE_TYPES and data[offset + 1] == _END_ENTIRE:
            return True
        offset += length
    return False


def _is_load_option(name: str, prefix: int, data: bytes) -> bool:
    digits = name[prefix : prefix + 4]
    if len(digits) < 4 or not _HEX_DIGITS.issuperset(digits):
        return True
    if len(name) > prefix + 4 or len(data) < 8:
        return False
    path_length = int.from_bytes(data[4:6], "little")
    description = 2 * (_char16_count(data[_LOAD_OPTION_FIXED:]) + 1)
    path = _LOAD_OPTION_FIXED + description
    return path + path_length <= len(data) and _is_device_path(data[path : path + path_length])


def _char16_count(data: bytes) -> int:
    """Characters before the first NUL, or as many as fit (ucs2_strnlen)."""
    pairs = len(data) // 2
    for index in range(pairs):
        if data[2 * index : 2 * index + 2] == b"\0\0":
            return index
    return pairs


def _is_u16(_name: str, _prefix: int, data: bytes) -> bool:
    return len(data) == 2


def _is_u16_array(_name: str, _prefix: int, data: bytes) -> bool:
    return len(data) % 2 == 0


def _is_ascii(_name: str, _prefix: int, data: bytes) -> bool:
    text, nul, _rest = data.partition(b"\0")
    return bool(nul) and text.isascii()


def _is_path(_name: str, _prefix: int, data: bytes) -> bool:
    return _is_device_path(data)


@dataclass(frozen=True)
class _Rule:
    """A row of variable_validate: names it covers and the check of their content, if any."""

    guid: UUID
    pattern: bytes
    check: Callable[[str, int, bytes], bool] | None

    @property
    def prefix(self) -> bytes:
        return self.pattern.removesuffix(b"*")

    def matches(self, name: bytes, length: int) -> bool:
        if self.pattern.endswith(b"*"):
            return name.startswith(self.prefix)
        return name == self.pattern and length == len(self.pattern)


_RULES: Final = (
    _Rule(GLOBAL_VARIABLE_GUID, b"BootNext", _is_u16),
    _Rule(GLOBAL_VARIABLE_GUID, b"BootOrder", _is_u16_array),
    _Rule(GLOBAL_VARIABLE_GUID, b"Boot*", _is_load_option),
    _Rule(GLOBAL_VARIABLE_GUID, b"DriverOrder", _is_u16_array),
    _Rule(GLOBAL_VARIABLE_GUID, b"Driver*", _is_load_option),
    _Rule(GLOBAL_VARIABLE_GUID, b"ConIn", _is_path),
    _Rule(GLOBAL_VARIABLE_GUID, b"ConInDev", _is_path),
    _Rule(GLOBAL_VARIABLE_GUID, b"ConOut", _is_path),
    _Rule(GLOBAL_VARIABLE_GUID, b"ConOutDev", _is_path),
    _Rule(GLOBAL_VARIABLE_GUID, b"ErrOut", _is_path),
    _Rule(GLOBAL_VARIABLE_GUID, b"ErrOutDev", _is_path),
    _Rule(GLOBAL_VARIABLE_GUID, b"Lang", _is_ascii),
    _Rule(GLOBAL_VARIABLE_GUID, b"OsIndications", None),
    _Rule(GLOBAL_VARIABLE_GUID, b"PlatformLang", _is_ascii),
    _Rule(GLOBAL_VARIABLE_GUID, b"Timeout", _is_u16),
    _Rule(LINUX_CRASH_GUID, b"*", None),
)
