"""Verdicts of the conformance suite on two boards, read from JUnit reports and compared."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

_LACKING = re.compile(r"no (\w+) on this board|(consent to \w+)|(the step \w+)")
_TEST_MODULE = re.compile(r"^tests\.conformance\.(test_\w+)\.?(.*)$")
_LONGEST_WHY = 60


class Verdict(StrEnum):
    """What became of a test; ``NOT_RUN``: the report has none of that name."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """A verdict and the first line of why."""

    verdict: Verdict
    why: str = ""


_NOT_RUN = Outcome(Verdict.NOT_RUN)


@dataclass(frozen=True)
class Difference:
    """A test that came out differently on the emulated board and on the real firmware."""

    configuration: str
    test: str
    emulated: Outcome
    real: Outcome

    @property
    def opposed(self) -> bool:
        """Passed on one and failed on the other: wants a written reason."""
        return {self.emulated.verdict, self.real.verdict} == {Verdict.PASSED, Verdict.FAILED}


@dataclass(frozen=True)
class Reason:
    """Why tests differ on the real firmware; ``tests`` and ``configurations`` are patterns."""

    tests: tuple[str, ...]
    configurations: tuple[str, ...]
    why: str

    def covers(self, difference: Difference) -> bool:
        """Whether it is about this difference."""
        return any(fnmatchcase(difference.configuration, one) for one in self.configurations) and (
            any(fnmatchcase(difference.test, one) for one in self.tests)
        )


def read_reasons(path: Path) -> list[Reason]:
    """The reasons of a TOML file of ``[[reason]]`` tables. Raises KeyError, TOMLDecodeError."""
    tables = tomllib.loads(path.read_text("utf-8")).get("reason", [])
    return [
        Reason(tuple(table["tests"]), tuple(table.get("configurations", ["*"])), table["why"])
        for table in tables
    ]


def read_report(path: Path) -> dict[str, Outcome]:
    """Each test's outcome in a JUnit report of ``pytest tests/conformance``. A test that appears
    twice (it failed, and so did giving the board back) counts as failed."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = _node_id(case.get("classname", ""), case.get("name", ""))
        if outcomes.get(name, _NOT_RUN).verdict is not Verdict.FAILED:
            outcomes[name] = _outcome(case)
    return outcomes


def differences(
    configuration: str, emulated: Mapping[str, Outcome], real: Mapping[str, Outcome]
) -> list[Difference]:
    """The tests of either report whose verdicts differ, in the order of the reports."""
    found = []
    for test in dict.fromkeys([*emulated, *real]):
        pair = emulated.get(test, _NOT_RUN), real.get(test, _NOT_RUN)
        if pair[0].verdict is not pair[1].verdict:
            found.append(Difference(configuration, test, *pair))
    return found


def count(outcomes: Iterable[Outcome]) -> str:
    """``880 passed, 1 failed, 5 skipped``"""
    counts = Counter(outcome.verdict for outcome in outcomes)
    shown = (Verdict.PASSED, Verdict.FAILED, Verdict.SKIPPED)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in shown)


def reason_for(difference: Difference, reasons: Sequence[Reason]) -> str | None:
    """The first written reason that covers it."""
    return next((reason.why for reason in reasons if reason.covers(difference)), None)


def _node_id(classname: str, name: str) -> str:
    found = _TEST_MODULE.match(classname)
    if found is None:
        return f"{classname}::{name}"
    parts = [f"{found[1]}.py", *filter(None, found[2].split(".")), name]
    return "::".join(parts)


def _outcome(case: ElementTree.Element) -> Outcome:
    for tag, verdict in (
        ("failure", Verdict.FAILED),
        ("error", Verdict.FAILED),
        ("skipped", Verdict.SKIPPED),
    ):
        child = case.find(tag)
        if child is not None:
            return Outcome(verdict, _brief(child.get("message", "")))
    return Outcome(Verdict.PASSED)


def _brief(message: str) -> str:
    found = _LACKING.search(message)
    if found is not None:
        return str(next(filter(None, found.groups())))
    first = next(iter(message.splitlines()), "")
    return first if len(first) <= _LONGEST_WHY else f"{first[: _LONGEST_WHY - 1]}…"
