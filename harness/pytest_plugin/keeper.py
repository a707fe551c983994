"""What a run does for the board's safety: a snapshot before the first test, other people's
variables watched at every test, everything given back at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import pytest

from harness import interrupts
from harness.board import state_dir
from harness.board.standing import foreign_variables
from harness.consents import Consent
from harness.errors import ConsentMissing, HilError, TargetError, of_host
from harness.instruments.efivars import VariableName, is_named, name_of_file
from harness.instruments.guard import ANY
from harness.pytest_plugin.bench import Bench
from harness.pytest_plugin.hookspecs import Look
from harness.pytest_plugin.markers import uses_board
from harness.safekeeping import snapshot
from harness.safekeeping.restore import Fate, Restoration, restore, restore_whatever_it_takes, table
from harness.safekeeping.variables import nature

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.safekeeping.snapshot import Snapshot


def foreign_names(item: pytest.Item) -> tuple[str, ...]:
    """What the item's ``foreign`` markers name."""
    return tuple(name for marker in item.iter_markers("foreign") for name in marker.args)


class Keeper:
    """Safekeeping of the board during one run. ``lines`` is what the reader is told at the end;
    ``restored`` is False when the board was not given back as it was found."""

    _board: Board

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._snapshot: Snapshot | None = None
        self._claim: state_dir.Claim | None = None
        self._allowed = contextlib.ExitStack()
        self._listing: dict[str, int] = {}
        self._checksum = ""
        # ... as the last look had it; empty where nothing can have changed.
        self._seen = ""
        self._why_none = ""
        self.lines: list[str] = []
        self.restored = True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_hil_begin(
        self, board: Board, items: Sequence[pytest.Item]
    ) -> Generator[None, object, object]:
        """Before anything else: what an earlier run left is restored, then the snapshot is taken.
        Raises the link's errors, :class:`harness.errors.HostError` for a directory that cannot be
        used, :class:`harness.errors.LabError` while another run uses the board."""
        self._board = board
        declared = [name for item in items for name in foreign_names(item)]
        self._claim = state_dir.Claim(self._board.power, self._board.file)
        directory = self._claim.directory
        earlier = snapshot.pending(directory)
        if earlier is not None:
            report, did = restore_whatever_it_takes(self._board, earlier)
            self.lines.append(f"an earlier run, begun {earlier.taken}, had not restored the board:")
            self.lines += [*did, *table(report)]
            if report.finished:
                snapshot.finish(directory)
                earlier = None
        if earlier is not None:
            self._snapshot = snapshot.declare(earlier, directory, declared)
            self.lines.append("its snapshot serves this run, too")
        else:
            self._take(declared)
        self._list()
        return (yield)

    def _take(self, declared: Sequence[str]) -> None:
        try:
            taken = snapshot.take(self._board, declared)
        except (TargetError, OSError) as error:
            if (host := of_host(error)) is not None:
                raise host from error
            self._why_none = error.what if isinstance(error, HilError) else str(error)
            self.lines.append(f"no snapshot was taken: {self._why_none}")
            return
        with interrupts.whole():
            snapshot.keep(taken, state_dir.directory(self._board.power, self._board.file))
            self._snapshot = taken

    def declare(self, names: Sequence[str]) -> None:
        """More foreign variables that this run may write."""
        if self._snapshot is not None:
            directory = state_dir.directory(self._board.power, self._board.file)
            self._snapshot = snapshot.declare(self._snapshot, directory, names)

    # --- one test -----------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Let a test write what its ``foreign`` markers name. Raises :class:`ConsentMissing`
        without the owner's consent or without a snapshot to restore from."""
        self._allowed.close()
        names = foreign_names(item)
        if self._snapshot is not None and uses_board(item) and self._bench.recovered:
            # What the test before could not give back is not this one's.
            restore(self._board, self._snapshot, only=(ANY,))
            self._list()
        if not (uses_board(item) and names):
            return
        self._board.require_consent(Consent.FOREIGN_VARIABLES)
        if self._snapshot is None:
            raise ConsentMissing(
                f"variables that are not ours are not written without a snapshot: {self._why_none}",
                remedy="bring the board into its standard state before the run",
                board=self._board.name,
            )
        self._allowed.enter_context(self._board.foreign_writes.allowing(*names))

    @pytest.hookimpl(trylast=True)
    def pytest_hil_look(self, board: Board) -> Look:
        """Other people's variables, where the counter moved or cannot tell."""
        from harness.board.standing import FOREIGN_STANDING

        def take(text: str) -> None:
            self._seen = board.standard.parse(text.splitlines()).foreign

        return Look(f'test -z "$moved" || {FOREIGN_STANDING}', take)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_hil_tidying(self, item: pytest.Item) -> Generator[None, object, object]:
        """Put back what the test was allowed to write; fail it for what it was not. One round trip
        more only where something differs."""
        result = yield
        self._allowed.close()
        if self._snapshot is None:
            return result
        names = foreign_names(item)
        if names:
            self._note(item, restore(self._board, self._snapshot, only=names))
            self._seen = self._board.standing(foreign=True).foreign
            # What was put back has moved the meter.
            self._bench.stir()
        if self._seen and self._seen != self._checksum:
            self._compare(item, names)
        return result

    def _compare(self, item: pytest.Item, names: Sequence[str]) -> None:
        before = self._listing
        self._list()
        changed = [
            name
            for file in sorted(before.keys() | self._listing.keys())
            if before.get(file) != self._listing.get(file)
            and (name := name_of_file(file)) is not None
            and not is_named(name, names)
            and self._is_changed(name)
        ]
        if not changed:
            return
        assert self._snapshot is not None
        if self._board.file.consents_to(Consent.FOREIGN_VARIABLES):
            restore(self._board, self._snapshot, only=[name.name for name in changed])
            self._list()
        pytest.fail(
            f"the test changed {', '.join(map(str, changed))}, which its markers do not declare: "
            "mark it with foreign(...), or use our vendor GUID",
            pytrace=False,
        )

    def _is_changed(self, name: VariableName) -> bool:
        """Whether a variable is another than in the snapshot, and is written by people, not by
        the firmware at its leisure. The size in the listing does not tell: where truncation
        changes what is shown, only a fresh mount shows the true one."""
        assert self._snapshot is not None
        from harness.safekeeping.variables import read_one

        stored = self._snapshot.variables.get(name)
        now = read_one(self._board.probe, name)
        if stored is not None and now.content == stored.content:
            return False
        kept = stored or now
        return kept.is_variable and nature(kept) is None

    def _note(self, item: pytest.Item, report: Restoration) -> None:
        self.lines += [
            f"{item.nodeid}: {line}"
            for line in report.lines
            if line.fate in {Fate.WAITS, Fate.LOST}
        ]

    def _list(self) -> None:
        self._checksum = self._board.standing(foreign=True).foreign
        self._listing = foreign_variables(self._board.shell)

    # --- the end ------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_hil_restoring(self, lost: HilError | None) -> Generator[None, object, object]:
        """Give everything back, whatever others did before. Never raises an error of the board
        itself: what could not be restored waits for ``hil restore``."""
        try:
            return (yield)
        finally:
            self._allowed.close()
            if self._snapshot is not None:
                self._give_back(self._snapshot, lost=lost)
            if self._claim is not None:
                self._claim.release()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A board that was not given back as it was found is a failure."""
        if not self.restored and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _give_back(self, kept: Snapshot, *, lost: HilError | None) -> None:
        try:
            if lost is not None:
                raise lost
            self._restore(kept)
        except (HilError, OSError) as error:
            self.restored = False
            self.lines.append(f"the board was NOT restored: {error}")
        except KeyboardInterrupt as again:
            self.restored = False
            self.lines.append(f"cut short by another {again or 'SIGINT'}, between two variables")
        if not self.restored:
            self.lines.append(f"what is not yet back waits for: hil restore {self._board.name}")

    def _restore(self, kept: Snapshot) -> None:
        report, did = restore_whatever_it_takes(self._board, kept)
        self.lines += [*did, *table(report)]
        self.restored = report.finished
        if report.finished:
            snapshot.finish(state_dir.directory(self._board.power, self._board.file))
