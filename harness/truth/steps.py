"""The words of a recorded row as probe steps (tests/truth/README.md, "Format").

A step is a single system call (``write(fd,0700..)``), an abstract step (``set``, ``read back``),
or, when the row's outcome is ``rc=N``, one shell command line.
"""

import ast
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.capabilities import EFIVARS_PATH
from harness.probe import steps as do
from harness.probe.steps import Outcome, Step
from harness.truth import syscalls
from harness.truth.rows import Row

RECORDER_GUID = "12345678-1234-1234-1234-123456789abc"
"""The vendor GUID of the recorder's own variables."""
GLOBAL_GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
NV_BS_RT = 7
APPEND = 0x40
AUTHENTICATED = 0x20
READ_BYTES = 65536

_OPEN = re.compile(
    r"""(?P<fd>\w+)=open\((?P<name>b?'.*'|b?".*"),(?P<flags>O_[A-Z_|O]+)(,[^,()]+)?\)""", re.DOTALL
)
_CUT_OPEN = re.compile(r"(?P<fd>\w+)=open\(b?['\"](?P<name>.)", re.DOTALL)
_LONG_NAME = re.compile(r"name of (\d+) characters")
_CALL = re.compile(r"(\w+)\((.*)\)(\.st_size)?", re.DOTALL)
_SIZED = re.compile(r"attrs=(0x[0-9a-fA-F]+)\+(\d+) bytes")
_SIGNED = re.compile(r"(0x[0-9a-fA-F]+)\+([\w.-]+\.auth)(?: \(\d+ bytes\))?")
_WHENCE = {"SET": 0, "CUR": 1, "END": 2}


class NotUnderstood(Exception):
    """The text is no step of the format; says which."""


class CannotTake(Exception):
    """This board, or this folder of rows, cannot take the step; says why."""


@dataclass(frozen=True)
class Written:
    """One write(2) that the row makes: attributes and data of the SetVariable behind it."""

    file: str
    attributes: int
    data: bytes
    step: int


@dataclass(frozen=True)
class Action:
    """One recorded step as probe steps; ``result`` makes of their outcomes what the row states.
    ``hidden`` steps before it are what the recorder did without listing it."""

    text: str
    steps: tuple[Step, ...]
    result: Callable[[Sequence[Outcome]], object]
    hidden: tuple[Step, ...] = ()


@dataclass
class Plan:
    """One row of system calls: the file it is about and its actions."""

    file: str
    actions: list[Action] = field(default_factory=list)
    writes: list[Written] = field(default_factory=list)


def path(file: str) -> str:
    """Where efivarfs shows the file."""
    return f"{EFIVARS_PATH}/{file}"


def variable_name(file: str) -> str:
    """The variable's name in a file name of efivarfs."""
    return file[: -len(RECORDER_GUID) - 1]


def own_file(name: str) -> str:
    """A file of the recorder's vendor GUID."""
    return f"{name}-{RECORDER_GUID}"


def named_file(row: Row) -> str | None:
    """The file that the row names; None when it is about that of the row before."""
    for step in row.op:
        opened = _OPEN.match(step)
        if opened:
            return _literal(opened["name"])
        cut = _CUT_OPEN.match(step)
        length = _LONG_NAME.search(row.desc)
        if cut and length:
            # The recorder cut the step short; what it describes is whole.
            return own_file(cut["name"] * int(length[1]))
    return _described_file(row)


def is_global(name: str) -> bool:
    """Whether the UEFI specification defines the variable (3.3 table 3-1)."""
    return name in _GLOBAL or re.fullmatch(r"(Boot|Driver|SysPrep)[0-9A-F]{4}", name) is not None


_GLOBAL_NAMES = """SetupMode SecureBoot SignatureSupport AuditMode DeployedMode VendorKeys PK KEK
BootOrder BootNext BootCurrent Timeout OsIndications OsIndicationsSupported PlatformLang Lang
PlatformLangCodes LangCodes ConIn ConOut ErrOut DriverOrder PKDefault KEKDefault dbDefault
dbxDefault dbtDefault"""
_GLOBAL = frozenset(_GLOBAL_NAMES.split())


