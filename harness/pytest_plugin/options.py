"""Options, markers, and the bench that serves a run."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from harness.arguments import seconds
from harness.foreign import escaped_lines
from harness.links.names import LINKS
from harness.pytest_plugin import boards, harmless, hookspecs, junit
from harness.pytest_plugin.bench import BENCH, DEFAULT_BOARD, Bench
from harness.pytest_plugin.budget import BUDGET, Budget
from harness.pytest_plugin.console_watch import ConsoleWatch
from harness.pytest_plugin.costs import ENFORCE
from harness.pytest_plugin.keeper import Keeper
from harness.pytest_plugin.lease import RunLease
from harness.pytest_plugin.report import REPORT, Report
from harness.pytest_plugin.role import ENDED_BY_LAB, board_of_worker
from harness.pytest_plugin.worker import Worker, tell
from harness.safekeeping import key_programming

MARKERS = (
    "cases(*numbers): the cases of docs/cases.md that the test covers",
    "pain(*numbers): the known bugs of the field that the test catches (docs/cases.md)",
    "foreign(*variables): names of variables outside our own vendor GUID that the test writes; "
    "needs the consent foreign_variables",
    "needs(*capabilities): what the board must have (harness.capabilities.Capability); absent: "
    "skipped, or failed where the board file or the kernel series promises it",
    "consents(*consents): what the board's owner must allow (harness.capabilities.Consent)",
    "destructive: may leave the board changed for ever; only on a board with disposable = true",
    "disturbs: leaves the driver, the supplicant or the mount otherwise; the standard state is "
    "brought back afterwards",
    "power: switches the board's power or reboots it",
    "cost(store_bytes=0, rpmb_writes=None, story=None): how many bytes of the variable store the "
    "test's writes take at most (deleting gives none back), and its RPMB writes where they are "
    "known; of the tests of a file with the same story (a fixture they judge) the first pays",
    "wear: costs many RPMB writes",
    "blame(whose): whom a failed assertion points to, firmware (without it) or kernel",
    "allow_kernel_log(*patterns): lines of the kernel log that do not fail this test",
)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Hooks that a lab's own plugin may implement."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the group `the board`, and the ini option for enforced costs."""
    group = parser.getgroup("hil", "the board")
    group.addoption(
        "--board",
        action="append",
        metavar="NAME",
        help="board file: a name known to `hil boards`, or a path; given several times, or a "
        f"directory of board files: all tests on each, at once (default: {DEFAULT_BOARD})",
    )
    group.addoption(
        "--boards-from",
        metavar="DIR",
        help="take board files from DIR only, as with HIL_BOARDS=DIR: none of ./boards, no path "
        "elsewhere; the board `emulated` stays",
    )
    group.addoption(
        "--share",
        action="store_true",
        help="several boards share the tests: each file runs on one of them; a board that is made "
        "anew at each start may be named several times",
    )
    group.addoption(
        "--link",
        choices=LINKS,
        help="the link that tests use (default: ssh where the board has it)",
    )
    group.addoption(
        "--yes", action="store_true", help="nobody is at the terminal: ask no person anything"
    )
    group.addoption(
        "--console-log",
        type=Path,
        metavar="FILE",
        help="capture the serial console in FILE, with time stamps; in a folder, which exists or "
        "ends in /, one file a boot; of several boards a folder with one for each",
    )
    group.addoption(
        key_programming.OPTION,
        action="store_true",
        help="tests may program the RPMB key of the board, which cannot be undone; also needs the "
        f"consent program_key and {key_programming.IDENTITY_OPTION}",
    )
    group.addoption(
        key_programming.IDENTITY_OPTION,
        metavar="CID",
        help="the CID of the eMMC whose RPMB key may be programmed (default: asked at the "
        "terminal)",
    )
    group.addoption(
        "--capabilities",
        choices=("measured", "pinned"),
        default="measured",
        help="pinned: believe the board file's [capabilities] instead of measuring those "
        "(default: %(default)s)",
    )
    group.addoption(
        "--wait-for-board",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for a board that somebody else holds (default: not at all)",
    )
    group.addoption("--ktap", type=Path, metavar="FILE", help="write the results as KTAP to FILE")
    parser.addini(
        ENFORCE,
        "a test fails that takes more of the variable store than its cost marker declares",
        type="bool",
        default=False,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """What is to be written can be; several boards: a worker for each."""
    if not hasattr(config, "workerinput"):
        _require_writable(config)
    boards.spread(config)


def _require_writable(config: pytest.Config) -> None:
    """What is written at the end of a run is lost then. Raises :class:`pytest.UsageError`."""
    several = len(boards.chosen(config)) > 1
    for option, name, folder_made in (
        ("--ktap", "ktap", False),
        ("--junitxml", "xmlpath", True),
        ("--console-log", "console_log", True),
    ):
        given = config.getoption(name, None)
        path = None if given is None else Path(given)
        if path is None or (name == "console_log" and (several or path.is_dir())):
            continue
        if why_not := _why_not_writable(path, folder_made=folder_made):
            raise pytest.UsageError(f"{option} {path}: cannot be written: {why_not}")


def _why_not_writable(path: Path, *, folder_made: bool) -> str | None:
    """With ``folder_made``, missing folders on the way are made."""
    try:
        # Never waits: of a FIFO that nobody reads, and of a folder, it says why not.
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except FileNotFoundError:
        folder = path.resolve().parent
        while folder_made and not folder.exists():
            folder = folder.parent
        usable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        return None if usable else f"{folder} is no folder that can be written to"
    except OSError as error:
        return error.strerror
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Register markers; a named board file must be right even if no test will use it."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    config.pluginmanager.register(harmless, "hil-harmless")
    mine = board_of_worker(config)
    names = boards.chosen(config)
    if mine is None and len(names) > 1:
        config.pluginmanager.register(boards.Boards(config), "hil-boards")
        return
    _serve(
        config, str(mine) if mine is not None else next(iter(names), None), worker=mine is not None
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """The JUnit XML, which pytest has written by now, names tests as all results do."""
    result = yield
    path = session.config.getoption("xmlpath", None)
    if path and not hasattr(session.config, "workerinput") and Path(path).exists():
        junit.rename(Path(path), session.config.rootpath)
    return result


def _serve(config: pytest.Config, name: str | None, *, worker: bool) -> None:
    """The bench of this process and what belongs to it."""
    lease = RunLease(config, functools.partial(_tell, config), ENDED_BY_LAB if worker else None)
    bench = Bench(config, lease, name)
    config.stash[BENCH] = bench
    keeper = Keeper(bench)
    budget = config.stash[BUDGET] = Budget(config, bench, keeper)
    report = config.stash[REPORT] = Report(config, bench, keeper, budget)
    parts = {"bench": bench, "console": ConsoleWatch(bench), "budget": budget, "keeper": keeper}
    for name, part in {**parts, "report": report}.items():
        config.pluginmanager.register(part, f"hil-{name}")
    if worker:
        config.pluginmanager.register(Worker(config, bench, budget, report), "hil-worker")


def _tell(config: pytest.Config, line: str) -> None:
    """A line for who watches the run, now."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if board_of_worker(config) is not None:
        tell(config, line)
    elif reporter is not None:
        reporter.write_line(escaped_lines(line))
        reporter.flush()
