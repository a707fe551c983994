"""What a row found on the board: read from the row, before it is taken.

A group is a sequence, and rows are missing between those that are given. What the missing ones
left is told by the row itself: its outcome, the facts beside it, what its output lists.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from harness.capabilities import EFIVARS_PATH, STMM_DEVICE
from harness.consents import Consent
from harness.store.records import RECORDED
from harness.truth.rows import Row
from harness.truth.steps import APPEND, AUTHENTICATED, GLOBAL_GUID, Plan, Written, own_file

_GUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_IN_COMMAND = re.compile(rf"{re.escape(EFIVARS_PATH)}/([^\s;|'\"&>]+?-{_GUID})")
_GLOB = re.compile(rf"{re.escape(EFIVARS_PATH)}/(\w+)-\*")
_BY_TOOL = re.compile(rf"-n ({_GUID})-(\w+)")
_LISTED = re.compile(
    rf"^[-l][-rwxsStT]{{9}} +\d+ \S+ \S+ +(\d+) \w{{3}} +\d+ +[\d:]+ (.+-{_GUID})$"
)
_LSATTR = re.compile(rf"^[-a-zA-Z]{{10,}} {re.escape(EFIVARS_PATH)}/(.+-{_GUID})$")
_BARE = re.compile(rf"^([^/\s]+-{_GUID})$")
_XXD = re.compile(r"^[0-9a-f]{8}: ((?:[0-9a-f]{2,4} )+)", re.MULTILINE)
_HEXDUMP = re.compile(r"^[0-9a-f]{8}  ((?:[0-9a-f]{2} ?)+) +\|", re.MULTILINE)
_BOOT_ENTRY = re.compile(r"^Boot([0-9A-F]{4})(\*?) ([^\t]+?)\t(.*)$", re.MULTILINE)
_STMM_UUID = STMM_DEVICE.removeprefix("optee-ta-")
_MOUNTED = re.compile(rf"{re.escape(EFIVARS_PATH)} (?:type )?efivarfs \(?((?:rw|ro)[\w,]*)")
_STANDARD = ("certdb", "certdbv")
_FIXED_SIZE = 80  # hex digits: some contents were recorded by their first 40 bytes


class Phase(StrEnum):
    """Where the stack stands between boot and normal operation."""

    COLD = "before the supplicant's first start"
    LIVE = "driver bound, supplicant running"
    STOPPED = "supplicant stopped, driver bound"
    UNBOUND = "driver unbound"


@dataclass(frozen=True)
class FileNeed:
    """How a file must be found. None means that the row does not tell. ``content`` is the whole
    file, attributes first; ``prefix`` says that only its beginning is known."""

    present: bool | None = None
    content: bytes | None = None
    prefix: bool = False
    size: int | None = None
    committed: bool = False
    signed: bool = False
    certain: bool = False
    """Said of the time before the row, not inferred from its outcome."""
    shown: str | None = None
    """The name under which a listing shows it, where that differs."""


@dataclass
class Needs:
    """Everything a row tells about the board before it."""

    phase: Phase | None = None
    enumerated: bool = False
    driver_loaded: bool = False
    superblock_read_only: bool = False
    files: dict[str, FileNeed] = field(default_factory=dict)
    only_listed: bool = False
    listed: set[str] = field(default_factory=set)
    listed_at_boot: bool = False
    count: int | None = None
    consents: set[Consent] = field(default_factory=set)
    boot_entries: dict[str, str] = field(default_factory=dict)
    mounted_by_hand: bool | None = None
    read_only: bool | None = None
    clear_flags: bool = False
    user: str | None = None
    mode: str | None = None


def of(row: Row, plan: Plan | None) -> Needs:
    """The needs of a row; ``plan`` is None for a shell command line. Errors that a phase would
    explain (EROFS, ENOSPC with room) tell it only in groups that change phases: see
    :func:`changes_phases`."""
    needs = Needs()
    if plan is None:
        _of_command(row, needs)
    else:
        _of_calls(row, plan, needs)
    return needs


def changes_phases(rows: Sequence[Row]) -> bool:
    """Whether somebody starts and stops the supplicant or binds and unbinds the driver in a
    group; elsewhere an unexpected error is just that."""
    words = re.compile(r"tee-supplicant|/(un)?bind\b|modprobe")
    return any(words.search(step) for row in rows if row.is_command for step in row.op)


# --- system calls -------------------------------------------------------------------------------


def _of_calls(row: Row, plan: Plan, needs: Needs) -> None:
    succeeded = successful(row, plan)
    outcomes = row.outcomes
    if any(write.data for write in succeeded):
        needs.phase = Phase.LIVE
        needs.read_only = False
    if any(write.data or write.attributes for write in plan.writes):
        needs.consents.add(Consent.WRITE_RPMB)
    if any(step.startswith(("unlink", "chattr")) for step in row.op):
        needs.consents.add(Consent.WRITE_RPMB)
    if "-EROFS" in [
        out for step, out in zip(row.op, outcomes, strict=False) if "write" not in step
    ]:
        needs.superblock_read_only = True
    if "-ENOSPC" in outcomes and _has_room(row, plan):
        needs.phase = Phase.STOPPED
    need = _file_need(row, plan, succeeded)
    if need is not None and row.op[0] not in ("statvfs", "ioctl", "counter"):
        needs.files[plan.file] = need
    if not succeeded and row.facts.get("SetupMode") in ("00", "01"):
        needs.mode = row.facts["SetupMode"]
    if row.op[0] == "ioctl" and isinstance(row.outcome, list):
        for entry in row.outcome:
            needs.files[entry[0]] = FileNeed(present=True)


def successful(row: Row, plan: Plan) -> list[Written]:
    """The writes that the row says were taken."""
    outcomes = row.outcomes
    return [
        write
        for write in plan.writes
        if write.step < len(outcomes)
        and isinstance(outcomes[write.step], int)
        and outcomes[write.step] >= 4
    ]


def stated_free(row: Row, *keys: str) -> int | None:
    """Free bytes that the row states under one of ``keys``; a board that shows no figures shows
    zeros."""
    for key in keys:
        value = row.facts.get(key)
        if isinstance(value, list) and len(value) == 3 and value[0]:
            return int(value[1])
    return None


def _has_room(row: Row, plan: Plan) -> bool:
    free = stated_free(row, "free_before", "free", "free_after")
    largest = max((len(write.data) for write in plan.writes), default=0)
    return free is not None and free > largest + 600


def _file_need(row: Row, plan: Plan, succeeded: Sequence[Written]) -> FileNeed | None:
    told = _told_before(row)
    if told is not None:
        return told
    first, outcome = row.op[0], row.outcomes[0]
    after = content_of(_first_fact(row, "after", "readback", "back", "read"))
    appended = _before_append(succeeded, after)
    if appended is not None:
        return appended
    if _rewrites_the_same(row, succeeded):
        write = succeeded[0]
        return FileNeed(True, write.attributes.to_bytes(4, "little") + write.data, certain=True)
    if outcome in ("-ENOENT",):
        return FileNeed(present=False)
    if not succeeded and isinstance(after, bytes) and after and not _was_deleted(row):
        return FileNeed(True, after, prefix=_is_cut(row))
    if not succeeded and isinstance(after, tuple):
        signed = bool(after[0][0] & AUTHENTICATED)
        return FileNeed(True, size=4 + after[1], committed=True, signed=signed)
    if outcome == "-EPERM":
        size = next((o for s, o in zip(row.op, row.outcomes, strict=False) if s == "stat"), None)
        stated = size if isinstance(size, int) else row.facts.get("st_size")
        return FileNeed(True, size=stated if isinstance(stated, int) else None, committed=True)
    if outcome == "-EEXIST":
        return FileNeed(present=True, committed=True)
    if first == "read" and isinstance(outcome, int):
        return FileNeed(True, content=b"" if outcome == 0 else None, size=outcome)
    if "=open(" in first and outcome == "ok":
        return _opened(row, succeeded)
    if first.startswith("unlink") and outcome in (0, None):
        writes = row.facts.get("rpmb_writes")
        return FileNeed(True, committed=isinstance(writes, int) and writes > 0)
    if first in ("stat", "chattr -i", "GETFLAGS") and isinstance(outcome, int):
        return FileNeed(True, size=outcome if first == "stat" else None)
    if first == "set" and succeeded:
        return _by_cost(row, succeeded)
    return None


def _rewrites_the_same(row: Row, succeeded: Sequence[Written]) -> bool:
    """A write that is taken and costs nothing wrote what was there."""
    free = row.facts.get("rpmb_writes") == 0 and "O_CREAT" not in row.op[0] and row.op[0] != "set"
    return free and len(succeeded) == 1 and bool(succeeded[0].data)


def _told_before(row: Row) -> FileNeed | None:
    if "before" not in row.facts or isinstance(row.facts["before"], int):
        return None
    before = content_of(row.facts["before"])
    if not isinstance(before, bytes):
        return FileNeed(present=False, certain=True)
    cut = len(str(row.facts["before"])) == _FIXED_SIZE
    return FileNeed(True, before, prefix=cut, certain=True)


def _before_append(succeeded: Sequence[Written], after: object) -> FileNeed | None:
    if len(succeeded) != 1 or not succeeded[0].attributes & APPEND or not isinstance(after, bytes):
        return None
    write = succeeded[0]
    if write.attributes & AUTHENTICATED:
        return None
    if after[4:] == write.data:
        return FileNeed(present=False)
    if write.data and not after.endswith(write.data):
        return None
    return FileNeed(True, after[: len(after) - len(write.data)])


def _opened(row: Row, succeeded: Sequence[Written]) -> FileNeed | None:
    if "O_CREAT" in row.op[0] or not row.op[0].endswith(")"):
        return _by_cost(row, succeeded)
    for step, outcome in zip(row.op[1:], row.outcomes[1:], strict=False):
        if step.startswith(("read", "pread")) and "RDONLY" in row.op[0]:
            return _read_need(step, str(outcome))
    return FileNeed(True, committed="RDONLY" not in row.op[0] or "GETFLAGS" in row.op)


def _read_need(step: str, outcome: str) -> FileNeed:
    found = re.fullmatch(r"(\d+) bytes ?([0-9a-f]*)", outcome)
    asked = int(re.findall(r"\d+", step)[0])
    if not found or int(found[1]) == asked or step.startswith("pread"):
        return FileNeed(True, committed=True)
    return FileNeed(True, bytes.fromhex(found[2]))


def _by_cost(row: Row, succeeded: Sequence[Written]) -> FileNeed | None:
    """A creation and an overwrite differ in RPMB writes: state bytes of the old record, and a
    private authenticated variable's entry in certdb."""
    writes = row.facts.get("rpmb_writes")
    if not succeeded or not isinstance(writes, int):
        return None
    rest = writes % RECORDED.relocation
    if rest in (2, 3, 6):
        return FileNeed(present=False)
    signed = bool(succeeded[0].attributes & AUTHENTICATED)
    return FileNeed(True, committed=True, signed=signed) if rest in (4, 5) else None


