"""Steps as system calls of the static helper (:mod:`harness.probe.helper.program`).

A request is the number of calls, one record of eleven words for each, and the bytes that they
point to. A record: number of the call; which of the six arguments are addresses of words to be
taken as they are by then (a descriptor that an earlier call of the batch returned); the
arguments; where the bytes are that it answers with, or 0; how many, or 0 for as many as it
returned; and a word for its result. The answer is each result and, if it is not negative, those
bytes.
"""

import errno
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.errors import HostError
from harness.probe import steps as do
from harness.probe.helper.program import IN, ROOM, Machine
from harness.probe.steps import Outcome, Step

_WORDS = 11
_RESULT = 80
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_REMOVEDIR, _AT_EMPTY_PATH = 0x100, 0x200, 0x1000
_STATX_BASIC = 0x7FF
_STATX = struct.Struct("<16xIIIHxxQQ64xq8x")
_STATX_FIELDS = ("nlink", "uid", "gid", "mode", "ino", "size", "mtime")
_STATX_BYTES = 128
_STATFS = struct.Struct("<7Q8xQQ8x")
_STATFS_FIELDS = ("bsize", "blocks", "bfree", "bavail", "files", "ffree", "namelen", "frsize")
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_DIRECTORY_CALLS, _DIRECTORY_BYTES = 16, 0x8000
_ENTRY = struct.Struct("<8x8xHB")  # d_ino, d_off, d_reclen, d_type


class BatchTooLarge(HostError):
    """The steps and what they answer do not fit in the helper's memory; none was taken."""


@dataclass(frozen=True, slots=True)
class _Result:
    """The word that the call number ``call`` of the same batch returned."""

    call: int


_Argument = int | bytes | tuple[bytes, ...] | _Result
"""A number, the address of bytes, the address of an iovec, or an earlier result."""


@dataclass
class _Call:
    name: str
    arguments: tuple[_Argument, ...]
    room: int = 0
    """Bytes of a buffer that is the argument ``buffer``."""
    buffer: int = 0
    answer: int = 0
    """How many of its bytes to answer; 0: as many as the call returned."""


@dataclass
class _Taken:
    """A step and its calls: the first of them, and what makes an outcome of their answers."""

    step: Step
    first: int
    count: int
    outcome: Callable[[list[tuple[int, bytes]]], Outcome]


