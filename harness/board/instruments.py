"""Every instrument of a board: what is listed here goes with the link that it works over."""

from collections.abc import Callable, Collection, Sequence

from harness.consents import Consent
from harness.instruments.efivars import Efivars, VariableName
from harness.instruments.kernel_log import KernelLog
from harness.instruments.rpmb import Rpmb
from harness.instruments.tee import Tee
from harness.probe.probe import Probe
from harness.probe.steps import Step
from harness.shell import Shell


class Instruments:
    """All that works over one shell; thrown away whole with it, so that none keeps a dead one.
    Making them asks the board nothing."""

    def __init__(
        self,
        shell: Shell,
        *,
        consent: Callable[[Consent], None],
        guard: Callable[[Sequence[Step]], None],
        kept: Collection[VariableName],
        programming: Callable[[], None],
    ) -> None:
        self.probe = Probe(shell, guard=guard)
        self.efivars = Efivars(shell, self.probe, consent=consent, kept=kept)
        self.rpmb = Rpmb(shell, consent=consent, programming=programming)
        self.tee = Tee(shell, self.probe, consent=consent)
        self.kernel_log = KernelLog(shell)
