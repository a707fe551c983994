"""A reader of KTAP."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Line:
    """One line ``ok`` or ``not ok`` of KTAP with what came before it."""

    ok: bool
    name: str
    directive: str
    diagnostics: list[str] = field(default_factory=list)
    subtests: list[Line] = field(default_factory=list)


_RESULT = re.compile(
    r"(ok|not ok) (\d+)(?: (?:- )?([^#]*?))?(?: # (SKIP|TODO|XFAIL|TIMEOUT|ERROR)(.*))?"
)


def parse_ktap(text: str) -> list[Line]:
    """Read KTAP by the rules of Documentation/dev-tools/ktap.rst: version line, plan, numbered
    results, two spaces for each level. Anything else is an error here."""
    lines = text.splitlines()
    tests, end = _level(lines, 0, "")
    assert end == len(lines), f"line {end + 1} is of no test: {lines[end]}"
    return tests


def _level(lines: list[str], at: int, indent: str) -> tuple[list[Line], int]:
    assert lines[at] == f"{indent}KTAP version 1"
    at += 1
    plan: int | None = None
    diagnostics: list[str] = []
    subtests: list[Line] = []
    tests: list[Line] = []
    while at < len(lines) and lines[at].startswith(indent):
        line = lines[at].removeprefix(indent)
        if line.startswith("  KTAP version"):
            subtests, at = _level(lines, at, f"{indent}  ")
            continue
        if line.startswith("#"):
            diagnostics.append(line)
        elif found := re.fullmatch(r"1\.\.(\d+)", line):
            assert plan is None, "a second plan"
            assert not tests, "the plan comes before the results"
            plan = int(found[1])
        else:
            result = _RESULT.fullmatch(line)
            assert result is not None, f"neither plan nor result nor diagnostic: {line!r}"
            assert int(result[2]) == len(tests) + 1, f"out of order: {line!r}"
            tests.append(Line(result[1] == "ok", result[3], result[4] or "", diagnostics, subtests))
            diagnostics, subtests = [], []
        at += 1
    assert plan == len(tests), f"{plan} planned, {len(tests)} there"
    return tests, at
