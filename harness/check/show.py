"""A check on the terminal, for a person or for a machine."""

import json
import sys
from dataclasses import asdict
from typing import Final, TextIO

from harness.check.finding import Finding, Verdict
from harness.check.walk import Walk
from harness.foreign import Shown, escaped, painted, say

_COLOURS: Final = {
    Verdict.OK: "32",
    Verdict.WARN: "33",
    Verdict.FAIL: "31;1",
    Verdict.NOT_LOOKED_AT: "2",
}


class Screen:
    """Findings as they come. On a terminal in colour, and the step that is being taken stands
    there until it is done; elsewhere plain lines."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self._output = output
        self._terminal = output.isatty()

    def begun(self, step: str) -> None:
        """A step is being taken."""
        if self._terminal:
            self._output.write(f"\r{'...':<13} {escaped(step)}")
            self._output.flush()

    def done(self, finding: Finding) -> None:
        """A step was taken."""
        first, *rest = map(escaped, finding.lines())
        if self._terminal:
            verdict = painted(first[:13], _COLOURS[finding.verdict], self._output)
            first = Shown(f"\r\x1b[K{verdict}{first[13:]}")
        say(first, *rest, file=self._output)

    def summary(self, taken: Walk, seconds: float) -> None:
        """The last line."""
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
