"""Target probe: raw system calls on the board, with descriptors kept open between steps."""

from harness.probe.probe import Probe
from harness.probe.steps import Outcome, Step

__all__ = ["Outcome", "Probe", "Step"]
