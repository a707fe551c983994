"""Gives a board its variables back as a snapshot has them, and says of each what became of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from harness import interrupts
from harness.consents import Consent
from harness.errors import ConsentMissing, HilError, LinkError, TargetError, WrongBoard
from harness.instruments.efivars import VariableName, is_named, is_ours
from harness.safekeeping import authenticated
from harness.safekeeping.snapshot import Snapshot
from harness.safekeeping.variables import Nature, Stored, nature, read_all, read_one

if TYPE_CHECKING:
    from harness.board.board import Board

WRITE_SECONDS = 60.0
"""For one write: one that relocates takes half a minute on slow boards."""

# Refusals that are the firmware's word about this variable, once a fresh boot says them again.
_WORD_OF_THE_FIRMWARE = {errno.EINVAL, errno.EACCES, errno.EROFS}


class Fate(StrEnum):
    """What became of one variable, as the table shows it."""

    IDENTICAL = "identical"
    TO_DO = "differs"
    RESTORED = "restored"
    KEPT = "left as it is"
    LOST = "cannot come back"
    WAITS = "not yet back"


class Deed(StrEnum):
    """What brings a variable back."""

    NOTHING = "nothing"
    WRITE = "write"
    REPLACE = "delete and write"
    DELETE = "delete"
    FLAG = "set the immutable flag"


@dataclass(frozen=True, slots=True)
class Line:
    """One variable: fate, the deed behind it and, where it needs one, the reason."""

    name: VariableName
    fate: Fate
    reason: str = ""
    deed: Deed = Deed.NOTHING
    former: Stored | None = None
    errno: int = 0
    """With which the deed was refused."""

    def __str__(self) -> str:
        # A name may hold any byte; its data is nobody's business.
        name = str(self.name).encode("utf-8", "backslashreplace").decode()
        return f"{self.fate:<16}  {name}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Restoration:
    """What became of every variable."""

    lines: tuple[Line, ...]

    @property
    def finished(self) -> bool:
        """Whether trying again can bring nothing more back."""
        return not any(line.fate in {Fate.WAITS, Fate.TO_DO} for line in self.lines)

    @property
    def complete(self) -> bool:
        """Whether all is back that could have been changed."""
        return self.finished and not any(line.fate is Fate.LOST for line in self.lines)

    @property
    def notable(self) -> list[Line]:
        """The lines about variables that are not simply as before."""
        return [line for line in self.lines if line.fate is not Fate.IDENTICAL]

    def count(self, fate: Fate) -> int:
        """How many variables came out so."""
        return sum(1 for line in self.lines if line.fate is fate)

    def summary(self) -> str:
        """One line: how many of which."""
        counts = {fate: self.count(fate) for fate in Fate}
        return ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)


# --- judging ------------------------------------------------------------------------------------


def judge(board: Board, snapshot: Snapshot, *, only: Iterable[str] | None = None) -> Restoration:
    """Compare the board with the snapshot and say what is to be done; writes nothing. ``only``
    limits it to the foreign variables of these names that no fixture keeps. Raises the link's
    errors, OSError, :class:`WrongBoard` for another board's snapshot."""
    if snapshot.cid != board.file.emmc_cid:
        raise WrongBoard(
            f"the snapshot is of the board with the CID {snapshot.cid}",
            remedy="restore it on that board",
            board=board.name,
        )
    patterns = None if only is None else tuple(only)

    def wanted(name: VariableName) -> bool:
        if patterns is None:
            return True
        return not is_ours(name) and name not in board.kept_variables and is_named(name, patterns)

    now = read_all(board.probe, wanted)
    names = sorted({*filter(wanted, snapshot.variables), *now})
    judgement = _Judgement(board, snapshot)
    return Restoration(
        tuple(judgement.of(name, snapshot.variables.get(name), now.get(name)) for name in names)
    )