@dataclass
class StaticCodec:
    """Translates batches; remembers which number a named descriptor has."""

    machine: Machine
    _numbers: dict[str, int] = field(default_factory=dict)
    _pending: list[_Taken] = field(default_factory=list)
    _calls: list[_Call] = field(default_factory=list)
    _open: dict[str, int | _Result] = field(default_factory=dict)

    def encode(self, steps: Sequence[Step]) -> tuple[list[Outcome | None], bytes]:
        """The outcomes that are known without asking, and the request for the others."""
        self._pending, self._calls = [], []
        self._open = dict(self._numbers)
        known = [self._take(step) for step in steps]
        return known, self._pack() if self._calls else b""

    def decode(self, steps: Sequence[Step], answer: bytes) -> list[Outcome]:
        """The outcomes of the steps that were asked."""
        results = []
        position = 0
        for call in self._calls:
            (result,) = struct.unpack_from("<q", answer, position)
            position += 8
            size = (call.answer or result) if call.room and result >= 0 else 0
            results.append((result, answer[position : position + size]))
            position += size
        outcomes = [
            taken.outcome(results[taken.first : taken.first + taken.count])
            for taken in self._pending
        ]
        numbers = {
            name: results[at.call][0] if isinstance(at, _Result) else at
            for name, at in self._open.items()
        }
        self._numbers = {name: number for name, number in numbers.items() if number >= 0}
        return outcomes

    # --- steps to calls -----------------------------------------------------------------------

    def _take(self, step: Step) -> Outcome | None:
        name = getattr(step, "fd", None)
        if name is not None and not isinstance(step, do.Open) and name not in self._open:
            return Outcome(step, errno="EBADF")
        try:
            self._translate(step)
        except ValueError as error:
            return Outcome(step, unsupported=str(error))
        return None

    def _translate(self, step: Step) -> None:
        match step:
            case do.Open(fd, path, flags, mode):
                number = self._flags(flags)
                where = _path(path)
                calls = [_Call("openat", (_AT_FDCWD, where, number, mode))]
                if fd in self._open:
                    calls.insert(0, _Call("close", (self._open[fd],)))
                self._ask(step, *calls)
                self._open[fd] = _Result(len(self._calls) - 1)
            case do.Close(fd):
                self._ask(step, _Call("close", (self._open.pop(fd),)))
            case do.Write(fd, data):
                self._ask(step, _Call("write", (self._open[fd], data, len(data))), value=True)
            case do.Writev(fd, parts):
                self._ask(step, _Call("writev", (self._open[fd], parts, len(parts))), value=True)
            case do.Read(fd, size):
                self._ask(step, _Call("read", (self._open[fd], 0, size), size, 1), value=True)
            case do.Pread(fd, size, offset):
                call = _Call("pread64", (self._open[fd], 0, size, offset), size, 1)
                self._ask(step, call, value=True)
            case do.Pwrite(fd, data, offset):
                call = _Call("pwrite64", (self._open[fd], data, len(data), offset))
                self._ask(step, call, value=True)
            case do.Ftruncate(fd, size):
                self._ask(step, _Call("ftruncate", (self._open[fd], size)))
            case do.Lseek(fd, offset, whence):
                self._ask(step, _Call("lseek", (self._open[fd], offset, whence)), value=True)
            case do.Fstat(fd):
                self._stat(step, self._open[fd], "", _AT_EMPTY_PATH)
            case do.Stat(path):
                self._stat(step, _AT_FDCWD, path, _AT_SYMLINK_NOFOLLOW)
            case do.StatFs(path):
                call = _Call("statfs", (_path(path), 0), 128, 1, _STATFS.size)
                self._ask(step, call, made=_statfs)
            case do.GetFlags(fd):
                call = _Call("ioctl", (self._open[fd], _FS_IOC_GETFLAGS, 0), 8, 2, 4)
                self._ask(step, call, made=_flag_word)
            case do.SetFlags(fd, flags):
                word = flags.to_bytes(8, "little")
                self._ask(step, _Call("ioctl", (self._open[fd], _FS_IOC_SETFLAGS, word)))
            case do.ListDir(path):
                self._list(step, path)
            case do.Mmap(fd, size, protection, sharing):
                arguments = (0, size, protection, sharing, self._open[fd], 0)
                self._ask(step, _Call("mmap", arguments))
            case do.SystemCall(name, arguments, fd, room):
                if name not in self.machine.calls:
                    raise ValueError(f"the helper does not know the call {name}")
                buffer = arguments.index(None) + (fd is not None) if None in arguments else 0
                first = () if fd is None else (self._open[fd],)
                rest = (0 if one is None else one for one in arguments)
                call = _Call(name, (*first, *rest), room, buffer)
                self._ask(step, call, value=True)
            case _:
                self._ask(step, _path_call(step))

    def _stat(self, step: Step, at: _Argument, path: str, flags: int) -> None:
        arguments = (at, _path(path), flags, _STATX_BASIC, 0)
        self._ask(step, _Call("statx", arguments, 256, 4, _STATX_BYTES), made=_stat)

    def _list(self, step: Step, path: str) -> None:
        flags = self._flags("O_RDONLY|O_DIRECTORY|O_CLOEXEC")
        opened = _Result(len(self._calls))
        self._ask(
            step,
            _Call("openat", (_AT_FDCWD, _path(path), flags, 0)),
            *(
                _Call("getdents64", (opened, 0, _DIRECTORY_BYTES), _DIRECTORY_BYTES, 1)
                for _ in range(_DIRECTORY_CALLS)
            ),
            _Call("close", (opened,)),
            made=_list,
            deciding=0,
        )

    def _ask(
        self,
        step: Step,
        *calls: _Call,
        value: bool = False,
        made: Callable[[Step, list[tuple[int, bytes]]], Outcome] | None = None,
        deciding: int = -1,
    ) -> None:
        """Add the calls; the outcome is that of the one numbered ``deciding``."""

        def outcome(results: list[tuple[int, bytes]]) -> Outcome:
            number, data = results[deciding]
            if number < 0:
                return Outcome(step, errno=errno.errorcode.get(-number, f"E{-number}"))
            if made is not None:
                return made(step, results)
            return Outcome(step, value=number if value else 0, data=data)

        self._pending.append(_Taken(step, len(self._calls), len(calls), outcome))
        self._calls += calls

    def _flags(self, names: str) -> int:
        number = 0
        for name in names.split("|"):
            if name not in self.machine.flags:
                raise ValueError(f"the helper knows no flag {name}")
            number |= self.machine.flags[name]
        return number

    # --- the request --------------------------------------------------------------------------

    def _pack(self) -> bytes:
        records = bytearray(struct.pack("<Q", len(self._calls)))
        constants = bytearray()
        start = 8 + 8 * _WORDS * len(self._calls)
        size = sum(len(_constant(a, 0)) for call in self._calls for a in call.arguments)
        room_at = IN + start + size
        for call in self._calls:
            words, late = [], 0
            for place, argument in enumerate(call.arguments):
                if isinstance(argument, _Result):
                    late |= 1 << place
                    words.append(IN + 8 + 8 * _WORDS * argument.call + _RESULT)
                elif isinstance(argument, int):
                    words.append(argument & (1 << 64) - 1)
                else:
                    words.append(IN + start + len(constants))
                    constants += _constant(argument, words[-1])
            words += [0] * (6 - len(words))
            if call.room:
                words[call.buffer] = room_at
            records += struct.pack(
                f"<{_WORDS}Q",
                self.machine.calls[call.name],
                late,
                *words,
                room_at if call.room else 0,
                call.answer,
                0,
            )
            room_at += -(-call.room // 8) * 8
        if room_at > IN + ROOM:
            raise BatchTooLarge(
                f"the batch needs {room_at - IN} bytes on the target, the helper has {ROOM}",
                remedy="take fewer or smaller steps at once",
            )
        return bytes(records + constants)


def _constant(argument: _Argument, at: int) -> bytes:
    """What lies at the address ``at`` for an argument that is an address."""
    match argument:
        case bytes():
            return _aligned(argument)
        case tuple():
            parts, vector = b"", b""
            for part in argument:
                vector += struct.pack("<2Q", at + 16 * len(argument) + len(parts), len(part))
                parts += _aligned(part)
            return vector + parts
        case _:
            return b""


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _path(path: str) -> bytes:
    raw = path.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ValueError("a path has no NUL")
    return raw + b"\0"


def _path_call(step: Step) -> _Call:
    """The call of a step that has only paths and numbers. Raises ValueError for another one."""
    match step:
        case do.Unlink(path):
            return _Call("unlinkat", (_AT_FDCWD, _path(path), 0))
        case do.Rmdir(path):
            return _Call("unlinkat", (_AT_FDCWD, _path(path), _AT_REMOVEDIR))
        case do.Truncate(path, size):
            return _Call("truncate", (_path(path), size))
        case do.Rename(source, target):
            where = (_AT_FDCWD, _path(source), _AT_FDCWD, _path(target), 0)
            return _Call("renameat2", where)
        case do.Link(source, target):
            return _Call("linkat", (_AT_FDCWD, _path(source), _AT_FDCWD, _path(target), 0))
        case do.Symlink(target, path):
            return _Call("symlinkat", (_path(target), _AT_FDCWD, _path(path)))
        case do.Mkdir(path, mode):
            return _Call("mkdirat", (_AT_FDCWD, _path(path), mode))
        case do.Mknod(path, mode, device):
            return _Call("mknodat", (_AT_FDCWD, _path(path), mode, device))
        case _:
            raise ValueError(f"the helper cannot take the step {type(step).__name__}")


def _stat(step: Step, results: list[tuple[int, bytes]]) -> Outcome:
    found = dict(zip(_STATX_FIELDS, _STATX.unpack(results[-1][1]), strict=True))
    return Outcome(step, value=found["size"], fields=tuple(found.items()))


def _statfs(step: Step, results: list[tuple[int, bytes]]) -> Outcome:
    kind, *numbers = _STATFS.unpack(results[-1][1])
    return Outcome(step, value=kind, fields=tuple(zip(_STATFS_FIELDS, numbers, strict=True)))


def _flag_word(step: Step, results: list[tuple[int, bytes]]) -> Outcome:
    return Outcome(step, value=int.from_bytes(results[-1][1], "little"))


def _list(step: Step, results: list[tuple[int, bytes]]) -> Outcome:
    names = []
    *listed, (last, _) = results[1:-1]
    failed = next((number for number, _ in listed if number < 0), None)
    if failed is not None:
        return Outcome(step, errno=errno.errorcode.get(-failed, f"E{-failed}"))
    if last > 0:
        return Outcome(step, unsupported="more names than the helper has room for")
    for _, entries in listed:
        position = 0
        while position < len(entries):
            length, _ = _ENTRY.unpack_from(entries, position)
            name = entries[position + _ENTRY.size : position + length]
            names.append(name.partition(b"\0")[0])
            position += length
    found = tuple(sorted(set(names) - {b".", b".."}))
    return Outcome(step, value=len(found), names=found)
