"""The board of one run: reached before the first test, looked after between tests, given back."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import (
    BoardWedged,
    ConsentMissing,
    HilError,
    LinkError,
    MissingCapability,
    WrongBoard,
)
from harness.instruments.efivars import VariableName
from harness.instruments.kernel_log import Mark, bad_lines, since_script
from harness.pytest_plugin.blame import BLAME, Whose
from harness.pytest_plugin.keeper import Keeper, foreign_names
from harness.pytest_plugin.role import BOARD_FIXTURE, board_of_worker, name_of_worker
from harness.pytest_plugin.usage import usage_errors
from harness.safekeeping.key_programming import KeyProgramming

if TYPE_CHECKING:
    from harness.board.board import Board, Standing
    from harness.boardfile.sections import BoardFile
    from harness.pytest_plugin.lease import RunLease
    from harness.pytest_plugin.meter import Meter

DEFAULT_BOARD = "emulated"


class Bench:
    """The board of one pytest session, and what has happened to it."""

    def __init__(self, config: pytest.Config, lease: RunLease, name: str | None) -> None:
        """``name`` is the board's, or the path of its file; None is the default board, at whose
        file nobody looks before a test needs it."""
        self._config = config
        self._lease = lease
        self._name = DEFAULT_BOARD if name is None else name
        self._board: Board | None = None
        self._path: Path | None = None
        self._file: BoardFile | None = None
        self._mark: Mark | None = None
        self.notes: list[str] = []
        """What had to be done to the board between tests."""
        self.at_begin: list[Callable[[Board, Sequence[pytest.Item]], None]] = []
        """Called with the board and its tests, once it answers and before the first test."""
        self.meter: Meter | None = None
        """Reads counter and free space in the same round trip as everything else."""
        self.before_tidying: list[Callable[[pytest.Item], None]] = []
        """Called after a test's fixtures are gone, with a fresh reading of the meter, and before
        the board is tidied."""
        self.before_restoring: list[Callable[[Board], None]] = []
        """Called after the last test, before the board gets its variables back."""
        self.at_close: list[Callable[[Board], None]] = []
        """Called last, while the board still answers."""
        self._keeper: Keeper | None = None
        # Foreign variables that tests of this run declare.
        self._declared: list[str] = []
        # Why the board must be recovered before the next test, and why no test can run any more.
        self._suspect: str | None = None
        self._lost: HilError | None = None
        # Whether the board has answered since the last test, which then left nothing to read.
        self._answered = False
        if name is not None:
            with usage_errors():
                self.file  # noqa: B018 - what is wrong with it is said now

    @property
    def file(self) -> BoardFile:
        """The board file. Raises ConfigurationError."""
        if self._file is None:
            from harness.boardfile import loading

            self._file = loading.load(self.path)
        return self._file

    @property
    def path(self) -> Path:
        """Where the board file is. Raises ConfigurationError."""
        if self._path is None:
            from harness.boardfile import loading

            self._path = loading.find(self._name)
        return self._path

    @property
    def reached(self) -> bool:
        """Whether the board runs and can be asked."""
        return self._board is not None and self._lost is None

    @property
    def suspect(self) -> bool:
        """Whether the board must be recovered before it can be asked anything."""
        return self._suspect is not None or self._lost is not None

    @property
    def current(self) -> bool:
        """Whether what was read after the last test still holds: nothing has been asked or done
        since."""
        return self._answered and not self.suspect

    @property
    def ended(self) -> HilError | None:
        """Why the run ended before its last test: the board was lost, held or taken away."""
        return self._lost or self._lease.ended

    @property
    def restored(self) -> bool:
        """Whether the board has, after the end, all that it had before."""
        return self._keeper is None or self._keeper.restored

    @property
    def given_back(self) -> list[str]:
        """What became of the board's variables, for the reader."""
        return self._keeper.lines if self._keeper is not None else []

    def will_write(self, *names: str) -> None:
        """Foreign variables that the harness itself is about to write: after a crash they are
        restored as those that tests declare."""
        if self._keeper is not None:
            self._keeper.declare(names)

    def board(self) -> Board:
        """The running board; leases and starts it at the first call. Raises the board's errors."""
        if self._board is None:
            from harness.board.board import Board

            self._lease.take(self.file)
            board = Board(
                self.file,
                link=self._config.getoption("link"),
                assume_yes=self._config.getoption("yes"),
                console_log=self._console_log(),
                believe_pins=self._config.getoption("capabilities") == "pinned",
                programming=KeyProgramming(
                    wanted=self._config.getoption("program_rpmb_key"),
                    identity=self._config.getoption("i_know_this_is"),
                    may_ask=not self._config.getoption("yes"),
                ),
            )
            try:
                board.start()
                board.check_right_board()
                board.wait_until_ready()
            except BaseException:
                board.close()
                raise
            self._board = board
            self._keeper = Keeper(board)
            self._keeper.begin(self._declared)
        return self._board

    # --- the session --------------------------------------------------------------------------

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """On a board whose commands take long, bringing it back within one test does, too."""
        items = [item for item in items if uses_board(item)]
        if not items or self.file.timeouts.command <= _USUAL_COMMAND_SECONDS:
            return
        limit = _SLOW_TEST_COMMANDS * self.file.timeouts.command
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(limit))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Reach the board before the first test: what is wrong with it is a usage error. One
        board's worker among several says first what it collected."""
        if board_of_worker(self._config) is None:
            with usage_errors():
                self.reach(session)

    def reach(self, session: pytest.Session) -> None:
        """Lease and start the board where a test needs it. Raises the board's errors."""
        if not self._config.getoption("collectonly") and any(map(uses_board, session.items)):
            items = [item for item in session.items if uses_board(item)]
            self._declared = [name for item in items for name in foreign_names(item)]
            with self._lease.guarding():
                board = self.board()
                for step in self.at_begin:
                    step(board, items)

    def pytest_report_collectionfinish(self) -> list[str]:
        """Which board, link, firmware and kernel."""
        if self._board is None:
            return []
        with usage_errors():
            identity = self._board.identity()
            contradictions = self._board.capabilities.contradictions()
        lines = [
            f"board: {identity.board} over {identity.link}",
            f"firmware: {identity.firmware}; kernel: {identity.kernel}",
            f"eMMC CID: {', '.join(identity.emmc_cids)}; boot: {identity.boot_id}",
        ]
        return lines + [f"board file contradicted: {line}" for line in contradictions]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give the board back; a run that lost its board did not test what it was asked to."""
        self._lease.closing()
        if self._board is not None:
            if self._lease.ended is None:
                self._call(self.before_restoring)
            self._give_back(session)
            self._call(self.at_close)
            self.notes += self._board.corrections
            self._board.close()
            self._board = None
        self._lease.release()
        if self._lost is not None and board_of_worker(self._config) is None:
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _give_back(self, session: pytest.Session) -> None:
        if self._keeper is None:
            return
        interrupted = (
            session.exitstatus == pytest.ExitCode.INTERRUPTED
            or self._lease.ended is not None
            or self._suspect is not None
        )
        self._keeper.end(interrupted=interrupted, lost=self._lost)
        if not self._keeper.restored and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    # --- one test -----------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """No test runs, or runs on, once the board was taken away."""
        with self._lease.guarding():
            if self._board is not None:
                self._board.check_held()
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Alive, in standard state, and with what the markers ask for; else skip or error."""
        if not uses_board(item):
            return (yield)
        with self._judging(item):
            self._revive(item)
            self._check_markers(item)
            self._mark_log()
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """The test, and then the kernel log."""
        if not uses_board(item):
            return (yield)
        self._answered = False
        with self._judging(item):
            try:
                result = yield
            except Exception:
                self._show_log(item)
                raise
            self._judge_log(item, self._new_lines())
            return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """After the test's own fixtures: own variables away, standard state back."""
        if not uses_board(item):
            return (yield)
        with self._judging(item):
            try:
                result = yield
                standing = self._tidy(item)
            except (Exception, pytest.fail.Exception):
                # Whatever could not be undone must not be the next test's failure.
                self._suspect = self._suspect or f"{item.nodeid}: its clean-up failed"
                raise
            if standing is not None and self._keeper is not None:
                self._keeper.after(item, standing)
                if foreign_names(item):
                    # What was put back has moved the meter.
                    self._answered = False
            return result

    # --- helpers ------------------------------------------------------------------------------

    def _console_log(self) -> Path | None:
        """One of several boards has a folder of its own."""
        given: Path | None = self._config.getoption("console_log")
        name = name_of_worker(self._config)
        if given is None or name is None:
            return given
        folder = given / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _call(self, steps: Sequence[Callable[[Board], None]]) -> None:
        for step in steps:
            if self._board is None or self._lost is not None:
                return
            try:
                step(self._board)
            except (HilError, OSError) as error:
                self.notes.append(f"at the end of the run: {error}")

    @contextlib.contextmanager
    def _judging(self, item: pytest.Item) -> Iterator[None]:
        """Sort errors: what the board lacks is a skip, a broken link makes the board suspect, a
        lost board ends the run."""
        try:
            yield
        except (MissingCapability, ConsentMissing) as error:
            raise pytest.skip.Exception(str(error)) from None
        except (BoardWedged, WrongBoard) as error:
            self._lost = error
            item.stash[BLAME] = Whose.LAB
            ending = f"lab error, the run ends here: {error}"
            raise pytest.fail.Exception(ending, pytrace=False) from None
        except Exception as error:
            broken = _link_error(error)
            if broken is not None:
                broken.located(board=self.file.name)
                self._suspect = f"{item.nodeid}: {broken.what}"
            if isinstance(error, HilError):
                _shorten(error)
            raise

    def _revive(self, item: pytest.Item) -> None:
        if self._lost is not None:
            item.stash[BLAME] = Whose.LAB
            pytest.fail(f"lab error, not run: {self._lost}", pytrace=False)
        if self._suspect is None and (self._answered or self._answers()):
            return
        from harness.board.recovery import recover

        reason, self._suspect = self._suspect or f"before {item.nodeid}: no answer", None
        recovery = recover(self.board())
        self._mark = None
        vain = f" (in vain: {'; '.join(recovery.in_vain)})" if recovery.in_vain else ""
        self.notes.append(f"{reason} -> {recovery.helped}{vain}")

    def _answers(self) -> bool:
        try:
            return self.board().shell.run("true").ok
        except LinkError:
            return False

    def _check_markers(self, item: pytest.Item) -> None:
        board = self.board()
        if item.get_closest_marker("destructive") and not board.file.disposable:
            raise ConsentMissing(
                "the test may leave the board changed for ever",
                remedy="run it on a board whose file says disposable = true",
                board=board.name,
            )
        assert self._keeper is not None
        self._keeper.admit(item)
        for marker in item.iter_markers("consents"):
            for consent in marker.args:
                board.require_consent(_named(Consent, consent, item))
        for marker in item.iter_markers("needs"):
            for capability in marker.args:
                board.capabilities.require(_named(Capability, capability, item))

    def _mark_log(self) -> None:
        board = self.board()
        if self._mark is None and board.capabilities.has(Capability.KERNEL_LOG):
            self._mark = board.kernel_log.mark()

    def _new_lines(self) -> list[str]:
        """Kernel lines since the last look; moves the mark."""
        if self._mark is None:
            return []
        lines = self.board().kernel_log.since(self._mark)
        if lines:
            self._mark = Mark(lines[-1])
        return lines

    def _judge_log(self, item: pytest.Item, lines: list[str]) -> None:
        """Fail for what no healthy kernel says."""
        allowed = list(self.file.kernel_log_allowed)
        for marker in item.iter_markers("allow_kernel_log"):
            allowed += marker.args
        bad = bad_lines(lines, allowed=allowed)
        if bad:
            item.stash[BLAME] = Whose.KERNEL
            item.add_report_section("call", "kernel log", "\n".join(lines))
            pytest.fail(f"the kernel log has {bad[0]!r} ({len(bad)} such lines)", pytrace=False)

    def _show_log(self, item: pytest.Item) -> None:
        # The board may be the reason for the failure: what it can still say is a bonus.
        with contextlib.suppress(HilError):
            if lines := self._new_lines():
                item.add_report_section("call", "kernel log", "\n".join(lines))

    def _tidy(self, item: pytest.Item) -> Standing | None:
        """The standard state, and what was left otherwise; None on a board that is to be recovered
        first."""
        if self._suspect is not None or self._lost is not None:
            self._run_before_tidying(item)
            return None
        board = self.board()
        # What follows a test that disturbs nothing shows in the log before the next test ends.
        standing, lines = self._look(log=item.get_closest_marker("disturbs") is not None)
        self._run_before_tidying(item)
        mended = board.restore_standing(standing)
        if mended and not item.get_closest_marker("disturbs"):
            self.notes.append(f"{item.nodeid} left the board without: {', '.join(mended)}")
        if own := standing.own_variables:
            resisted = board.efivars.delete_these(map(VariableName.of_file, map(os.fsencode, own)))
            # A name that is no text is another one after its way through the shell.
            resisted = resisted and board.efivars.delete_own()
            if resisted:
                names = ", ".join(map(str, resisted))
                pytest.fail(f"variables of this test resist deletion: {names}", pytrace=False)
        if mended:
            standing, more = self._look(log=True)
            lines += more
        elif own and self.meter is not None:
            self.meter.read()
        self._judge_log(item, lines)
        self._answered = True
        return standing

    def _run_before_tidying(self, item: pytest.Item) -> None:
        for step in self.before_tidying:
            step(item)

    def _look(self, *, log: bool) -> tuple[Standing, list[str]]:
        """The meter, the standing and, with ``log``, the new lines of the kernel log, in one round
        trip. Other people's variables are looked at where the counter moved or cannot tell."""
        from harness.board.board import FOREIGN_STANDING, STANDING

        board = self.board()
        meter = self.meter.script() if self.meter is not None else ""
        foreign = f'test -z "$moved" || {FOREIGN_STANDING}' if meter else FOREIGN_STANDING
        script = f"moved=yes\n{meter}{STANDING}{foreign}"
        if log and self._mark is not None:
            script += f"echo {_LOG_BEGINS}\n{since_script(self._mark)}"
        lines = board.shell.run(script, timeout=20.0).text.splitlines()
        end = lines.index(_LOG_BEGINS) if _LOG_BEGINS in lines else len(lines)
        if self.meter is not None:
            self.meter.take("\n".join(lines[:end]))
        new = lines[end + 1 :]
        if new:
            self._mark = Mark(new[-1])
        return board.standing_of(lines[:end]), new


