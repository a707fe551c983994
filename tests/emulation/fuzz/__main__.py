"""``python -m tests.emulation.fuzz [--seconds N] [--seed N] [--keep] [PARSER ...]``: fuzz for long.

Prints one line of Markdown a parser; an input that raises is added to the kept seeds, where the
normal test run finds it, and makes the exit status 1, as growing memory does.  ``--keep``
also keeps one input an outcome.
"""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.emulation.fuzz.engine import Report, Target, fuzz, load_seeds, save_seeds
from tests.emulation.fuzz.targets import TARGETS

KEPT = 60
"""How many inputs, the shortest of those that led somewhere new, are kept a parser."""


GROWTH = 256 << 20
"""Bytes of memory that a parser may cost more after ten minutes than after its samples."""


def main() -> int:
    """Fuzz the parsers one after another."""
    options = _options()
    print("| parser | seconds | inputs | inputs/s | outcomes | MiB more | findings |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for name in options.parser or TARGETS:
        report = fuzz(
            TARGETS[name],
            lambda report: report.seconds >= options.seconds,
            seed=options.seed,
            max_findings=5,
        )
        rate = report.inputs / max(report.seconds, 0.001)
        numbers = f"{report.seconds:.0f} | {report.inputs} | {rate:.0f} | {report.outcomes}"
        numbers += f" | {report.grown >> 20}"
        failed |= report.grown > GROWTH
        print(f"| {name} | {numbers} | {len(report.findings)} |", flush=True)
        _keep(TARGETS[name], report, everything=options.keep)
        for finding in report.findings:
            failed = True
            traceback.print_exception(finding.error)
    return int(failed)


def _keep(target: Target, report: Report, *, everything: bool) -> None:
    kept = list(load_seeds(target.name))
    if everything:
        known = {*target.samples(), *kept}
        fresh = sorted((data for data in report.corpus if data not in known), key=len)
        kept += fresh[: max(0, KEPT - len(kept))]
    kept += [finding.data for finding in report.findings if finding.data not in kept]
    save_seeds(target.name, kept)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.emulation.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("parser", nargs="*", choices=[*TARGETS, []], metavar="PARSER")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
