"""Text that somebody else wrote (a board, another user, a device), as a person may see it.

Names of variables, console lines, purposes of leases and messages of firmware may hold anything.
:func:`escaped` is the one place where they become harmless; :func:`say` prints nothing that is
not. Errors of the harness and reports of runs go through here, too.
"""

from __future__ import annotations

import re
import sys
from typing import Final, TextIO

MOST: Final = 4000
"""Characters of one line or message that a person is shown."""

# Bytes that were no UTF-8, as "surrogateescape" has decoded them.
_STRAY: Final = re.compile("[\udc80-\udcff]")


class Shown(str):
    """A line that may be printed as it is: of our own words and what was :func:`escaped`."""

    __slots__ = ()


def escaped(text: object, *, most: int = MOST) -> Shown:
    """``text`` as one line of printable characters: control characters (C0, DEL, C1), line and
    paragraph separators, what changes the direction of writing, what has no glyph, and stray bytes
    are told as ``\\x1b``, ``\\n``, ``\\u202e``. Of more than ``most`` characters the rest is only
    counted."""
    if isinstance(text, Shown):
        return text
    line = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else str(text)
    more = len(line) - most
    if more > 0:
        line = line[:most]
    if not line.isprintable():
        line = _STRAY.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", line)
        line = "".join(
            one if one.isprintable() else one.encode("unicode_escape").decode("ascii")
            for one in line
        )
    return Shown(f"{line}… ({more} characters more)" if more > 0 else line)


def redacted(text: str, *secrets: str) -> str:
    """``text`` with each of ``secrets`` as three stars, the longest first."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def escaped_lines(text: str, *, most: int = MOST) -> str:
    """``text`` of several lines, each :func:`escaped` (tabs stay)."""
    if text.isprintable() and len(text) <= most:
        return text
    return "\n".join(
        "\t".join(escaped(part, most=most) for part in line.split("\t"))
        for line in text.split("\n")
    )


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print each of ``lines``, :func:`escaped`, to ``file`` (standard output), at once."""
    output = sys.stdout if file is None else file
    for line in lines:
        text = escaped(line)
        try:
            output.write(f"{text}\n")
        except UnicodeEncodeError:  # a terminal without Unicode
            output.write(f"{text.encode('ascii', 'backslashreplace').decode('ascii')}\n")
    output.flush()


def painted(text: object, colour: str, output: TextIO) -> Shown:
    """``text`` :func:`escaped`, in ``colour`` (parameters of SGR, ECMA-48; empty: none) where
    ``output`` is a terminal."""
    line = escaped(text)
    return Shown(f"\x1b[{colour}m{line}\x1b[0m") if colour and output.isatty() else line
