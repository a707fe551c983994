"""Several boards in one run: one worker of pytest-xdist a board, each of which runs all tests, or
its share of them.

A worker is a process with a bench of its own, so that boards share nothing: snapshot, budget,
recovery and lease are each board's. What is here runs in the process that the user started; it
hands out boards and collects what the workers found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness import interrupts
from harness.errors import ConfigurationError
from harness.pytest_plugin import junit, ktap
from harness.pytest_plugin.report import failures, groups_table, write_sections
from harness.pytest_plugin.results import Result
from harness.pytest_plugin.role import BOARD_INPUT, FIRST_INPUT, OUTPUT, RESULT, SHARE_INPUT
from harness.pytest_plugin.scheduling import OneWorkerABoard
from harness.pytest_plugin.sharing import copies
from harness.pytest_plugin.usage import usage_errors
from harness.resources import suite_relative

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile

_GIVE_BACK_SECONDS: Final = 180.0
"""How long interrupted workers may take to give their boards back."""


@dataclass
class BoardOfRun:
    """One board, and what its worker has told so far."""

    path: Path
    results: dict[str, Result] = field(default_factory=dict)
    collected: int = 0
    node: Any = None
    died: str | None = None
    output: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> str | None:
        """Why not all tests were run, where something is to be said about it."""
        return self.output.get("ended") if self.output else self.died

    def sections(self) -> dict[str, list[str]]:
        """The worker's own summary; what is known of the results of a worker that died."""
        if self.output:
            return dict(self.output["sections"])
        results = list(self.results.values())
        return {"groups": groups_table(results, {}), "whose it looks like": failures(results)}


def chosen(config: pytest.Config) -> list[str]:
    """What ``--board`` names, with each directory replaced by its board files. Raises
    :class:`pytest.UsageError` for a directory without one."""
    names: list[str] = []
    for name in config.getoption("board") or []:
        if os.path.isdir(name):  # noqa: PTH112 - of a name too long pathlib raises
            files = sorted(Path(name).glob("*.toml"))
            if not files:
                raise pytest.UsageError(f"--board {name}: no *.toml in that directory")
            names += [f"./{file}" if file.parent == Path() else str(file) for file in files]
        else:
            names.append(name)
    return names


def spread(config: pytest.Config) -> None:
    """Have pytest-xdist start a worker for each of several boards. Raises
    :class:`pytest.UsageError`."""
    names = chosen(config)
    if hasattr(config, "workerinput"):
        return
    if len(names) < 2:
        if config.getoption("share"):
            raise pytest.UsageError("--share needs several boards: give --board for each")
        return
    if not config.pluginmanager.hasplugin("xdist"):
        raise pytest.UsageError(f"{len(names)} boards need pytest-xdist: pip install pytest-xdist")
    option = config.option
    if option.numprocesses is not None or option.tx or option.dist != "no":
        raise pytest.UsageError(
            f"{len(names)} boards are {len(names)} workers, one a board: leave out -n, --dist, --tx"
        )
    if option.usepdb:
        raise pytest.UsageError("--pdb has one board only")
    if option.console_log is not None and option.console_log.is_file():
        raise pytest.UsageError("--console-log of several boards is a folder with one for each")
    files = board_files(names, share=option.share, boards_from=option.boards_from)
    option.tx = [f"popen//id={name}" for name in files]
    option.dist = "each"
    # Another worker would not know what became of the board.
    option.maxworkerrestart = "0"


def board_files(
    names: Sequence[str], *, share: bool = False, boards_from: str | None = None
) -> dict[str, tuple[Path, BoardFile]]:
    """The boards by name. Boards that share the tests may be made from one file where each start
    makes another board. Raises :class:`pytest.UsageError` where a file is wrong or two are one
    board."""
    from harness.boardfile import loading
    from harness.lab.things import things_of

    files: dict[str, tuple[Path, BoardFile]] = {}
    owners: dict[str, str] = {}
    with usage_errors():
        paths = [loading.find(name, boards_from) for name in names]
        loaded = [(path, loading.load(path)) for path in paths]
        for name, (path, file) in zip(
            copies([file.name for _, file in loaded]), loaded, strict=True
        ):
            things = things_of(file)
            if name != file.name and (things or not share):
                raise ConfigurationError(
                    f"{path} and {files[file.name][0]} are both called {file.name}",
                    remedy="name each board once; `name = ...` in a board file tells two apart; "
                    "boards made anew at each start may be several with --share",
                )
            for thing in things:
                if thing in owners:
                    raise ConfigurationError(
                        f"the boards {owners[thing]} and {file.name} share {thing}",
                        remedy="one of them at a time: they are, or need, the same thing",
                    )
                owners[thing] = file.name
            files[name] = (path, file)
    return files


