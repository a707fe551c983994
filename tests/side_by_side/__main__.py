"""``python -m tests.side_by_side [CONFIGURATIONS]``: the verdicts of the conformance suite on the
emulated board and on the real firmware, side by side.

Each configuration is run on both (``hil qemu build`` made the real one), or its report is taken
from ``--reports`` where it is there already. With ``--again`` what failed without a reason is run
once more, by itself, on the board that it failed on. Prints a table of both boards, every test
that passed on one and failed on the other with its reason (``reasons.toml``), what did not fail
when it was run again, and what only one of them could be asked; last ``SIDE BY SIDE N agree, M
differ, U without a reason, F failed once``. Exit status 0 when nothing is without a reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cases.collecting import ROOT
from tests.junit import Outcome, Verdict, read_report
from tests.side_by_side.verdicts import (
    Again,
    Difference,
    count,
    differences,
    failed_once,
    read_reasons,
    reason_for,
)
from tests.suite_run import Progress, run_suite
from tests.variants.boards import write_board_file

CONFIGURATIONS = ("mm-query", "mm", "file", "mm-kernel-rpmb")
"""Those of the record; both boards have all of them."""

EMULATED, REAL = "emulated", "real"
_SUITE = "tests/conformance"
_AGAIN = "-again"
_LONGEST_WHY = 100
_REASONS = Path(__file__).with_name("reasons.toml")
_REAL_BOARD = ROOT / "boards" / "qemu-arm64.toml"
_IMAGES = 'images = "mm-query"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has no report yet and compare; 1 where a difference has no reason or a report is
    missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.side_by_side", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="CONFIGURATION", help=f"{', '.join(CONFIGURATIONS)} (all)"
    )
    parser.add_argument(
        "--reports", type=Path, metavar="DIR", help="keep the JUnit reports, take those there are"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="run what failed without a reason once more by itself",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at a time")
    parser.add_argument("--timeout", type=float, default=4 * 3600.0, help="seconds for one run")
    parser.add_argument("--tests", default=_SUITE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    names = options.names or list(CONFIGURATIONS)
    unknown = [name for name in names if name not in CONFIGURATIONS]
    if unknown:
        parser.error(f"no configuration {unknown[0]}; there are {', '.join(CONFIGURATIONS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.reports or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [
            Wanted(name, kind, tuple(options.tests.split()), _report(folder, name, kind))
            for name in names
            for kind in (EMULATED, REAL)
        ]
        _run_all(wanted, options.jobs, options.timeout)
        if options.again:
            _run_all(_failed_without_reason(folder, names), options.jobs, options.timeout)
        return _compare(folder, names)


@dataclass(frozen=True)
class Wanted:
    """A report that is wanted: pytest's arguments, and where it goes."""

    configuration: str
    kind: str
    tests: tuple[str, ...]
    report: Path

    def __str__(self) -> str:
        again = ", again" * self.report.stem.endswith(_AGAIN)
        return f"{self.configuration} {self.kind}{again}"


def _run_all(wanted: Sequence[Wanted], jobs: int, timeout: float) -> None:
    """Run what has no report yet, and say how each run ended."""
    with ThreadPoolExecutor(jobs) as pool:
        missing = [one for one in wanted if not one.report.exists()]
        for running in [pool.submit(_run, one, timeout) for one in missing]:
            running.result()


def _failed_without_reason(folder: Path, names: Sequence[str]) -> list[Wanted]:
    """The runs of only those tests that failed and have no reason."""
    reasons = read_reasons(_REASONS)
    wanted = []
    for name in names:
        by_kind = {kind: _read(_report(folder, name, kind)) for kind in (EMULATED, REAL)}
        explained = {
            one.test
            for one in differences(name, by_kind[EMULATED], by_kind[REAL])
            if reason_for(one, reasons) is not None
        }
        for kind, outcomes in by_kind.items():
            tests = [
                f"{_SUITE}/{test}"
                for test, outcome in outcomes.items()
                if outcome.verdict is Verdict.FAILED and test not in explained
            ]
            if tests:
                report = _report(folder, name, kind, _AGAIN)
                wanted.append(Wanted(name, kind, tuple(tests), report))
    return wanted