def _was_deleted(row: Row) -> bool:
    return any(
        step.startswith("unlink") and outcome in (0, None)
        for step, outcome in zip(row.op, row.outcomes, strict=False)
    )


def _is_cut(row: Row) -> bool:
    return any(len(str(row.facts.get(key, ""))) == _FIXED_SIZE for key in ("after", "readback"))


def _first_fact(row: Row, *keys: str) -> Any:
    return next((row.facts[key] for key in keys if isinstance(row.facts.get(key), str)), None)


def content_of(recorded: Any) -> bytes | tuple[bytes, int] | None:
    """A content as recorded: hex, a bytes literal, or ``ATTRIBUTES+SIZE``; None for an error."""
    if not isinstance(recorded, str) or recorded.startswith("-E"):
        return None
    long_content = re.fullmatch(r"([0-9a-f]{8})\+(\d+)", recorded)
    if long_content:
        return bytes.fromhex(long_content[1]), int(long_content[2])
    try:
        if re.fullmatch(r"b(['\"]).*\1", recorded, re.DOTALL):
            return bytes(ast.literal_eval(recorded))
        return bytes.fromhex(recorded)
    except (ValueError, SyntaxError):
        return None


# --- shell command lines ------------------------------------------------------------------------


def _of_command(row: Row, needs: Needs) -> None:
    command = " ".join(row.op)
    output = row.output
    needs.consents |= {consent for words, consent in _CONSENTS if re.search(words, command)}
    _phase_of(row, command, output, needs)
    _listed_files(command, output, needs)
    _mentioned_files(command, output, needs)
    _boot_entries_of(command, output, needs)
    _mount_of(command, output, needs)
    changes = re.search(r"\brm /|> */sys|os\.open", command) is not None
    needs.clear_flags = changes and "not permitted" not in output
    user = re.search(r"\bsu (\w+) -c", command)
    needs.user = user[1] if user else None
    counted = re.search(r"(?:\bls (?:/\S+)|efivar -l) \| wc -l", command)
    if counted:
        numbers = [line for line in output.splitlines() if line.strip().isdigit()]
        needs.count = int(numbers[0]) if numbers else None


