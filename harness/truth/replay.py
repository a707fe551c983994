"""Takes the rows of a group again, one after the other, and says how each came out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.capabilities import EFIVARS_PATH
from harness.consents import Consent
from harness.errors import ConsentMissing, HilError, MissingCapability
from harness.probe import Outcome, Step
from harness.probe import steps as do
from harness.store import records as store_space
from harness.truth import compare, needs
from harness.truth.bench import Bench
from harness.truth.needs import Needs, Phase
from harness.truth.recipes import PLATFORM_KEY, Recipes
from harness.truth.rows import Row
from harness.truth.state import State, StateUnknown
from harness.truth.steps import (
    AUTHENTICATED,
    GLOBAL_GUID,
    CannotTake,
    NotUnderstood,
    Plan,
    Written,
    named_file,
    own_file,
    plan,
)

COMMAND_SECONDS = 90.0
_READ_BYTES = 65536
_UNNAMED = own_file("Unnamed")
_COUNTERS = ("mmc rpmb read-counter", "counter")
_CONTENTS = ("after", "readback", "back", "read")
_MODES = ("SetupMode", "SecureBoot", "VendorKeys", "AuditMode", "DeployedMode")
_DF = re.compile(r"^efivarfs +(\d+) +(\d+) +(\d+) +(\d+)% ", re.MULTILINE)
_TOTAL = 16284
_KIBIBYTE = 1024


class Verdict(StrEnum):
    """What became of a row."""

    AGREED = "agreed"
    DIFFERED = "differed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Difference:
    """One step or fact that came out otherwise than recorded."""

    what: str
    expected: Any
    seen: Any

    def __str__(self) -> str:
        return f"{self.what}: expected {_shown(self.expected)}, seen {_shown(self.seen)}"


@dataclass(frozen=True)
class RowResult:
    """One row's verdict, with its differences or the reason for its skip."""

    row: Row
    verdict: Verdict
    differences: tuple[Difference, ...] = ()
    reason: str = ""


@dataclass
class GroupResult:
    """The results of a group's rows that count."""

    group: str
    results: list[RowResult] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        """How many rows came out so."""
        return sum(1 for result in self.results if result.verdict is verdict)


