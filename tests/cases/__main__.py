"""``python -m tests.cases``: what is wrong with the table of cases; ``--write`` writes it."""

from __future__ import annotations

import argparse
import sys

from tests.cases.table import DOCUMENT, Coverage, render


def main() -> int:
    """Print what is covered by neither test nor reason; status 1 if there is any."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    chosen = parser.parse_args()
    coverage = Coverage.gather()
    if chosen.write:
        DOCUMENT.write_text(render(coverage), "utf-8")
    problems = coverage.problems()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
