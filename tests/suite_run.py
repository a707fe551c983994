"""One run of the conformance suite in a process of its own, with a report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cases.collecting import ROOT


@dataclass(frozen=True)
class Ending:
    """How pytest ended: its last line, and why not all tests have a verdict, if so."""

    last: str
    fault: str = ""


def run_suite(board: Path, arguments: Sequence[str], report: Path, timeout: float) -> Ending:
    """Run pytest on the board of a file, with a JUnit report; ``timeout`` is in seconds."""
    command = [sys.executable, "-m", "pytest", *arguments, "-q", "-p", "no:cacheprovider"]
    command += ["--board", str(board), f"--junitxml={report}"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Ending("", f"the run did not end within {timeout:g} s")
    last = "".join((done.stdout + done.stderr).strip().splitlines()[-1:])
    if done.returncode not in (0, 1):
        return Ending(last, f"pytest: {done.returncode}")
    return Ending(last, "" if report.exists() else "no report")