class GroupReplay:
    """Replays one group on the board of a bench."""

    def __init__(
        self, bench: Bench, rows: Sequence[Row], auth: Sequence[Path], recipes: Recipes
    ) -> None:
        self._bench = bench
        self._rows = rows
        self._auth = auth
        self._recipes = recipes
        self._state = State(bench, recipes)
        self._file = _UNNAMED
        self._starts = 0
        self._phases = _phases([row for row in rows if row.replay])
        self._changes_phases = needs.changes_phases(rows)
        self._touched: dict[str, int] = {}
        self._numbers = {row.number for row in rows}
        self._guessed = False

    def run(self) -> Iterator[RowResult]:
        """The result of every given row that counts, as it comes."""
        counted = [row for row in self._rows if row.replay]
        if not any(row.given for row in counted):
            return
        try:
            self._bench.begin(next((row.board for row in counted if row.board), None))
            self._state.begin()
            self._starts = self._bench.starts
            if self._phases.get(counted[0].id) is Phase.COLD:
                self._state.enter(Phase.COLD)
        except (CannotTake, StateUnknown) as error:
            for row in counted:
                if row.given:
                    yield RowResult(row, Verdict.SKIPPED, reason=str(error))
            return
        for row in counted:
            result = self._one(row)
            if row.given:
                yield result

    def _one(self, row: Row) -> RowResult:
        # Signed variables, and OP-TEE's write counter where the row looks at the RPMB's, hang on
        # everything before.
        hangs = ".auth" in " ".join(row.op) or isinstance(row.facts.get("before"), int)
        self._guessed = hangs and self._is_after_gap(row)
        self._state.row = row
        try:
            differences = tuple(self._take(row))
        except StateUnknown as error:
            self._numbers.discard(row.number)  # what follows it is after a gap
            return RowResult(row, Verdict.SKIPPED, reason=f"state unknown: {error}")
        except (CannotTake, NotUnderstood) as error:
            return RowResult(row, Verdict.SKIPPED, reason=str(error))
        except (MissingCapability, ConsentMissing) as error:
            return RowResult(row, Verdict.SKIPPED, reason=error.what)
        except HilError as error:
            differences = (Difference("the row itself", "an outcome", error.what),)
        if differences and self._guessed:
            reason = "state unknown: the row before, which left it, is missing"
            return RowResult(row, Verdict.SKIPPED, reason=reason)
        verdict = Verdict.DIFFERED if differences else Verdict.AGREED
        return RowResult(row, verdict, differences)

    def _take(self, row: Row) -> list[Difference]:
        if not row.op or row.outcome is None:
            raise CannotTake("the row states no outcome")
        if row.is_command:
            return self._take_command(row)
        if row.op[0] in _COUNTERS:
            self._state.counter()
            return []
        self._file = self._subject(row)
        made = plan(row, self._file, self._auth)
        wanted = needs.of(row, made)
        wanted.phase = self._phases.get(row.id, wanted.phase)
        self._trust_the_chain(row, wanted)
        if row.op[0] not in ("statvfs", "ioctl"):
            self._foretell(row, wanted)
            self._touch(row, [self._file])
        self._consents(wanted)
        self._mode(row, wanted)
        first = next((w for w in needs.successful(row, made) if w.data), None)
        self._state.settle(
            wanted,
            free=lambda: self._free_before(row, made),
            place=_place(row, first),
            record=_record(first) if first else 0,
        )
        return _Calls(self._state, row, made).run()

    def _subject(self, row: Row) -> str:
        """The file a row is about: named by it, or that of the row before; a row that names none
        but states a content that file has not is about a file of its own."""
        named = named_file(row)
        if named is not None:
            return named
        if self._is_after_gap(row) and row.op[0] not in ("statvfs", "ioctl"):
            self._guessed = True
        stated = needs.content_of(row.facts.get("after"))
        if row.op[0] == "write":
            return own_file("Written")
        if isinstance(stated, bytes) and self._state.look(self._file).content != stated:
            return _UNNAMED
        return self._file

    def _trust_the_chain(self, row: Row, wanted: Needs) -> None:
        """Where every row since a file was last touched has been taken, the file is as these
        rows left it: nothing that only the outcome tells is prepared."""
        if not self._changes_phases and not row.is_command:
            wanted.superblock_read_only = False
            if wanted.phase is not Phase.LIVE:
                wanted.phase = None
        number = row.number
        for file, need in list(wanted.files.items()):
            last = self._touched.get(file)
            if number is None or last is None or need.certain:
                continue
            if all(between in self._numbers for between in range(last + 1, number)):
                del wanted.files[file]

    def _foretell(self, row: Row, wanted: Needs) -> None:
        """A file that must be there, and of which only a later row tells what it held."""
        need = wanted.files.get(self._file)
        if need is None or not need.present or need.content is not None or need.size is not None:
            return
        later = [one for one in self._rows if one.replay and not one.is_command and one.op]
        for one in later[later.index(row) + 1 :] if row in later else ():
            if (named_file(one) or self._file) != self._file or named_file(row) is None:
                return
            told = needs.of(one, plan(one, self._file, self._auth)).files.get(self._file)
            if told is not None and (told.content is not None or told.size is not None):
                wanted.files[self._file] = replace(told, committed=True)
            return

    def _touch(self, row: Row, files: Iterable[str]) -> None:
        if row.number is not None:
            self._touched.update(dict.fromkeys(files, row.number))

    def _is_after_gap(self, row: Row) -> bool:
        return row.number is not None and row.number > 1 and row.number - 1 not in self._numbers

    def _consents(self, wanted: Needs) -> None:
        for consent in sorted(wanted.consents):
            if not self._state.board.file.consents_to(consent):
                raise CannotTake(f"needs the consent {consent}")
        for consent in sorted(wanted.consents):
            self._state.board.require_consent(consent)
        if Consent.PROGRAM_KEY in wanted.consents and not self._has_key():
            raise CannotTake("would program the RPMB key: this partition has none yet")

    def _has_key(self) -> bool:
        """Whether the RPMB refuses any further key, as it does for ever once it has one."""
        try:
            self._state.board.rpmb.counter()
        except HilError:
            return False
        return True

    def _mode(self, row: Row, wanted: Needs) -> None:
        """User mode, where a refused row was in it, comes from the platform key that a given row
        enrolled."""
        if wanted.mode is None or not self._is_after_gap(row):
            return
        seen = self._state.look(f"SetupMode-{GLOBAL_GUID}").content
        if seen is None or seen[4:].hex() == wanted.mode:
            return
        recipe = self._recipes.find(PLATFORM_KEY, None, self._state.row)
        if wanted.mode == "01" or recipe is None:
            raise StateUnknown(f"SetupMode is not {wanted.mode}, and no given row tells why")
        self._state.create(PLATFORM_KEY, recipe)

    def _free_before(self, row: Row, made: Plan) -> int | None:
        stated = needs.stated_free(row, "free_before")
        if stated is not None:
            return stated
        if row.op[0] == "statvfs":
            return _free_of(row.outcomes[0])
        after = needs.stated_free(row, "free_after", "free")
        if after is None:
            return None
        stored = self._state.look(made.file).content or None
        certdb = 4
        if any(write.attributes & AUTHENTICATED for write in made.writes):
            certdb = self._state.certdb()
        for write in needs.successful(row, made):
            after += store_space.taken(write, stored, certdb)
        return after

    # --- shell command lines --------------------------------------------------------------------

    def _take_command(self, row: Row) -> list[Difference]:
        command = row.op[0]
        if str(row.outcome).startswith("TIMEOUT"):
            raise CannotTake("its own recording ended at a timeout: there is no result to compare")
        wanted = needs.of(row, None)
        wanted.phase = self._phases.get(row.id, wanted.phase)
        mentioned = list(wanted.files)
        self._trust_the_chain(row, wanted)
        self._touch(row, mentioned)
        self._consents(wanted)
        shell = self._state.board.shell
        if not shell.run("command -v bash").ok:
            raise CannotTake("the board has no bash, whose messages were recorded")
        if wanted.user and not shell.run(f"id {wanted.user}").ok:
            raise CannotTake(f"the board has no user {wanted.user}")
        self._state.settle(wanted, free=lambda: self._shown_free(row), place=None, record=0)
        self._prepare_files(command)
        log = self._state.board.kernel_log
        logged = "dmesg" in command or "dmesg" in row.facts or "dm" in row.facts
        mark = log.mark() if logged else None
        before = log.all() if logged else []
        result = self._state.board.shell.run_isolated(
            f"bash -c {_quoted(self._as_recorded(command))}", timeout=COMMAND_SECONDS
        )
        during = compare.without_noise(log.since(mark)) if mark else []
        return list(self._compare_command(row, result, compare.without_noise(before), during))

    def _compare_command(
        self, row: Row, result: Any, before: list[str], during: list[str]
    ) -> Iterator[Difference]:
        status = f"rc={result.status}"
        if status != row.outcome:
            yield Difference("status", row.outcome, status)
        out, err = (s.decode("utf-8", "surrogateescape") for s in (result.stdout, result.stderr))
        differs = compare.output(row.op[0], row.output, out, err)
        if differs:
            yield Difference("output", row.output, f"{differs}")
        if "dmesg" in row.op[0]:
            logged = [*before, *during]
            expected = compare.kernel_lines(row.output)
            if "tail" in row.op[0] and self._bench.starts != self._starts:
                expected = compare.since_boot(expected, logged)
            differs = compare.kernel_log(expected, logged, during)
            if differs:
                yield Difference("kernel log", row.output, differs)
        yield from _caused(row, during)

    def _as_recorded(self, command: str) -> str:
        """``efivar -w`` writes a new variable with attributes 7; before version 38 with 0, so the
        recorder's choice is given explicitly. From 38 on the option has another name."""
        if "efivar -w" not in command:
            return command
        usage = self._state.board.shell.run("efivar --help 2>&1").text
        if "--attributes" in usage and "-t, --attributes" not in usage:
            return command
        return re.sub(r"\befivar -w (?!.*-t )", "efivar -w -t 7 ", command)

    def _shown_free(self, row: Row) -> int | None:
        """Free space that ``df`` showed, where it was more than nothing."""
        shown = _DF.search(row.output)
        if not shown or shown[1] == "0":
            return None
        wanted = tuple(map(int, shown.groups()))
        seen = self._state.free()
        if seen is not None and _df(seen, wanted[0]) == wanted:
            return seen
        fitting = [free for free in range(0, _TOTAL, 4) if _df(free, wanted[0]) == wanted]
        return max((free for free in fitting if seen is None or free < seen), default=None)

    def _prepare_files(self, command: str) -> None:
        """Files in /tmp that a command reads and a row before it made."""
        shell = self._state.board.shell
        for name in sorted(set(re.findall(r"(?<=\s)/tmp/\w+(?=[\s;]|$)", command))):
            if f"> {name}" in command or shell.run(f"test -e {name}").ok:
                continue
            source = self._maker_of(name)
            if source is not None:
                shell.run_isolated(f"bash -c {_quoted(source)}", timeout=COMMAND_SECONDS)
            elif re.search(rf"write-key \S+ {name}", command):
                shell.write_file(name, b"\xa5" * 32)
            elif re.search(rf"write-block \S+ \S+ {name}", command):
                shell.write_file(name, b"\x5a" * 256)
            elif re.search(rf"write-block \S+ \S+ \S+ {name}", command):
                raise StateUnknown(f"the row that wrote the key into {name} is missing")

    def _maker_of(self, name: str) -> str | None:
        """The part of some row's command line that writes the file."""
        for row in self._rows:
            for part in row.op[0].split("; ") if row.is_command else ():
                if part.endswith(f"> {name}"):
                    return part
        return None


