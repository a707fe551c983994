"""What a run found out of one test, and how that goes from one process to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from harness.pytest_plugin.blame import Whose

CUT_SHORT: Final = "cut short"
"""The outcome of a test within which the run ended."""


@dataclass
class Result:
    """One test: its outcome over set-up, call and teardown. ``outcome`` is passed, failed, skipped,
    or cut short when the run ended within the test."""

    group: str
    name: str
    outcome: str = CUT_SHORT
    why: str = ""
    whose: Whose | None = None
    in_set_up: bool = False
    properties: list[tuple[str, object]] = field(default_factory=list)

    def sent(self) -> dict[str, Any]:
        """As another process gets it (:meth:`received`)."""
        return {**asdict(self), "whose": None if self.whose is None else str(self.whose)}

    @classmethod
    def received(cls, values: Mapping[str, Any]) -> Result:
        """As another process has :meth:`sent` it."""
        whose = values["whose"]
        return cls(**{**values, "whose": None if whose is None else Whose(whose)})

    @classmethod
    def of_crash(cls, test: str) -> Result:
        """Of the test (its suite-relative id) within which the process died that ran it."""
        group, _, name = test.partition("::")
        return cls(group, name, "failed", "the process that ran it died", Whose.LAB)
