"""Power by any shell command: a PDU's own client, uhubctl, a relay."""

import os
import signal
import subprocess
import threading
from typing import Literal

from pydantic import Field

from harness.errors import PowerError
from harness.power.driver import Driver, PowerDriver, PowerState
from harness.power.section import Section
from harness.tables import Seconds, Table


class CommandPowerOptions(Table):
    """Shell commands that switch the power."""

    on: str = Field(min_length=1)
    off: str = Field(min_length=1)
    cycle: str | None = Field(default=None, description="default: off, a pause, on")
    status: str | None = Field(
        default=None, description="prints `on` or `off`; without it the state is unknown"
    )
    off_seconds: Seconds = Field(default=1.0, description="how long the power stays off in a cycle")
    timeout: Seconds = Field(default=30.0, description="for each command")


class CommandPowerSection(Section):
    """Any command: a PDU's client, uhubctl, a relay."""

    driver: Literal["command"]
    options: CommandPowerOptions


class CommandPower(PowerDriver):
    """Power driver ``command``. Each command runs under ``/bin/sh -c`` and must end with status
    0 within its timeout; with a ``status`` command every switch is verified."""

    def __init__(self, options: CommandPowerOptions, *, board: str) -> None:
        self._options = options
        self._board = board

    def on(self, timeout: float) -> None:
        self._switch(self._options.on, PowerState.ON, timeout)

    def off(self, timeout: float) -> None:
        self._switch(self._options.off, PowerState.OFF, timeout)

    def cycle(self, timeout: float) -> None:
        if self._options.cycle is not None:
            self._switch(self._options.cycle, PowerState.ON, timeout)
            return
        self.off(timeout)
        # Capacitors: the board must really lose its state.
        threading.Event().wait(self._options.off_seconds)
        self.on(timeout)

    def state(self) -> PowerState:
        if self._options.status is None:
            return PowerState.UNKNOWN
        try:
            return PowerState(self._run(self._options.status, self._options.timeout).lower())
        except (PowerError, ValueError):
            return PowerState.UNKNOWN

    def _switch(self, command: str, wanted: PowerState, timeout: float) -> None:
        self._run(command, min(timeout, self._options.timeout))
        seen = self.state()
        if seen not in {wanted, PowerState.UNKNOWN}:
            raise PowerError(
                f"power is {seen} after the command that switches it {wanted}",
                remedy="run both commands by hand; is it the right outlet?",
                board=self._board,
                command=command,
            )

    def _run(self, command: str, timeout: float) -> str:
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # The whole group: a hanging client is usually a grandchild of the shell.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise PowerError(
                f"the power command did not end within {timeout:g} s",
                remedy="run it by hand; raise power.options.timeout if it needs longer",
                board=self._board,
                command=command,
            ) from None
        text = output.decode("utf-8", "replace").strip()
        if process.returncode:
            raise PowerError(
                f"the power command ended with status {process.returncode}: "
                f"{text[-300:] or 'no output'}",
                remedy="run it by hand, then mend it or the board file's [power.options]",
                board=self._board,
                command=command,
            )
        return text


DRIVER = Driver(
    section=CommandPowerSection,
    open=lambda section, context: CommandPower(section.options, board=context.board),
    things=lambda section: [f"outlet {section.options.on}"],
)