@dataclass
class _Calls:
    """One row of system calls: taken in one batch, with what is looked at around it."""

    state: State
    row: Row
    plan: Plan

    def run(self) -> list[Difference]:
        """Take the row and compare."""
        row = self.row
        where = f"{EFIVARS_PATH}/{self.plan.file}"
        counts = "rpmb_writes" in row.facts or isinstance(row.facts.get("before"), int)
        logs = bool({"dm", "dmesg"} & set(row.facts))
        mark = self.state.board.kernel_log.mark() if logs else None
        flags_before = self._flags() if "flags_before" in row.facts else None
        before = self.state.counter() if counts else 0
        if row.op[0] == "ioctl":
            return self._all_flags()
        early = self._looked_at_early()
        closing = self.plan.actions.pop() if early else None
        seen, around = self._batch(where)
        moved = self.state.counter() - before if counts else 0
        if closing is not None:
            taken = self.state.take([*closing.hidden, *closing.steps])
            seen.append(taken[len(closing.hidden) :])
            self.plan.actions.append(closing)
        found = list(self._steps(seen))
        found += self._around(around)
        if "flags_before" in row.facts and self.state.is_original(self.plan.file):
            found += _differs("flags_before", row.facts["flags_before"], flags_before)
        if counts:
            expected = row.facts.get("rpmb_writes")
            if not isinstance(expected, int):
                expected = int(row.facts["after"]) - int(row.facts["before"])
            found += _differs("rpmb_writes", expected, moved)
        if mark is not None:
            during = compare.without_noise(self.state.board.kernel_log.since(mark))
            found += _caused(row, during)
        return found

    def _batch(self, where: str) -> tuple[list[list[Outcome]], list[Outcome]]:
        looks: list[Step] = [
            do.Stat(where),
            do.Open("a", where),
            do.Read("a", _READ_BYTES),
            do.GetFlags("a"),
            do.Close("a"),
            do.StatFs(EFIVARS_PATH),
            do.ListDir(EFIVARS_PATH),
        ]
        steps: list[Step] = []
        spans: list[tuple[int, int]] = []
        for action in self.plan.actions:
            steps += action.hidden
            spans.append((len(steps), len(steps) + len(action.steps)))
            steps += action.steps
        look_at = len(steps)
        steps += looks
        outcomes = self.state.take(steps)
        unsupported = next((one.unsupported for one in outcomes if one.unsupported), None)
        if unsupported:
            raise CannotTake(f"this board's probe cannot take it: {unsupported}")
        return (
            [outcomes[begin:end] for begin, end in spans],
            outcomes[look_at : look_at + len(looks)],
        )

    def _looked_at_early(self) -> bool:
        """A row that reads back and then cleans up was looked at before the cleaning."""
        texts = [action.text for action in self.plan.actions]
        return "read back" in texts and texts[-1] == "unlink"

    def _steps(self, seen: list[list[Outcome]]) -> Iterator[Difference]:
        outcomes = self.row.outcomes
        for number, action in enumerate(self.plan.actions):
            if number >= len(outcomes):
                return
            came = action.result(seen[number])
            if isinstance(came, dict):
                mount = self.state.board.efivars.mount_state()
                came["flag"] = compare.mount_flags(mount.options if mount else ())
            if not compare.value(outcomes[number], came):
                yield Difference(action.text, outcomes[number], came)

    def _around(self, around: list[Outcome]) -> Iterator[Difference]:
        facts = self.row.facts
        stat, _, read, flags, _, space, listing = around
        size = stat.value if stat.ok else f"-{stat.errno}"
        if isinstance(facts.get("st_size"), int | str):
            yield from _differs("st_size", facts["st_size"], size)
        for key in ("exists", "file", "file_left"):
            if isinstance(facts.get(key), bool):
                yield from _differs(key, facts[key], stat.ok)
        for key in _CONTENTS:
            yield from self._content(key, read, stat)
        if isinstance(facts.get("readback_len"), int):
            yield from _differs("readback_len", facts["readback_len"], len(read.data) - 4)
        if isinstance(facts.get("flags"), int):
            yield from _differs("flags", facts["flags"], flags.value)
        for key in ("free", "free_after"):
            if isinstance(facts.get(key), list) and facts[key][0]:
                seen = [space.field(name) for name in ("blocks", "bfree", "bavail")]
                yield from _differs(key, facts[key], seen)
        if isinstance(facts.get("listing"), list):
            yield from self._listing(facts["listing"], listing)
        for name in _MODES:
            if isinstance(facts.get(name), str):
                content = self.state.look(f"{name}-{GLOBAL_GUID}").content or b""
                yield from _differs(name, facts[name], content[4:].hex())

    def _content(self, key: str, read: Outcome, stat: Outcome) -> Iterator[Difference]:
        expected = self.row.facts.get(key)
        if not isinstance(expected, str):
            return
        seen = read.data if read.ok else None
        error = stat.errno or read.errno
        if not compare.content(expected, seen, error):
            yield Difference(key, expected, seen.hex() if seen is not None else f"-{error}")

    def _listing(self, expected: list[Any], listing: Outcome) -> Iterator[Difference]:
        """Whether the row's own file is listed; the others belong to rows before."""
        raw = self.plan.file.encode("utf-8", "surrogateescape")
        listed = any(name in (str(raw), self.plan.file) for name in expected)
        yield from _differs("listing shows the file", listed, raw in listing.names)

    def _flags(self) -> int | None:
        where = f"{EFIVARS_PATH}/{self.plan.file}"
        seen = self.state.take([do.Open("f", where), do.GetFlags("f"), do.Close("f")])
        return seen[1].value if seen[1].ok else None

    def _all_flags(self) -> list[Difference]:
        """Flags of every variable: for all names that the row lists, and the firmware's own."""
        found: list[Difference] = []
        expected = {str(name): flags for name, flags in self.row.outcome}
        seen = {}
        for name in self.state.names():
            self.plan.file = name
            seen[name] = self._flags()
        for name, flags in expected.items():
            found += _differs(f"flags of {name}", flags, seen.get(name))
        return found


