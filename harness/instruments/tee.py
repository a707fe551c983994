"""The TEE side of Linux: the supplicant's service, the devices on the TEE bus, the driver."""

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from threading import Event

from harness.capabilities import STMM_DEVICE, STMM_DRIVER
from harness.consents import Consent
from harness.errors import MissingCapability, TargetError
from harness.instruments.outcomes import succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell

_POLL_SECONDS = 0.02
_FIND_PIDS = (
    "for p in /proc/[0-9]*; do IFS= read -r n <$p/comm && case $n in "
    "tee-supplicant*) echo ${p#/proc/};; esac; done 2>/dev/null; true"
)
_FIND_PIDS_AND_DEVICE = (
    f"for p in $({_FIND_PIDS}); do echo $p; "
    "case $(ls -l /proc/$p/fd 2>/dev/null) in */dev/teepriv*) echo attached;; esac; done; true"
)
# A supplicant that cannot register ends within 0.1 s (truth log-kill4).
_LASTING_SECONDS = 0.4
# `show` answers for stopped units too, and for instances of a template.
_FIND_UNIT = (
    "for u in tee-supplicant.service tee-supplicant@teepriv0.service; do "
    'test "$(systemctl show -p LoadState --value $u 2>/dev/null)" = loaded && '
    "{ echo $u; break; }; done; true"
)
_FIND_SCRIPT = "ls /etc/init.d/*tee-supplicant* 2>/dev/null | head -n 1"


class ServiceKind(StrEnum):
    """What starts and stops the supplicant on this board."""

    SYSTEMD = "systemd unit"
    SCRIPT = "init script"
    PROCESS = "bare process"


@dataclass(frozen=True, slots=True)
class Service:
    """The supplicant's service; ``name`` is the unit, the script's path, or the command line."""

    kind: ServiceKind
    name: str


_LEAVE_DRIVER = "zz-hil-leave-driver.conf"


def _drop_ins(unit: str) -> str:
    return f"/run/systemd/system/{unit}.d"