def _report(folder: Path, name: str, kind: str, suffix: str = "") -> Path:
    return folder / f"{name}-{kind}{suffix}.xml"


def _read(path: Path) -> dict[str, Outcome]:
    return read_report(path) if path.exists() else {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_real_board_file(name: str, folder: Path) -> Path:
    """``boards/qemu-arm64.toml`` with the images of another configuration."""
    text = _REAL_BOARD.read_text("utf-8")
    if text.count(_IMAGES) != 1:
        raise ValueError(f"{_REAL_BOARD} does not say {_IMAGES}")
    path = folder / f"qemu-{name}.toml"
    path.write_text(text.replace(_IMAGES, f'images = "{name}"'), "utf-8")
    return path


def _run(wanted: Wanted, timeout: float) -> None:
    """One run of the suite; says how it ended."""
    start = time.monotonic()
    write = write_board_file if wanted.kind == EMULATED else write_real_board_file

    def say(progress: Progress) -> None:
        took = f"{time.monotonic() - start:.0f} s"
        _say(f"{wanted}: {progress.percent} % of the tests, {progress.failed} failed, {took}")

    with tempfile.TemporaryDirectory() as scratch:
        file = write(wanted.configuration, Path(scratch))
        report = Path(scratch, "report.xml")
        ended = run_suite(file, wanted.tests, report, timeout, say)
        if ended.fault:
            took = f"{time.monotonic() - start:.0f} s"
            _say(f"{wanted}: {ended.fault} ({took}) {ended.last}")
            return
        wanted.report.write_bytes(report.read_bytes())
        _say(f"{wanted}: {ended.last}")


def _compare(folder: Path, names: Sequence[str]) -> int:
    reasons = read_reasons(_REASONS)
    found: list[Difference] = []
    mended: list[Again] = []
    tests = missing = 0
    print("| configuration | emulated board | real firmware |\n|---|---|---|")
    for name in names:
        first = {kind: _read(_report(folder, name, kind)) for kind in (EMULATED, REAL)}
        shown = [count(one.values()) if one else "no report" for one in first.values()]
        print(f"| `{name}` | {shown[0]} | {shown[1]} |")
        if not all(first.values()):
            missing += 1
            continue
        for kind, outcomes in first.items():
            again = _read(_report(folder, name, kind, _AGAIN))
            mended += failed_once(name, kind, outcomes, again)
            outcomes.update(again)
        tests += len({*first[EMULATED], *first[REAL]})
        found += differences(name, first[EMULATED], first[REAL])
    opposed = [one for one in found if one.opposed]
    unexplained = [one for one in opposed if reason_for(one, reasons) is None]
    if opposed:
        print("\n| configuration | test | emulated | real | why |\n|---|---|---|---|---|")
    for one in opposed:
        why = reason_for(one, reasons) or f"**no reason written** ({_said(one)})"
        print(
            f"| `{one.configuration}` | `{one.test}` | {one.emulated.verdict} |"
            f" {one.real.verdict} | {why} |"
        )
    if mended:
        print("\n| configuration | failed once | on | with | when run again |")
        print("|---|---|---|---|---|")
    for late in mended:
        why = late.first.why[:_LONGEST_WHY]
        print(f"| `{late.configuration}` | `{late.test}` | {late.kind} | {why} | {late.then} |")
    _print_one_sided([one for one in found if not one.opposed])
    print(
        f"\nSIDE BY SIDE {tests - len(opposed)} agree, {len(opposed)} differ,"
        f" {len(unexplained)} without a reason, {len(mended)} failed once"
    )
    return 1 if unexplained or missing else 0


def _said(difference: Difference) -> str:
    return (difference.real.why or difference.emulated.why)[:_LONGEST_WHY]


def _print_one_sided(found: Sequence[Difference]) -> None:
    """What one board was not asked, by what it lacks."""
    counts = Counter(
        (one.configuration, str(one.emulated.verdict), str(one.real.verdict), _said(one))
        for one in found
    )
    if counts:
        print("\n| configuration | tests | emulated | real | because |\n|---|---|---|---|---|")
    for (configuration, emulated, real, why), tests in counts.items():
        print(f"| `{configuration}` | {tests} | {emulated} | {real} | {why} |")


if __name__ == "__main__":
    sys.exit(main())
