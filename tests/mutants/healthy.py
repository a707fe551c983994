"""``python -m tests.mutants.healthy [--times N] [--link LINK] [--jobs N] RESULTS``: the healthy
board passes the tests that caught mutants, each time in another random order.

``RESULTS`` is what ``python -m tests.mutants --results RESULTS`` kept. Prints a line a run and last
``HEALTHY green N of M``; exit status 0 when all are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Final

from emulation.mutants.registry import MUTANTS
from tests.mutants.results import caught_before
from tests.variants.__main__ import Run, run

_BOARD: Final = "mm-query"
"""The healthy board among the variants: the one that mutants are made from."""


def catching_tests(results: Path) -> list[str]:
    """The node ids of the tests that caught a mutant, sorted."""
    trials = caught_before(results, MUTANTS).values()
    return sorted({test for trial in trials for test in trial.catching})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; returns the exit status: 0, 1 for a failure, 2 where nothing caught anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.healthy", description=__doc__)
    parser.add_argument("results", type=Path, help="file of `python -m tests.mutants --results`")
    parser.add_argument("--times", type=int, default=20, help="runs on each link (default: 20)")
    parser.add_argument("--link", action="append", choices=("ssh", "serial"), help="default: both")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at a time")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one run")
    options = parser.parse_args(arguments)
    tests = catching_tests(options.results)
    if not tests:
        print(f"healthy: {options.results} names no test that caught a mutant", file=sys.stderr)
        return 2
    print(f"{len(tests)} tests that caught mutants", flush=True)
    planned = list(product(options.link or ["ssh", "serial"], range(options.times)))

    def shuffled(link_and_seed: tuple[str, int]) -> Run:
        link, seed = link_and_seed
        order = ["--random-order", f"--random-order-seed={seed}"]
        return run(_BOARD, link, [*tests, *order], options.timeout)

    green = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for (link, seed), done in zip(planned, pool.map(shuffled, planned), strict=True):
            green += done.green
            print(
                f"{link:6} seed {seed:2}: {done.passed} passed, {len(done.failed)} failed in "
                f"{done.seconds:.0f} s",
                flush=True,
            )
            for failure in done.failed:
                print(f"    {failure}", flush=True)
    total = len(planned)
    print(f"HEALTHY green {green} of {total}")
    return 0 if green == total else 1


if __name__ == "__main__":
    sys.exit(main())