def _described_file(row: Row) -> str | None:
    """What the description of an abstract step says of its file."""
    desc = row.desc.strip()
    if row.op[0] in ("set", "unlink", "chattr -i"):
        deleted = re.fullmatch(r"delete (\w+)", desc)
        if deleted:
            name = deleted[1]
            return f"{name}-{GLOBAL_GUID}" if is_global(name) else own_file(name)
        if desc.startswith("delete one"):
            return own_file("F002")
    if row.op[0] == "set":
        return own_file(_set_name(desc))
    state_of = re.fullmatch(r"state of (\w+)", desc)
    return own_file(state_of[1]) if state_of else None


def _set_name(desc: str) -> str:
    filled = re.match(r"fill #(\d+)", desc)
    if filled:
        return f"F{int(filled[1]):03d}"
    extra = re.match(r"then (\d+)", desc)
    if extra:
        return f"Fx{extra[1]}"
    for words, name in (
        ("overwrite of an existing", "F000"),
        ("shrink", "F001"),
        ("append", "F000"),
        ("volatile", "Fvol"),
        ("create", "Fy"),
        ("overwrite to", "Fy"),
        ("bisect", "S1"),
    ):
        if desc.startswith(words):
            return name
    return "Fz"


def plan(row: Row, file: str, auth: Sequence[Path]) -> Plan:
    """The actions of a row of system calls. ``auth`` are folders with signed updates.

    Raises :class:`NotUnderstood` for a step that is none, :class:`CannotTake` when an update is
    not there.
    """
    made = Plan(file)
    outcomes = row.outcomes
    for number, text in enumerate(row.op):
        expected = outcomes[number] if number < len(outcomes) else None
        try:
            made.actions.append(_action(row, text, number, expected, made, auth))
        except (ValueError, LookupError, StopIteration) as error:
            raise NotUnderstood(f"the step {text!r}: {error}") from None
    return made


def _action(
    row: Row, text: str, number: int, expected: object, made: Plan, auth: Sequence[Path]
) -> Action:
    where = path(made.file)
    opened = _OPEN.fullmatch(text)
    if opened or _CUT_OPEN.match(text):
        fd, flags = _opening(text)
        hidden = _clear(where) if expected == "ok" and "RDONLY" not in flags else ()
        return Action(text, (do.Open(fd, where, flags),), _ok, hidden)
    changed = syscalls.flags_set(text)
    if changed is not None:
        return Action(text, *syscalls.set_flags(where, changed))
    context = _Context(row, text, number, expected, made, auth)
    interrupted = syscalls.signalled(text)
    if interrupted is not None:
        fd, data = interrupted
        context.note(data)
        return Action(text, (do.SignalledWrite(fd, data),), _value)
    call = _CALL.fullmatch(text)
    if call:
        arguments = [one.strip() for one in _arguments(call[2])] if call[2] else []
        rarer = syscalls.call(call[1], arguments, where, expected)
        if rarer is not None:
            return Action(text, *rarer)
        if call[1] in _CALLS:
            return _CALLS[call[1]](context, arguments)
    return _abstract(row, text, number, expected, made)


def _opening(text: str) -> tuple[str, str]:
    whole = _OPEN.fullmatch(text)
    if whole:
        return whole["fd"], whole["flags"]
    cut = _CUT_OPEN.match(text)
    return (cut["fd"] if cut else "fd"), "O_WRONLY|O_CREAT"


# --- what the outcomes of an action's steps come to ---------------------------------------------


def _error(outcome: Outcome) -> str:
    return f"-{outcome.errno}"


def _first_error(seen: Sequence[Outcome]) -> object:
    return next((_error(one) for one in seen if not one.ok), 0)


def _of(
    take: Callable[[Outcome], object], number: int = 0
) -> Callable[[Sequence[Outcome]], object]:
    """What one of the outcomes comes to; the first error where that failed."""
    return lambda seen: take(seen[number]) if seen[number].ok else _first_error(seen)


