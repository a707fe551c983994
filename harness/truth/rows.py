"""Recorded groups: a folder of ``GROUP.jsonl``, one row a line (tests/truth/README.md)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import ConfigurationError
from harness.resources import recorded_rows

OWN_ROWS = recorded_rows()
"""The project's own copy of the recorded groups."""

VARIANTS = ("mm-query", "mm", "file", "mm-kernel-rpmb")
"""The configurations that a row's ``board`` names."""

_NUMBER = re.compile(r"-(\d+)$")
_FIELDS = ("id", "group", "desc", "op", "outcome", "board", "replay")


@dataclass(frozen=True)
class Row:
    """One recorded row. ``facts`` is everything beside the steps and their outcome; ``given`` is
    false for a row that only prepares the state of others."""

    id: str
    group: str
    desc: str
    op: tuple[str, ...]
    outcome: Any
    board: str | None
    replay: bool
    facts: Mapping[str, Any]
    given: bool = True

    @property
    def number(self) -> int | None:
        """The row's position in its group as recorded; None for a row without one."""
        found = _NUMBER.search(self.id)
        return int(found[1]) if found else None

    @property
    def is_command(self) -> bool:
        """Whether the row is one shell command line, recorded as status and output."""
        return isinstance(self.outcome, str) and self.outcome.startswith(("rc=", "TIMEOUT"))

    @property
    def output(self) -> str:
        """What a shell command line printed."""
        return str(self.facts.get("output", ""))

    @property
    def outcomes(self) -> list[Any]:
        """One result a step."""
        if isinstance(self.outcome, list) and len(self.op) > 1:
            return self.outcome
        if isinstance(self.outcome, list) and len(self.outcome) == 1:
            return self.outcome
        return [self.outcome]


def load(folder: Path) -> dict[str, list[Row]]:
    """The groups of a folder in the order of their names, rows in the order of their file.

    Raises :class:`ConfigurationError` for a folder without groups and for a line that is no row.
    """
    groups: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text("utf-8").splitlines()
        rows = [_row(line, f"{path}:{n}", path.stem) for n, line in enumerate(lines, 1) if line]
        for row in rows:
            groups.setdefault(row.group, []).append(row)
    if not groups:
        raise ConfigurationError(
            f"no recorded groups (*.jsonl) in {folder}",
            remedy="give a folder in the format of tests/truth/README.md",
        )
    return groups


def _row(line: str, where: str, group: str) -> Row:
    try:
        data = json.loads(line)
        op = data["op"]
        return Row(
            id=str(data["id"]),
            group=str(data.get("group", group)),
            desc=str(data.get("desc", "")),
            op=tuple(str(step) for step in (op if isinstance(op, list) else [op])),
            outcome=data.get("outcome"),
            board=data.get("board"),
            replay=data.get("replay", True) is not False,
            facts={key: value for key, value in data.items() if key not in _FIELDS},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}: not a recorded row: {error}",
            remedy="one JSON object a line, with id, op and outcome (tests/truth/README.md)",
        ) from error


def with_own(rows: Sequence[Row], own: Sequence[Row]) -> list[Row]:
    """``rows`` with those of the project's own copy that are missing between them, marked as not
    given: they are taken for the state they leave, and neither compared nor counted."""
    known = {row.id for row in rows}
    last = max((row.number for row in rows if row.number is not None), default=-1)
    missing = [
        replace(row, given=False)
        for row in own
        if row.id not in known and row.number is not None and row.number < last
    ]
    if not missing:
        return list(rows)
    return sorted([*rows, *missing], key=lambda row: -1 if row.number is None else row.number)
