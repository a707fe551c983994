"""What tests marked ``fault("J1")`` came to; as a pytest plugin it writes that down.

``pytest -p tests.faults.outcomes --faults-to FILE`` runs only tests that bear the mark.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

_TARGET: pytest.StashKey[Path] = pytest.StashKey()


@dataclass
class Tried:
    """One test of a fault: the faults it names, and its verdict over set-up, call and teardown."""

    test: str
    faults: tuple[str, ...]
    verdict: str = "not run"
    why: str = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-to", type=Path, help="write the verdicts of marked tests to FILE")
    parser.addoption("--faults-only", default="", help="only these faults, separated by commas")


class _Recorder:
    def __init__(self, target: Path, only: frozenset[str]) -> None:
        self._target = target
        self._only = only
        self._tried: dict[str, Tried] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        chosen = []
        for item in items:
            faults = tuple(str(one) for mark in item.iter_markers("fault") for one in mark.args)
            if faults and (not self._only or self._only & set(faults)):
                self._tried[item.nodeid] = Tried(item.nodeid, faults)
                chosen.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        tried = self._tried[item.nodeid]
        if report.failed and tried.verdict != "failed":
            tried.verdict = "failed"
            message = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
            tried.why = next(iter(str(message or report.longrepr).splitlines()), "")
        elif report.skipped:
            tried.verdict = "skipped"
            tried.why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        elif report.when == "call" and tried.verdict == "not run":
            tried.verdict = "passed"
        return report

    def pytest_sessionfinish(self) -> None:
        rows = [asdict(tried) for tried in self._tried.values()]
        self._target.write_text(json.dumps(rows), "utf-8")


def pytest_configure(config: pytest.Config) -> None:
    target: Path | None = config.getoption("faults_to")
    if target is not None:
        only = frozenset(filter(None, config.getoption("faults_only").split(",")))
        config.pluginmanager.register(_Recorder(target, only), "faults-recorder")


def read(path: Path) -> list[Tried]:
    """What a run wrote. Raises OSError where it wrote nothing."""
    rows = json.loads(path.read_text("utf-8"))
    return [Tried(**{**row, "faults": tuple(row["faults"])}) for row in rows]
