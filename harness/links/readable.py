"""What a console received: text, or what a wrong rate or a noisy line makes of it."""

from __future__ import annotations

import codecs
import re

ENOUGH_TO_READ = 4  # bytes, at a rate that is only looked at

_READABLE_SHARE = 0.9
_GARBLED_SHARE = 0.5

# CSI and OSC sequences and two-byte escapes (ECMA-48); what readline and coloured prompts add, and
# how fish goes back to where it was
_ESCAPES = re.compile(
    rb"\r\x1b\[\d+C|\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_]|[ -/]+[0-~])"
    rb"\x00*"  # padding for slow terminals
)


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("hil-latin-1", _as_latin_1)


def decoded(data: bytes) -> str:
    """``data`` as text: UTF-8, and what is none as Latin-1."""
    return data.decode("utf-8", "hil-latin-1")


def without_escapes(data: bytes) -> bytes:
    """``data`` without terminal control sequences."""
    return _ESCAPES.sub(b"", data)


def readable_share(data: bytes) -> float:
    """How much of ``data`` (without escape sequences) is text: the wrong rate makes control
    characters, NUL for bytes without stop bit, and bytes that are no UTF-8. 1 for nothing."""
    text = data.decode("utf-8", "replace")
    readable = sum(one in "\t\n\r\b\a" or (one.isprintable() and one != "\ufffd") for one in text)
    return readable / len(text) if text else 1.0


def is_readable(data: bytes, *, enough: int = ENOUGH_TO_READ) -> bool:
    """Whether at least ``enough`` bytes are there, and text."""
    return len(data) >= enough and readable_share(data) >= _READABLE_SHARE


def is_garbled(data: bytes) -> bool:
    """Whether most of it is not text. What is neither readable nor garbled is a noisy line."""
    return readable_share(data) < _GARBLED_SHARE
