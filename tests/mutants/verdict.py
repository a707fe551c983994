"""A pytest plugin that says of each failure whether the test itself noticed a broken board.

``--verdicts FILE`` gets one line of JSON a failure; the run ends when enough tests have noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pytest

from harness.resources import suite_relative

ENOUGH: Final = 3
"""How many tests must have noticed for the run to end; it also ends with the file of the first."""

_FAIL_OF_A_TEST: Final = re.compile(r"DID NOT RAISE|.* allows limits\.")
"""Messages of ``pytest.fail`` that judge the board; others tell of time-outs, of a board that was
lost, of a test's own carelessness."""


@dataclass(frozen=True)
class Verdict:
    """One failure: in which phase, by which exception, and whether that is an assertion about the
    board's behaviour."""

    test: str
    phase: str
    exception: str
    message: str
    caught: bool


def is_assertion(phase: str, error: BaseException) -> bool:
    """Whether a failure is an assertion of the test about the board, and nothing else."""
    if phase != "call":
        return False
    if isinstance(error, pytest.fail.Exception):
        return _FAIL_OF_A_TEST.match(str(error.msg)) is not None
    return isinstance(error, AssertionError)


class Verdicts:
    """Writes the verdicts and ends the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._caught: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note a failure."""
        report = yield
        if report.failed and call.excinfo is not None:
            self._note(item, call.when, call.excinfo.value)
        return report

    def _note(self, item: pytest.Item, phase: str, error: BaseException) -> None:
        caught = is_assertion(phase, error)
        message = (str(error).strip() or "no message").splitlines()[0]
        test = suite_relative(item.nodeid, item.path)
        verdict = Verdict(test, phase, type(error).__name__, message[:200], caught)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(verdict)) + "\n")
        if caught:
            self._caught.append(test)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Nothing of this test: end the run before it when the last ones said enough."""
        if len(self._caught) >= ENOUGH or (self._caught and not _same_file(item, self._caught[0])):
            pytest.exit("the mutant is caught", returncode=pytest.ExitCode.TESTS_FAILED)


def _same_file(item: pytest.Item, test: str) -> bool:
    return suite_relative(item.nodeid, item.path).partition("::")[0] == test.partition("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--verdicts``."""
    group = parser.getgroup("mutants", "mutant boards")
    group.addoption("--verdicts", type=Path, metavar="FILE", help="a line of JSON a failure")


def pytest_configure(config: pytest.Config) -> None:
    """Work only where asked to."""
    path = config.getoption("verdicts")
    if path is not None:
        config.pluginmanager.register(Verdicts(path), "hil-verdicts")
