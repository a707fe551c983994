"""The steps in their order, and which of them stand on which."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from harness.boardfile.sections import BoardFile
from harness.check import cable, efivars, firmware, rpmb, tee
from harness.check.finding import Finding, Verdict, fail, not_looked_at
from harness.check.survey import Survey
from harness.errors import HilError
from harness.links.names import LinkName

Look = Callable[[Survey], Finding]

_FAILED: Final = " failed"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to look at. What it ``needs`` must not have failed, nor have been left out; nor
    must all of ``any_of``."""

    name: str
    look: Look
    needs: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()


STEPS: Final = (
    Step("lease", cable.lease),
    Step("power", cable.power, ("lease",)),
    Step("adapter", cable.adapter, ("power",)),
    Step("latency timer", cable.latency_timer, ("adapter",)),
    Step("console", cable.console, ("adapter",)),
    Step("ssh", cable.ssh, ("power",)),
    Step("login", cable.login, ("power",), any_of=("console", "ssh")),
    Step("identity", cable.identity, ("login",)),
    Step("root", cable.root, ("identity",)),
    Step("kernel config", firmware.kernel, ("root",)),
    Step("firmware", firmware.firmware, ("root",)),
    Step("TEE devices", tee.devices, ("kernel config", "firmware")),
    Step("RPMB device", rpmb.device, ("root",)),
    Step("RPMB key", rpmb.key, ("RPMB device",)),
    Step("RPMB counter", rpmb.counter, ("RPMB key",)),
    Step("supplicant", tee.supplicant, ("TEE devices", "RPMB key")),
    Step("RPMB access", tee.access, ("supplicant",)),
    Step("StMM device", tee.stmm_device, ("supplicant",)),
    Step("driver", tee.driver, ("StMM device",)),
    Step("EFI services", efivars.services, ("driver",)),
    Step("efivarfs", efivars.mounted, ("EFI services",)),
    Step("read-write", efivars.writable, ("efivarfs",)),
    Step("space", efivars.space, ("efivarfs",)),
    Step("round trip", efivars.round_trip, ("RPMB access", "read-write", "space")),
    Step("SetVariable", efivars.latency, ("round trip",)),
    Step("kernel log", efivars.crashes, ("root",)),
    Step("service stop", tee.service_stop, ("supplicant",)),
)
"""From the cable up. A step that cannot be looked at for want of a tool or a consent holds nobody
up but who needs its result."""


@dataclass(frozen=True, slots=True)
class Walk:
    """All findings, in order."""

    board: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether anything failed; warnings and what was not looked at do not count."""
        return any(finding.verdict is Verdict.FAIL for finding in self.findings)

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The steps that were not looked at, by the reason."""
        steps: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.verdict is Verdict.NOT_LOOKED_AT:
                steps.setdefault(finding.reason, []).append(finding.step)
        return steps

    @property
    def first_failure(self) -> Finding | None:
        """The line to read first."""
        return next((f for f in self.findings if f.verdict is Verdict.FAIL), None)


def walk(
    file: BoardFile,
    *,
    link: LinkName | None = None,
    begun: Callable[[str], None] = lambda name: None,
    done: Callable[[Finding], None] = lambda finding: None,
) -> Walk:
    """Take all steps on the board of ``file``; ``begun`` and ``done`` are told of each."""
    findings: list[Finding] = []
    with Survey(file, link) as survey:
        for finding in _take(survey, begun):
            findings.append(finding)
            done(finding)
    return Walk(file.name, tuple(findings))


def _take(survey: Survey, begun: Callable[[str], None]) -> Iterator[Finding]:
    seen: dict[str, Finding] = {}
    for step in STEPS:
        begun(step.name)
        started = time.monotonic()
        obstacle = _obstacle(step, seen)
        finding = not_looked_at(obstacle) if obstacle else _look(step, survey)
        seen[step.name] = finding.at(step.name, time.monotonic() - started)
        yield seen[step.name]


def _obstacle(step: Step, seen: dict[str, Finding]) -> str:
    """Which step below failed; what that one itself was held up by is the reason to tell."""
    reasons = [_why_not(seen[name]) for name in step.needs]
    ways = [_why_not(seen[name]) for name in step.any_of]
    if all(ways):
        # A way that the board has and that fails says more than one that it has not.
        reasons += sorted(ways, key=lambda why: not why.endswith(_FAILED))
    return next(filter(None, reasons), "")


def _why_not(below: Finding) -> str:
    if below.verdict is Verdict.FAIL:
        return below.step + _FAILED
    return below.reason


def _look(step: Step, survey: Survey) -> Finding:
    try:
        return step.look(survey)
    except HilError as error:
        return fail("could not be looked at", cause=error.what, remedy=error.remedy)