class Boards:
    """The boards of a run, seen from the process that the user started."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._session: pytest.Session | None = None
        self._share: bool = config.getoption("share")
        files = board_files(
            chosen(config), share=self._share, boards_from=config.getoption("boards_from")
        )
        self._boards = {name: BoardOfRun(path) for name, (path, _) in files.items()}
        config.add_cleanup(interrupts.install())

    # --- handing out --------------------------------------------------------------------------

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """The session is told how many results to expect."""
        self._session = session

    def pytest_configure_node(self, node: Any) -> None:
        """Each worker has a board's name and gets its file."""
        board = self._boards[node.gateway.id]
        board.node = node
        node.workerinput[BOARD_INPUT] = str(board.path.absolute())
        boards = list(self._boards.values())
        node.workerinput[FIRST_INPUT] = board is boards[0]
        if self._share:
            node.workerinput[SHARE_INPUT] = (boards.index(board), len(boards))

    def pytest_xdist_make_scheduler(self) -> OneWorkerABoard:
        """Every board runs all tests, without waiting for another board."""
        return OneWorkerABoard(len(self._boards), self._expect)

    def _expect(self, node: Any, collection: Sequence[str]) -> None:
        self._boards[node.gateway.id].collected = len(collection)
        assert self._session is not None
        self._session.testscollected = sum(board.collected for board in self._boards.values())

    # --- collecting ---------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each report brings what the worker's own report knows of its test."""
        node = getattr(report, "node", None)
        if node is None:
            return
        results = self._boards[node.gateway.id].results
        report.user_properties.append((junit.BOARD, node.gateway.id))
        known = getattr(report, RESULT, None)
        if known is not None:
            results[report.nodeid] = Result(**known)
        elif report.failed:
            file = self._config.rootpath / report.nodeid.partition("::")[0]
            results[report.nodeid] = Result.of_crash(suite_relative(report.nodeid, file))

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker that ended without a word took its board with it."""
        if error is not None:
            self._boards[node.gateway.id].died = f"its process ended: {error}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Another signal is not to fall into pytest's own work."""
        interrupts.begin_ending()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Wait until every board is given back, then write results."""
        self._end_workers()
        for board in self._boards.values():
            board.output = getattr(board.node, "workeroutput", {}).get(OUTPUT, {})
            if not board.output and board.died is None:
                board.died = "its process ended without a word"
        result = yield
        self._judge(session)
        self._write()
        return result

    def _end_workers(self) -> None:
        """^C: workers whose tests go on give their boards back; a second one hurries them."""
        busy = {
            name: board.node
            for name, board in self._boards.items()
            if board.node is not None and not _is_over(board.node)
        }
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        deadline = time.monotonic() + _GIVE_BACK_SECONDS
        with interrupts.ending():
            _send(busy.values(), signal.SIGINT)
            for name, node in busy.items():
                # The terminal may be what has ended.
                with contextlib.suppress(OSError):
                    if reporter is not None:
                        reporter.write_line(f"waiting until {name} is given back")
                while not _waited(node, deadline):
                    _send(busy.values(), interrupts.HURRY)

    def _judge(self, session: pytest.Session) -> None:
        """A board that was not tested to the end is the lab's fault (2); one that was not restored
        a failure."""
        if any(board.ended or not board.output for board in self._boards.values()):
            session.exitstatus = pytest.ExitCode.INTERRUPTED
        elif session.exitstatus == pytest.ExitCode.OK and not all(
            board.output["restored"] for board in self._boards.values()
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    # --- writing ------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._config.getoption("collectonly"):
            return
        path: Path | None = self._config.getoption("ktap")
        if path is not None:
            boards = {
                name: (board.output.get("facts", []), board.results.values(), board.ended)
                for name, board in self._boards.items()
            }
            path.write_text(ktap.of_boards(boards), "utf-8")
        if xml := self._config.getoption("xmlpath", None):
            junit.split(
                Path(xml),
                {
                    name: board.output.get("properties", {"board": name})
                    for name, board in self._boards.items()
                },
            )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """All boards at a glance, then each by itself."""
        for name, board in self._boards.items():
            write_sections(terminalreporter, board.sections(), f"{name}: ")
        write_sections(terminalreporter, {"boards": self._overview()})

    def _overview(self) -> list[str]:
        width = max(map(len, self._boards))
        lines = [f"{'':{width}}  passed  failed  skipped  not run  RPMB writes"]
        for name, board in self._boards.items():
            outcomes = [result.outcome for result in board.results.values()]
            passed, failed, skipped = map(outcomes.count, ("passed", "failed", "skipped"))
            missing = board.collected - passed - failed - skipped
            lines.append(
                f"{name:{width}}  {passed:6}  {failed:6}  {skipped:7}  {missing:7}  "
                f"{board.output.get('rpmb_writes', ''):11}"
            )
        lines += [f"{name}: {board.ended}" for name, board in self._boards.items() if board.ended]
        return lines


def _send(nodes: Iterable[Any], number: int) -> None:
    for node in nodes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.gateway._rinfo().pid, number)


def _waited(node: Any, deadline: float) -> bool:
    """Whether a worker has ended, or the deadline passed, without the user interrupting again."""
    channel = node.channel
    try:
        with contextlib.suppress(EOFError, channel.RemoteError, channel.TimeoutError):
            channel.waitclose(max(0.0, deadline - time.monotonic()))
    except KeyboardInterrupt:
        return False
    return True


def _is_over(node: Any) -> bool:
    return hasattr(node, "workeroutput") or node.channel.isclosed()