_CONSENTS = (
    (r"mmc rpmb write-block", Consent.FOREIGN_RPMB_WRITE),
    (r"mmc rpmb write-key", Consent.PROGRAM_KEY),
    (r"/(un)?bind\b|rmmod|modprobe -r", Consent.UNBIND_DRIVER),
    (
        r"systemctl (stop|restart|kill) tee-supplicant|kill -9|pkill|killall",
        Consent.STOP_SUPPLICANT,
    ),
    (r"\breboot\b|\bpoweroff\b", Consent.POWER_CYCLE),
    (r"sysrq", Consent.CRASH_KERNEL),
    (r">\s*\S*/efivars/|efivar -[wa]|efibootmgr -\w|\brm \S*/efivars|chattr", Consent.WRITE_RPMB),
)


def _phase_of(row: Row, command: str, output: str, needs: Needs) -> None:
    looks_at_bus = "/sys/bus/tee/devices" in command
    if looks_at_bus and _STMM_UUID not in output:
        needs.phase = Phase.COLD
    elif "Using TEE-based EFI" in output and "bind" not in command:
        needs.phase = Phase.LIVE
    elif "No space left on device" in output:
        needs.phase = Phase.STOPPED
    elif looks_at_bus and "start tee-supplicant" not in command:
        needs.enumerated = True
    if "remount,rw" in command and "bad option" in output:
        needs.superblock_read_only = True
    if "kill: usage" in output:
        needs.phase = Phase.STOPPED
    needs.driver_loaded = "/sys/bus/tee/drivers" in command and "tee-stmm-efi" in output
    if re.search(r"/unbind; echo", command) and output.startswith("rc=0"):
        needs.phase = Phase.LIVE
    if re.search(r"/(un)?bind; echo", command) and "No such device" in output:
        needs.phase = Phase.UNBOUND if STMM_DEVICE in command else None
    if "Device or resource busy" in output and "/bind" in command:
        needs.phase = Phase.LIVE
    if re.search(r"/bind; echo", command) and output.startswith("rc=0"):
        needs.phase = Phase.UNBOUND