_ok = _of(lambda opened: "ok")
_value = _of(lambda one: one.value)
_bytes = _of(lambda read: f"{len(read.data)} bytes {read.data.hex()}".strip())
_written = _of(lambda write: write.value, 1)
_hex = _of(lambda read: read.data.hex(), 1)
_length = _of(lambda read: len(read.data), 1)
_space = _of(lambda statfs: dict(statfs.fields))


# --- system calls -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Context:
    row: Row
    text: str
    number: int
    expected: object
    plan: Plan
    auth: Sequence[Path]

    def act(
        self, *steps: Step, result: Callable[[Sequence[Outcome]], object], clear: bool = False
    ) -> Action:
        hidden = _clear(path(self.plan.file)) if clear and self.expected != "-EPERM" else ()
        return Action(self.text, steps, result, hidden)

    def note(self, data: bytes) -> None:
        """One buffer for efivarfs, which is one SetVariable."""
        if len(data) >= 4:
            attributes = int.from_bytes(data[:4], "little")
            self.plan.writes.append(Written(self.plan.file, attributes, data[4:], self.number))


def _write(context: _Context, arguments: list[str]) -> Action:
    fd, content = arguments[0], ",".join(arguments[1:])
    data = _content(content, context)
    context.note(data)
    return context.act(do.Write(fd, data), result=_value)


def _pwrite(context: _Context, arguments: list[str]) -> Action:
    """efivarfs does not look at the offset."""
    data = _content(",".join(arguments[1:-1]), context)
    context.note(data)
    return context.act(do.Pwrite(arguments[0], data, int(arguments[-1], 0)), result=_value)


def _writev(context: _Context, arguments: list[str]) -> Action:
    """Each part is a SetVariable of its own to efivarfs."""
    named = not arguments[0].startswith("[")
    fd, listed = (arguments[0], arguments[1:]) if named else ("fd", arguments)
    words = [word.strip(" []") for part in listed for word in part.split(",")]
    parts = tuple(_content(word, context) for word in words)
    for part in parts:
        context.note(part)
    return context.act(do.Writev(fd, parts), result=_value)


def _content(text: str, context: _Context) -> bytes:
    """The bytes that a write step names."""
    signed = _SIGNED.fullmatch(text)
    if signed:
        return int(signed[1], 16).to_bytes(4, "little") + _update(signed[2], context.auth)
    sized = _SIZED.fullmatch(text)
    if sized:
        return int(sized[1], 16).to_bytes(4, "little") + any_bytes(int(sized[2]), context.row.id)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise NotUnderstood(f"the step {context.text!r} names no bytes") from None


def _update(name: str, folders: Sequence[Path]) -> bytes:
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise CannotTake(f"the signed update auth/{name} is not in the folder of the rows")


