"""What a run found out of one test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from harness.pytest_plugin.blame import Whose

CUT_SHORT: Final = "cut short"
"""The outcome of a test within which the run ended."""


@dataclass
class Result:
    """One test: its outcome over set-up, call and teardown. ``outcome`` is passed, failed, skipped,
    or cut short when the run ended within the test. Plain values: processes pass them on."""

    group: str
    name: str
    outcome: str = CUT_SHORT
    why: str = ""
    whose: str = ""
    in_set_up: bool = False
    properties: list[tuple[str, object]] = field(default_factory=list)

    @classmethod
    def of_crash(cls, test: str) -> Result:
        """Of the test (its suite-relative id) within which the process died that ran it."""
        group, _, name = test.partition("::")
        return cls(group, name, "failed", "the process that ran it died", str(Whose.LAB))
