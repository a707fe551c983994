"""A run of pytest within a test: a project of its own, on an emulated board of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests.pace import HANGS

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Run:
    """The nested run: its exit status and output, and for each test outcome and message, in the
    order in which they ran; ``report`` is its JUnit XML, None when there is none."""

    status: int
    output: str
    outcomes: dict[str, tuple[str, str]]
    report: ET.Element | None


def board_file(folder: Path, *changes: str, top: str = "") -> Path:
    """The emulated board's file with each odd one of ``changes`` replaced by the next, and
    ``top`` above its tables."""
    text = (ROOT / "boards" / "emulated.toml").read_text()
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    path = folder / "soft.toml"
    path.write_text(f"{top}\n{text}")
    return path


def inner_run(
    folder: Path, source: str, board: Path, options: str = "", *, tests: str = "test_inner.py"
) -> Run:
    """Run ``source`` on the board of a file; ``options`` are split at spaces."""
    (folder / "test_inner.py").write_text(source)
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), "-c", "/dev/null", "-rA"]
    command += ["--board", str(board), f"--junitxml={report}", *options.split()]
    ended = subprocess.run(
        [*command, *tests.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    root = ET.parse(report).getroot() if report.exists() else None
    return Run(ended.returncode, ended.stdout + ended.stderr, _outcomes(root), root)


def _outcomes(root: ET.Element | None) -> dict[str, tuple[str, str]]:
    outcomes = {}
    for case in root.iter("testcase") if root is not None else ():
        verdict = next((child for child in case if child.tag != "properties"), None)
        if verdict is None or verdict.tag.startswith("system"):
            outcomes[case.get("name", "")] = ("passed", "")
        else:
            text = f"{verdict.get('message')} {verdict.text}"
            outcomes[case.get("name", "")] = (verdict.tag, text)
    return outcomes
