"""``python -m tests.faults [--at COMMIT] [FAULT ...]``: today's tests of the faults, on today's
code and on that of another commit, side by side.

The other commit is checked out beside, its tests replaced by today's. A test module that cannot be
imported there says so: what it tests did not exist.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cases.collecting import ROOT
from tests.faults.outcomes import Tried, read

_SECONDS = 3000.0
_WHY_CHARS = 90


def _run(tree: Path, faults: Sequence[str], folder: Path) -> dict[str, Tried]:
    report = folder / f"{tree.name}.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.outcomes"]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command += [f"--faults-to={report}", f"--faults-only={','.join(faults)}"]
    command += ["tests/harness", "tests/emulation"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(command, cwd=tree, env=environment, timeout=_SECONDS, check=False)
    return {tried.test: tried for tried in read(report)}


@contextmanager
def _at(commit: str) -> Iterator[Path]:
    """The code of ``commit`` with today's tests."""
    with tempfile.TemporaryDirectory(prefix="stmm-hil-faults-") as folder:
        tree = Path(folder, "before")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            shutil.rmtree(tree / "tests")
            shutil.copytree(ROOT / "tests", tree / "tests")
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _table(now: dict[str, Tried], before: dict[str, Tried] | None) -> Iterator[str]:
    rows = [(fault, tried) for tried in now.values() for fault in tried.faults]
    for fault, tried in sorted(rows, key=lambda row: (row[0], row[1].test)):
        verdicts = f"{tried.verdict:<8}"
        if before is not None:
            then = before.get(tried.test)
            verdicts = f"{then.verdict if then else 'no such':<8} -> {verdicts}"
        yield f"{fault:<4} {verdicts} {tried.test}"
        why = tried.why or (before or {}).get(tried.test, tried).why
        if why:
            yield f"{'':>4} {why[:_WHY_CHARS]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--at", metavar="COMMIT", help="also on the code of this commit")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="only these (J1 L4 ...)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        now = _run(ROOT, options.faults, Path(folder))
        before = None
        if options.at:
            with _at(options.at) as tree:
                before = _run(tree, options.faults, Path(folder))
    print("\n".join(_table(now, before)))
    passed = [test for test, tried in now.items() if tried.verdict == "passed"]
    print(f"FAULTS {len(passed)} of {len(now)} tests pass", end="")
    if before is not None:
        unseen = [t for t in passed if t in before and before[t].verdict == "passed"]
        print(f"; {len(unseen)} of them passed at {options.at}, too", end="")
    print()
    return 0 if now and all(tried.verdict != "failed" for tried in now.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
