"""Lang and PlatformLang follow each other once both lists of codes are known.

Source: contract 4.6 rule 16; ED Variable.c:AutoUpdateLangVariable. Like EDK2 the hook looks at
the name alone, not at the GUID.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from emulation.stmm.store import Record
from harness.formats.efi import GLOBAL_VARIABLE_GUID, Attributes, EfiStatus, encode_name

_LANG: Final = encode_name("Lang")
_LANG_CODES: Final = encode_name("LangCodes")
_PLATFORM_LANG: Final = encode_name("PlatformLang")
_PLATFORM_LANG_CODES: Final = encode_name("PlatformLangCodes")
_GUID: Final = GLOBAL_VARIABLE_GUID.bytes_le
_ATTRIBUTES: Final = int(
    Attributes.NON_VOLATILE | Attributes.BOOTSERVICE_ACCESS | Attributes.RUNTIME_ACCESS
)
_ISO639_LENGTH: Final = 3


class Variables(Protocol):
    """What the hook needs of the variable service."""

    at_runtime: bool

    def find(self, name: bytes, guid: bytes) -> Record | None: ...
    def update(
        self, name: bytes, guid: bytes, data: bytes, attributes: int, time: bytes | None = None
    ) -> EfiStatus: ...
    def room_for(self, sizes: dict[bytes, int], guid: bytes) -> bool: ...


class LanguageSync:
    """Remembers the two lists of codes from the moment they are set."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables
        self._codes: list[bytes] | None = None
        self._platform_codes: list[bytes] | None = None

    def before_set(self, name: bytes, data: bytes) -> EfiStatus:
        """Called with each SetVariable before it is stored; an error stops it."""
        if not data:
            return EfiStatus.SUCCESS
        listing = name in (_LANG_CODES, _PLATFORM_LANG_CODES)
        if listing:
            if self._variables.at_runtime:
                return EfiStatus.WRITE_PROTECTED
            text = data.partition(b"\0")[0]
            if name == _PLATFORM_LANG_CODES:
                self._platform_codes = [code for code in text.split(b";") if code]
            else:
                step = _ISO639_LENGTH
                self._codes = [text[at : at + step] for at in range(0, len(text), step)]
        if self._codes is None or self._platform_codes is None:
            return EfiStatus.SUCCESS
        if listing:
            current = self._variables.find(_PLATFORM_LANG, _GUID)
            name = _PLATFORM_LANG
            if current is None:
                current, name = self._variables.find(_LANG, _GUID), _LANG
            if current is None:
                return EfiStatus.SUCCESS
            data = current.data
        status = self._follow(name, data.partition(b"\0")[0])
        return EfiStatus.SUCCESS if listing else status

    def _follow(self, name: bytes, value: bytes) -> EfiStatus:
        codes, platform_codes = self._codes or [], self._platform_codes or []
        if name == _PLATFORM_LANG:
            index = _best(platform_codes, value)
            other, values = _LANG, codes
        elif name == _LANG:
            index = next((i for i, code in enumerate(codes) if code == value[:3]), None)
            other, values = _PLATFORM_LANG, platform_codes
        else:
            return EfiStatus.SUCCESS
        if index is None or index >= len(values):
            return EfiStatus.SUCCESS
        best = values[index] + b"\0"
        if not self._variables.room_for({name: len(value) + 1, other: len(best)}, _GUID):
            return EfiStatus.OUT_OF_RESOURCES
        return self._variables.update(other, _GUID, best, _ATTRIBUTES)


def _best(codes: Sequence[bytes], wanted: bytes) -> int | None:
    """Index of the first code that begins with the wanted tag, shortened at '-' if need be."""
    while wanted:
        for index, code in enumerate(codes):
            if code.startswith(wanted):
                return index
        wanted = wanted.rpartition(b"-")[0]
    return None
