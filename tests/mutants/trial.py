"""One run of the conformance tests on one mutant board."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from emulation.mutants.mutant import Mutant
from harness.boardfile import loading
from harness.capabilities import Capability
from tests.mutants.verdict import Verdict

REPOSITORY: Final = Path(__file__).parents[2]
HEALTHY: Final = REPOSITORY / "boards" / "emulated.toml"
TEST_SECONDS: Final = 60
"""Longest that one test may hang on a mutant."""
_KILL_SECONDS: Final = 10


@dataclass(frozen=True)
class Trial:
    """What became of one mutant; ``catching`` are tests, ``other`` are failures that do not
    count."""

    mutant: Mutant
    outcome: str
    seconds: float
    catching: Sequence[str]
    other: Sequence[str]

    @property
    def caught(self) -> bool:
        """Whether a test noticed."""
        return bool(self.catching)


@dataclass(frozen=True)
class Bench:
    """Where boards of one measured healthy one are sabotaged; ``timeout`` in seconds a mutant."""

    directory: Path
    capabilities: Mapping[str, bool]
    timeout: float
    _running: set[subprocess.Popen[str]] = field(default_factory=set)

    @classmethod
    def prepare(cls, directory: Path, *, timeout: float) -> Bench:
        """Measure what the healthy board can do. HilError when it does not start."""
        from harness.board.board import Board

        board = Board(loading.load(HEALTHY))
        try:
            board.start()
            board.wait_until_ready()
            measured = {str(name): board.capabilities.has(name) for name in Capability}
        finally:
            board.close()
        return cls(directory, measured, timeout)

    def try_mutant(self, mutant: Mutant) -> Trial:
        """Run the tests on one mutant until it is caught: the likely files, then all others."""
        verdicts = self.directory / f"{mutant.name}.jsonl"
        started = time.monotonic()
        likely, others = files_in_order(mutant.first)
        outcome = ""
        for files in filter(None, (likely, others)):
            left = started + self.timeout - time.monotonic()
            status, output = self._pytest(mutant, verdicts, files, left)
            outcome = self._outcome(status, output)
            found = _read(verdicts)
            catching = [verdict.test for verdict in found if verdict.caught]
            if catching or status not in (0, 1):
                break
        if catching:
            outcome = "caught"
        other = [
            f"{verdict.test.rpartition('/')[2]} {verdict.phase}: {verdict.exception}: "
            f"{verdict.message}"
            for verdict in found
            if not verdict.caught
        ]
        return Trial(mutant, outcome, time.monotonic() - started, catching, other)

    def _outcome(self, status: int | None, output: str) -> str:
        if status is None:
            return f"NOT caught: still running after {self.timeout:.0f} s"
        if status in (0, 1):
            return f"NOT caught ({_last_line(output)})"
        return f"NOT caught: pytest ended with {status}: {_last_line(output)}"

    def board_file(self, mutant: str) -> Path:
        """A board file: the healthy board's, its capabilities pinned, one thing broken."""
        board = tomllib.loads(HEALTHY.read_text())
        board["power"]["options"]["mutant"] = mutant
        board["capabilities"] = dict(self.capabilities)
        path = self.directory / f"{mutant}.toml"
        path.write_text("".join(_toml(board)))
        return path

    def _pytest(
        self, mutant: Mutant, verdicts: Path, files: Sequence[Path], timeout: float
    ) -> tuple[int | None, str]:
        command = [
            *(sys.executable, "-m", "pytest", *map(str, files), "-q", "--no-header", "--tb=no"),
            *("-p", "tests.mutants.verdict", "-p", "no:cacheprovider"),
            *("--board", str(self.board_file(mutant.name)), "--capabilities", "pinned"),
            *("--timeout", str(TEST_SECONDS), "--verdicts", str(verdicts)),
        ]
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "XDG_STATE_HOME": str(self.directory / "state")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running.add(process)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate(timeout=_KILL_SECONDS)
            return None, ""
        finally:
            self._running.discard(process)
        return process.returncode, output

    def stop(self) -> None:
        """End the runs that are going on."""
        for process in tuple(self._running):
            _kill(process)


def _toml(values: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """Lines of TOML: what is no table is written as JSON writes it."""
    for name, value in values.items():
        if not isinstance(value, dict):
            yield f"{name} = {json.dumps(value)}\n"
    for name, value in values.items():
        if isinstance(value, dict):
            inner = f"{table}.{name}" if table else name
            yield f"[{inner}]\n"
            yield from _toml(value, inner)


def files_in_order(first: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The test files whose names contain a word of ``first``, and all others."""
    files = sorted((REPOSITORY / "tests" / "conformance").glob("test_*.py"))
    likely = [file for file in files if any(word in file.stem for word in first)]
    return likely, [file for file in files if file not in likely]


def _kill(process: subprocess.Popen[str]) -> None:
    """The board ends with its harness, whose end closes the board's standard input."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(path: Path) -> list[Verdict]:
    if not path.exists():
        return []
    return [Verdict(**json.loads(line)) for line in path.read_text().splitlines()]


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
