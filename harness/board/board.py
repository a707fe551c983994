"""A board: identity, links, power, capabilities, and the proof that it is the right one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from harness import capabilities
from harness.board import state_dir as place
from harness.capabilities import (
    EFIVARS_PATH,
    STMM_DEVICE,
    STMM_DRIVER,
    VENDOR_GUID,
    Capabilities,
)
from harness.consents import Consent
from harness.errors import (
    CommandFailed,
    ConsentMissing,
    HilError,
    LabError,
    LinkError,
    LinkRefused,
    MissingCapability,
    WrongBoard,
)
from harness.instruments.efivars import Efivars, VariableName, mount_state
from harness.instruments.guard import ForeignWrites
from harness.instruments.kernel_log import KernelLog
from harness.instruments.rpmb import Rpmb
from harness.instruments.tee import Tee, routing_model
from harness.lab.labgrid.outlet import PlacePower
from harness.power.driver import Endpoints, PowerDriver, PowerState, power_of
from harness.probe import Probe
from harness.safekeeping import key_programming
from harness.safekeeping.key_programming import NEVER, KeyProgramming
from harness.shell import Shell

if TYPE_CHECKING:
    from harness.boardfile.boardfile import BoardFile
    from harness.links.address import SerialAddress, SshAddress
    from harness.links.console import Console
    from harness.links.serial import SerialShell
    from harness.links.ssh import SshShell

LinkName = Literal["ssh", "serial"]

_POLL_SECONDS = 0.05
# A board that nobody has just switched on either answers soon or not at all.
_ALREADY_ON_SECONDS = 5.0
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_CID = "cat /sys/class/mmc_host/mmc*/mmc*/cid"
# The last byte holds the CRC, which some host controllers do not pass on.
_CID_DIGITS = 30
_FIRMWARE = (
    "dmesg | sed -n -e 's/.*efi: EFI v/EFI v/p' -e 's/.*optee: revision /OP-TEE /p' | sort -u"
)
_IDENTITY = f"uname -srm; {_FIRMWARE}"
# What decides what a board can do: kernel, firmware, root file system.
_SOFTWARE = f"{{ uname -srvm; cat /proc/cmdline; {_FIRMWARE}; }} 2>/dev/null"
# Built-in commands where possible: it runs after every test, and a process costs a millisecond.
STANDING = f"""test -e {STMM_DRIVER}/{STMM_DEVICE} && echo bound
while IFS= read -r m; do case $m in *' {EFIVARS_PATH} '*) printf '%s\\n' "$m";; esac
done </proc/self/mountinfo
for p in /proc/[0-9]*; do IFS= read -r n <$p/comm && case $n in tee-supplicant*) \
echo supplicant; break;; esac; done 2>/dev/null
for v in {EFIVARS_PATH}/*-{VENDOR_GUID} {EFIVARS_PATH}/.*-{VENDOR_GUID}; do test -e "$v" && \
echo "own ${{v##*/}}"; done; true
"""
# Sizes and names of the others; of "-rw-r--r-- 1 0 0 12 Jan  1 00:00 NAME" (POSIX ls -n), because
# stat is not on every board. A name may begin with a dot.
_FOREIGN = f"""ls -Aln {EFIVARS_PATH} 2>/dev/null | sed -n -e '/-{VENDOR_GUID}$/d' -e \
's/^-[^ ]* *[0-9]* *[0-9]* *[0-9]* *\\([0-9]*\\) *[^ ]* *[^ ]* *[^ ]* /\\1 /p'"""
FOREIGN_STANDING = f"echo foreign $({_FOREIGN} | cksum)\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """What answered: for the report's header and for messages."""

    board: str
    link: str
    firmware: str
    kernel: str
    emmc_cids: tuple[str, ...]
    boot_id: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What a test may have left otherwise than it found it."""

    bound: bool
    mounted: bool
    writable: bool
    supplicant: bool
    own_variables: tuple[str, ...] = ()
    foreign: str = ""
    """A checksum over names and sizes of all other variables: a serial line is slow. Empty where
    nobody looked."""

    def lacks(self, wanted: Standing) -> list[str]:
        """What ``wanted`` has and this has not, in the order in which it must be mended."""
        pairs = {
            "supplicant running": (self.supplicant, wanted.supplicant),
            "driver bound": (self.bound, wanted.bound),
            "efivarfs mounted": (self.mounted, wanted.mounted),
            "efivarfs writable": (self.writable, wanted.writable),
        }
        return [what for what, (has, should) in pairs.items() if should and not has]


class Board:
    """One board as tests see it; a context manager.

    ``link`` chooses the link that :attr:`shell` is; by default SSH where the board has it. The
    other one stays available. Everything that changes the board asks the board file's consents
    first and raises :class:`ConsentMissing`. ``believe_pins`` takes the board file's
    ``[capabilities]`` for measured. ``console_log`` keeps what the serial console says, by itself
    in the board's own folder (`hil log`). Timeouts are seconds and default to the board
    file's ``[timeouts]``.
    """

    def __init__(
        self,
        file: BoardFile,
        *,
        link: LinkName | None = None,
        assume_yes: bool = False,
        console_log: Path | None = None,
        believe_pins: bool = False,
        programming: KeyProgramming = NEVER,
    ) -> None:
        self.file = file
        self.name = file.name
        self.power: PowerDriver = power_of(file, assume_yes=assume_yes)
        self._link = link
        self._console_log = console_log
        self._key_programming = programming
        self._believe_pins = believe_pins
        self._endpoints = Endpoints()
        # Seconds: an adapter that draws its power from the board comes only after the switch.
        self._adapter_patience = 0.0
        self._ssh: SshShell | None = None
        self._serial: SerialShell | None = None
        # Where it is not the board file's.
        self._login_baud: int | None = None
        self._probe: Probe | None = None
        self._capabilities: Capabilities | None = None
        # What software was measured last, and how.
        self._last: tuple[str, Capabilities | None] = ("", None)
        # Links whose boot has not been compared with that of the chosen link.
        self._unproved: set[LinkName] = set()
        self._boot_id: str | None = None
        self._standard: Standing | None = None
        self._right_board = False
        self.kept_variables: set[VariableName] = set()
        """Own variables that outlive the test that made them: a fixture of wider scope holds and
        deletes them."""
        self.foreign_writes = ForeignWrites(self.require_consent, board=file.name)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- life ---------------------------------------------------------------------------------

    def hold(self) -> None:
        """Acquire the labgrid place that the board is in, if it is in one, until :meth:`close`.
        Raises :class:`~harness.lab.lease.BoardHeld` when somebody else has it."""
        if isinstance(self.power, PlacePower):
            self.power.hold()

    def check_held(self) -> None:
        """Raise :class:`~harness.lab.lease.LeaseBroken` when the labgrid place is not ours any
        more. Asks nobody: fast."""
        if isinstance(self.power, PlacePower):
            self.power.check()

    def start(self) -> None:
        """Switch the board on if it is not, and wait until it answers on the chosen link.

        Raises the power driver's and the link's errors, :class:`LabError` at the deadline.
        """
        with self._located():
            self.hold()
            was_on = self.power.state()
            self.power.on(self.file.timeouts.power)
            self._find_endpoints(just_switched_on=was_on is not PowerState.ON)
            switched = self.power.state() is not was_on or was_on is PowerState.OFF
            if switched and self.link == "serial" and not self.console.mark():
                self._expect_boot()
            timeout = self.file.timeouts.boot if switched else _ALREADY_ON_SECONDS
            self._wait_until_up(None, timeout)

    def close(self) -> None:
        """Give links and power driver back; never raises. The board stays as it is (a board that
        exists only in software ends)."""
        self.relink()
        self.power.close()

    # --- links --------------------------------------------------------------------------------

    @property
    def link(self) -> LinkName:
        """Which link :attr:`shell` is."""
        if self._link is not None:
            return self._link
        return "ssh" if self._endpoints.ssh is not None else "serial"

    @property
    def shell(self) -> Shell:
        """The chosen link. Raises :class:`MissingCapability` when the board has no such link."""
        return self.ssh if self.link == "ssh" else self.serial

    @property
    def ssh(self) -> SshShell:
        """The SSH link, connected at its first use; in a new boot it must reach the same board as
        the chosen link, else :class:`WrongBoard`."""
        self._prove("ssh", self._ssh)
        if self._ssh is None:
            from harness.links.ssh import SshShell

            if self._endpoints.ssh is None:
                raise self._no_link("ssh")
            self._ssh = SshShell(self._endpoints.ssh)
            self._ssh.least_timeout = self.file.timeouts.command
        return self._ssh

    @property
    def serial(self) -> SerialShell:
        """The serial link, logged in at its first use; in a new boot it must reach the same board
        as the chosen link, else :class:`WrongBoard`."""
        self._prove("serial", self._serial)
        return self._serial_link()

    def _serial_link(self) -> SerialShell:
        if self._serial is None:
            from harness.links.serial import SerialShell

            if self._endpoints.serial is None:
                raise self._no_link("serial")
            if self._adapter_patience:
                from harness.lab.adapter import wait_for_port

                with self._located():
                    wait_for_port(self._endpoints.serial.url, timeout=self._adapter_patience)
            self._serial = SerialShell.open(self._endpoints.serial, baud=self._login_baud)
            self._serial.least_timeout = self.file.timeouts.command
        return self._serial

    @property
    def console(self) -> Console:
        """The serial console under :attr:`serial`: log, boot stage, break."""
        return self._serial_link().console

    @property
    def open_console(self) -> Console | None:
        """The console where something already listens to it: asking opens nothing."""
        return None if self._serial is None else self._serial.console

    @property
    def links(self) -> list[LinkName]:
        """The links that this board has."""
        ends: dict[LinkName, object | None] = {
            "ssh": self._endpoints.ssh,
            "serial": self._endpoints.serial,
        }
        return [name for name, end in ends.items() if end is not None]

    @property
    def corrections(self) -> list[str]:
        """What its links found wrong in the board file, and got along with."""
        from harness.links.rates import correction

        found, serial = self._found_baud(), self._endpoints.serial
        return [] if found is None or serial is None else [correction(found, serial.baud)]

    def _found_baud(self) -> int | None:
        """The rate at which a login on the console succeeded, where it is another than the board
        file's (bit/s)."""
        if self._serial is None or self._serial.login_baud is None:
            return self._login_baud
        baud = self._serial.login_baud
        return None if baud == self._serial.console.configured_baud else baud

    def find_links(self, *, just_switched_on: bool = False) -> Endpoints:
        """Where the links are now; opens none. Raises :class:`HostError` for a serial adapter that
        is not plugged in; one that may draw its power from the board is waited for."""
        with self._located():
            self._find_endpoints(just_switched_on=just_switched_on)
        return self._endpoints

    def do_without(self, link: LinkName) -> None:
        """Forget a link that does not work, so that the other one is used."""
        self._endpoints = replace(self._endpoints, **{link: None})

    # --- instruments --------------------------------------------------------------------------

    @property
    def probe(self) -> Probe:
        """Raw system calls over :attr:`shell`."""
        if self._probe is None:
            self._probe = Probe(self.shell, guard=self.foreign_writes.check)
        return self._probe

    @cached_property
    def efivars(self) -> Efivars:
        return Efivars(
            self.shell, self.probe, consent=self.require_consent, kept=self.kept_variables
        )

    @cached_property
    def rpmb(self) -> Rpmb:
        return Rpmb(
            self.shell,
            consent=self.require_consent,
            programming=lambda: key_programming.require(self, self._key_programming),
        )

    @cached_property
    def tee(self) -> Tee:
        return Tee(self.shell, self.probe, consent=self.require_consent)

    @cached_property
    def kernel_log(self) -> KernelLog:
        return KernelLog(self.shell)

    # --- identity -----------------------------------------------------------------------------

    @property
    def boot_id(self) -> str:
        """The kernel's random id of this boot; read once a boot."""
        if self._boot_id is None:
            self._boot_id = self._read_boot_id(self.shell)
        return self._boot_id

    def identity(self) -> Identity:
        """What answers on the chosen link now."""
        kernel, *lines = self.shell.run(_IDENTITY).check().text.split("\n")
        firmware = ", ".join(line for line in lines if line)
        return Identity(
            board=self.name,
            link=self.shell.name,
            firmware=firmware or "unknown (no line in the kernel log)",
            kernel=kernel,
            emmc_cids=tuple(self._read_cids()),
            boot_id=self.boot_id,
        )

    def check_right_board(self) -> None:
        """Prove that this is the board of the board file: the boot id is the same over every
        link, and one eMMC has the board file's CID. Raises :class:`WrongBoard`."""
        self._unproved = set()
        self._check_right_board(self.links)

    def _check_right_board(self, links: Sequence[LinkName]) -> None:
        with self._located():
            seen = {name: self._read_boot_id(self._shell_of(name)) for name in links}
            _check_same_boot(seen)
            cids = self._read_cids()
            wanted = self.file.emmc_cid[:_CID_DIGITS]
            if not any(cid[:_CID_DIGITS] == wanted for cid in cids):
                raise WrongBoard(
                    f"no eMMC with the CID {self.file.emmc_cid}; this board has "
                    f"{', '.join(cids) or 'none'}",
                    remedy="check wiring and address, or correct emmc_cid in the board file",
                )
            self._boot_id = seen[self.link]
            self._right_board = True

    @property
    def capabilities(self) -> Capabilities:
        """What the board can do; measured once a boot, and what lasts once for each firmware and
        kernel that answer."""
        if self._capabilities is None:
            software = self.shell.run(_SOFTWARE).text
            known_of, last = self._last
            self._capabilities = capabilities.measure(
                self.shell,
                board=self.name,
                pinned=self.file.capabilities,
                may=self.may,
                believe=self._believe_pins,
                known=last.lasting() if last is not None and software == known_of else None,
            )
            self._last = software, self._capabilities
        return self._capabilities

    def may(self, consent: Consent) -> bool:
        """:meth:`require_consent` as a question; raises only :class:`WrongBoard`."""
        try:
            self.require_consent(consent)
        except ConsentMissing:
            return False
        return True

    def require_consent(self, consent: Consent) -> None:
        """Return if the owner allows it and this is the right board (checked before the first
        use of any consent in a boot). Raises :class:`ConsentMissing`, :class:`WrongBoard`."""
        if not self.file.consents_to(consent):
            raise ConsentMissing(
                f"the board file does not consent to {consent}",
                remedy=f"if its owner agrees, set {consent} = true in [consents]",
                board=self.name,
            )
        if not self._right_board:
            self.check_right_board()

    # --- power --------------------------------------------------------------------------------

    def reboot(self, *, timeout: float | None = None) -> None:
        """Restart from inside and wait until the board is ready; needs ``power_cycle``."""
        self.require_consent(Consent.POWER_CYCLE)
        before = self.boot_id
        self._forget_boot()
        # It may take the link down before the status is back: the new boot id is the proof.
        with contextlib.suppress(LinkError):
            self.shell.run_isolated("setsid reboot </dev/null >/dev/null 2>&1 & true")
        self.wait_for_boot(after=before, timeout=timeout)

    def power_off(self) -> None:
        """Cut the power as pulling the plug would; needs ``power_cycle``."""
        self.require_consent(Consent.POWER_CYCLE)
        self._forget_boot()
        with self._located():
            self.power.off(self.file.timeouts.power)

    def power_on(self, *, timeout: float | None = None) -> None:
        """Switch on and wait until the board is ready."""
        with self._located():
            self._expect_boot()
            self.power.on(self.file.timeouts.power)
            if self._find_endpoints(just_switched_on=True):
                self.relink()
        self.wait_for_boot(after=None, timeout=timeout)

    def power_cycle(self, *, timeout: float | None = None, until_ready: bool = True) -> None:
        """Cut the power, switch it on, wait until the board is ready, or with ``until_ready``
        false until it answers; needs ``power_cycle``."""
        self.require_consent(Consent.POWER_CYCLE)
        before = self._boot_id
        self._forget_boot()
        with self._located():
            self._expect_boot()
            self.power.cycle(self.file.timeouts.power)
            if self._find_endpoints(just_switched_on=True):
                self.relink()
        self.wait_for_boot(after=before, timeout=timeout, until_ready=until_ready)

    def wait_for_boot(
        self, *, after: str | None, timeout: float | None = None, until_ready: bool = True
    ) -> None:
        """Wait until a boot other than ``after`` (a boot id) answers, check that it is the right
        board, and with ``until_ready`` wait until it is ready. Raises :class:`LabError` at the
        deadline."""
        self._forget_boot()
        limits = self.file.timeouts
        with self._located():
            self._wait_until_up(after, timeout or limits.boot + (limits.shutdown if after else 0))
            # Their sessions ended with the old boot; logging in again is not worth the time
            # before somebody uses them.
            self._unproved = set(self.links) - {self.link}
            self._check_right_board([self.link])
            if until_ready:
                self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the driver is bound and efivarfs writable, as after every boot; a board that
        does not come so far is left to the capabilities to tell."""
        deadline = time.monotonic() + self.file.timeouts.ready
        standing = self.standing()
        while not (standing.bound and standing.writable) and time.monotonic() < deadline:
            Event().wait(_POLL_SECONDS)
            standing = self.standing()
        self._standard = replace(standing, own_variables=(), foreign="")

    # --- standard state -----------------------------------------------------------------------

    def standing(self, *, foreign: bool = False) -> Standing:
        """Driver, mount, supplicant and own variables, in one round trip; with ``foreign`` the
        others, too, which takes three processes."""
        look = STANDING + FOREIGN_STANDING if foreign else STANDING
        return self.standing_of(self.shell.run(look).text.splitlines())

    def standing_of(self, lines: Iterable[str]) -> Standing:
        """What :data:`STANDING`, and perhaps :data:`FOREIGN_STANDING`, printed; other lines are
        passed over."""
        lines = list(lines)
        mounts = [mount_state(line) for line in lines if f" {EFIVARS_PATH} " in line]
        own = {line[4:] for line in lines if line.startswith("own ")}
        return Standing(
            bound="bound" in lines,
            mounted=bool(mounts),
            writable=bool(mounts) and mounts[-1].writable,
            supplicant="supplicant" in lines,
            own_variables=tuple(sorted(own - {str(name) for name in self.kept_variables})),
            foreign=next((line for line in lines if line.startswith("foreign ")), ""),
        )

    def foreign_variables(self) -> dict[str, int]:
        """File names and sizes (data plus four bytes) of the variables that are not ours, by the
        shell; what the checksum of :attr:`Standing.foreign` is over."""
        lines = self.shell.run(_FOREIGN).text.splitlines()
        return {name: int(size) for size, _, name in (line.partition(" ") for line in lines)}

    def restore_standing(self, standing: Standing | None = None) -> list[str]:
        """Bring back what the last boot had and a test left otherwise; returns what was mended.
        ``standing`` spares the round trip. Raises when something cannot be mended."""
        if self._standard is None:
            return []
        mended = (standing or self.standing()).lacks(self._standard)
        if not mended:
            return []
        for what in mended:
            # Each mend may bring the next by itself: the supplicant enumerates the device.
            if what in self.standing().lacks(self._standard):
                self._mend(what)
        left = self.standing().lacks(self._standard)
        if left:
            raise LabError(
                f"the board could not be brought back to: {', '.join(left)}",
                remedy="power-cycle it",
                board=self.name,
            )
        return mended

    def _mend(self, what: str) -> None:
        with contextlib.suppress(CommandFailed, MissingCapability):
            match what:
                case "supplicant running":
                    self.tee.start_supplicant()
                case "driver bound":
                    self.tee.bind()
                case "efivarfs mounted":
                    self.efivars.mount()
                case "efivarfs writable":
                    self.efivars.remount("rw")

    def routing_model(self) -> str:
        """``user`` or ``kernel``: who carries OP-TEE's RPMB requests."""
        return routing_model(self.shell)

    # --- helpers ------------------------------------------------------------------------------

    def _prove(self, name: LinkName, shell: SshShell | SerialShell | None) -> None:
        """At the first use of a link in a new boot: log in again, and compare."""
        self.check_held()
        if name not in self._unproved or name == self.link:
            return
        self._unproved.discard(name)
        if shell is not None:
            with self._located():
                shell.reconnect(deadline=self.file.timeouts.boot)
                _check_same_boot({self.link: self.boot_id, name: self._read_boot_id(shell)})

    def _shell_of(self, name: LinkName) -> Shell:
        return self.ssh if name == "ssh" else self.serial

    def _no_link(self, name: LinkName) -> MissingCapability:
        return MissingCapability(
            f"this board has no {name} link",
            remedy=f"give its board file an [{name}] table, or choose the other link with --link",
            board=self.name,
        )

    def _read_boot_id(self, shell: Shell) -> str:
        return shell.run(_BOOT_ID).check().text

    def _read_cids(self) -> list[str]:
        return self.shell.run(_CID).text.split()

    def _wait_until_up(self, after: str | None, timeout: float) -> None:
        """Until a command is answered by a boot other than ``after``."""
        deadline = time.monotonic() + timeout
        last: HilError | None = None
        while (left := deadline - time.monotonic()) > 0:
            last = self._try_boot(after, left)
            if last is None:
                return
            Event().wait(_POLL_SECONDS)
        if isinstance(last, LinkError):
            raise last
        raise LabError(
            f"the board was not up within {timeout:g} s: {last.what if last else 'no answer'}",
            remedy="look at its console; raise timeouts.boot if it needs longer",
            board=self.name,
        )

    def _try_boot(self, after: str | None, timeout: float) -> HilError | None:
        """Connect and ask for the boot id; why it is not yet up, or None. Raises what no waiting
        mends."""
        try:
            self.shell.reconnect(deadline=timeout)
        except LinkRefused:
            # It has waited for the port to open; a wrong key stays wrong.
            raise
        except LinkError as error:
            return error
        try:
            self._boot_id = self._read_boot_id(self.shell)
        except (LinkError, CommandFailed) as error:
            # A board that goes down, or comes up, may hang up on who has just connected.
            return error
        if self._boot_id != after:
            return None
        return LabError("the old boot still answers", remedy="does `reboot` work on it?")

    def _forget_boot(self) -> None:
        """Nothing measured in this boot holds in the next."""
        self._boot_id = None
        self._capabilities = None
        self._right_board = False
        if self._probe is not None:
            self._probe.close()

    def relink(self) -> None:
        """Throw away every link, probe and instrument; they are made afresh at the next use."""
        self._forget_boot()
        self._probe = None
        for name in ("efivars", "rpmb", "tee", "kernel_log"):
            self.__dict__.pop(name, None)
        self._login_baud = self._found_baud()
        for shell in (self._ssh, self._serial):
            if shell is not None:
                shell.close()
        self._ssh = self._serial = None

    def _expect_boot(self) -> None:
        """The console that is listened to must not be typed at before the system has opened it."""
        if self._serial is not None:
            self._serial.console.expect_boot()

    def _find_endpoints(self, *, just_switched_on: bool) -> bool:
        """Where the links are now: the board file's word, else that of the power driver or the
        labgrid place. True when that changed, so that links made before lead nowhere."""
        offered = self.power.endpoints()
        self._adapter_patience = self.file.timeouts.adapter if just_switched_on else 0.0
        found = Endpoints(
            ssh=_ssh_address(self.file, offered.ssh),
            serial=serial_address(
                self.file, patience=self._adapter_patience, offered=offered.serial
            ),
        )
        if found.serial is not None:
            log = self._console_log or place.console_logs(self.power, self.file)
            found = replace(found, serial=replace(found.serial, capture=log))
        changed = found != self._endpoints
        self._endpoints = found
        return changed

    @contextlib.contextmanager
    def _located(self) -> Iterator[None]:
        """Errors of lower layers learn which board it was."""
        try:
            yield
        except HilError as error:
            raise error.located(board=self.name) from error.__cause__


