"""The links of a board: where they are, which one is chosen, and that all reach the same boot;
what works over a link is thrown away with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from harness.board.addresses import serial_address, ssh_address
from harness.board.instruments import Instruments
from harness.board.state_dir import console_logs
from harness.capabilities import Capabilities
from harness.errors import (
    CommandFailed,
    HilError,
    LabError,
    LinkError,
    LinkRefused,
    MissingCapability,
    PowerError,
    WrongBoard,
    of_board,
)
from harness.links.names import LINKS, LinkName
from harness.power.driver import Endpoints, PowerDriver
from harness.shell import Shell

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile
    from harness.links.address import SerialAddress
    from harness.links.console import Console
    from harness.links.serial import SerialShell
    from harness.links.ssh import SshShell


_POLL_SECONDS = 0.05
_LISTENS_SECONDS = 5.0
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@dataclass
class ThisBoot:
    """What is known in one boot only: its random id, that the right board answers, what that can
    do."""

    id: str | None = None
    right_board: bool = False
    capabilities: Capabilities | None = None


class Links:
    """The links of one board; each is opened at its first use. ``chosen`` is the one that
    :attr:`shell` is, by default SSH where the board has it; ``equip`` makes its instruments;
    ``check_held`` is asked at every use."""

    def __init__(
        self,
        file: BoardFile,
        power: PowerDriver,
        *,
        chosen: LinkName | None,
        console_log: Path | None,
        equip: Callable[[Shell], Instruments],
        check_held: Callable[[], None],
    ) -> None:
        self._file = file
        self._power = power
        self._chosen = chosen
        self._console_log = console_log
        self._equip = equip
        self._check_held = check_held
        self._endpoints = Endpoints()
        # Those that do not work.
        self._given_up: set[LinkName] = set()
        # Seconds: an adapter that draws its power from the board comes only after the switch.
        self._adapter_patience = 0.0
        self._ssh: SshShell | None = None
        self._serial: SerialShell | None = None
        self._instruments: Instruments | None = None
        # Where it is not the board file's.
        self._login_baud: int | None = None
        # Links whose boot has not been compared with that of the chosen link.
        self._unproved: set[LinkName] = set()
        self.boot = ThisBoot()
        # The boot that goes on unless somebody restarts the board.
        self._expected: str | None = None
        self.last_boot: str | None = None
        """The boot id that was read last, however long ago: no other boot has the same."""

    @property
    def chosen(self) -> LinkName:
        """Which link :attr:`shell` is."""
        if self._chosen is not None:
            return self._chosen
        return "ssh" if self._endpoints.ssh is not None else "serial"

    @property
    def names(self) -> list[LinkName]:
        """The links that this board has."""
        return [name for name in LINKS if getattr(self._endpoints, name) is not None]

    @property
    def shell(self) -> Shell:
        """The chosen link. Raises :class:`MissingCapability` when the board has no such link."""
        return self._shell_of(self.chosen)

    @property
    def instruments(self) -> Instruments:
        """All instruments over :attr:`shell`, made with it; none outlives :meth:`close`."""
        if self._instruments is None:
            self._instruments = self._equip(self.shell)
        return self._instruments

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
            self._ssh.least_timeout = self._file.timeouts.command
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

                with of_board(self._file.name):
                    wait_for_port(self._endpoints.serial.url, timeout=self._adapter_patience)
            self._serial = SerialShell.open(self._endpoints.serial, baud=self._login_baud)
            self._serial.least_timeout = self._file.timeouts.command
        return self._serial

    @property
    def console(self) -> Console:
        """The serial console under :attr:`serial`: log, boot stage, break."""
        return self._serial_link().console

    @property
    def open_console(self) -> Console | None:
        """The console where something already listens to it: asking opens nothing."""
        return None if self._serial is None else self._serial.console

    def expect_boot(self) -> None:
        """The console that is listened to must not be typed at before the system has opened it."""
        if self._serial is not None:
            self._serial.console.expect_boot()

    def close(self) -> None:
        """Throw away every link and all instruments; they are made afresh at the next use. Never
        raises."""
        self._forget()
        self._instruments = None
        self._login_baud = self._found_baud()
        for shell in (self._ssh, self._serial):
            if shell is not None:
                shell.close()
        self._ssh = self._serial = None

    # --- where they are -----------------------------------------------------------------------

    def find(self, *, just_switched_on: bool = False) -> Endpoints:
        """Where the links are now: the board file's word, else that of the power driver or the
        labgrid place. Opens none, and closes all where that changed: they lead nowhere. Raises
        :class:`HostError` for a serial adapter that is not plugged in; one that may draw its power
        from the board is waited for."""
        with of_board(self._file.name):
            offered = self._power.endpoints()
            self._adapter_patience = self._file.timeouts.adapter if just_switched_on else 0.0
            found = Endpoints(
                None if "ssh" in self._given_up else ssh_address(self._file, offered.ssh),
                None if "serial" in self._given_up else self._find_serial(offered.serial),
            )
        if found != self._endpoints:
            self.close()
        self._endpoints = found
        return found

    def _find_serial(self, offered: SerialAddress | None) -> SerialAddress | None:
        found = serial_address(self._file, patience=self._adapter_patience, offered=offered)
        if found is None:
            return None
        return replace(found, capture=self._console_log or console_logs(self._power, self._file))

    def do_without(self, link: LinkName) -> None:
        """Forget a link that does not work, so that the other one is used."""
        self._given_up.add(link)
        self._endpoints = replace(self._endpoints, **{link: None})

    @property
    def corrections(self) -> list[str]:
        """What the links found wrong in the board file, and got along with."""
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

    # --- which boot they reach ----------------------------------------------------------------

    def forget_boot(self) -> None:
        """The board is being restarted: nothing measured in this boot holds in the next."""
        self._expected = None
        self._forget()

    def unexpected_boot(self, answering: str | None = None) -> str | None:
        """The boot id before the board restarted without having been told to; None where it did
        not. The boot that answers (``answering``, else it is asked) is the expected one from now
        on, of which nothing is known yet."""
        answering = answering or _read_boot_id(self.shell)
        before, self._expected = self._expected, answering
        if before in (None, answering):
            return None
        self._forget()
        self.boot.id = self.last_boot = answering
        return before

    def _forget(self) -> None:
        self.boot = ThisBoot()
        if self._instruments is not None:
            self._instruments.probe.close()

    @property
    def boot_id(self) -> str:
        """The kernel's random id of this boot; read once a boot."""
        if self.boot.id is None:
            self.boot.id = self.last_boot = _read_boot_id(self.shell)
        return self.boot.id

    def compare(self, names: Collection[LinkName]) -> str:
        """The boot id that the chosen link reads, one of ``names``, which must be that of all of
        them; those not named are compared at their first use. Raises :class:`WrongBoard`."""
        # Their sessions ended with the old boot; logging in again is not worth the time before
        # somebody uses them.
        self._unproved = set(self.names) - set(names)
        seen = {name: _read_boot_id(self._shell_of(name)) for name in names}
        _check_same_boot(seen)
        return seen[self.chosen]

    def wait_for_boot(
        self,
        after: str | None,
        timeout: float,
        *,
        without_power: bool = False,
        already_on: bool = False,
    ) -> None:
        """Until a command is answered by a boot other than ``after``. Raises the link's error,
        :class:`LabError` at the deadline; :class:`PowerError` where ``after`` answers although its
        board was ``without_power``. One that is ``already_on`` has its SSH port open, or will not
        have it: that is waited for some seconds only, a login for all of them."""
        deadline = time.monotonic() + timeout
        last: HilError | None = None
        while (left := deadline - time.monotonic()) > 0:
            soon = already_on and last is None and self.chosen == "ssh"
            last = self._try_boot(after, min(left, _LISTENS_SECONDS) if soon else left)
            if last is None:
                return
            if without_power and isinstance(last, _OldBoot):
                self.close()  # its console waits for a boot that does not come
                raise _lives_on(after)
            Event().wait(_POLL_SECONDS)
        if isinstance(last, LinkError):
            raise last
        raise LabError(
            f"the board was not up within {timeout:g} s: {last.what if last else 'no answer'}",
            remedy="look at its console; raise timeouts.boot if it needs longer",
            board=self._file.name,
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
            self.boot.id = self.last_boot = _read_boot_id(self.shell)
        except (LinkError, CommandFailed) as error:
            # A board that goes down, or comes up, may hang up on who has just connected.
            return error
        if self.boot.id != after:
            self._expected = self.boot.id
            return None
        return _OldBoot("the old boot still answers", remedy="does `reboot` work on it?")

    def _prove(self, name: LinkName, shell: SshShell | SerialShell | None) -> None:
        """At the first use of a link in a new boot: log in again, and compare."""
        self._check_held()
        if name not in self._unproved or name == self.chosen:
            return
        self._unproved.discard(name)
        if shell is not None:
            with of_board(self._file.name):
                shell.reconnect(deadline=self._file.timeouts.boot)
                _check_same_boot({self.chosen: self.boot_id, name: _read_boot_id(shell)})

    def _shell_of(self, name: LinkName) -> Shell:
        return self.ssh if name == "ssh" else self.serial

    def _no_link(self, name: LinkName) -> MissingCapability:
        return MissingCapability(
            f"this board has no {name} link",
            remedy=f"give its board file an [{name}] table, or choose the other link with --link",
            board=self._file.name,
        )


class _OldBoot(LabError):
    """The boot answers that should be over."""


def _lives_on(boot_id: str | None) -> PowerError:
    return PowerError(
        f"the board lives on: boot {boot_id} answers before and after its power was cut",
        remedy="does [power] name the outlet that this board is plugged into? Has it a second"
        " supply (USB, PoE, a battery, the serial adapter)? Is off_seconds too short?",
    )


def _read_boot_id(shell: Shell) -> str:
    return shell.run(_BOOT_ID).check().text


def _check_same_boot(seen: Mapping[LinkName, str]) -> None:
    if len(set(seen.values())) > 1:
        shown = ", ".join(f"{boot_id} over {name}" for name, boot_id in seen.items())
        raise WrongBoard(
            f"the links reach different boards: boot id {shown}",
            remedy="compare the board file's ssh and serial entries with the wiring",
        )
