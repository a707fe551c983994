"""``python -m tests.side_by_side [CONFIGURATIONS]``: the verdicts of the conformance suite on the
emulated board and on the real firmware, side by side.

Each configuration is run on both (``hil qemu build`` made the real one), or its report is taken
from ``--reports`` where it is there already. Prints a table of both boards, every test that passed
on one and failed on the other with its reason (``reasons.toml``), and what only one of them could
be asked; last ``SIDE BY SIDE N agree, M differ, U without a reason``. Exit status 0 when nothing
is without a reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cases.collecting import ROOT
from tests.junit import Outcome, read_report
from tests.side_by_side.verdicts import (
    Difference,
    count,
    differences,
    read_reasons,
    reason_for,
)
from tests.suite_run import run_suite
from tests.variants.boards import write_board_file

CONFIGURATIONS = ("mm-query", "mm", "file", "mm-kernel-rpmb")
"""Those of the record; both boards have all of them."""

EMULATED, REAL = "emulated", "real"
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
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at a time")
    parser.add_argument("--timeout", type=float, default=4 * 3600.0, help="seconds for one run")
    parser.add_argument("--tests", default="tests/conformance", help="default: %(default)s")
    options = parser.parse_args(arguments)
    names = options.names or list(CONFIGURATIONS)
    unknown = [name for name in names if name not in CONFIGURATIONS]
    if unknown:
        parser.error(f"no configuration {unknown[0]}; there are {', '.join(CONFIGURATIONS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.reports or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        missing = [
            (name, kind)
            for name in names
            for kind in (EMULATED, REAL)
            if not _report(folder, name, kind).exists()
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            for said in pool.map(
                lambda one: _run(one[0], one[1], folder, options.tests.split(), options.timeout),
                missing,
            ):
                print(said, file=sys.stderr, flush=True)
        return _compare(folder, names)


def _report(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}-{kind}.xml"


def write_real_board_file(name: str, folder: Path) -> Path:
    """``boards/qemu-arm64.toml`` with the images of another configuration."""
    text = _REAL_BOARD.read_text("utf-8")
    if text.count(_IMAGES) != 1:
        raise ValueError(f"{_REAL_BOARD} does not say {_IMAGES}")
    path = folder / f"qemu-{name}.toml"
    path.write_text(text.replace(_IMAGES, f'images = "{name}"'), "utf-8")
    return path


def _run(name: str, kind: str, folder: Path, tests: Sequence[str], timeout: float) -> str:
    """One run of the suite; says how it ended."""
    start = time.monotonic()
    write = write_board_file if kind == EMULATED else write_real_board_file
    with tempfile.TemporaryDirectory() as scratch:
        file = write(name, Path(scratch))
        report = Path(scratch, "report.xml")
        ended = run_suite(file, tests, report, timeout)
        if ended.fault:
            took = f"{time.monotonic() - start:.0f} s"
            return f"{name} {kind}: {ended.fault} ({took}) {ended.last}"
        _report(folder, name, kind).write_bytes(report.read_bytes())
        return f"{name} {kind}: {ended.last}"


def _compare(folder: Path, names: Sequence[str]) -> int:
    reasons = read_reasons(_REASONS)
    found: list[Difference] = []
    tests = missing = 0
    print("| configuration | emulated board | real firmware |\n|---|---|---|")
    for name in names:
        pair: list[dict[str, Outcome]] = []
        for kind in (EMULATED, REAL):
            path = _report(folder, name, kind)
            pair.append(read_report(path) if path.exists() else {})
        emulated, real = pair
        shown = [count(one.values()) if one else "no report" for one in pair]
        print(f"| `{name}` | {shown[0]} | {shown[1]} |")
        if not (emulated and real):
            missing += 1
            continue
        tests += len({*emulated, *real})
        found += differences(name, emulated, real)
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
    _print_one_sided([one for one in found if not one.opposed])
    print(
        f"\nSIDE BY SIDE {tests - len(opposed)} agree, {len(opposed)} differ,"
        f" {len(unexplained)} without a reason"
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
