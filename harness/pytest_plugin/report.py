"""Results that people use: properties in JUnit XML, KTAP, and a summary by group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.errors import ConfigurationError, HilError
from harness.foreign import escaped
from harness.pytest_plugin import ktap
from harness.pytest_plugin.blame import whose
from harness.pytest_plugin.results import CUT_SHORT, Result
from harness.pytest_plugin.role import board_of_worker
from harness.resources import suite_relative

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.board.identity import Identity
    from harness.pytest_plugin.bench import Bench
    from harness.pytest_plugin.budget import Budget
    from harness.pytest_plugin.keeper import Keeper

REPORT: pytest.StashKey[Report] = pytest.StashKey()
"""Where a configuration keeps its report."""
MEASUREMENT: Final = "measurement."
"""What the names of measurements begin with among an item's properties."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_UNIT: Final = re.compile(r"[A-Za-z0-9]+")
# As Bench words a skip (harness.capabilities, harness.board.board).
_LACKING: Final = re.compile(r"\bno (\w+) on this board|does not (consent to \w+)")
_WHY_CHARS: Final = 160


class Report:
    """Collects what a run found and writes it in each form."""

    def __init__(self, config: pytest.Config, bench: Bench, keeper: Keeper, budget: Budget) -> None:
        self._config = config
        self._bench = bench
        self._keeper = keeper
        self._budget = budget
        self._identity: Identity | None = None
        self.properties: dict[str, object] = {}
        """Of the whole run: the board's identity and capabilities, and what it took."""
        self._for_all: Callable[[str, object], None] | None = None
        self.results: dict[str, Result] = {}

    # --- collecting ---------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Each test says which cases it covers."""
        for item in session.items:
            for name in ("cases", "pain"):
                numbers = [str(one) for mark in item.iter_markers(name) for one in mark.args]
                if numbers:
                    item.user_properties.append((name, " ".join(numbers)))

    def pytest_hil_begin(self, board: Board) -> None:
        """Which board it is, for the summary."""
        self._identity = board.identity()

    def record_board(self, for_all: Callable[[str, object], None]) -> None:
        """The board's identity and capabilities as properties of the whole run; ``for_all`` is
        the fixture ``record_testsuite_property``."""
        board = self._bench.board()
        identity = self._identity or board.identity()
        present = [
            str(name) for name, found in board.capabilities.findings.items() if found.present
        ]
        self._for_all = for_all
        for name, value in {
            "board": identity.board,
            "emmc_cid": " ".join(identity.emmc_cids),
            "firmware": identity.firmware,
            "kernel": identity.kernel,
            "link": identity.link,
            "capabilities": " ".join(sorted(present)),
        }.items():
            self._record(name, value)

    def _record(self, name: str, value: object) -> None:
        self.properties[name] = value
        if self._for_all is not None:
            self._for_all(name, escaped(value) if isinstance(value, str) else value)

    @pytest.hookimpl(wrapper=True)
    def pytest_hil_close(self) -> Generator[None, object, object]:
        """What the run took."""
        try:
            return (yield)
        finally:
            if self._for_all is not None and self._budget.writes:
                self._record("rpmb_writes", self._budget.spent)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Whose a failure looks like, while there is still an exception to ask."""
        report = yield
        group, _, name = suite_relative(item.nodeid, item.path).partition("::")
        result = self.results.setdefault(item.nodeid, Result(group, name))
        result.properties = list(item.user_properties)
        if report.failed and result.outcome != "failed" and call.excinfo is not None:
            result.outcome = "failed"
            result.whose = str(whose(item, call.excinfo.value))
            result.why = _one_line(call.excinfo.exconly(tryshort=True))
            result.in_set_up = report.when == "setup"
        elif report.skipped and not hasattr(report, "wasxfail"):
            result.outcome = "skipped"
            result.why = _one_line(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")
        elif report.when == "call" and result.outcome == CUT_SHORT:
            result.outcome = "passed"
        return report

    # --- writing ------------------------------------------------------------------------------

    def pytest_sessionfinish(self) -> None:
        """Write the KTAP file; that of several boards is not a worker's to write."""
        path: Path | None = self._config.getoption("ktap")
        if board_of_worker(self._config) is not None:
            return
        if path is not None and not self._config.getoption("collectonly"):
            path.write_text(ktap.document(self.results.values(), self.facts()), "utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The sections that have something to say."""
        write_sections(terminalreporter, self.sections())

    def sections(self) -> dict[str, list[str]]:
        """Groups, what was lacking, measurements, whose the failures look like, and the board;
        nothing where no board was reached."""
        if self._identity is None:
            return {}
        results = list(self.results.values())
        return {
            "groups": groups_table(results, self._budget.writes),
            "measurements": self._measurements(),
            "skipped because the board lacks": self._lacking(),
            "whose it looks like": failures(results),
            "board": [*self.facts(), *self._bench.notes, *self._budget.summary()],
            "variables of the board, given back": self._keeper.lines,
        }

    def handed_over(self, ended: HilError | None) -> dict[str, Any]:
        """A board's part of a run on several, for the process that the user started; ``ended`` is
        why not all tests were run."""
        return {
            "sections": self.sections(),
            "facts": self.facts(),
            "properties": self.properties,
            "rpmb_writes": self._budget.spent,
            "restored": self._keeper.restored,
            "ended": None if ended is None else str(ended),
        }

    def facts(self) -> list[str]:
        """Which board it was."""
        if self._identity is None:
            return []
        one = self._identity
        return [
            f"board {one.board}, eMMC CID {', '.join(one.emmc_cids)}, over {one.link}",
            f"firmware {one.firmware}; kernel {one.kernel}",
        ]

    def _lacking(self) -> list[str]:
        lacking: Counter[str] = Counter()
        for result in self.results.values():
            found = _LACKING.search(result.why) if result.outcome == "skipped" else None
            if found:
                lacking[found[1] or found[2]] += 1
        return [f"{name}: {count}" for name, count in lacking.most_common()]

    def _measurements(self) -> list[str]:
        values: dict[str, list[float]] = {}
        for result in self.results.values():
            for name, value in result.properties:
                if name.startswith(MEASUREMENT) and isinstance(value, float):
                    values.setdefault(name.removeprefix(MEASUREMENT), []).append(value)
        limits = self._bench.file.limits
        return [
            f"{key}: {_range(found)}" + (f", limit {limits[key]:g}" if key in limits else "")
            for key, found in sorted(values.items())
        ]


def write_sections(reporter: Any, sections: Mapping[str, Sequence[str]], board: str = "") -> None:
    """Sections of the terminal summary by title, which ``board`` begins; empty ones are left
    out."""
    for title, lines in sections.items():
        if lines:
            reporter.section(f"{board}{title}")
        for line in lines:
            reporter.write_line(escaped(line))


def groups_table(results: Sequence[Result], writes: Mapping[str, int]) -> list[str]:
    """Outcomes and RPMB writes of each group; groups of writes that no test made come last."""
    counts = Counter((result.group, result.outcome) for result in results)
    groups = list(dict.fromkeys(result.group for result in results))
    others = [group for group in writes if group not in groups and writes[group]]
    width = max(map(len, [*groups, *others]), default=0)
    lines = [f"{'':{width}}  passed  failed  skipped  RPMB writes"]
    for group in groups:
        passed, failed, skipped = (
            counts[group, outcome] for outcome in ("passed", "failed", "skipped")
        )
        spent = writes.get(group, "")
        lines.append(f"{group:{width}}  {passed:6}  {failed:6}  {skipped:7}  {spent:11}")
    return lines + [f"{group:{width}}  {'':23}  {writes[group]:11}" for group in others]


def failures(results: Iterable[Result]) -> list[str]:
    """Each failure with whose it looks like."""
    return [
        f"{result.whose}: {result.group}::{result.name}: {result.why}"
        for result in results
        if result.outcome == "failed"
    ]


def key_of(name: str, unit: str) -> str:
    """The key of a measurement's limit. Raises :class:`ConfigurationError` for a name or unit
    that could be none."""
    if not (_NAME.fullmatch(name) and _UNIT.fullmatch(unit)):
        raise ConfigurationError(
            f"a measurement cannot be called {name!r} in {unit!r}",
            remedy="use lower-case letters, digits and _ in its name, letters in its unit",
        )
    return f"{name}_{unit}"


def _range(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:g}"
    return f"{min(values):g} to {max(values):g} in {len(values)} values"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    for prefix in ("Failed: ", "Skipped: "):
        line = line.removeprefix(prefix)
    return line if len(line) <= _WHY_CHARS else f"{line[: _WHY_CHARS - 1]}…"
