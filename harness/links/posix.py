"""What every link needs of the target's POSIX shell: quoting, checksums, errno from messages."""

from __future__ import annotations

import errno
import os
import zlib
from shlex import quote

from harness.errors import LinkError, of_target
from harness.foreign import escaped

# Messages that differ from glibc's strerror: dash and musl (busybox).
_OTHER_MESSAGES = {
    "No such file": errno.ENOENT,
    "no such file": errno.ENOENT,
    "Directory nonexistent": errno.ENOENT,
    "nonexistent directory": errno.ENOENT,
    "Resource busy": errno.EBUSY,
    "I/O error": errno.EIO,
    "No error information": errno.EIO,
    "Not supported": errno.EOPNOTSUPP,
    "Symbolic link loop": errno.ELOOP,
    "Filename too long": errno.ENAMETOOLONG,
    "Cross-device link": errno.EXDEV,
    "Argument list too long": errno.E2BIG,
    "File exists": errno.EEXIST,
    "file exists": errno.EEXIST,
    "Read-only file system": errno.EROFS,
}
_MESSAGES = sorted(
    ({os.strerror(code): code for code in errno.errorcode} | _OTHER_MESSAGES).items(),
    key=lambda item: -len(item[0]),
)
CKSUM = (
    "command -v cksum >/dev/null || cksum() { od -An -v -tu1 | awk '"
    "function add(b) { c = xor(c % 16777216 * 256, t[xor(int(c / 16777216), b)]) } "
    "BEGIN { for (i = 0; i < 256; i++) { c = i * 16777216; for (j = 0; j < 8; j++) "
    "c = c < 2147483648 ? c * 2 : xor(c * 2 % 4294967296, 79764919); t[i] = c }; c = 0 } "
    "{ for (i = 1; i <= NF; i++) add($i); n += NF } "
    "END { for (m = n; m > 0; m = int(m / 256)) add(m % 256); "
    'printf("%.0f %d\\n", 4294967295 - c, n) }\'; }'
)
"""Shell text that defines ``cksum`` where the target has none: some builds of busybox."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def errno_in(message: bytes) -> int | None:
    """The errno that an error message of a shell or of coreutils/busybox ends with, or None.

    The message's end is compared, longest text first, because a path before it may contain
    anything.
    """
    for line in reversed(message.decode("utf-8", "replace").splitlines()):
        text = line.rstrip(" .")
        for known, code in _MESSAGES:
            if text.endswith(known):
                return code
    return None


def errno_name(message: bytes) -> str | None:
    """The same as a name such as ``"ENOSPC"``."""
    code = errno_in(message)
    return None if code is None else errno.errorcode[code]


def os_error(message: bytes, path: str) -> OSError:
    """The OSError (subclass by errno) that ``message`` tells about ``path``; EIO if unclear."""
    code = errno_in(message)
    if code is None:
        text = escaped(message.strip()) or "no error message"
        return OSError(errno.EIO, f"the target says: {text}", path)
    return of_target(OSError(code, os.strerror(code), path))


def cksum(data: bytes) -> int:
    """The CRC that POSIX ``cksum`` prints for ``data`` (IEEE Std 1003.1, cksum).

    It is CRC-32 taken most significant bit first, over the data and then its length in
    octets, least significant first; zlib's reflected CRC gives it from reflected input.
    """
    length = len(data)
    tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
    register = zlib.crc32(
        tail.translate(_REVERSED), zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF)
    )
    return int(f"{register:032b}"[::-1], 2)


def check_written(path: str, data: bytes, printed: bytes, *, link: str) -> None:
    """Compare ``data`` with what ``cksum <path`` has printed. Raises :class:`LinkError`."""
    if printed.split()[:2] != f"{cksum(data)} {len(data)}".encode().split():
        raise LinkError(
            f"{path} on the board does not hold what was written",
            remedy="check the free space of that file system and whether something else"
            " writes to the file",
            link=link,
        )


def command_line(shell: str, script: str, argument: str = "") -> str:
    """What has any login shell run ``script`` in ``shell`` with ``argument`` as ``$1``: csh takes
    no newline and no ``!`` in quotes, and to fish a backslash there is its own."""
    for sign in "\\\n!'":
        script = script.replace(sign, f"\\0{ord(sign):03o}")
    words = ['eval "$(printf %b "$2")"', "hil", argument, script]
    return " ".join(["exec", shell, "-c", *map(quote, words)])


def octal(data: bytes) -> str:
    """``data`` as a ``printf`` format: letters and digits as they are, the rest ``\\ooo``."""
    plain = (
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.,:/=+-"
        if data[:1] != b"-"  # would be taken for an option
        else b""
    )
    return "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data)


def from_file(command: str, path: str) -> str:
    """``command`` with its standard input taken from the file ``path`` on the target."""
    return f"exec <{quote(path)}\n{command}"