@dataclass(frozen=True, slots=True)
class _Judgement:
    board: Board
    snapshot: Snapshot

    def of(self, name: VariableName, former: Stored | None, present: Stored | None) -> Line:
        if former is not None and former.problem:
            return Line(name, Fate.KEPT, f"could not be read before the run: {former.problem}")
        if present is not None and present.problem:
            return Line(name, Fate.WAITS, f"cannot be read now: {present.problem}")
        if former is None or not former.is_variable:
            # A file that was never written is no variable, and no remount shows it again.
            return self._appeared(name, present)
        if present is not None and present.content == former.content:
            return self._flag(name, former, present)
        hindrance = nature(former)
        if hindrance is not None:
            # The firmware looks after its own; what needed a signature is gone with it.
            lost = hindrance is Nature.AUTHENTICATED
            return Line(name, Fate.LOST if lost else Fate.KEPT, str(hindrance))
        same = present is None or not present.is_variable
        same = same or (present is not None and present.attributes == former.attributes)
        # SetVariable refuses other attributes than the stored ones (stack 4.6, row 15).
        deed = Deed.WRITE if same else Deed.REPLACE
        what = "was deleted" if present is None else "was changed"
        return self._allowed(name, Line(name, Fate.TO_DO, what, deed, former))

    def _appeared(self, name: VariableName, present: Stored | None) -> Line:
        if present is None or (not present.is_variable and not is_ours(name)):
            return Line(name, Fate.IDENTICAL)
        hindrance = nature(present) if present.is_variable else None
        if not is_ours(name):
            if hindrance is not None and hindrance is not Nature.AUTHENTICATED:
                return Line(name, Fate.KEPT, f"appeared; {hindrance}")
            if not is_named(name, self.snapshot.declared):
                return Line(name, Fate.KEPT, "appeared; no test of that run writes it")
        return self._allowed(name, Line(name, Fate.TO_DO, "appeared", Deed.DELETE))

    def _flag(self, name: VariableName, former: Stored, present: Stored) -> Line:
        if former.immutable is None or former.immutable == present.immutable:
            return Line(name, Fate.IDENTICAL)
        # Not kept by the firmware: the next mount sets it by the name alone.
        return Line(name, Fate.TO_DO, "its immutable flag was changed", Deed.FLAG, former)

    def _allowed(self, name: VariableName, line: Line) -> Line:
        file = self.board.file
        if not is_ours(name) and not file.consents_to(Consent.FOREIGN_VARIABLES):
            missing = Consent.FOREIGN_VARIABLES
            if not self.snapshot.foreign_consent:
                why = (
                    f"{line.reason}; the run had no consent {missing}: not its to change or restore"
                )
                return Line(name, Fate.KEPT, why)
            why = f"{line.reason}; the board file no longer consents to {missing}"
            return Line(name, Fate.WAITS, why)
        if not file.consents_to(Consent.WRITE_RPMB):
            why = f"{line.reason}; the board file does not consent to {Consent.WRITE_RPMB}"
            return Line(name, Fate.WAITS, why)
        return line


# --- doing --------------------------------------------------------------------------------------


def restore(
    board: Board,
    snapshot: Snapshot,
    *,
    only: Iterable[str] | None = None,
    timeout: float = WRITE_SECONDS,
) -> Restoration:
    """Bring every variable back that can be, and prove it by reading all again; ``only`` as for
    :func:`judge`, on a board in its standard state; ``timeout`` is for each write.

    Identical values are not rewritten. Where the owner consents to ``power_cycle``, what the
    firmware refuses is tried once more: after a reclaim (harness.store.space) where the store had
    no room, else after a reboot, with which OP-TEE forgets an RPMB that it had given up. Raises
    :class:`LinkError` and its like when the board is lost on the way (the snapshot still waits
    then), :class:`WrongBoard`.
    """
    wanted = None if only is None else tuple(only)
    if wanted is None:
        board.standard.restore()
    report = _once(board, snapshot, wanted, timeout)
    refused = [line for line in report.lines if line.errno]
    if not refused or wanted is not None or not board.file.consents_to(Consent.POWER_CYCLE):
        return report
    if any(line.errno == errno.ENOSPC for line in refused):
        hindered = _make_room(board)
        if hindered:
            return _explained(report, hindered)
    else:
        board.reboot()
    return _merged(report, _once(board, snapshot, wanted, timeout, fresh=True))


def _make_room(board: Board) -> str:
    """Reclaim the store; why that was not possible, or nothing."""
    from harness.store.space import StoreSpace

    try:
        StoreSpace(board).reclaim()
    except (LinkError, WrongBoard):
        raise
    except (HilError, OSError) as error:
        return error.what if isinstance(error, HilError) else str(error)
    return ""


def _explained(report: Restoration, why: str) -> Restoration:
    return Restoration(
        tuple(
            replace(line, reason=f"{line.reason}; not reclaimed: {why}")
            if line.errno == errno.ENOSPC
            else line
            for line in report.lines
        )
    )


def restore_whatever_it_takes(
    board: Board, snapshot: Snapshot, *, timeout: float = WRITE_SECONDS
) -> tuple[Restoration, tuple[str, ...]]:
    """:func:`restore` on a board that may be wedged: climbs the ladder of harness.board.recovery
    where the board does not answer. Returns the report and what had to be done first. Raises
    :class:`harness.errors.BoardWedged` when nothing helps."""
    try:
        return restore(board, snapshot, timeout=timeout), ()
    except WrongBoard:
        raise
    except (LinkError, TargetError, OSError) as error:
        from harness.board.recovery import recover

        why = error.what if isinstance(error, HilError) else str(error)
        recovery = recover(board)
        return restore(board, snapshot, timeout=timeout), (f"{why} -> {recovery.helped}",)


