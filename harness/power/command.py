"""Power by any shell command: a PDU's own client, uhubctl, a relay."""

import hashlib
import os
import re
import signal
import subprocess
import threading
from typing import Literal

from pydantic import Field, SecretStr

from harness.errors import PowerError
from harness.foreign import redacted
from harness.power.driver import Driver, PowerDriver, PowerState
from harness.power.section import Section
from harness.tables import Seconds, Table


class CommandPowerOptions(Table):
    """Shell commands that switch the power. They may hold a password."""

    on: SecretStr = Field(min_length=1)
    off: SecretStr = Field(min_length=1)
    cycle: SecretStr | None = Field(default=None, description="default: off, a pause, on")
    status: SecretStr | None = Field(
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
        self._switch("on", PowerState.ON, timeout)

    def off(self, timeout: float) -> None:
        self._switch("off", PowerState.OFF, timeout)

    def cycle(self, timeout: float) -> None:
        if self._options.cycle is not None:
            self._switch("cycle", PowerState.ON, timeout)
            return
        self.off(timeout)
        # Capacitors: the board must really lose its state.
        threading.Event().wait(self._options.off_seconds)
        self.on(timeout)

    def state(self) -> PowerState:
        try:
            return self.verify()
        except PowerError:
            return PowerState.UNKNOWN

    def verify(self) -> PowerState:
        if self._options.status is None:
            return PowerState.UNKNOWN
        said = self._run("status", self._options.timeout).lower()
        if said not in {PowerState.ON, PowerState.OFF}:
            known = redacted(said, *_words(self._options.status.get_secret_value()))
            raise PowerError(
                f"the status command printed {known[:80]!r} and not `on` or `off`",
                remedy="run it by hand, then mend it or the board file's [power.options]",
                board=self._board,
                command="power.options.status",
            )
        return PowerState(said)

    def _switch(self, option: str, wanted: PowerState, timeout: float) -> None:
        self._run(option, min(timeout, self._options.timeout))
        seen = self.verify()
        if seen not in {wanted, PowerState.UNKNOWN}:
            raise PowerError(
                f"power is {seen} after the command that switches it {wanted}",
                remedy="run both commands by hand; is it the right outlet?",
                board=self._board,
                command=f"power.options.{option}",
            )

    def _run(self, option: str, timeout: float) -> str:
        """What the command of that option prints; errors name the option and hold nothing of the
        command, which may have a password in it."""
        command: str = getattr(self._options, option).get_secret_value()
        process = subprocess.Popen(
            ["/bin/sh", "-c", _FROM_ENVIRONMENT],
            env={**os.environ, _LINE: command},
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
                command=f"power.options.{option}",
            ) from None
        text = output.decode("utf-8", "replace").strip()
        if process.returncode:
            said = redacted(text, *_words(command))[-300:]
            raise PowerError(
                f"the power command ended with status {process.returncode}: {said or 'no output'}",
                remedy="run it by hand, then mend it or the board file's [power.options]",
                board=self._board,
                command=f"power.options.{option}",
            )
        return text


_LINE = "HIL_POWER_COMMAND"
# Every user sees what a process was called with, only its owner the environment.
_FROM_ENVIRONMENT = f'hil_line=${_LINE}; unset {_LINE}; eval "$hil_line"'
_HARMLESS = re.compile(r"--?[a-z-]+|on|off|[0-9.]{1,2}")


def _words(command: str) -> set[str]:
    """What of a command may be a secret: all but the program's name, options and the shortest, as
    words and in the pieces that a URL or an assignment has."""
    words = re.split(r"[\s'\"]+", command)
    pieces = re.split(r"[\s'\"=:@/;|&()<>?,]+", command)
    program = next((word for word in words if re.fullmatch(r"[\w./-]+", word)), "")
    named = {*re.split("/", program), program}
    return {
        word
        for word in {command, *words, *pieces}
        if len(word) > 2 and word not in named and not _HARMLESS.fullmatch(word)
    }


def _digest(command: str) -> str:
    return hashlib.sha256(command.encode()).hexdigest()[:16]


DRIVER = Driver(
    section=CommandPowerSection,
    open=lambda section, context: CommandPower(section.options, board=context.board),
    cannot_tell=lambda section: (
        "" if section.options.status is not None else "[power.options] has no status command"
    ),
    # Which outlet it is nobody can tell but by its command: named by a digest, as locks are seen.
    things=lambda section: [f"outlet {_digest(section.options.on.get_secret_value())}"],
)