def any_bytes(size: int, seed: str) -> bytes:
    """Bytes that no other row writes: a rewrite of the same bytes would cost nothing."""
    mark = f"{zlib.crc32(seed.encode()):08x}".encode()
    return (mark * (size // len(mark) + 1))[:size]


def _flags_of(context: _Context, arguments: list[str]) -> Action:
    if arguments[-1:] != ["FS_IOC_GETFLAGS"]:
        raise NotUnderstood(f"the step {context.text!r}")
    return _get_flags(context.text, path(context.plan.file))


def _two_names(step: Callable[[str, str], Step]) -> Callable[[_Context, list[str]], Action]:
    def make(context: _Context, arguments: list[str]) -> Action:
        names = [path(_literal(one)) for one in arguments]
        if len(names) == 1:
            names.insert(0, path(context.plan.file))
        return context.act(step(names[0], names[1]), result=_value, clear=True)

    return make


def _one_name(step: Callable[[str], Step]) -> Callable[[_Context, list[str]], Action]:
    def make(context: _Context, arguments: list[str]) -> Action:
        quoted = [one for one in arguments if one[:1] in "'\""]
        where = path(_literal(quoted[0])) if quoted else path(context.plan.file)
        return context.act(step(where), result=_value)

    return make


_CALLS: dict[str, Callable[[_Context, list[str]], Action]] = {
    "write": _write,
    "writev": _writev,
    "read": lambda row, told: row.act(do.Read(told[0], int(told[1])), result=_bytes),
    "pwrite": _pwrite,
    "pread": lambda row, told: row.act(
        do.Pread(told[0], int(told[1]), int(told[2])), result=_bytes
    ),
    "lseek": lambda row, told: row.act(
        do.Lseek(told[0], int(told[1]), _WHENCE[told[2].removeprefix("SEEK_")] if told[2:] else 0),
        result=_value,
    ),
    "fstat": lambda row, told: row.act(do.Fstat(told[0]), result=_value),
    "close": lambda row, told: row.act(do.Close(told[0]), result=_value),
    "ftruncate": lambda row, told: row.act(do.Ftruncate(told[0], int(told[1])), result=_value),
    "truncate": lambda row, told: row.act(
        do.Truncate(path(row.plan.file), int(told[-1])), result=_value, clear=True
    ),
    "ioctl": _flags_of,
    "rename": _two_names(do.Rename),
    "link": _two_names(do.Link),
    "symlink": _two_names(do.Symlink),
    "mkdir": _one_name(do.Mkdir),
    "rmdir": _one_name(do.Rmdir),
    "unlink": _one_name(do.Unlink),
    "stat": _one_name(do.Stat),
}


def _abstract(row: Row, text: str, number: int, expected: object, made: Plan) -> Action:
    where = path(made.file)
    clear = _clear(where) if expected != "-EPERM" else ()
    match text:
        case "set" | "write":
            attributes, data = _set_data(row, expected)
            made.writes.append(Written(made.file, attributes, data, number))
            content = attributes.to_bytes(4, "little") + data
            steps = (do.Open("s", where, "O_WRONLY|O_CREAT"), do.Write("s", content), do.Close("s"))
            return Action(text, steps, _written, clear)
        case "read back" | "read":
            steps_read = (do.Open("r", where), do.Read("r", READ_BYTES), do.Close("r"))
            return Action(text, steps_read, _hex if text == "read back" else _length)
        case "unlink" | "unlink again":
            return Action(text, (do.Unlink(where),), _value, clear)
        case "stat":
            return Action(text, (do.Stat(where),), _value)
        case "exists":
            return Action(text, (do.Stat(where),), lambda seen: seen[0].ok)
        case "GETFLAGS":
            return _get_flags(text, where)
        case "ioctl":
            return Action(text, (), lambda _: None)
        case "statvfs":
            return Action(text, (do.StatFs(EFIVARS_PATH),), _space)
    raise NotUnderstood(f"the step {text!r}")


def _set_data(row: Row, expected: object) -> tuple[int, bytes]:
    """Attributes and data of an abstract ``set``: as many bytes as were written, or as the
    description says."""
    attributes = NV_BS_RT
    if row.desc.startswith("volatile"):
        attributes = 6
    elif row.desc.startswith("append"):
        attributes |= APPEND
    told = re.search(r"(?:with|then|create|to|set|append|bisect|existing) (\d+)", row.desc)
    if told:
        size = int(told[1])
    else:
        size = expected - 4 if isinstance(expected, int) and expected >= 4 else 4
    return attributes, any_bytes(size, row.id)


def _clear(where: str) -> tuple[Step, ...]:
    """The recorder cleared the immutable flag before whatever it did not expect to be refused
    with EPERM."""
    return syscalls.set_flags(where, 0)[0]


def _get_flags(text: str, where: str) -> Action:
    steps = (do.Open("f", where), do.GetFlags("f"), do.Close("f"))
    return Action(text, steps, lambda seen: seen[1].value if seen[1].ok else _error(seen[0]))


def _literal(text: str) -> str:
    """A name as the recorder's Python printed it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise NotUnderstood(f"the name {text}") from None
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _arguments(text: str) -> Iterator[str]:
    """Arguments split at commas outside quotes and parentheses."""
    quote, depth, word = "", 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        if char == "," and not quote and not depth:
            yield word
            word = ""
        else:
            word += char
    yield word
