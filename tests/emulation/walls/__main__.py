"""``python -m tests.emulation.walls``: every attempt with the walls and without its own, as this
user; ``--write`` puts the table into docs/results/walls.md, where the other user's stays."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from tests.emulation.walls.attempts import ATTEMPTS, possible
from tests.emulation.walls.bench import Bench, user
from tests.emulation.walls.breaches import NONE

_REPORT = Path(__file__).parents[3] / "docs" / "results" / "walls.md"
_HEAD = """\
# What root of the emulated board tried against its host

Made by `python -m tests.emulation.walls --write` (and in CI `tests/emulation/test_walls.py`). Each
attempt is run on a board with all walls, and on one where only the wall that should hold it (and,
for some, an outer one) is taken down by a test: the attempt has to get through there, or it shows
nothing. What the walls are for: [safety.md](../safety.md).
"""


def table() -> tuple[str, bool]:
    """The rows, and whether all is as it should be."""
    lines = ["| attempt | wall | with it | without it |", "|---|---|---|---|"]
    good = True
    bench = Bench()
    for attempt in ATTEMPTS:
        if reason := possible(attempt, root=os.geteuid() == 0):
            lines.append(f"| {attempt.name} | {attempt.wall} | {reason} | |")
            continue
        through = bench.tried(attempt, NONE)
        held = through or (bench.said.splitlines() or ["the board was ended"])[0][:70]
        without = "(not taken down)"
        if attempt.breach != NONE:
            without = bench.tried(attempt, attempt.breach)
            good &= bool(without)
        good &= not through
        verdict = f"**through**: {held}" if through else held
        cells = (attempt.name, attempt.wall, verdict, without or "**held**")
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        print(lines[-1], flush=True)
    bench.close()
    return "\n".join(lines), good


def main() -> int:
    """Exit status 1 where a wall did not hold, or an attempt failed without it."""
    rows, good = table()
    if "--write" in sys.argv:
        sections = dict.fromkeys(("an ordinary user", "root (sudo)"), "not run yet")
        if _REPORT.exists():
            for part in _REPORT.read_text().split("\n## The supervisor run by ")[1:]:
                title, _, rest = part.partition("\n")
                sections[title] = rest.strip()
        sections[user()] = f"Linux {platform.release()} {platform.machine()}\n\n{rows}"
        parts = (
            f"\n## The supervisor run by {title}\n\n{text}\n" for title, text in sections.items()
        )
        _REPORT.write_text(_HEAD + "".join(parts))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
