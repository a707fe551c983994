"""Trials kept in a file, a line of JSON each, so that batches add up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from emulation.mutants.mutant import Mutant
from tests.mutants.trial import Trial


def caught_before(path: Path | None, known: Mapping[str, Mutant]) -> dict[str, Trial]:
    """The mutants that an earlier batch caught, by name; those that survived are tried again."""
    if path is None or not path.exists():
        return {}
    trials = [_parse(line, known) for line in path.read_text().splitlines()]
    return {trial.mutant.name: trial for trial in trials if trial is not None and trial.caught}


def keep(path: Path, trial: Trial) -> None:
    """Add one trial."""
    values = {
        "mutant": trial.mutant.name,
        "outcome": trial.outcome,
        "seconds": round(trial.seconds, 1),
        "catching": list(trial.catching),
        "other": list(trial.other),
    }
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def _parse(line: str, known: Mapping[str, Mutant]) -> Trial | None:
    """None for a mutant that there is no more."""
    values = json.loads(line)
    mutant = known.get(values.pop("mutant"))
    return None if mutant is None else Trial(mutant, **values)