class Tee:
    """Supplicant, TEE devices and the ``tee-stmm-efi`` driver of one board.

    ``consent`` is asked before anything is stopped or unbound. Refused commands raise
    :class:`harness.errors.CommandFailed`; a wait that ends raises
    :class:`harness.errors.TargetError`.
    """

    def __init__(self, shell: Shell, probe: Probe, *, consent: Callable[[Consent], None]) -> None:
        self._shell = shell
        self._probe = probe
        self._consent = consent
        self._service: Service | None = None
        # Where a supplicant was once seen to hold the TEE device open, the next one will be too.
        self._device_is_seen = False

    # --- supplicant ---------------------------------------------------------------------------

    @property
    def service(self) -> Service:
        """How this board starts and stops tee-supplicant; found once. A bare process must be
        running to be found. Raises :class:`MissingCapability` when there is none."""
        if self._service is None:
            self._service = self._find_service()
        return self._service

    def supplicant_pids(self) -> list[int]:
        """Process ids of all running supplicants."""
        return [int(pid) for pid in self._shell.run(_FIND_PIDS).check().text.split()]

    def stop_supplicant(self, *, timeout: float = 10.0) -> None:
        """Stop the service as an administrator would; returns when the process is gone. Whether
        the driver is unbound first is up to the board's service."""
        self._consent(Consent.STOP_SUPPLICANT)
        self._supplicants()
        match self.service:
            case Service(ServiceKind.SYSTEMD, unit):
                self._command(f"systemctl stop {shlex.quote(unit)}", timeout)
            case Service(ServiceKind.SCRIPT, script):
                self._command(f"{shlex.quote(script)} stop", timeout)
            case _:
                pids = " ".join(map(str, self.supplicant_pids()))
                self._command(f"kill -TERM {pids}", timeout)
        self._wait(lambda: not self.supplicant_pids(), "tee-supplicant to end", timeout)

    def leave_driver_at_stop(self) -> None:
        """From now until the next boot, or :meth:`stop_as_configured`, stopping the service leaves
        the driver bound also where its unit unbinds it: by a drop-in in /run."""
        self._consent(Consent.STOP_SUPPLICANT)
        match self.service:
            case Service(ServiceKind.SYSTEMD, unit):
                shown = self._shell.run(f"systemctl show -p ExecStop {shlex.quote(unit)}").text
                if "unbind" in shown:
                    folder = shlex.quote(_drop_ins(unit))
                    self._shell.run_isolated(
                        f"mkdir -p {folder} && printf '[Service]\\nExecStop=\\n' "
                        f">{folder}/{_LEAVE_DRIVER} && systemctl daemon-reload"
                    ).check()

    def stop_as_configured(self) -> None:
        """Undo :meth:`leave_driver_at_stop`."""
        match self.service:
            case Service(ServiceKind.SYSTEMD, unit):
                file = shlex.quote(f"{_drop_ins(unit)}/{_LEAVE_DRIVER}")
                self._shell.run_isolated(
                    f"test ! -e {file} || {{ rm {file} && systemctl daemon-reload; }}"
                ).check()

    def start_supplicant(self, *, timeout: float = 10.0) -> None:
        """Start the service; returns when its process serves the TEE. One that ends at once
        (another is registered, or a writer still waits for the last one) raises TargetError: as
        soon as systemd calls its unit failed, elsewhere at the deadline."""
        match self.service:
            case Service(ServiceKind.SYSTEMD, unit):
                quoted = shlex.quote(unit)
                # After a crash the unit may be held back by its start limit.
                self._command(
                    f"systemctl reset-failed {quoted} 2>/dev/null; systemctl start {quoted}",
                    timeout,
                )
            case Service(ServiceKind.SCRIPT, script):
                self._command(f"{shlex.quote(script)} start", timeout)
            case Service(_, command_line):
                self._command(
                    f"setsid {command_line} </dev/null >/dev/null 2>&1 & true",
                    timeout,
                )
        serves = self._is_attached if self._device_is_seen else _Lasting(self._supplicants)
        self._wait(lambda: serves() or self._refuse_failed(), "tee-supplicant to serve", timeout)

    def restart_supplicant(self, *, timeout: float = 10.0) -> None:
        """Stop (if it runs) and start."""
        if self.supplicant_pids():
            self.stop_supplicant(timeout=timeout)
        self.start_supplicant(timeout=timeout)

    def kill_supplicant(self, signal: str = "KILL", *, timeout: float = 10.0) -> None:
        """Send a signal to the process, past its service manager; for KILL and TERM returns when
        those processes are gone (systemd may already have started another)."""
        self._consent(Consent.STOP_SUPPLICANT)
        service = self.service  # remember how to start it while it can still be found
        victims, _ = self._supplicants()
        if not victims:
            raise TargetError(
                "there is no tee-supplicant to kill",
                remedy=f"start it first ({service.kind} {service.name})",
            )
        self._command(f"kill -{signal} {' '.join(map(str, sorted(victims)))}", timeout)
        if signal in {"KILL", "TERM"}:
            self._wait(
                lambda: victims.isdisjoint(self.supplicant_pids()),
                f"tee-supplicant to die of SIG{signal}",
                timeout,
            )

    # --- bus and driver -----------------------------------------------------------------------

    def devices(self) -> list[str]:
        """Names of the devices on the TEE bus, sorted."""
        return sorted(self._shell.run("ls /sys/bus/tee/devices").check().text.split())

    def has_stmm_device(self) -> bool:
        """Whether the StandaloneMM partition has been enumerated."""
        return self._shell.run(f"test -e /sys/bus/tee/devices/{STMM_DEVICE}").ok

    def is_bound(self) -> bool:
        """Whether the driver is bound to the StandaloneMM device."""
        return self._shell.run(f"test -e {STMM_DRIVER}/{STMM_DEVICE}").ok

    def bind(self, device: str = STMM_DEVICE, *, timeout: float = 15.0) -> None:
        """Bind the driver. Raises OSError with the target's errno: ENODEV for an unknown device,
        EBUSY for one that is bound."""
        self._write_device(f"{STMM_DRIVER}/bind", device, timeout)

    def unbind(self, device: str = STMM_DEVICE, *, timeout: float = 15.0) -> None:
        """Unbind the driver; needs the consent ``unbind_driver``. Raises OSError: ENODEV for a
        device that is not bound."""
        self._consent(Consent.UNBIND_DRIVER)
        self._write_device(f"{STMM_DRIVER}/unbind", device, timeout)

    def wait_until_bound(self, *, timeout: float = 10.0) -> None:
        """Wait for the driver to be bound. Raises :class:`TargetError` at the deadline."""
        self._wait(self.is_bound, "the tee-stmm-efi driver to bind", timeout)

    # --- helpers ------------------------------------------------------------------------------

    def _write_device(self, attribute: str, device: str, timeout: float) -> None:
        steps = (
            do.Open("a", attribute, "O_WRONLY"),
            do.Write("a", f"{device}\n".encode()),
            do.Close("a"),
        )
        for outcome in self._probe.steps(steps, timeout=timeout):
            succeeded(outcome)

    def _supplicants(self) -> tuple[frozenset[int], bool]:
        """The running supplicants, and whether one visibly holds the TEE device open."""
        lines = self._shell.run(_FIND_PIDS_AND_DEVICE).check().text.split()
        attached = "attached" in lines
        self._device_is_seen |= attached
        return frozenset(map(int, filter(str.isdecimal, lines))), attached

    def _is_attached(self) -> bool:
        return self._supplicants()[1]

    def _refuse_failed(self) -> bool:
        """Raise where systemd has given the service up; else False."""
        match self.service:
            case Service(ServiceKind.SYSTEMD, unit):
                if self._shell.run(f"systemctl is-failed -q {shlex.quote(unit)}").ok:
                    raise TargetError(
                        f"{unit} started and failed at once",
                        remedy=f"read `journalctl -u {unit}` on the board; a process that waits "
                        "for the last supplicant's answer keeps a new one out until it is killed",
                    )
        return False

    def _find_service(self) -> Service:
        if unit := self._shell.run(_FIND_UNIT).text:
            return Service(ServiceKind.SYSTEMD, unit)
        if script := self._shell.run(_FIND_SCRIPT).text:
            return Service(ServiceKind.SCRIPT, script)
        pids = self.supplicant_pids()
        if not pids:
            raise MissingCapability(
                "no service, init script or process of tee-supplicant on this board",
                remedy="start tee-supplicant; a kernel-routed board needs none",
            )
        words = self._shell.run(f"tr '\\0' '\\n' < /proc/{pids[0]}/cmdline").check().text
        return Service(ServiceKind.PROCESS, shlex.join(words.splitlines()))

    def _command(self, command: str, timeout: float) -> None:
        # A lane of its own: stopping a service that the kernel waits for can hang.
        self._shell.run_isolated(command, timeout=timeout).check()

    def _wait(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        timeout = max(timeout, self._shell.least_timeout)
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() >= deadline:
                raise TargetError(
                    f"waited {timeout:g} s in vain for {what}",
                    remedy="read `dmesg` and the service's log on the board",
                )
            Event().wait(_POLL_SECONDS)


class _Lasting:
    """True once a supplicant holds the TEE device, or where that cannot be seen, once the same
    processes have run for a while."""

    def __init__(self, look: Callable[[], tuple[frozenset[int], bool]]) -> None:
        self._look = look
        self._seen: frozenset[int] = frozenset()
        self._since = time.monotonic()

    def __call__(self) -> bool:
        pids, attached = self._look()
        if pids != self._seen:
            self._seen, self._since = pids, time.monotonic()
        lasting = time.monotonic() - self._since >= _LASTING_SECONDS
        return attached or (bool(pids) and lasting)


def routing_model(shell: Shell) -> str:
    """``user`` or ``kernel``: who carries RPMB requests (K6 drivers/tee/optee/core.c); ``user``
    where the kernel is too old to say."""
    text = shell.run("cat /sys/class/tee/tee0/rpmb_routing_model 2>/dev/null").text
    return text if re.fullmatch("user|kernel", text) else "user"
