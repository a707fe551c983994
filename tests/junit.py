"""Outcomes of the conformance suite, read from a JUnit report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

_LACKING = re.compile(r"no (\w+) on this board|(consent to \w+)|(the step \w+)")
_TEST_MODULE = re.compile(r"^(?:tests\.conformance\.)?(test_\w+)\.?(.*)$")
_LONGEST_LACK = 60


class Verdict(StrEnum):
    """What became of a test; ``NOT_RUN``: the report has none of that name."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """A verdict and why: what a skipped test lacked, in a word; the first line of a failure."""

    verdict: Verdict
    why: str = ""


NOT_RUN = Outcome(Verdict.NOT_RUN)


def read_report(path: Path) -> dict[str, Outcome]:
    """Each test's outcome in a JUnit report of ``pytest tests/conformance``, also of an older
    one, whose names begin with the suite's folder. A test that appears twice (it failed, and so
    did giving the board back) counts as failed."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = _node_id(case.get("classname", ""), case.get("name", ""))
        if outcomes.get(name, NOT_RUN).verdict is not Verdict.FAILED:
            outcomes[name] = _outcome(case)
    return outcomes


def _node_id(classname: str, name: str) -> str:
    found = _TEST_MODULE.match(classname)
    if found is None:
        return f"{classname}::{name}"
    parts = [f"{found[1]}.py", *filter(None, found[2].split(".")), name]
    return "::".join(parts)


def _outcome(case: ElementTree.Element) -> Outcome:
    for tag in ("failure", "error"):
        failed = case.find(tag)
        if failed is not None:
            return Outcome(Verdict.FAILED, _first_line(failed) or "no message")
    skipped = case.find("skipped")
    if skipped is not None:
        return Outcome(Verdict.SKIPPED, _lack(_first_line(skipped)))
    return Outcome(Verdict.PASSED)


def _first_line(element: ElementTree.Element) -> str:
    return next(iter(element.get("message", "").splitlines()), "")


def _lack(message: str) -> str:
    found = _LACKING.search(message)
    return str(next(filter(None, found.groups()))) if found else message[:_LONGEST_LACK]
