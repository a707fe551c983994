"""``python -m tests.mutants [NAME ...] [--jobs N] [--sample] [--results FILE]``: the conformance
tests on every mutant board.

Measures the healthy board once; the mutants' board files pin what it can do, so that a test is
never skipped because of what a mutant broke.  Prints progress and then a table of mutant and tests
that caught it; with ``--results`` what an earlier run caught is not tried again.  Exit status 0
when all were caught, 1 when one survived, 2 when nothing could be tried.
"""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from emulation.mutants.mutant import Mutant
from emulation.mutants.registry import MUTANTS
from harness.errors import HilError
from tests.mutants.results import caught_before, keep
from tests.mutants.trial import Bench, Trial

SAMPLE: Final = (
    "counter_stands_still",
    "absent_supplicant_is_einval",
    "delete_frees_at_once",
    "signature_not_checked",
    "exit_boot_services_not_told",
    "unbind_leaves_writable",
    "immutable_can_be_unlinked",
    "rename_accepted",
)
"""For every change: one of each layer, spread over the groups of tests."""

_SHOWN: Final = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants; returns the exit status."""
    options = _options(arguments)
    # As ^C: the runs that are going on end with this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = _chosen(options)
    caught = caught_before(options.results, MUTANTS)
    before = [caught[mutant.name] for mutant in chosen if mutant.name in caught]
    left = [mutant for mutant in chosen if mutant.name not in caught]
    try:
        trials = [*before, *_trials(left, options)]
    except HilError as error:
        print(f"mutants: the healthy board could not be measured: {error}", file=sys.stderr)
        return 2
    trials.sort(key=lambda trial: chosen.index(trial.mutant))
    _show(trials)
    number = sum(trial.caught for trial in trials)
    print(f"MUTANTS caught {number} of {len(trials)}")
    return 0 if number == len(trials) else 1


def _trials(chosen: Sequence[Mutant], options: argparse.Namespace) -> Iterator[Trial]:
    """Try them all. Raises :class:`HilError` when the healthy board could not be measured."""
    if not chosen:
        return
    with tempfile.TemporaryDirectory(prefix="hil-mutants-") as directory:
        bench = Bench.prepare(Path(directory), timeout=options.timeout)
        for trial in _tried(bench, chosen, options.jobs):
            if options.results is not None:
                keep(options.results, trial)
            yield trial


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("name", nargs="*", help="only these mutants (default: all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many at a time")
    parser.add_argument("--sample", action="store_true", help="only the sample for CI")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="keep what became of each in FILE; what FILE says was caught is not tried again",
    )
    parser.add_argument(
        "--timeout", type=float, default=300, metavar="SECONDS", help="for each mutant"
    )
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Mutant]:
    names = options.name or (SAMPLE if options.sample else MUTANTS)
    for name in names:
        if name not in MUTANTS:
            near = difflib.get_close_matches(name, MUTANTS, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/mutants.md lists them"
            raise SystemExit(f"mutants: no mutant {name}; {hint}")
    return [MUTANTS[name] for name in names]


def _tried(bench: Bench, chosen: Sequence[Mutant], jobs: int) -> Iterator[Trial]:
    pool = ThreadPoolExecutor(jobs)
    pending = [pool.submit(bench.try_mutant, mutant) for mutant in chosen]
    try:
        for number, done in enumerate(as_completed(pending), 1):
            trial = done.result()
            print(
                f"[{number}/{len(chosen)}] {trial.mutant.name}: {trial.outcome} "
                f"in {trial.seconds:.0f} s",
                flush=True,
            )
            yield trial
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        bench.stop()


def _show(trials: Sequence[Trial]) -> None:
    print("\n| mutant | caught by |\n|---|---|")
    for trial in trials:
        if trial.caught:
            tests = ", ".join(f"`{_short(test)}`" for test in trial.catching[:_SHOWN])
            print(f"| `{trial.mutant.name}` | {tests} |")
    survivors = [trial for trial in trials if not trial.caught]
    if survivors:
        print("\n| survivor | what is broken | what happened |\n|---|---|---|")
    for trial in survivors:
        happened = "; ".join([trial.outcome, *trial.other[:_SHOWN]])
        print(f"| `{trial.mutant.name}` | {trial.mutant.broken} | {happened} |")
    print()


def _short(test: str) -> str:
    """Without the path: file::test."""
    return test.rpartition("/")[2]


if __name__ == "__main__":
    sys.exit(main())
