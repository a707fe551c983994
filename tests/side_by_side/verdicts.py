"""Verdicts of the conformance suite on two boards, compared."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tests.junit import NOT_RUN, Outcome, Verdict


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
class Again:
    """A test that failed in the whole run and did not when it was run again by itself."""

    configuration: str
    test: str
    kind: str
    first: Outcome
    then: Verdict


@dataclass(frozen=True)
class Reason:
    """Why tests differ on the real firmware; ``tests`` and ``configurations`` are patterns."""

    tests: tuple[str, ...]
    configurations: tuple[str, ...]
    why: str

    def covers(self, difference: Difference) -> bool:
        """Whether it is about this difference."""
        return any(fnmatchcase(difference.configuration, one) for one in self.configurations) and (
            # A parameter's brackets are no pattern to the test that is named whole.
            any(one == difference.test or fnmatchcase(difference.test, one) for one in self.tests)
        )


def read_reasons(path: Path) -> list[Reason]:
    """The reasons of a TOML file of ``[[reason]]`` tables. Raises KeyError, TOMLDecodeError."""
    tables = tomllib.loads(path.read_text("utf-8")).get("reason", [])
    return [
        Reason(tuple(table["tests"]), tuple(table.get("configurations", ["*"])), table["why"])
        for table in tables
    ]


def differences(
    configuration: str, emulated: Mapping[str, Outcome], real: Mapping[str, Outcome]
) -> list[Difference]:
    """The tests of either report whose verdicts differ, in the order of the reports."""
    found = []
    for test in dict.fromkeys([*emulated, *real]):
        pair = emulated.get(test, NOT_RUN), real.get(test, NOT_RUN)
        if pair[0].verdict is not pair[1].verdict:
            found.append(Difference(configuration, test, *pair))
    return found


def failed_once(
    configuration: str, kind: str, first: Mapping[str, Outcome], again: Mapping[str, Outcome]
) -> list[Again]:
    """What failed first and not then, in the order of the second report."""
    return [
        Again(configuration, test, kind, first[test], outcome.verdict)
        for test, outcome in again.items()
        if outcome.verdict is not Verdict.FAILED
        and first.get(test, NOT_RUN).verdict is Verdict.FAILED
    ]


def count(outcomes: Iterable[Outcome]) -> str:
    """``880 passed, 1 failed, 5 skipped``"""
    counts = Counter(outcome.verdict for outcome in outcomes)
    shown = (Verdict.PASSED, Verdict.FAILED, Verdict.SKIPPED)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in shown)


def reason_for(difference: Difference, reasons: Sequence[Reason]) -> str | None:
    """The first written reason that covers it."""
    return next((reason.why for reason in reasons if reason.covers(difference)), None)
