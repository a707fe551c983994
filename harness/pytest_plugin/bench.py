"""The board of one run: reached before the first test, looked after between tests, given back."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from harness.capabilities import Capability, Consent
from harness.errors import (
    BoardWedged,
    ConsentMissing,
    HilError,
    LinkError,
    MissingCapability,
    WrongBoard,
)
from harness.pytest_plugin.keeper import Keeper, foreign_names

if TYPE_CHECKING:
    from harness.board import Board
    from harness.boardfile import BoardFile
    from harness.instruments.kernel_log import Mark

DEFAULT_BOARD = "emulated"


class Bench:
    """The board of one pytest session, and what has happened to it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        names: list[str] = config.getoption("board") or []
        if len(names) > 1:
            raise pytest.UsageError("--board may be given once: one board a run")
        self._name = names[0] if names else DEFAULT_BOARD
        self._board: Board | None = None
        self._file: BoardFile | None = None
        self._mark: Mark | None = None
        self._notes: list[str] = []
        self._keeper: Keeper | None = None
        # Foreign variables that tests of this run declare.
        self._declared: list[str] = []
        # The RPMB write counter at the start and now; None where it cannot be read.
        self._counter_at_start: int | None = None
        self._counter: int | None = None
        # Why the board must be recovered before the next test, and why no test can run any more.
        self._suspect: str | None = None
        self._lost: HilError | None = None
        if names:
            with _usage_errors():
                self._load()

    def board(self) -> Board:
        """The running board; starts it at the first call. Raises the board's errors."""
        if self._board is None:
            from harness.board import Board

            board = Board(
                self._load(),
                link=self._config.getoption("link"),
                assume_yes=self._config.getoption("yes"),
                console_log=self._config.getoption("console_log"),
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
            self._counter_at_start = self._counter = self._read_counter()
        return self._board

    # --- the session --------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Reach the board before the first test: what is wrong with it is a usage error."""
        if not self._config.getoption("collectonly") and any(map(_uses_board, session.items)):
            self._declared = [name for item in session.items for name in foreign_names(item)]
            with _usage_errors():
                self.board()

    def pytest_report_collectionfinish(self) -> list[str]:
        """Which board, link, firmware and kernel."""
        if self._board is None:
            return []
        with _usage_errors():
            identity = self._board.identity()
            contradictions = self._board.capabilities.contradictions()
        lines = [
            f"board: {identity.board} over {identity.link}",
            f"firmware: {identity.firmware}; kernel: {identity.kernel}",
            f"eMMC CID: {', '.join(identity.emmc_cids)}; boot: {identity.boot_id}",
        ]
        return lines + [f"board file contradicted: {line}" for line in contradictions]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What the run cost, and what had to be done to the board between tests."""
        lines = list(self._notes)
        if self._counter is not None:
            budget = self._load().rpmb_write_budget
            of = "" if budget is None else f" of a budget of {budget}"
            lines.append(f"RPMB writes: {self._spent()}{of}")
        if lines:
            terminalreporter.section("board")
            for line in lines:
                terminalreporter.write_line(line)
        if self._keeper is not None and self._keeper.lines:
            terminalreporter.section("variables of the board, given back")
            for line in self._keeper.lines:
                terminalreporter.write_line(line)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give the board back; a run that lost its board did not test what it was asked to."""
        if self._board is not None:
            self._give_back(session)
            if self._lost is None:
                self._counter = self._read_counter() or self._counter
            self._board.close()
            self._board = None
        if self._lost is not None:
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _give_back(self, session: pytest.Session) -> None:
        if self._keeper is None:
            return
        interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED
        self._keeper.end(interrupted=interrupted or self._suspect is not None, lost=self._lost)
        if not self._keeper.restored and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    # --- one test -----------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Alive, in standard state, and with what the markers ask for; else skip or error."""
        if not _uses_board(item):
            return (yield)
        with self._judging(item):
            self._revive(item)
            self._check_markers(item)
            self._check_budget()
            self._mark_log()
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """The test, and then the kernel log."""
        if not _uses_board(item):
            return (yield)
        with self._judging(item):
            try:
                result = yield
            except Exception:
                self._show_log(item)
                raise
            self._fail_on_bad_log(item)
            return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """After the test's own fixtures: own variables away, standard state back."""
        if not _uses_board(item):
            return (yield)
        with self._judging(item):
            try:
                result = yield
                self._tidy(item)
            except (Exception, pytest.fail.Exception):
                # Whatever could not be undone must not be the next test's failure.
                self._suspect = self._suspect or f"{item.nodeid}: its clean-up failed"
                raise
            return result

    # --- helpers ------------------------------------------------------------------------------

    def _load(self) -> BoardFile:
        if self._file is None:
            from harness import boardfile

            self._file = boardfile.load(boardfile.find(self._name))
        return self._file

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
            ending = f"lab error, the run ends here: {error}"
            raise pytest.fail.Exception(ending, pytrace=False) from None
        except Exception as error:
            broken = _link_error(error)
            if broken is not None:
                broken.located(board=self._load().name)
                self._suspect = f"{item.nodeid}: {broken.what}"
            if isinstance(error, HilError):
                _shorten(error)
            raise

    def _revive(self, item: pytest.Item) -> None:
        if self._lost is not None:
            pytest.fail(f"lab error, not run: {self._lost}", pytrace=False)
        if self._suspect is None and self._answers():
            return
        from harness.recovery import recover

        reason, self._suspect = self._suspect or f"before {item.nodeid}: no answer", None
        recovery = recover(self.board())
        self._mark = None
        vain = f" (in vain: {'; '.join(recovery.in_vain)})" if recovery.in_vain else ""
        self._notes.append(f"{reason} -> {recovery.helped}{vain}")

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

    def _check_budget(self) -> None:
        budget = self._load().rpmb_write_budget
        if budget is None:
            return
        self._counter = self._read_counter() or self._counter
        if self._spent() >= budget:
            pytest.skip(f"the budget of {budget} RPMB writes is spent ({self._spent()})")

    def _spent(self) -> int:
        return (self._counter or 0) - (self._counter_at_start or 0)

    def _read_counter(self) -> int | None:
        try:
            return self.board().rpmb.counter()
        except HilError:
            return None

    def _mark_log(self) -> None:
        board = self.board()
        if self._mark is None and board.capabilities.has(Capability.KERNEL_LOG):
            self._mark = board.kernel_log.mark()

    def _new_lines(self) -> list[str]:
        """Kernel lines since the last look; moves the mark."""
        if self._mark is None:
            return []
        from harness.instruments.kernel_log import Mark

        lines = self.board().kernel_log.since(self._mark)
        if lines:
            self._mark = Mark(lines[-1])
        return lines

    def _fail_on_bad_log(self, item: pytest.Item) -> None:
        from harness.instruments.kernel_log import bad_lines

        lines = self._new_lines()
        allowed = list(self._load().kernel_log_allowed)
        for marker in item.iter_markers("allow_kernel_log"):
            allowed += marker.args
        bad = bad_lines(lines, allowed=allowed)
        if bad:
            item.add_report_section("call", "kernel log", "\n".join(lines))
            pytest.fail(f"the kernel log has {bad[0]!r} ({len(bad)} such lines)", pytrace=False)

    def _show_log(self, item: pytest.Item) -> None:
        # The board may be the reason for the failure: what it can still say is a bonus.
        with contextlib.suppress(HilError):
            if lines := self._new_lines():
                item.add_report_section("call", "kernel log", "\n".join(lines))

    def _tidy(self, item: pytest.Item) -> None:
        if self._suspect is not None or self._lost is not None:
            return
        board = self.board()
        standing = board.standing()
        mended = board.restore_standing(standing)
        if mended and not item.get_closest_marker("disturbs"):
            self._notes.append(f"{item.nodeid} left the board without: {', '.join(mended)}")
        if standing.own_variables:
            resisted = board.efivars.delete_own()
            if resisted:
                names = ", ".join(map(str, resisted))
                pytest.fail(f"variables of this test resist deletion: {names}", pytrace=False)
        if mended or standing.own_variables:
            self._fail_on_bad_log(item)
        assert self._keeper is not None
        self._keeper.after(item, board.standing() if mended else standing)


BENCH: pytest.StashKey[Bench] = pytest.StashKey()
"""Where a configuration keeps its bench."""


def _uses_board(item: pytest.Item) -> bool:
    return "hil_board" in getattr(item, "fixturenames", ())


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what is wrong with board file or board into one paragraph and exit status 4."""
    try:
        yield
    except HilError as error:
        raise pytest.UsageError(str(error)) from None


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