def _phases(rows: Sequence[Row]) -> dict[str, Phase]:
    """Where rows leave the phase open: the one a group begins in is that of its first row that
    tells one, and a superblock that is read-only is unbound by hand or not yet bound."""
    told: dict[str, Phase] = {}
    by_hand = any("/unbind" in step or "/bind" in step for row in rows for step in row.op)
    read_only = Phase.UNBOUND if by_hand else Phase.COLD
    first: Phase | None = None
    for row in rows:
        phase = _told_phase(row, read_only)
        if phase is not None:
            told[row.id] = phase
            first = first or phase
    leading = rows[0].id if rows else ""
    if first is Phase.COLD:
        told.setdefault(leading, first)
    return told


def _told_phase(row: Row, read_only: Phase) -> Phase | None:
    if not row.replay or not row.op:
        return None
    if row.is_command:
        wanted = needs.of(row, None)
        if wanted.phase is None and wanted.superblock_read_only:
            return read_only
        return wanted.phase
    refused = [
        outcome
        for step, outcome in zip(row.op, row.outcomes, strict=False)
        if "write" not in step and outcome == "-EROFS"
    ]
    return read_only if refused else None


def _place(row: Row, write: Written | None) -> Any:
    """A test of the free space at which ``write`` costs what the row cost."""
    total = row.facts.get("rpmb_writes")
    if write is None or not isinstance(total, int) or not total:
        return None
    if write.attributes & AUTHENTICATED:
        return None
    relocations, rest = divmod(total, store_space.RELOCATION)
    # One write a piece and one for the state byte; an overwrite marks the old record twice.
    pieces = rest - 1 if rest in (2, 3) else rest - 3
    record = _record(write)

    def fits(free: int) -> bool:
        return (
            store_space.relocations(free, record) == relocations
            and store_space.pieces(free, record) == pieces
        )

    return fits


