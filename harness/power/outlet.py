"""A power driver made of one outlet that can be switched and asked."""

import threading
import time

from harness.errors import PowerError
from harness.power.driver import Outlet, PowerDriver, PowerState
from harness.power.section import OutletOptions

_POLL_SECONDS = 0.1


class StateUnclear(PowerError):
    """The hardware says neither on nor off: not yet, or never."""


class OutletPower(PowerDriver):
    """The power driver over an outlet: each switch is verified by asking, until the hardware
    agrees or the time is over."""

    def __init__(self, outlet: Outlet, options: OutletOptions, *, board: str) -> None:
        self._outlet = outlet
        self._board = board
        self._request_timeout = options.timeout
        self._off_seconds = options.off_seconds

    def on(self, timeout: float) -> None:
        self._switch(PowerState.ON, timeout)

    def off(self, timeout: float) -> None:
        self._switch(PowerState.OFF, timeout)

    def cycle(self, timeout: float) -> None:
        self.off(timeout)
        # Capacitors: the board must really lose its state.
        threading.Event().wait(self._off_seconds)
        self.on(timeout)

    def state(self) -> PowerState:
        try:
            return self._outlet.read(self._request_timeout)
        except PowerError:
            return PowerState.UNKNOWN

    def verify(self) -> PowerState:
        try:
            return self._outlet.read(self._request_timeout)
        except PowerError as error:
            raise error.located(board=self._board) from error.__cause__

    def _switch(self, wanted: PowerState, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._outlet.switch(wanted is PowerState.ON, min(self._request_timeout, timeout))
            seen = self._read(deadline)
            while seen not in {wanted, PowerState.UNKNOWN} and time.monotonic() < deadline:
                threading.Event().wait(_POLL_SECONDS)
                seen = self._read(deadline)
        except PowerError as error:
            raise error.located(board=self._board) from error.__cause__
        if seen not in {wanted, PowerState.UNKNOWN}:
            raise PowerError(
                f"{self._outlet} is still {seen} {timeout:g} s after it was switched {wanted}",
                remedy="is it the right outlet, and may this user switch it?",
                board=self._board,
            )

    def _read(self, deadline: float) -> PowerState:
        """What it says; one that is unclear is asked again until ``deadline``."""
        while True:
            try:
                return self._outlet.read(self._request_timeout)
            except StateUnclear:
                if time.monotonic() >= deadline:
                    raise
            threading.Event().wait(_POLL_SECONDS)
