"""One run of the conformance suite in a process of its own, with a report."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer

from tests.cases.collecting import ROOT

# A line of dots as `pytest -q` ends it.
_DOTS = re.compile(r"^(?P<verdicts>[.FEsxX]+) *\[ *(?P<percent>\d+)%\]$")


@dataclass(frozen=True)
class Ending:
    """How pytest ended: its last line, and why not all tests have a verdict, if so."""

    last: str
    fault: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run has come: percent of the tests that have a verdict, and how many failed."""

    percent: int
    failed: int


def run_suite(
    board: Path,
    arguments: Sequence[str],
    report: Path,
    timeout: float,
    say: Callable[[Progress], None] = lambda progress: None,
) -> Ending:
    """Run pytest on the board of a file, with a JUnit report; ``timeout`` is in seconds. ``say``
    is called whenever some 70 more tests have a verdict."""
    command = [sys.executable, "-m", "pytest", *arguments, "-q", "-p", "no:cacheprovider"]
    command += ["--board", str(board), f"--junitxml={report}"]
    too_long = Event()
    last, failed = "", 0
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:

        def give_up() -> None:
            too_long.set()
            process.kill()

        watchdog = Timer(timeout, give_up)
        watchdog.start()
        try:
            for line in process.stdout or ():
                last = line.strip() or last
                if dots := _DOTS.match(line.strip()):
                    failed += sum(dots["verdicts"].count(letter) for letter in "FE")
                    say(Progress(int(dots["percent"]), failed))
        finally:
            watchdog.cancel()
    if too_long.is_set():
        return Ending("", f"the run did not end within {timeout:g} s")
    if process.returncode not in (0, 1):
        return Ending(last, f"pytest: {process.returncode}")
    return Ending(last, "" if report.exists() else "no report")
