"""Inputs that are several: pieces, each behind its length."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_LENGTH: Final = struct.Struct("<H")


def parts(data: bytes) -> Iterator[bytes]:
    """The pieces of an input, each behind its length as 16 bits."""
    at = 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield data[at : at + length]
        at += length


def joined(*pieces: bytes) -> bytes:
    """The inverse of :func:`parts`."""
    return b"".join(_LENGTH.pack(len(piece)) + piece for piece in pieces)
