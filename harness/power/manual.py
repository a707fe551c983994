"""Power by a person, asked at the terminal."""

import os
import select
import time
from typing import Literal

from harness.errors import MissingCapability, PowerError
from harness.power.driver import Driver, PowerDriver, PowerState
from harness.power.section import Section
from harness.tables import Table


class ManualPowerOptions(Table):
    """The manual driver needs none."""


class ManualPowerSection(Section):
    """A person switches when asked."""

    driver: Literal["manual"]
    options: ManualPowerOptions = ManualPowerOptions()


class ManualPower(PowerDriver):
    """Power driver ``manual``: asks at the controlling terminal and waits for Enter. Without a
    terminal, or when told that nobody will answer, the board cannot be switched in this run
    (MissingCapability at once: tests skip); a person who does not answer is a PowerError."""

    def __init__(self, *, board: str, assume_yes: bool = False, terminal: str = "/dev/tty") -> None:
        self._board = board
        self._assume_yes = assume_yes
        self._terminal = terminal
        self._state = PowerState.UNKNOWN

    def on(self, timeout: float) -> None:
        # A board that may be on is first tried by its links; asking each time would be a nuisance.
        if self._state is PowerState.OFF:
            self._ask("switch the power ON", timeout)
            self._state = PowerState.ON

    def off(self, timeout: float) -> None:
        self._ask("switch the power OFF", timeout)
        self._state = PowerState.OFF

    def cycle(self, timeout: float) -> None:
        self._ask("switch the power OFF, wait two seconds, switch it ON", timeout)
        self._state = PowerState.ON

    def state(self) -> PowerState:
        return self._state

    def _ask(self, what: str, timeout: float) -> None:
        if self._assume_yes:
            raise MissingCapability(**self._error("nobody answers in a run with --yes"))
        try:
            terminal = os.open(self._terminal, os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise MissingCapability(**self._error("there is no terminal to ask at")) from error
        try:
            os.write(terminal, f"\nBoard {self._board}: {what}, then press Enter. ".encode())
            deadline = time.monotonic() + timeout
            while not _line_read(terminal):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([terminal], [], [], left)[0]:
                    raise PowerError(**self._error(f"nobody answered within {timeout:g} s"))
        finally:
            os.close(terminal)

    def _error(self, why: str) -> dict[str, str]:
        return {
            "what": f"this board's power is switched by hand, and {why}",
            "remedy": "run at a terminal, give the board a power driver that needs nobody, or "
            "leave out the tests that switch power: -m 'not power'",
            "board": self._board,
        }


def _line_read(terminal: int) -> bool:
    """Whether a line is waiting (it is then taken)."""
    if not select.select([terminal], [], [], 0)[0]:
        return False
    return os.read(terminal, 4096).endswith(b"\n")


DRIVER = Driver(
    section=ManualPowerSection,
    open=lambda section, context: ManualPower(board=context.board, assume_yes=context.assume_yes),
    cannot_tell=lambda section: "a person switches it, and nobody was asked yet",
)
