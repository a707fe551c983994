"""``hil check``: walk from the cable up and stop being green where the board does."""

from harness.check.finding import Finding, Verdict
from harness.check.walk import Report, walk

__all__ = ["Finding", "Report", "Verdict", "walk"]
