"""A test fails for what the board says on its console meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from harness.pytest_plugin.bench import Bench
from harness.pytest_plugin.blame import BLAME, Whose
from harness.pytest_plugin.markers import uses_board

if TYPE_CHECKING:
    from harness.instruments.console_log import ConsoleLog


_FAILED: pytest.StashKey[bool] = pytest.StashKey()


class ConsoleWatch:
    """Listens where the serial console is open anyway; never types, never waits."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._log: ConsoleLog | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """What was said before the test is not the test's."""
        result = yield
        if uses_board(item):
            self._new_lines()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """The test, and then the console."""
        return (yield from self._judging(item, "call"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Its clean-up, and then the console."""
        return (yield from self._judging(item, "teardown"))

    def _judging(self, item: pytest.Item, phase: str) -> Generator[None, object, object]:
        if not uses_board(item):
            return (yield)
        try:
            result = yield
        except (Exception, pytest.fail.Exception):
            item.stash[_FAILED] = True
            if lines := self._new_lines():
                item.add_report_section(phase, "console", "\n".join(lines))
            raise
        self._judge(item, phase)
        return result

    def _judge(self, item: pytest.Item, phase: str) -> None:
        from harness.instruments.console_log import bad_console

        lines = self._new_lines()
        found = bad_console(lines, allowed=self._bench.allowed_lines(item)) if lines else None
        if found is not None:
            item.add_report_section(phase, "console", "\n".join(found.shown))
            if item.stash.get(_FAILED, False):
                # A slow line tells now what the test has failed for.
                return
            item.stash[BLAME] = Whose.KERNEL
            pytest.fail(
                f"the console has {found.bad[0]!r} ({len(found.bad)} such lines)", pytrace=False
            )

    def _new_lines(self) -> list[str]:
        """Whole lines since the last look."""
        console = self._bench.board().links.open_console if self._bench.reached else None
        if console is None:
            self._log = None
            return []
        from harness.instruments.console_log import ConsoleLog

        if self._log is None or not self._log.of(console):
            self._log = ConsoleLog(console)
        return self._log.new_lines()
