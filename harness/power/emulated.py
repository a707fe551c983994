"""The power switch of a board that exists only in software: a child process whose standard input
is the control line (``on``, ``off``, ``status``) and whose end is the end of the board.

The child ends when its standard input closes, so it cannot outlive the harness, however that
ends. A child that died by itself is noticed, and the next :meth:`EmulatedPower.on` starts another
one on the same flash.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from harness.errors import HostError, PowerError
from harness.power.driver import Driver, Endpoints, PowerDriver, PowerState
from harness.power.section import Section

_VARIANT = "variant"
_CLOSE_SECONDS = 2.0
# From process start to SSH; the promise is one second on an idle host.
_START_SECONDS = 60.0


class EmulatedPowerSection(Section):
    """The board that exists only in software; ``[power.options]`` goes to the emulator as
    ``key=value``."""

    driver: Literal["emulated"]
    state: Path | None = Field(
        default=None,
        description="directory that keeps the eMMC between runs; without it a fresh one",
    )
    options: dict[str, str | int | bool] = Field(
        default={},
        repr=False,
        description="options of the emulated board; `hil emulate --help` lists them",
    )


class EmulatedPower(PowerDriver):
    """Power driver ``emulated``. The board's flash lives in ``section.state``, or in a directory
    that :meth:`close` removes."""

    def __init__(self, section: EmulatedPowerSection, *, board: str) -> None:
        self._board = board
        self._options = dict(section.options)
        self._kept_state = section.state
        self._state_directory: Path | None = None
        self._process: _Child | None = None
        self._endpoints = Endpoints()

    def on(self, timeout: float) -> None:
        child = self._process
        if child is not None and child.alive:
            with contextlib.suppress(_Died):
                self._ask(child, "on", timeout)
                return
        # Never started, or killed: a new supervisor on the same flash.
        self._start(max(timeout, _START_SECONDS))

    def off(self, timeout: float) -> None:
        if self._process is None:
            return
        try:
            self._ask(self._process, "off", timeout)
        except _Died:
            # When the supervisor is gone, so is the power.
            return
        except PowerError:
            # A supervisor that hangs is ended: a plug can always be pulled.
            self._process.kill()

    def state(self) -> PowerState:
        child = self._process
        if child is None or not child.alive:
            return PowerState.OFF
        try:
            return PowerState(self._ask(child, "status", 2.0).get("power", "unknown"))
        except (_Died, ValueError):
            return PowerState.OFF if not child.alive else PowerState.UNKNOWN
        except PowerError:
            return PowerState.UNKNOWN

    def endpoints(self) -> Endpoints:
        return self._endpoints

    def keeps(self) -> Path | None:
        """Beside the image of the flash: both are kept, or neither."""
        directory = self._state_directory or self._kept_state
        return None if directory is None else directory / "safekeeping"

    @property
    def pid(self) -> int | None:
        """Process id of the running supervisor; None while there is none."""
        return self._process.pid if self._process and self._process.alive else None

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._state_directory is not None and self._kept_state is None:
            shutil.rmtree(self._state_directory, ignore_errors=True)
            self._state_directory = None

    def _start(self, timeout: float) -> None:
        if self._process is not None:
            self._process.close()
        if self._state_directory is None:
            self._state_directory = self._kept_state or Path(tempfile.mkdtemp(prefix="hil-board-"))
        command = [sys.executable, "-P", "-m", "emulation", "--json", "--control"]
        command += ["--state", str(self._state_directory)]
        if self._endpoints.ssh is not None:
            # The outlet is the same, so the address is: links keep theirs over a new supervisor.
            command += ["--port", str(self._endpoints.ssh.port)]
        try:
            # On the command line every user of this host would read the RPMB key.
            with tempfile.NamedTemporaryFile("w", prefix="hil-options-") as file:
                _write_options(file, self._options)
                self._process = child = _Child([*command, f"@{file.name}"], self._board)
                self._endpoints = _endpoints_of(child.answer(timeout))
        except _Died as death:
            child.close()
            raise HostError(
                f"the emulated board did not start: {death}",
                remedy="do what the message says; `hil emulate` repeats it without the tests",
                board=self._board,
            ) from death
        except PowerError:
            child.close()
            raise

    def _ask(self, child: _Child, request: str, timeout: float) -> dict[str, Any]:
        answer = child.ask(request, timeout)
        if "error" in answer:
            raise PowerError(
                f"the emulated board refused {request!r}: {answer['error']}",
                remedy="read its messages: `hil emulate` shows them",
                board=self._board,
            )
        return answer


def _endpoints_of(line: dict[str, Any]) -> Endpoints:
    from harness.links.address import Login, SerialAddress, SshAddress
    from harness.links.hostkeys import fingerprint

    known = Path(line["known_hosts"])
    ssh = SshAddress(
        host=line["host"],
        port=int(line["port"]),
        user=line["user"],
        key=Path(line["key"]),
        # a fingerprint needs no library that reads known_hosts
        host_key_fingerprint=fingerprint(known.read_text("ascii").split(maxsplit=1)[1]),
        known_hosts=known,
        ssh_config=False,
    )
    serial = SerialAddress(line["serial"], login=Login(user=line["user"], password=""))
    return Endpoints(ssh, serial)


def _write_options(file: IO[str], options: Mapping[str, str | int | bool]) -> None:
    """As arguments, one a line."""
    for key, value in options.items():
        spelled = str(value).lower() if isinstance(value, bool) else str(value)
        file.write(f"-o\n{key}={spelled}\n")
    file.flush()


class _Died(Exception):
    """The child ended, or closed its output, before it answered."""


class _Child:
    """The supervisor process: requests in, one JSON line out for each; never blocks without a
    deadline."""

    def __init__(self, command: list[str], board: str) -> None:
        self._board = board
        # A file and not a pipe: nobody need drain it, and it is there after the death.
        self._messages: IO[bytes] = tempfile.TemporaryFile(prefix="hil-emulation-")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            # Ctrl-C in the terminal is for the harness, which then ends the board in order.
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # Answers that came too late for the request they belong to are still to be read past.
        self._owed = 0
        threading.Thread(target=self._read, name="hil-power", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: str, timeout: float) -> dict[str, Any]:
        """Send one request and return its answer. Raises :class:`_Died`, or PowerError when no
        answer came in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _Died(self._last_words()) from error
        return self.answer(timeout)

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next line of its output. Raises as :meth:`ask`."""
        deadline = time.monotonic() + timeout
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            while line and self._owed:
                self._owed -= 1
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self._owed += 1
            raise PowerError(
                f"the emulated board gave no answer within {timeout:g} s",
                remedy="the host is overloaded or the supervisor hangs; kill process "
                f"{self.pid}, the next power-on starts another",
                board=self._board,
            ) from None
        if not line:
            self._lines.put(b"")
            raise _Died(self._last_words())
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise _Died(f"it printed {line[:200]!r}") from error
        return dict(answer)

    def close(self) -> None:
        """End it: close its input, then SIGTERM, then SIGKILL, within two seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for action in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(_CLOSE_SECONDS / 2)
                break
            except subprocess.TimeoutExpired:
                action()
        self._process.wait()
        self._messages.close()

    def kill(self) -> None:
        """End it without asking; its board's processes end with it."""
        self._process.kill()
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line)
        self._lines.put(b"")

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        status = self._process.returncode
        self._messages.seek(0)
        words = self._messages.read()[-2000:].decode("utf-8", "replace").strip()
        return f"exit status {status}: {words or 'no message'}"


def _vary(
    section: EmulatedPowerSection, variant: str | None, autostart: bool, store: Path | None
) -> EmulatedPowerSection | None:
    if _VARIANT not in section.options:
        return None
    options = section.options | ({} if variant is None else {_VARIANT: variant})
    options |= {} if autostart else {"supplicant_autostart": False}
    return section.model_copy(update={"options": options, "state": store or section.state})


DRIVER = Driver(
    section=EmulatedPowerSection,
    open=lambda section, context: EmulatedPower(section, board=context.board),
    things=lambda section: [f"image {os.path.realpath(section.state)}"] if section.state else [],
    offers_links=lambda section: True,
    vary=_vary,
    starts_by="`hil emulate` starts one",
)
