"""A figure of a benchmark for another program: a line of JSON, with ``--json`` only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

FLAG: Final = "--json"


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured of which less is better: a duration, or a ratio to a peer or limit."""

    figure: str
    value: float
    unit: str


def figure(name: str, value: float, unit: str = "ms") -> None:
    """Print it, where the command line asks for it."""
    if FLAG in sys.argv:
        print(json.dumps(asdict(Figure(name, value, unit))), flush=True)


def read(lines: Iterable[str]) -> list[Figure]:
    """The figures among what a benchmark printed."""
    return [Figure(**json.loads(line)) for line in lines if line.startswith('{"figure": ')]