_USUAL_COMMAND_SECONDS = 10.0
_SLOW_TEST_COMMANDS = 30
"""How many commands in a row may go unanswered before a test counts as hung."""
_LOG_BEGINS = "kernel log:"

BENCH: pytest.StashKey[Bench] = pytest.StashKey()
"""Where a configuration keeps its bench."""


def uses_board(item: pytest.Item) -> bool:
    """Whether a test runs on the board: by a fixture, or by what it asks of the board only."""
    return BOARD_FIXTURE in getattr(item, "fixturenames", ()) or any(
        item.get_closest_marker(marker) for marker in ("needs", "consents")
    )


_Name = TypeVar("_Name", Capability, Consent)


def _named(names: type[_Name], word: str, item: pytest.Item) -> _Name:
    """A capability or consent by its name; a misspelt one is the test's own error."""
    try:
        return names(word)
    except ValueError:
        near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.4)
        pytest.fail(
            f"{item.nodeid} is marked with {word!r}, which is no {names.__name__.lower()}"
            + (f"; did you mean {str(near[0])!r}?" if near else ""),
            pytrace=False,
        )


def _shorten(error: HilError) -> None:
    """Its text says what, where and what next: the report needs the test's line and not the way
    through the harness."""
    error.__cause__ = None
    error.__suppress_context__ = True
    last = step = error.__traceback__
    while step is not None:
        if not str(step.tb_frame.f_globals.get("__name__")).startswith("harness."):
            last = step
        step = step.tb_next
    if last is not None:
        last.tb_next = None


def _link_error(error: BaseException) -> LinkError | None:
    """The broken link behind ``error``, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LinkError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