def _once(
    board: Board,
    snapshot: Snapshot,
    only: tuple[str, ...] | None,
    timeout: float,
    *,
    fresh: bool = False,
) -> Restoration:
    plan = judge(board, snapshot, only=only)
    todo = [line for line in plan.lines if line.fate is Fate.TO_DO]
    if not todo:
        return plan
    did: dict[VariableName, Line] = {}
    # Deletions first: they need no room.
    for line in sorted(todo, key=lambda line: line.deed is not Deed.DELETE):
        did[line.name] = _do(board, line, timeout, fresh=fresh)
    return _proved(plan, did, judge(board, snapshot, only=only))


def _do(board: Board, line: Line, timeout: float, *, fresh: bool) -> Line:
    try:
        with interrupts.whole(), board.foreign_writes.allowing(line.name.name):
            _deeds(board, timeout)[line.deed](line)
    except ConsentMissing as error:
        return replace(line, fate=Fate.WAITS, reason=f"{line.reason}; {error.what}")
    except OSError as error:
        return _refused(board, line, error, fresh=fresh)
    return replace(line, fate=Fate.RESTORED)


def _deeds(board: Board, timeout: float) -> Mapping[Deed, Callable[[Line], None]]:
    efivars = board.efivars

    def write(line: Line) -> None:
        assert line.former is not None
        name, former = line.name, line.former
        efivars.overwrite(name.name, former.data, former.attributes, name.guid, timeout=timeout)
        flag(line)

    def delete(line: Line) -> None:
        present = read_one(board.probe, line.name)
        if present.is_variable and nature(present) is Nature.AUTHENTICATED:
            authenticated.delete(board, line.name)
        else:
            efivars.delete(line.name.name, line.name.guid)

    def replaced(line: Line) -> None:
        delete(line)
        write(line)

    def flag(line: Line) -> None:
        if line.former is not None and line.former.immutable is not None:
            efivars.set_immutable(line.name.name, line.former.immutable, line.name.guid)

    return {Deed.WRITE: write, Deed.REPLACE: replaced, Deed.DELETE: delete, Deed.FLAG: flag}


def _refused(board: Board, line: Line, error: OSError, *, fresh: bool) -> Line:
    code = error.errno or errno.EIO
    line = replace(line, fate=Fate.WAITS, errno=code)
    if code == errno.ENOSPC:
        room = f"no room left in the store ({_room(board)}); reclaim it and restore again"
        return replace(line, reason=f"{line.reason}; {room}")
    named = errno.errorcode.get(code, str(code))
    reason = f"{line.reason}; the board refuses to {line.deed} it ({named})"
    if fresh and code in _WORD_OF_THE_FIRMWARE:
        return replace(line, fate=Fate.LOST, reason=reason)
    return replace(line, reason=f"{reason}; reboot the board and restore again")


def _room(board: Board) -> str:
    try:
        space = board.efivars.space()
    except (HilError, OSError):
        return "size unknown"
    return f"{space.free} bytes free" if space.total else "the board shows no figures"


def _proved(plan: Restoration, did: Mapping[VariableName, Line], after: Restoration) -> Restoration:
    """What was done, as far as reading again shows it."""
    seen = {line.name: line for line in after.lines}
    lines: list[Line] = []
    for line in plan.lines:
        made = did.get(line.name, line)
        left = seen.get(line.name)
        if made.fate is Fate.RESTORED and left is not None and _is_open(left):
            made = replace(left, fate=Fate.WAITS, reason="written, and reads otherwise")
        lines.append(made)
    return Restoration(tuple(lines))


def _merged(first: Restoration, second: Restoration) -> Restoration:
    """Both passes: the second finds identical, or gone, what the first restored."""
    lines = {line.name: line for line in second.lines}
    for line in first.lines:
        later = lines.get(line.name)
        if line.fate is Fate.RESTORED and (later is None or later.fate is Fate.IDENTICAL):
            lines[line.name] = line
    return Restoration(tuple(lines[name] for name in sorted(lines)))


def _is_open(line: Line) -> bool:
    return line.fate in {Fate.TO_DO, Fate.WAITS}


def table(report: Restoration, *, everything: bool = False) -> Sequence[str]:
    """The lines worth a reader's time, then the summary."""
    shown = report.lines if everything else report.notable
    return [*map(str, shown), report.summary() or "no variables"]
