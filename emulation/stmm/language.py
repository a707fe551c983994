"""Lang and PlatformLang follow each other once both lists of codes are known.

Source: stack 4.6 rule 16; ED Variable.c:AutoUpdateLangVariable. Like EDK2 the hook looks at
the name alone, not at the GUID.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from emulation.stmm.refusal import Refused, refuse_if
from emulation.stmm.store import BS, NV, RT, Change, Variables
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus, encode_name

_LANG: Final = encode_name("Lang")
_LANG_CODES: Final = encode_name("LangCodes")
_PLATFORM_LANG: Final = encode_name("PlatformLang")
_PLATFORM_LANG_CODES: Final = encode_name("PlatformLangCodes")
_GUID: Final = GLOBAL_VARIABLE_GUID.bytes_le
_ATTRIBUTES: Final = NV | BS | RT
_ISO639_LENGTH: Final = 3


class LanguageSync:
    """Remembers the two lists of codes from the moment they are set."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables
        self._codes: list[bytes] | None = None
        self._platform_codes: list[bytes] | None = None

    def before_set(self, name: bytes, data: bytes) -> None:
        """Called with each SetVariable before it is stored; Refused stops it."""
        if not data:
            return
        listing = name in (_LANG_CODES, _PLATFORM_LANG_CODES)
        if listing:
            refuse_if(self._variables.at_runtime, EfiStatus.WRITE_PROTECTED)
            text = data.partition(b"\0")[0]
            if name == _PLATFORM_LANG_CODES:
                self._platform_codes = [code for code in text.split(b";") if code]
            else:
                step = _ISO639_LENGTH
                self._codes = [text[at : at + step] for at in range(0, len(text), step)]
        if self._codes is None or self._platform_codes is None:
            return
        if not listing:
            self._follow(name, data.partition(b"\0")[0])
            return
        for current in (_PLATFORM_LANG, _LANG):
            record = self._variables.find(current, _GUID)
            if record is not None:
                with suppress(Refused):
                    self._follow(current, record.data.partition(b"\0")[0])
                return

    def _follow(self, name: bytes, value: bytes) -> None:
        codes, platform_codes = self._codes or [], self._platform_codes or []
        if name == _PLATFORM_LANG:
            index = _best(platform_codes, value)
            other, values = _LANG, codes
        elif name == _LANG:
            index = next((i for i, code in enumerate(codes) if code == value[:3]), None)
            other, values = _PLATFORM_LANG, platform_codes
        else:
            return
        if index is None or index >= len(values):
            return
        best = values[index] + b"\0"
        room = self._variables.room_for({name: len(value) + 1, other: len(best)}, _GUID)
        refuse_if(not room, EfiStatus.OUT_OF_RESOURCES)
        self._variables.update(Change(other, _GUID, _ATTRIBUTES, best))


def _best(codes: Sequence[bytes], wanted: bytes) -> int | None:
    """Index of the first code that begins with the wanted tag, shortened at '-' if need be."""
    while wanted:
        for index, code in enumerate(codes):
            if code.startswith(wanted):
                return index
        wanted = wanted.rpartition(b"-")[0]
    return None
