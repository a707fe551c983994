"""``python -m benchmarks.run [NAME ...] [--against TREE [--pairs N]]``: every benchmark of this
folder, or those named; with ``--against``, what became worse since another tree (a worktree)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.against import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """Each ``bench_*.py`` in a process of its own; 1 if one missed what it requires, or is surely
    worse than in the other tree by more than a tenth."""
    paths = sorted(Path(__file__).parent.glob("bench_*.py"))
    every = [path.stem.removeprefix("bench_") for path in paths]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(every)}")
    parser.add_argument("--against", type=Path, metavar="TREE", help="compare with this tree")
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(every):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(every)}")
    names: list[str] = options.names or every
    if options.against is not None:
        return compare(options.against, names, options.pairs)
    status = 0
    for name in names:
        print(f"== {name}", flush=True)
        status |= subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}"]).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
