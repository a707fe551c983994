"""``python -m tests.variants [NAMES]``: the conformance suite on boards that differ.

Prints for each board how many tests passed, failed and were skipped, by what it lacks; the
measured facts in which the boards differ; and last ``VARIANTS green N of M``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tests.junit import Verdict, read_report
from tests.suite_run import run_suite
from tests.variants.boards import VARIANTS, write_board_file

_SUITE = "tests/conformance"
_SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Run:
    """One run of the suite on one board over one link; durations in seconds."""

    variant: str
    link: str
    passed: int
    failed: tuple[str, ...]
    skips: Mapping[str, int]
    seconds: float
    facts: Mapping[str, bool] = field(default_factory=dict)

    @property
    def green(self) -> bool:
        return self.passed > 0 and not self.failed


def main() -> int:
    """Run the chosen variants; status 1 unless all are green."""
    parser = argparse.ArgumentParser(prog="python -m tests.variants", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which boards: {', '.join(VARIANTS)} (all)")
    parser.add_argument("--link", action="append", choices=("ssh", "serial"), help="default: ssh")
    parser.add_argument("--tests", default=_SUITE, help=f"what to run (default: {_SUITE})")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one run")
    parser.add_argument(
        "--shuffle", type=int, metavar="N", help="run each N times, each time in another order"
    )
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in VARIANTS]
    if unknown:
        parser.error(f"no such board: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    runs = []
    for name in chosen.names or VARIANTS:
        for link, seed in product(chosen.link or ["ssh"], range(chosen.shuffle or 1)):
            order = ["--random-order", f"--random-order-seed={seed}"] if chosen.shuffle else []
            runs.append(run(name, link, [*chosen.tests.split(), *order], chosen.timeout))
            print(_row(runs[-1]), flush=True)
            for failure in runs[-1].failed[:_SHOWN_FAILURES]:
                print(f"    {failure}", flush=True)
    print(_facts(runs))
    green = sum(one.green for one in runs)
    print(f"VARIANTS green {green} of {len(runs)}")
    return 0 if green == len(runs) else 1


def run(name: str, link: str, tests: Sequence[str], timeout: float) -> Run:
    """Measure one board, then run the tests on another one like it. ``tests`` are arguments of
    pytest."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = write_board_file(name, Path(folder))
        report = Path(folder, "report.xml")
        facts = _measure(file, link)
        ended = run_suite(file, [*tests, "--link", link], report, timeout)
        ending = tuple(filter(None, (ended.fault, ended.last))) if ended.fault else ()
        seconds = time.monotonic() - start
        if not report.exists():
            return Run(name, link, 0, ending, {}, seconds, facts)
        outcomes = read_report(report)
    bad = {name: one.why for name, one in outcomes.items() if one.verdict is Verdict.FAILED}
    skips = [one.why for one in outcomes.values() if one.verdict is Verdict.SKIPPED]
    passed = len(outcomes) - len(bad) - len(skips)
    failed = (*ending, *(f"{name}: {why}" for name, why in bad.items()))
    return Run(name, link, passed, failed, Counter(skips), seconds, facts)


def _measure(file: Path, link: str) -> Mapping[str, bool]:
    from harness.board.board import Board
    from harness.boardfile import loading
    from harness.capabilities import Capability

    with Board(loading.load(file), link="serial" if link == "serial" else "ssh") as board:
        board.wait_until_ready()
        return {str(name): board.capabilities.has(name) for name in Capability}


def _row(run: Run) -> str:
    skips = ", ".join(f"{count} {lack}" for lack, count in sorted(run.skips.items()))
    return (
        f"{run.variant:20} {run.link:6} {run.passed:4} passed {len(run.failed):3} failed "
        f"{sum(run.skips.values()):3} skipped in {run.seconds:.0f} s"
        + (f" ({skips})" * bool(skips))
    )


def _facts(runs: Sequence[Run]) -> str:
    """The measured facts that are not the same on all boards."""
    names = [name for name in runs[0].facts if len({run.facts.get(name) for run in runs}) > 1]
    lines = ["measured facts in which the boards differ:"]
    for name in names:
        having = [f"{run.variant}/{run.link}" for run in runs if run.facts.get(name)]
        lines.append(f"  {name}: {', '.join(having) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
