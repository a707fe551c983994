"""Switching a board on and off, and starting it anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.board.identity import check_right_board
from harness.board.links import Links
from harness.board.standing import Standard
from harness.consents import Consent
from harness.errors import LinkError, of_board
from harness.power.driver import PowerDriver, PowerState

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile


@dataclass(frozen=True)
class PowerSwitch:
    """Power and restarts of a board: each method returns when the board is down, or up again,
    checked and ready. Needs the consent ``power_cycle``. Raises the power driver's and the link's
    errors, :class:`LabError` at the deadline, :class:`WrongBoard` when another board comes up."""

    file: BoardFile
    driver: PowerDriver
    links: Links
    standard: Standard
    consent: Callable[[Consent], None]

    def state(self) -> PowerState:
        """As the driver verified it."""
        return self.driver.state()

    def start(self) -> None:
        """Switch on if it is off, and wait until the board answers on the chosen link; needs no
        consent."""
        with of_board(self.file.name):
            was_on = self.driver.state()
            self.driver.on(self.file.timeouts.power)
            self.links.find(just_switched_on=was_on is not PowerState.ON)
            switched = self.driver.state() is not was_on or was_on is PowerState.OFF
            if switched and self.links.chosen == "serial" and not self.links.console.mark():
                self.links.expect_boot()
            # A board that was on may be slow to log in to: how slow, its file says.
            self.links.wait_for_boot(None, self.file.timeouts.boot, already_on=not switched)

    def off(self) -> None:
        """Cut the power as pulling the plug would."""
        self.consent(Consent.POWER_CYCLE)
        self.links.forget_boot()
        with of_board(self.file.name):
            self.driver.off(self.file.timeouts.power)

    def on(self, *, timeout: float | None = None) -> None:
        """Switch on and wait until the board is ready; needs no consent."""
        # One that was already on goes on in its boot.
        was_off = self.driver.state() is PowerState.OFF
        before = self.links.last_boot if was_off else None
        self._switch_on(self.driver.on, after=before, timeout=timeout, until_ready=True)

    def cycle(self, *, timeout: float | None = None, until_ready: bool = True) -> None:
        """Cut the power, switch it on, wait until the board is ready, or with ``until_ready``
        false until it answers."""
        self.consent(Consent.POWER_CYCLE)
        before = self.links.last_boot
        self.links.forget_boot()
        self._switch_on(self.driver.cycle, after=before, timeout=timeout, until_ready=until_ready)

    def reboot(self, *, timeout: float | None = None) -> None:
        """Restart from inside and wait until the board is ready."""
        self.consent(Consent.POWER_CYCLE)
        before = self.links.boot_id
        self.links.forget_boot()
        # It may take the link down before the status is back: the new boot id is the proof.
        with contextlib.suppress(LinkError):
            self.links.shell.run_isolated("setsid reboot </dev/null >/dev/null 2>&1 & true")
        self._wait_for_boot(after=before, timeout=timeout, until_ready=True)

    def _switch_on(
        self,
        switch: Callable[[float], None],
        *,
        after: str | None,
        timeout: float | None,
        until_ready: bool,
    ) -> None:
        with of_board(self.file.name):
            self.links.expect_boot()
            switch(self.file.timeouts.power)
            self.links.find(just_switched_on=True)
        self._wait_for_boot(
            after=after, timeout=timeout, until_ready=until_ready, without_power=True
        )

    def _wait_for_boot(
        self,
        *,
        after: str | None,
        timeout: float | None,
        until_ready: bool,
        without_power: bool = False,
    ) -> None:
        """Wait until a boot other than ``after`` (a boot id) answers, check that it is the right
        board, and with ``until_ready`` wait until it is ready. A board ``without_power`` in between
        cannot answer in its old boot: then :class:`PowerError` at once."""
        self.links.forget_boot()
        limits = self.file.timeouts
        with of_board(self.file.name):
            goes_down = after is not None and not without_power
            patience = timeout or limits.boot + (limits.shutdown if goes_down else 0)
            self.links.wait_for_boot(after, patience, without_power=without_power)
            check_right_board(self.file, self.links, [self.links.chosen])
            if until_ready:
                self.standard.wait()
