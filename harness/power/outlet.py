"""A power driver made of one outlet that can be switched and asked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

from harness.errors import PowerError
from harness.power.driver import Endpoints, PowerState

_POLL_SECONDS = 0.1


class Outlet(Protocol):
    """One switched outlet. Both calls take at most ``timeout`` seconds and raise
    :class:`harness.errors.PowerError`."""

    def switch(self, on: bool, timeout: float) -> None:
        """Ask for on or off."""
        ...

    def read(self, timeout: float) -> PowerState:
        """What the hardware says it is; UNKNOWN where it cannot say."""
        ...

    def __str__(self) -> str: ...


class OutletPower:
    """A :class:`harness.power.driver.PowerDriver` over an :class:`Outlet`: each switch is verified
    by asking, until the hardware agrees or the time is over. ``request_timeout`` and
    ``off_seconds`` (how long the power stays off in a cycle) are seconds."""

    def __init__(
        self, outlet: Outlet, *, board: str, request_timeout: float, off_seconds: float
    ) -> None:
        self._outlet = outlet
        self._board = board
        self._request_timeout = request_timeout
        self._off_seconds = off_seconds

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

    def endpoints(self) -> Endpoints:
        return Endpoints()

    def keeps(self) -> Path | None:
        """The flash is the board's own."""
        return None

    def close(self) -> None:
        """Nothing is held between two requests."""

    def _switch(self, wanted: PowerState, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._outlet.switch(wanted is PowerState.ON, min(self._request_timeout, timeout))
            seen = self._outlet.read(self._request_timeout)
            while seen not in {wanted, PowerState.UNKNOWN} and time.monotonic() < deadline:
                threading.Event().wait(_POLL_SECONDS)
                seen = self._outlet.read(self._request_timeout)
        except PowerError as error:
            raise error.located(board=self._board) from error.__cause__
        if seen not in {wanted, PowerState.UNKNOWN}:
            raise PowerError(
                f"{self._outlet} is still {seen} {timeout:g} s after it was switched {wanted}",
                remedy="is it the right outlet, and may this user switch it?",
                board=self._board,
            )