def _check_same_boot(seen: Mapping[LinkName, str]) -> None:
    if len(set(seen.values())) > 1:
        shown = ", ".join(f"{boot_id} over {name}" for name, boot_id in seen.items())
        raise WrongBoard(
            f"the links reach different boards: boot id {shown}",
            remedy="compare the board file's ssh and serial entries with the wiring",
        )


def _ssh_address(file: BoardFile, offered: SshAddress | None) -> SshAddress | None:
    """What the board file says; where it names no host, the ``offered`` end with all that it does
    say."""
    section = file.ssh
    if section is None:
        return offered
    from harness.links.address import SshAddress

    base = SshAddress(section.host) if section.host else offered
    return None if base is None else replace(base, **section.model_dump(exclude_unset=True))


def serial_address(
    file: BoardFile, *, patience: float = 0.0, offered: SerialAddress | None = None
) -> SerialAddress | None:
    """The console that the board file names, else the ``offered`` one with its login and prompts;
    None where there is neither. Its adapter may take ``patience`` seconds to appear. Raises
    :class:`HostError` for one found by its udev properties that is not there."""
    section = file.serial
    if section is None:
        return offered
    from harness.links.address import Login, Prompts, SerialAddress

    url = section.port
    if section.udev is not None:
        from harness.lab.adapter import node_of

        url = node_of(section.udev, timeout=patience)
    base = offered if url is None else SerialAddress(url, section.baud)
    if base is None:
        return None
    return replace(
        base,
        baud=section.baud if "baud" in section.model_fields_set else base.baud,
        login=Login(section.login.user, section.login.password),
        prompts=Prompts(**section.prompts.model_dump(exclude_none=True)),
    )


@dataclass(frozen=True)
class PowerSwitch:
    """The power of a board as a test uses it: each method returns when the board is down, or up
    again, checked and ready. Needs the consent ``power_cycle``."""

    board: Board

    def off(self) -> None:
        """Cut the power."""
        self.board.power_off()

    def on(self, *, timeout: float | None = None) -> None:
        """Switch on and wait until the board is ready."""
        self.board.power_on(timeout=timeout)

    def cycle(self, *, timeout: float | None = None) -> None:
        """Cut, switch on, wait until the board is ready."""
        self.board.power_cycle(timeout=timeout)

    def state(self) -> PowerState:
        """As the driver verified it."""
        return self.board.power.state()
