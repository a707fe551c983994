"""What one step of a check found: a record, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self


class Verdict(StrEnum):
    """``NOT_LOOKED_AT`` always comes with the reason."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOT_LOOKED_AT = "not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at (``step``), what was ``found`` and the verdict; where it is not ``ok``
    also the ``cause``, the ``evidence`` (log lines, file contents) and, as ``remedy``, what to do
    next. ``seconds`` is how long the look took."""

    verdict: Verdict
    found: str
    cause: str = ""
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    step: str = ""
    seconds: float = 0.0

    def at(self, step: str, seconds: float) -> Self:
        """The same, with the name of the step that found it."""
        return replace(self, step=step, seconds=seconds)

    @property
    def reason(self) -> str:
        """Why it was not looked at; empty where it was."""
        left_out = self.verdict is Verdict.NOT_LOOKED_AT
        return self.found.removeprefix("because ") if left_out else ""

    def lines(self) -> list[str]:
        """For a person: one line, and indented what explains it."""
        shown = [f"{self.verdict:<13} {self.step:<16} {self.found}"]
        shown += [f"    cause:    {self.cause}"] if self.cause else []
        shown += [f"    evidence: {line}" for line in self.evidence]
        first, *rest = self.remedy.splitlines() if self.remedy else [""]
        shown += [f"    next:     {first}"] if first else []
        shown += [f"              {line}" for line in rest]
        return shown


def ok(found: str, *, evidence: Sequence[str] = ()) -> Finding:
    """As it should be."""
    return Finding(Verdict.OK, found, evidence=tuple(evidence))


def warn(found: str, *, cause: str, remedy: str, evidence: Sequence[str] = ()) -> Finding:
    """It works and will hurt."""
    return Finding(Verdict.WARN, found, cause, tuple(evidence), remedy)


def fail(found: str, *, cause: str, remedy: str, evidence: Sequence[str] = ()) -> Finding:
    """It does not work; ``cause`` says why."""
    return Finding(Verdict.FAIL, found, cause, tuple(evidence), remedy)


def not_looked_at(reason: str) -> Finding:
    """Nothing is known of it."""
    return Finding(Verdict.NOT_LOOKED_AT, f"because {reason}")