def _listed_files(command: str, output: str, needs: Needs) -> None:
    """A listing states which variables there are, and with ``ls -l`` their sizes."""
    lists = re.search(rf"\bls(?: -\w+)* {re.escape(EFIVARS_PATH)}(?! *\|)(?=[;\s]|$)", command)
    bare = re.search(rf"\bls(?: -\w+)* {re.escape(EFIVARS_PATH)}", command)
    written = _written_in(command)
    for line in output.splitlines():
        if STMM_DEVICE in line:
            continue
        sized = _LISTED.match(line)
        attributes = _LSATTR.match(line)
        name = _BARE.match(line) if bare else None
        if sized and sized[2] not in written:
            size = int(sized[1])
            content = b"" if size == 0 else None
            name_shown = FileNeed(True, content, size=size, shown=sized[2])
            _need(needs, _file_name(sized[2], command), name_shown)
        elif (attributes or name) and "/tmp/" not in command:
            found = attributes or name
            assert found is not None
            if found[1] not in written:
                _need(needs, _file_name(found[1], command), FileNeed(True, shown=found[1]))
    needs.only_listed = bool(lists) and "umount" in command and bool(needs.files)
    needs.listed_at_boot = needs.only_listed
    needs.listed = set(needs.files) | {need.shown for need in needs.files.values() if need.shown}


