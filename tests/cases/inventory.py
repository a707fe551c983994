"""The inventory of cases and known bugs: what can go wrong between efivarfs and RPMB."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to provoke on one layer, and what must come of it."""

    case: int
    group: str
    layer: str
    stimulus: str
    expected: str
    source: str


@dataclass(frozen=True, slots=True)
class Pain:
    """One known bug of the field; ``test`` says what catches it."""

    pain: int
    reference: str
    symptom: str
    test: str


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why no test covers a case or a known bug, by number."""

    cases: Mapping[int, str]
    pains: Mapping[int, str]


def cases() -> dict[int, Case]:
    """All cases by number."""
    return {case.case: case for case in (Case(**row) for row in _rows("inventory.jsonl"))}


def pains() -> dict[int, Pain]:
    """All known bugs by number."""
    return {pain.pain: pain for pain in (Pain(**row) for row in _rows("pains.jsonl"))}


def reasons(path: Path = FOLDER / "reasons.toml") -> Reasons:
    """Read ``reasons.toml``. Raises ValueError for a number with two reasons."""
    tables = tomllib.loads(path.read_text("utf-8"))
    return Reasons(_by_number(tables.get("case", ())), _by_number(tables.get("pain", ())))


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def _by_number(entries: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in entries:
        for number in entry["numbers"]:
            if number in found:
                raise ValueError(f"{number} has two reasons: {found[number]!r}, {entry['why']!r}")
            found[number] = entry["why"]
    return found
