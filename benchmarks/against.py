"""Two trees measured in turn, and what became worse from one to the other.

A tree is measured with its own packages. One whose benchmarks do not print figures yet is measured
with those of this tree. Pairs follow each other at once and each other pair is taken the other way
round, so that a host that gets slower does so for both.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.figures import FLAG, read

ROOT: Final = Path(__file__).parents[1]
SURE: Final = 0.05
"""By chance alone, at most this often in one figure."""
MATTERS: Final = 1.1
"""Slower by more than a tenth."""


@dataclass(frozen=True, slots=True)
class Change:
    """Of one figure: what each pair measured in the other tree and in this one, in pairs."""

    name: str
    unit: str
    before: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.before, self.now, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of this tree's figure to the other's."""
        return statistics.median(self.ratios)

    @property
    def agreeing(self) -> int:
        """How many pairs say of the two trees what the median says."""
        return sum((ratio > 1) == (self.ratio > 1) for ratio in self.ratios)

    @property
    def chance(self) -> float:
        """How often as many pairs or more would agree on it if there were no difference: a sign
        test, one-sided."""
        pairs = len(self.ratios)
        as_many = sum(math.comb(pairs, n) for n in range(self.agreeing, pairs + 1))
        return float(as_many / 2**pairs)

    @property
    def is_worse(self) -> bool:
        """Whether it is surely worse, and by more than a tenth."""
        return self.ratio > MATTERS and self.chance <= SURE

    def __str__(self) -> str:
        way = "worse" if self.ratio > 1 else "better"
        sure = "surely" if self.chance <= SURE else "not surely"
        if self.ratio == 1:
            sure, way = "no", "change"
        return (
            f"{self.name:48}{statistics.median(self.before):10.2f}"
            f"{statistics.median(self.now):10.2f} {self.unit:4}{self.ratio - 1:+8.1%}  "
            f"{sure} {way} ({self.agreeing} of {len(self.ratios)} pairs)"
        )


class Tree:
    """A tree whose benchmarks are run in processes of their own."""

    def __init__(self, path: Path, lent: Path) -> None:
        self.path = path
        borrows = not (path / "benchmarks" / "figures.py").exists()
        places = [str(lent), str(path)] if borrows else [str(path)]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}

    def measured(self, benchmark: str) -> dict[tuple[str, str], float]:
        """The values of a benchmark's figures, by name and unit. What it requires in itself is no
        matter here. Raises ChildProcessError if it ends without a figure."""
        # -P: or the folder it runs in would come before what it borrows.
        words = [sys.executable, "-P", "-m", f"benchmarks.bench_{benchmark}", FLAG]
        done = subprocess.run(
            words, cwd=self.path, env=self._environment, capture_output=True, text=True
        )
        figures = read(done.stdout.splitlines())
        if not figures:
            raise ChildProcessError(f"{self.path}: {benchmark} has no figures:\n{done.stderr}")
        return {(one.figure, one.unit): one.value for one in figures}


def changes(
    before: Sequence[Mapping[tuple[str, str], float]],
    now: Sequence[Mapping[tuple[str, str], float]],
) -> Iterator[Change]:
    """Each figure that every round of both trees has."""
    rounds = [*before, *now]
    for key in rounds[0]:
        if all(key in one for one in rounds):
            yield Change(*key, tuple(one[key] for one in before), tuple(one[key] for one in now))


def compare(other: Path, benchmarks: Sequence[str], pairs: int, here: Path = ROOT) -> int:
    """Measure ``other`` and ``here``. 1 if a figure is surely worse by more than a tenth."""
    found: list[Change] = []
    with tempfile.TemporaryDirectory() as lent:
        (Path(lent) / "benchmarks").symlink_to(here / "benchmarks")
        trees = [Tree(other.resolve(), Path(lent)), Tree(here, Path(lent))]
        print(f"{'':48}{'there':>10}{'here':>10}      change", flush=True)
        for benchmark in benchmarks:
            taken: list[list[dict[tuple[str, str], float]]] = [[], []]
            for number in range(pairs):
                for side in (0, 1) if number % 2 == 0 else (1, 0):
                    taken[side].append(trees[side].measured(benchmark))
            for change in changes(*taken):
                found.append(change)
                print(f"{change}", flush=True)
    worse = [change.name for change in found if change.is_worse]
    print(f"there: {other}; {pairs} pairs; surely: by chance at most {SURE:.0%} of the time each,")
    print(f"so of these {len(found)} figures up to {len(found) * SURE:.1f} say so for no reason")
    print(f"worse by more than a tenth: {', '.join(worse) or 'nothing'}")
    return 1 if worse else 0
