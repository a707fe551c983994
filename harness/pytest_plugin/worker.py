"""One board's worker among several (pytest-xdist): it reaches its board after it has told what it
collected, its tests carry the board's name, and what it found goes to the process that the user
started."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from harness import interrupts
from harness.errors import HilError
from harness.foreign import say
from harness.pytest_plugin.bench import Bench
from harness.pytest_plugin.markers import uses_board
from harness.pytest_plugin.role import (
    BOARD_FIXTURE,
    ENDED_BY_LAB,
    OUTPUT,
    RESULT,
    is_first_worker,
    name_of_worker,
    share_of_worker,
)
from harness.pytest_plugin.sharing import share

if TYPE_CHECKING:
    from harness.pytest_plugin.budget import Budget
    from harness.pytest_plugin.report import Report


class Worker:
    """The worker's end of :class:`harness.pytest_plugin.boards.Boards`."""

    def __init__(self, config: pytest.Config, bench: Bench, budget: Budget, report: Report) -> None:
        self._config = config
        self._bench = bench
        self._budget = budget
        self._report = report
        self._not_reached: HilError | None = None
        # The terminal's ^C reaches a worker, and the process that the user started passes it on.
        config.add_cleanup(interrupts.install(told_by_parent=True))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Results of boards are told apart by the tests' ids: the board is a parameter."""
        if BOARD_FIXTURE in metafunc.fixturenames:
            name = name_of_worker(self._config)
            metafunc.parametrize(BOARD_FIXTURE, [name], indirect=True, scope="session")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """What needs no board is run once, by the first worker, and what boards share by one."""
        mine = [item for item in items if uses_board(item)]
        if (shared := share_of_worker(self._config)) is not None:
            mine = share(mine, *shared)
        if is_first_worker(self._config):
            mine += [item for item in items if not uses_board(item)]
        chosen = set(mine)
        self._config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Reach the board. Others go on without one that cannot be reached."""
        try:
            self._bench.reach(session)
        except HilError as error:
            self._not_reached = error
            raise pytest.exit.Exception(str(error), returncode=ENDED_BY_LAB) from None
        about = [
            *self._bench.pytest_report_collectionfinish(),
            *self._budget.pytest_report_collectionfinish(),
        ]
        name = name_of_worker(self._config)
        tell(self._config, "\n".join(f"{name}: {line}" for line in about))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """What is known of the test goes with its report: a worker may die before it can tell."""
        report = yield
        result = self._report.results.get(item.nodeid)
        if result is not None:
            setattr(report, RESULT, asdict(result))
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """The board is given back: hand over its part of the summary."""
        output = self._report.handed_over(self._not_reached or self._bench.ended)
        self._config.workeroutput[OUTPUT] = output  # type: ignore[attr-defined]


def tell(config: pytest.Config, lines: str) -> None:
    """Print lines where the user sees them, from a worker whose output is captured."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        # The cursor may be behind the dots of other workers' tests.
        say("", *lines.split("\n"), file=sys.stderr)