def _file_name(shown: str, command: str) -> str:
    """The file to make so that a listing shows a name. A name is bytes until the next mount, then
    what the firmware has: each byte has become one character (K6 fs/efivarfs)."""
    escaped = re.sub(r"\\(\d{3})", lambda digits: chr(int(digits[1], 8)), shown)
    if escaped == shown and "umount" not in command:
        return shown
    try:
        return escaped.encode("latin-1").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return shown


def _mentioned_files(command: str, output: str, needs: Needs) -> None:
    made = _written_in(command)
    named = set(_IN_COMMAND.findall(command))
    globbed = {own_file(name) for name in _GLOB.findall(command) if name not in _STANDARD}
    made -= globbed  # a pattern matches what is there
    named |= globbed
    readers = {f"{name}-{guid}" for guid, name in _BY_TOOL.findall(command)}
    written = {f"{n}-{g}" for g, n in re.findall(rf"efivar -w -n ({_GUID})-(\w+)", command)}
    for file in (named | readers) - made - written:
        if file.endswith(GLOBAL_GUID) or "d9bee56e" in file:
            continue
        missing = _says_missing(file, output)
        _need(needs, file, FileNeed(present=not missing, content=_dumped(command, file, output)))


def _written_in(command: str) -> set[str]:
    """Files that the command line itself makes."""
    if "O_CREAT" in command:
        return set(_IN_COMMAND.findall(command.replace("\\", "")))
    word = r"([^\s;|'\"&]+)"
    made = set(re.findall(rf"> *{re.escape(EFIVARS_PATH)}/{word}", command))
    return made | set(re.findall(rf"touch {re.escape(EFIVARS_PATH)}/{word}", command))


def _says_missing(file: str, output: str) -> bool:
    name = re.escape(file[:-37])
    return (
        re.search(rf"{name}-\S* *'?: No such file|show variable: No such file", output) is not None
    )


def _dumped(command: str, file: str, output: str) -> bytes | None:
    """The content that ``xxd`` or ``efivar -p`` shows, where it is the only one."""
    if command.count("xxd") == 1 and re.search(rf"cat \S*{re.escape(file[:-36])}", command):
        digits = "".join(found[1].replace(" ", "") for found in _XXD.finditer(output))
        return bytes.fromhex(digits) if digits else b""
    if "efivar -p" in command:
        digits = "".join(found[1].replace(" ", "") for found in _HEXDUMP.finditer(output))
        return b"\7\0\0\0" + bytes.fromhex(digits) if digits else None
    return None


def _boot_entries_of(command: str, output: str, needs: Needs) -> None:
    """What efibootmgr's first listing shows was there before."""
    if not command.startswith("efibootmgr") or "-c" in command.split():
        return
    for number, _, label, shown in _BOOT_ENTRY.findall(output):
        needs.boot_entries.setdefault(number, f"{label}\t{shown}")
    first = output.split("BootOrder:")[1:2]
    told = (output.split("BootOrder:")[0], *first)
    if needs.boot_entries and "efibootmgr -n" in command:
        for name in ("BootNext", "Timeout"):
            if not any(line.startswith(name) for line in told[0].splitlines()):
                _need(needs, f"{name}-{GLOBAL_GUID}", FileNeed(present=False))


def _mount_of(command: str, output: str, needs: Needs) -> None:
    """Mounted by the init system or by hand: the options tell."""
    shown = _MOUNTED.search(output)
    if not re.search(r"mount -|/(un)?bind\b", command):
        if shown:
            needs.read_only = shown[1].startswith("ro")
        elif "Read-only file system" in output:
            needs.read_only = True
    if shown and "mount -t efivarfs efivarfs" not in command:
        needs.mounted_by_hand = "nosuid" not in shown[1]


def _need(needs: Needs, file: str, need: FileNeed) -> None:
    known = needs.files.get(file)
    if known is None or (known.content is None and need.content is not None):
        needs.files[file] = need