def _record(write: Written) -> int:
    return store_space.record_size(store_space.variable_name(write.file), len(write.data))


def _free_of(outcome: Any) -> int | None:
    if isinstance(outcome, dict):
        return int(outcome["bfree"]) if outcome.get("blocks") else None
    if isinstance(outcome, list) and outcome and outcome[0]:
        return int(outcome[1])
    return None


def _df(free: int, total_shown: int) -> tuple[int, int, int, int]:
    """total, used, available and percentage as df(1) rounds them: up."""
    unit = 1 if total_shown == _TOTAL else _KIBIBYTE
    used = _TOTAL - free
    return (
        math.ceil(_TOTAL / unit),
        math.ceil(used / unit),
        math.ceil(free / unit),
        math.ceil(100 * used / _TOTAL),
    )


def _caused(row: Row, during: Sequence[str]) -> Iterator[Difference]:
    """``dm`` and ``dmesg``: the kernel lines that a row caused."""
    for key in ("dm", "dmesg"):
        recorded = row.facts.get(key)
        if isinstance(recorded, list):
            yield from _differs(key, compare.without_noise(recorded), list(during))


def _differs(what: str, expected: Any, seen: Any) -> Iterator[Difference]:
    if expected != seen:
        yield Difference(what, expected, seen)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."


def _quoted(command: str) -> str:
    from shlex import quote

    return quote(command)
