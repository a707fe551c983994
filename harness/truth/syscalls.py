"""Rarer system calls of a recorded row as probe steps: what a call's name and its arguments, as
the recorder wrote them, mean, and what the outcome comes to.

Each function raises ValueError (or IndexError) for arguments that are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from harness.probe import steps as do
from harness.probe.steps import Outcome, Step

_ROOM = 65536
_FLAGS = {"s": 1, "u": 2, "c": 4, "S": 8, "i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80, "e": 0x80000}
"""Letters of chattr(1) (Linux include/uapi/linux/fs.h)."""
_NUMBERS = {
    "FALLOC_FL_KEEP_SIZE": 1, "FALLOC_FL_PUNCH_HOLE": 2, "FALLOC_FL_COLLAPSE_RANGE": 8,
    "FALLOC_FL_ZERO_RANGE": 16, "FALLOC_FL_INSERT_RANGE": 32, "FALLOC_FL_UNSHARE_RANGE": 64,
    "PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4,
    "MAP_SHARED": 1, "MAP_PRIVATE": 2,
    "XATTR_CREATE": 1, "XATTR_REPLACE": 2,
}  # fmt: skip
_EVENTS = {
    "POLLIN": 1, "POLLPRI": 2, "POLLOUT": 4, "POLLERR": 8, "POLLHUP": 16, "POLLNVAL": 32,
    "POLLRDNORM": 64, "POLLRDBAND": 128, "POLLWRNORM": 256, "POLLWRBAND": 512,
}  # fmt: skip
_SIGNALLED = re.compile(
    r"(?:signal(?:led)? (?:during )?)?write\((\w+),([0-9a-f]+)\)"
    r"(?:[ ,+]*(?:during |interrupted by |with |under )*(?:a )?(?:SIG[A-Z0-9]+|signal))?"
)
_SETFLAGS = re.compile(r"(?:FS_IOC_)?SETFLAGS[ (]*(0x[0-9a-fA-F]+|\d+)\)?")
_NAMESPACE = re.compile(r"(user|trusted|security|system)\.")
_CHATTR = re.compile(r"chattr ([-+=])([a-zA-Z]*)")

Result = Callable[[Sequence[Outcome]], object]
Taken = tuple[tuple[Step, ...], Result]


def flags_set(text: str) -> int | None:
    """The flags that ``SETFLAGS 0x30`` or ``chattr +i`` sets; None for another step. Raises
    ValueError for a letter that is none."""
    found = _SETFLAGS.fullmatch(text)
    if found:
        return int(found[1], 0)
    found = _CHATTR.fullmatch(text)
    if not found:
        return None
    unknown = set(found[2]) - set(_FLAGS)
    if unknown:
        raise ValueError(f"chattr has no flag {min(unknown)}")
    return sum(_FLAGS[letter] for letter in set(found[2])) if found[1] != "-" else 0


def signalled(text: str) -> tuple[str, bytes] | None:
    """Descriptor and data of a write during which a signal arrives; None for another step. Raises
    ValueError for a signal that nobody survives."""
    if not re.search(r"\bsignal|\bSIG[A-Z]", text):
        return None
    found = _SIGNALLED.fullmatch(text)
    if not found or "SIGKILL" in text or "SIGSTOP" in text:
        raise ValueError(f"{text!r} is no write with a signal that has a handler")
    return found[1], bytes.fromhex(found[2])


def call(name: str, arguments: Sequence[str], where: str, expected: object) -> Taken | None:
    """The call on the file ``where``; None for a name that is not known here. ``expected`` is what
    was recorded: it tells in which form."""
    if name in ("fsync", "fdatasync"):
        return (do.SystemCall(name, fd=arguments[0]),), _value
    if name == "fallocate":
        numbers = [_number(one) for one in arguments[1:]]
        mode, offset, size = numbers if len(numbers) == 3 else (0, *numbers)
        return (do.SystemCall(name, (mode, offset, size), arguments[0]),), _value
    if name == "mmap":
        return _mmap(arguments, expected)
    if name in ("poll", "ppoll"):
        return _poll(arguments, expected)
    if name == "ioctl" and len(arguments) > 1 and arguments[-2].endswith("SETFLAGS"):
        flags = _number(arguments[-1])
        return set_flags(where, flags, arguments[0] if len(arguments) > 2 else None)
    attribute = re.fullmatch(r"[fl]?(set|get|list|remove)xattr", name)
    return _attribute(attribute[1], arguments, where, expected) if attribute else None


def set_flags(where: str, flags: int, fd: str | None = None) -> Taken:
    """``ioctl(FS_IOC_SETFLAGS)`` on an open descriptor, or on one of its own."""
    if fd is not None:
        return (do.SetFlags(fd, flags),), _value
    return (do.Open("f", where), do.SetFlags("f", flags), do.Close("f")), _first_error


def _mmap(arguments: Sequence[str], expected: object) -> Taken:
    fd, length, *more = arguments
    numbers = [_number(one) for one in more] or [1]
    protection, sharing = numbers[0], numbers[1] if len(numbers) > 1 else 1
    # Address, length, protection, flags, and the descriptor where the ABI has it: fifth.
    step = do.Mmap(fd, _number(length), protection, sharing)
    return (step,), lambda seen: _error(seen[0]) or ("ok" if expected == "ok" else 0)


def _poll(arguments: Sequence[str], expected: object) -> Taken:
    events = _number(arguments[1], _EVENTS)
    timeout = _number(arguments[2]) if len(arguments) > 2 else 0

    def came(seen: Sequence[Outcome]) -> object:
        value = seen[0].value
        if value is None or not isinstance(expected, str):
            return _value(seen)
        # In the order in which the record has them.
        try:
            same = _number(expected, _EVENTS) == value
        except ValueError:
            same = False
        names = "|".join(word for word, bit in _EVENTS.items() if value & bit) or "0"
        return expected if same else names

    return (do.Poll(arguments[0], events, timeout),), came


def _attribute(verb: str, arguments: Sequence[str], where: str, expected: object) -> Taken:
    """Extended attributes by the file's name, never through a link; the file may be named first."""
    target = where.encode("utf-8", "surrogateescape") + b"\0"
    if verb == "list":
        step = do.SystemCall("llistxattr", (target, None, _ROOM), room=_ROOM)
        return (step,), lambda seen: _names(seen[0], expected)
    words = [re.sub(r"^b?(['\"])(.*)\1$", r"\2", one) for one in arguments]
    at = next(n for n, one in enumerate(words) if _NAMESPACE.match(one))
    name = words[at].encode() + b"\0"
    if verb == "get":
        step = do.SystemCall("lgetxattr", (target, name, None, _ROOM), room=_ROOM)
        return (step,), _data
    if verb == "remove":
        return (do.SystemCall("lremovexattr", (target, name)),), _value
    data = _bytes_of(words[at + 1]) if len(words) > at + 1 else b""
    flags = _number(words[at + 2]) if len(words) > at + 2 else 0
    return (do.SystemCall("lsetxattr", (target, name, data + b"\0", len(data), flags)),), _value


def _bytes_of(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text.encode()


def _number(text: str, names: Mapping[str, int] = _NUMBERS) -> int:
    """A number, or names joined by ``|``. Raises ValueError."""
    number = 0
    for word in text.strip().split("|"):
        number |= names[word.strip()] if word.strip() in names else int(word, 0)
    return number


def _error(outcome: Outcome) -> str | None:
    return None if outcome.ok else f"-{outcome.errno}"


def _value(seen: Sequence[Outcome]) -> object:
    return _error(seen[0]) or seen[0].value


def _first_error(seen: Sequence[Outcome]) -> object:
    return next((_error(one) for one in seen if not one.ok), 0)


def _data(seen: Sequence[Outcome]) -> object:
    return _error(seen[0]) or f"{len(seen[0].data)} bytes {seen[0].data.hex()}".strip()


def _names(seen: Outcome, expected: object) -> object:
    if isinstance(expected, list) and seen.ok:
        return [name.decode() for name in seen.data.split(b"\0") if name]
    return _data([seen])
