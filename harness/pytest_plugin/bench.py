"""The board of one run: reached before the first test, looked after between tests, given back."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import interrupts
from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import (
    BoardWedged,
    CommandFailed,
    ConsentMissing,
    HilError,
    LabError,
    LinkError,
    MissingCapability,
    WrongBoard,
    of_host,
)
from harness.instruments.efivars import VariableName
from harness.instruments.kernel_log import Mark, bad_lines, since_script
from harness.power.driver import PowerState
from harness.pytest_plugin.blame import BLAME, Whose, link_error, shorten
from harness.pytest_plugin.hookspecs import Look
from harness.pytest_plugin.markers import check_markers, uses_board
from harness.pytest_plugin.role import board_of_worker, name_of_worker
from harness.pytest_plugin.usage import usage_errors
from harness.safekeeping.key_programming import KeyProgramming

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.board.standing import Standing
    from harness.boardfile.sections import BoardFile
    from harness.pytest_plugin.lease import RunLease

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
        self._mark: Mark | None = None
        self.notes: list[str] = []
        """What had to be done to the board between tests."""
        # Of this run, those that run on the board.
        self._items: Sequence[pytest.Item] = ()
        # Why the board must be recovered before the next test, and why no test can run any more.
        self._suspect: str | None = None
        self._lost: HilError | None = None
        # Whether the board has answered since the last test, which then left nothing to read.
        self._answered = False
        self.recovered = False
        """Whether the board had to be brought back before the test that runs."""
        # Of the last test: whether all was undone, and what the kernel said of its clean-up.
        self._tidied = False
        self._unjudged: list[str] = []
        if name is not None:
            with usage_errors():
                self.file  # noqa: B018 - what is wrong with it is said now

    @functools.cached_property
    def file(self) -> BoardFile:
        """The board file. Raises ConfigurationError."""
        from harness.boardfile import loading

        return loading.load(self.path)

    @functools.cached_property
    def path(self) -> Path:
        """Where the board file is. Raises ConfigurationError."""
        from harness.boardfile import loading

        return loading.find(self._name, self._config.getoption("boards_from"))

    @property
    def reached(self) -> bool:
        """Whether the board runs and can be asked."""
        return self._board is not None and self._lost is None

    @property
    def current(self) -> bool:
        """Whether what was read after the last test still holds: nothing has been asked or done
        since."""
        return self._answered and self._askable

    @property
    def ended(self) -> HilError | None:
        """Why the run ended before its last test: the board was lost, held or taken away."""
        return self._lost or self._lease.ended

    def allowed_lines(self, item: pytest.Item) -> list[str]:
        """Patterns of what kernel and console may say during a test."""
        markers = item.iter_markers("allow_kernel_log")
        return [*self.file.kernel_log_allowed, *(one for marker in markers for one in marker.args)]

    def stir(self) -> None:
        """What was read after the last test holds no more (:attr:`current`)."""
        self._answered = False

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
                ).require,
            )
            try:
                board.start()
                board.check_right_board()
                board.wait_until_ready()
            except BaseException:
                board.close()
                raise
            self._board = board
            self._config.hook.pytest_hil_begin(board=board, items=self._items)
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
            self._items = [item for item in session.items if uses_board(item)]
            with self._lease.guarding():
                self.board()

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
    def pytest_keyboard_interrupt(self) -> None:
        """Another signal is not to fall into pytest's own work."""
        interrupts.begin_ending()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give the board back; a run that lost its board did not test what it was asked to."""
        self._lease.closing()
        with interrupts.ending(), contextlib.ExitStack() as ending:
            ending.callback(self._lease.release)
            if self._board is not None:
                ending.callback(self._close, session, self._board)
                ending.callback(self._give_back, session, self._board)
                with self._noting(session):
                    # Fixtures that outlive their last test, after -x or ^C, need the board.
                    self._config.pluginmanager.getplugin("runner").pytest_sessionfinish(session)
        self._board = None
        if self._lost is not None and board_of_worker(self._config) is None:
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _close(self, session: pytest.Session, board: Board) -> None:
        with self._noting(session):
            board.close()

    def _give_back(self, session: pytest.Session, board: Board) -> None:
        hook = self._config.hook
        interrupted = (
            session.exitstatus == pytest.ExitCode.INTERRUPTED
            or self._lease.ended is not None
            or self._suspect is not None
        )
        if interrupted and self._lost is None:
            with self._noting(session):
                self._reach_again(board)
        with self._noting(session):
            hook.pytest_hil_restoring(board=board, interrupted=interrupted, lost=self._lost)
        if self._lost is None:
            with self._noting(session):
                hook.pytest_hil_close(board=board)
        self.notes += board.links.corrections

    def _reach_again(self, board: Board) -> None:
        """A command, or a restart, may have been broken off."""
        from harness.board.recovery import recover

        board.relink()
        try:
            if board.power.state() is not PowerState.OFF:
                board.shell.reconnect(deadline=_RECONNECT_SECONDS)
                return
        except LinkError:
            pass
        try:
            self.notes.append(f"after the interruption -> {recover(board).helped}")
        except (BoardWedged, WrongBoard) as error:
            self._lost = error
            raise

    # --- one test -----------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """No test runs, or runs on, once the board was taken away."""
        with self._lease.guarding():
            interrupts.check()
            if self._board is not None:
                self._board.power.check()
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Alive, in standard state, and with what the markers ask for; else skip or error."""
        if not uses_board(item):
            return (yield)
        with self._judging(item):
            self._revive(item)
            check_markers(self.board(), item)
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
                self._see_reboot(item)
                raise
            self._judge_log(item, self._new_lines())
            return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """After the test's own fixtures: own variables away, standard state back."""
        if not uses_board(item):
            return (yield)
        self._tidied, self._unjudged = False, []
        # What follows a test that disturbs nothing shows in the log before the next test ends.
        disturbs = item.get_closest_marker("disturbs") is not None
        with self._judging(item):
            try:
                result = yield
                if self._askable:
                    board, standing = self.board(), self._look(item, log=disturbs)
                    if told := self._rebooted(item, standing.boot):
                        raise LabError(told, remedy=_WHY_REBOOTED, board=board.name)
                    item.ihook.pytest_hil_tidying(board=board, item=item, standing=standing)
            except (Exception, pytest.fail.Exception):
                if not self._tidied:
                    # Whatever could not be undone must not be the next test's failure.
                    self._suspect = self._suspect or f"{item.nodeid}: its clean-up failed"
                raise
            return result

    def pytest_hil_tidying(self, board: Board, item: pytest.Item, standing: Standing) -> None:
        """Own variables away, standard state back; then what the kernel said."""
        mended = board.standard.restore(standing)
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
            self._look(item, log=True)
        self._judge_log(item, self._unjudged)
        self._answered = self._tidied = True

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

    @property
    def _askable(self) -> bool:
        """Whether the board can be asked something without recovering it first."""
        return self._suspect is None and self._lost is None

    @contextlib.contextmanager
    def _noting(self, session: pytest.Session) -> Iterator[None]:
        """What goes wrong at the end hides no result, and nobody's variables stay away for it."""
        try:
            yield
        except (HilError, OSError) as error:
            self.notes.append(f"at the end of the run: {error}")
        except KeyboardInterrupt as again:
            self.notes.append(f"at the end of the run: another {again or 'SIGINT'}")
        except (Exception, pytest.fail.Exception, BaseExceptionGroup) as error:
            self.notes += ["at the end of the run:", *traceback.format_exception(error)]
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

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
            interrupts.check()
            if (host := of_host(error)) is not None:
                self._suspect = f"{item.nodeid}: {host.what}"
                raise host from error
            broken = link_error(error)
            if broken is not None:
                broken.located(board=self.file.name)
                self._suspect = self._suspect or f"{item.nodeid}: {broken.what}"
            if isinstance(error, HilError):
                shorten(error)
            raise

    def _revive(self, item: pytest.Item) -> None:
        if self._lost is not None:
            item.stash[BLAME] = Whose.LAB
            pytest.fail(f"lab error, not run: {self._lost}", pytrace=False)
        self.recovered = False
        if self._suspect is None and (self._answered or self._answers(item)):
            return
        from harness.board.recovery import recover

        board = self.board()
        reason, self._suspect = self._suspect or f"before {item.nodeid}: no answer", None
        recovery = recover(board)
        self.recovered, self._mark = True, None
        if told := self._rebooted(item):
            reason = f"{reason}; {told}"
        if board.file.consents_to(Consent.WRITE_RPMB):
            # The clean-up of the test before, which could not be done then.
            board.efivars.delete_own()
        vain = f" (in vain: {'; '.join(recovery.in_vain)})" if recovery.in_vain else ""
        self.notes.append(f"{reason} -> {recovery.helped}{vain}")

    def _answers(self, item: pytest.Item) -> bool:
        try:
            told = self._rebooted(item)
        except (LinkError, CommandFailed):
            return False
        if told is not None:
            self._suspect = f"before {item.nodeid}: {told}"
        return told is None

    def _rebooted(self, item: pytest.Item, boot: str | None = None) -> str | None:
        """What to say of a board that runs another boot than is known of (``boot``, else the one
        that answers now); None where that is right, or the test's own doing."""
        before = self.board().links.unexpected_boot(boot)
        if before is None:
            return None
        self._mark = None
        # A board that goes down once more must not hide that it did.
        with contextlib.suppress(LinkError):
            self.board().wait_until_ready()
        if item.get_closest_marker("power"):
            return None
        return f"the board restarted by itself: boot {before} has ended"

    def _see_reboot(self, item: pytest.Item) -> None:
        """A test that failed on a board which had restarted under it says nothing of the
        firmware's variables."""
        with contextlib.suppress(HilError):
            if self._askable and (told := self._rebooted(item)):
                item.stash[BLAME] = Whose.LAB
                self._suspect = f"{item.nodeid}: {told}"
                item.add_report_section("call", "board", f"{told}; {_WHY_REBOOTED}")

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
        bad = bad_lines(lines, allowed=self.allowed_lines(item))
        if bad:
            item.stash[BLAME] = Whose.KERNEL
            item.add_report_section("call", "kernel log", "\n".join(lines))
            pytest.fail(f"the kernel log has {bad[0]!r} ({len(bad)} such lines)", pytrace=False)

    def _show_log(self, item: pytest.Item) -> None:
        # The board may be the reason for the failure: what it can still say is a bonus.
        with contextlib.suppress(HilError):
            if lines := self._new_lines():
                item.add_report_section("call", "kernel log", "\n".join(lines))

    def _look(self, item: pytest.Item, *, log: bool) -> Standing:
        """All that is read after a test, in one round trip: what plugins look at, the standing
        and, with ``log``, the new lines of the kernel log."""
        from harness.board.standing import STANDING

        board = self.board()
        looks: list[Look] = item.ihook.pytest_hil_look(board=board, item=item)
        scripts = ["moved=yes", *(look.script for look in looks), STANDING]
        if log and self._mark is not None:
            scripts.append(since_script(self._mark))
        text = board.shell.run(f"\necho {_NEXT}\n".join(scripts), timeout=20.0).text
        _, *parts = _NEXT_LINE.split(text, maxsplit=len(scripts) - 1)
        if len(parts) != len(scripts) - 1:
            pytest.fail(
                f"the looks after the test end in {text[-_SHOWN:]!r}: a plugin's is no good sh",
                pytrace=False,
            )
        for look in looks:
            look.take(parts.pop(0))
        standing = board.standard.parse(parts.pop(0).splitlines())
        new = parts.pop().splitlines() if parts else []
        if new:
            self._mark = Mark(new[-1])
        self._unjudged += new
        return standing


_WHY_REBOOTED = "look for a panic, a watchdog or its power supply: `hil log` has its console"
_RECONNECT_SECONDS = 10.0
_USUAL_COMMAND_SECONDS = 10.0
_SLOW_TEST_COMMANDS = 30
"""How many commands in a row may go unanswered before a test counts as hung."""
_NEXT = "next look:"
_NEXT_LINE = re.compile(rf"^{_NEXT}(?:\n|$)", re.MULTILINE)
_SHOWN = 200

BENCH: pytest.StashKey[Bench] = pytest.StashKey()
"""Where a configuration keeps its bench."""
