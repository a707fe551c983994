"""Which tests there are and what their markers name; as a pytest plugin it writes that down.

``pytest -p tests.cases.collecting --cases-to FILE --collect-only`` needs no board.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Collected:
    """One test item: the test's file and name without its parameters, and what it covers."""

    file: str
    name: str
    cases: tuple[int, ...]
    pains: tuple[int, ...]

    @property
    def function(self) -> str:
        return f"{self.file}::{self.name}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases-to", type=Path, help="write what markers name into this file")


def pytest_collection_finish(session: pytest.Session) -> None:
    target: Path | None = session.config.getoption("cases_to")
    if target is None:
        return
    rows = [
        (item.nodeid.partition("::")[0], _name(item), _marked(item, "cases"), _marked(item, "pain"))
        for item in session.items
    ]
    target.write_text(json.dumps(rows), "utf-8")


def collect(*paths: str) -> list[Collected]:
    """The items under ``paths`` (relative to the checkout; all tests by default), without running
    any. Raises RuntimeError with pytest's output when they cannot be collected."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "items.json")
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", __name__]
        command += ["-p", "no:cacheprovider", "--cases-to", str(target), *(paths or ["tests"])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"pytest could not collect: {(done.stdout + done.stderr)[-2000:]}")
        rows = json.loads(target.read_text("utf-8"))
    return [Collected(file, name, tuple(cases), tuple(pains)) for file, name, cases, pains in rows]


def _name(item: pytest.Item) -> str:
    path = item.nodeid.partition("[")[0]
    return path.partition("::")[2]


def _marked(item: pytest.Item, marker: str) -> list[int]:
    return sorted({number for mark in item.iter_markers(marker) for number in mark.args})
