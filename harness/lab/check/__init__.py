"""``hil check``: walk from the cable up and stop being green where the board does."""

from harness.lab.check.finding import Finding, Verdict
from harness.lab.check.walk import Report, walk

__all__ = ["Finding", "Report", "Verdict", "walk"]
