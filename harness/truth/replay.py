"""Takes the rows of a group again, one after the other, and says how each came out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from harness.consents import Consent
from harness.errors import ConsentMissing, HilError, MissingCapability
from harness.truth import compare, needs, space, tools
from harness.truth.calls import Calls
from harness.truth.needs import Needs, Phase
from harness.truth.recipes import PLATFORM_KEY, Recipes
from harness.truth.results import Agreement, Difference, RowResult, caused
from harness.truth.rig import Rig
from harness.truth.rows import Row
from harness.truth.state import State, StateUnknown
from harness.truth.steps import (
    AUTHENTICATED,
    GLOBAL_GUID,
    RECORDER_GUID,
    CannotTake,
    NotUnderstood,
    Plan,
    named_file,
    own_file,
    plan,
)

COMMAND_SECONDS = 90.0
_UNNAMED = own_file("Unnamed")


class GroupReplay:
    """Replays one group on a rig."""

    def __init__(
        self, rig: Rig, rows: Sequence[Row], auth: Sequence[Path], recipes: Recipes
    ) -> None:
        self._rig = rig
        self._rows = rows
        self._auth = auth
        self._recipes = recipes
        self._state = State(rig, recipes)
        self._file = _UNNAMED
        self._starts = 0
        self._phases = _phases([row for row in rows if row.replay])
        self._changes_phases = needs.changes_phases(rows)
        self._touched: dict[str, int] = {}
        self._numbers = {row.number for row in rows}
        self._guessed = False
        self._tools: dict[str, bool] = {}
        self._left_out: dict[str, str] = {}

    def run(self) -> Iterator[RowResult]:
        """The result of every given row that counts, as it comes."""
        counted = [row for row in self._rows if row.replay]
        if not any(row.given for row in counted):
            return
        try:
            self._rig.begin(next((row.board for row in counted if row.board), None))
            self._state.begin()
            self._starts = self._rig.starts
            if self._phases.get(counted[0].id) is Phase.COLD:
                self._state.enter(Phase.COLD)
        except (CannotTake, StateUnknown) as error:
            for row in counted:
                if row.given:
                    yield RowResult(row, Agreement.SKIPPED, reason=str(error))
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
            return self._skipped(row, f"state unknown: {error}")
        except (CannotTake, NotUnderstood) as error:
            return self._skipped(row, str(error))
        except (MissingCapability, ConsentMissing) as error:
            return self._skipped(row, error.what)
        except Exception as error:
            # An instrument, or a text of the board, that nobody foresaw: this row's, and on.
            said = error.what if isinstance(error, HilError) else f"{type(error).__name__}: {error}"
            differences = (Difference("the row itself", "an outcome", said),)
        if differences and self._guessed:
            reason = "state unknown: the row before, which left it, is missing"
            return RowResult(row, Agreement.SKIPPED, reason=reason)
        before = next((self._left_out[one] for one in _files(row) if one in self._left_out), None)
        if differences and before:
            reason = f"state unknown: {before}, which was skipped, is about the same variable"
            return RowResult(row, Agreement.SKIPPED, reason=reason)
        verdict = Agreement.DIFFERED if differences else Agreement.AGREED
        return RowResult(row, verdict, differences)

    def _skipped(self, row: Row, reason: str) -> RowResult:
        self._numbers.discard(row.number)  # what follows it is after a gap
        self._left_out.update(dict.fromkeys(_files(row), row.id))
        return RowResult(row, Agreement.SKIPPED, reason=reason)

    def _take(self, row: Row) -> list[Difference]:
        if not row.op or row.outcome is None:
            raise CannotTake("the row states no outcome")
        if row.is_command:
            return self._take_command(row)
        if row.op[0] in ("mmc rpmb read-counter", "counter"):
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
            fits=space.fitting(row, first),
            record=space.record(first) if first else 0,
        )
        return Calls(self._state, row, made).run()

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
            return space.free_of(row.outcomes[0])
        after = needs.stated_free(row, "free_after", "free")
        if after is None:
            return None
        stored = self._state.look(made.file).content or None
        certdb = 4
        if any(write.attributes & AUTHENTICATED for write in made.writes):
            certdb = self._state.certdb()
        for write in needs.successful(row, made):
            after += space.taken(write, stored, certdb)
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
        self._tools_of(row)
        if wanted.user and not shell.run(f"id {wanted.user}").ok:
            raise CannotTake(f"the board has no user {wanted.user}")
        self._state.settle(
            wanted,
            free=lambda: space.shown_free(row.output, self._state.free),
            fits=None,
            record=0,
        )
        self._prepare_files(command)
        log = self._state.board.kernel_log
        logged = "dmesg" in command or "dmesg" in row.facts or "dm" in row.facts
        mark = log.mark() if logged else None
        before = log.all() if logged else []
        result = self._state.board.shell.run_isolated(
            f"bash -c {quote(self._as_recorded(command))}", timeout=COMMAND_SECONDS
        )
        during = compare.without_noise(log.since(mark)) if mark else []
        return list(self._compare_command(row, result, compare.without_noise(before), during))

    def _tools_of(self, row: Row) -> None:
        """Raises :class:`CannotTake` for a program that the board lacks and the recorder's had."""
        asked = [one for one in ("bash", *tools.programs(row.op[0])) if one not in self._tools]
        if asked:
            words = " ".join(map(quote, asked))
            result = self._state.board.shell.run(
                "command -v bash >/dev/null || { echo bash; exit; }; "
                # bash also names a file that it could not run
                'bash -c \'for t; do p=$(command -v $t) && { test "${p#/}" = "$p" || test -x $p; }'
                f" || echo $t; done' find {words}"
            )
            absent = result.text.split()
            self._tools.update((one, one not in absent) for one in asked)
        lacking = [
            one
            for one in ("bash", *tools.programs(row.op[0]))
            if not self._tools[one] and f"{one}: command not found" not in row.output
        ]
        if lacking:
            raise CannotTake(tools.missing(lacking))

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
            if "tail" in row.op[0] and self._rig.starts != self._starts:
                expected = compare.since_boot(expected, logged)
            differs = compare.kernel_log(expected, logged, during)
            if differs:
                yield Difference("kernel log", row.output, differs)
        yield from caused(row, during)

    def _as_recorded(self, command: str) -> str:
        """``efivar -w`` writes a new variable with attributes 7; before version 38 with 0, so the
        recorder's choice is given explicitly. From 38 on the option has another name."""
        if "efivar -w" not in command:
            return command
        usage = self._state.board.shell.run("efivar --help 2>&1").text
        if "--attributes" in usage and "-t, --attributes" not in usage:
            return command
        return re.sub(r"\befivar -w (?!.*-t )", "efivar -w -t 7 ", command)

    def _prepare_files(self, command: str) -> None:
        """Files in /tmp that a command reads and a row before it made."""
        shell = self._state.board.shell
        for name in sorted(set(re.findall(r"(?<=\s)/tmp/\w+(?=[\s;]|$)", command))):
            if f"> {name}" in command or shell.run(f"test -e {name}").ok:
                continue
            source = self._maker_of(name)
            if source is not None:
                shell.run_isolated(f"bash -c {quote(source)}", timeout=COMMAND_SECONDS)
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


def _files(row: Row) -> set[str]:
    """The recorder's own variables that a row is about, or shows."""
    told = "\n".join((*row.op, row.output))
    found = re.findall(rf"([\w.]+)-{RECORDER_GUID}|{RECORDER_GUID}-(\w+)", told)
    return {before or after for before, after in found}


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
