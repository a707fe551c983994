"""A check on the terminal, for a person or for a machine."""

import json
import sys
from dataclasses import asdict, replace
from typing import Final, TextIO

from harness.check.finding import Finding, Verdict, not_looked_at
from harness.check.walk import Walk
from harness.foreign import Shown, escaped, painted, say

_COLOURS: Final = {
    Verdict.OK: "32",
    Verdict.WARN: "33",
    Verdict.FAIL: "31;1",
    Verdict.NOT_LOOKED_AT: "2",
}


class Screen:
    """Findings as they come; those steps that were not looked at stand at the end, one line for
    each reason. On a terminal in colour, and the step that is being taken stands there until it is
    done; elsewhere plain lines."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self._output = output
        self._terminal = output.isatty()
        self._first_with: dict[str, str] = {}  # of a cause, the step that told it

    def begun(self, step: str) -> None:
        """A step is being taken."""
        if self._terminal:
            self._output.write(f"\r\x1b[K{'...':<13} {escaped(step)}")
            self._output.flush()

    def done(self, finding: Finding) -> None:
        """A step was taken."""
        if finding.verdict is Verdict.NOT_LOOKED_AT:
            return
        first = self._first_with.setdefault(finding.cause, finding.step)
        if finding.cause and first != finding.step:
            finding = replace(finding, cause=f"as {first}", remedy="")
        self._say(finding)

    def _say(self, finding: Finding) -> None:
        first, *rest = map(escaped, finding.lines())
        if self._terminal:
            verdict = painted(first[:13], _COLOURS[finding.verdict], self._output)
            first = Shown(f"\r\x1b[K{verdict}{first[13:]}")
        say(first, *rest, file=self._output)

    def summary(self, taken: Walk, seconds: float) -> None:
        """What was not looked at, and the last line."""
        for reason, steps in taken.left_out.items():
            one = len(steps) == 1
            told = reason if one else f"{reason} ({', '.join(steps)})"
            self._say(not_looked_at(told).at(steps[0] if one else f"{len(steps)} steps", 0.0))
        failure = taken.first_failure
        outcome = f"stops at {failure.step}: {failure.cause}" if failure else "nothing failed"
        say(f"{taken.board}: {outcome} ({seconds:.1f} s)", file=self._output)


def as_json(taken: Walk, seconds: float) -> str:
    """One object: the board, the verdict, and every finding."""
    findings = [
        {**asdict(finding), "seconds": round(finding.seconds, 3)} for finding in taken.findings
    ]
    failure = taken.first_failure
    return json.dumps(
        {
            "board": taken.board,
            "verdict": Verdict.FAIL if failure else Verdict.OK,
            "first_failure": failure.step if failure else None,
            "seconds": round(seconds, 3),
            "steps": findings,
        },
        indent=2,
    )
