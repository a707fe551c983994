"""A running emulated board for the tests of this folder, reached as a user would reach it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
import pytest

from emulation.machine import Machine
from emulation.options import BoardOptions
from tests.emulation.rig import MakeRig, Rig
from tests.pace import HANGS


@dataclass(frozen=True)
class Outcome:
    """Exit status (negative: no status came) and both streams."""

    status: int
    out: str
    err: str


class EmulatedBoard:
    """``python -m emulation --json --control`` and an SSH connection to it."""

    def __init__(
        self,
        state: Path,
        options: Sequence[str] = (),
        *,
        control: bool = True,
        program: Sequence[str] = ("-m", "emulation"),
    ) -> None:
        words = [word for option in options for word in ("-o", option)]
        command = [sys.executable, *program, "--json", "--state", str(state), *words]
        command += ["--control"] if control else []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        line = self._line()
        self.endpoints: dict[str, Any] = json.loads(line)
        self._client: paramiko.SSHClient | None = None

    def _line(self, timeout: float = HANGS) -> bytes:
        """One line of standard output; fails with what was printed on standard error."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        watchdog = threading.Timer(timeout, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            pytest.fail(f"no answer from the emulator: {self.process.stderr.read().decode()}")
        return line

    def control(self, command: str, timeout: float = HANGS) -> dict[str, str]:
        """One line of the control protocol and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, str] = json.loads(self._line(timeout))
        return answer

    def connect(self) -> paramiko.SSHClient:
        """The open connection, or a new one."""
        transport = self._client.get_transport() if self._client else None
        if self._client is None or transport is None or not transport.is_active():
            self._client = paramiko.SSHClient()
            self._client.load_host_keys(self.endpoints["known_hosts"])
            self._client.connect(
                self.endpoints["host"],
                self.endpoints["port"],
                self.endpoints["user"],
                key_filename=self.endpoints["key"],
                allow_agent=False,
                look_for_keys=False,
                timeout=60,
            )
        return self._client

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 20) -> Outcome:
        """Run a command line on the board."""
        channel = self._open_channel(timeout)
        channel.exec_command(command)
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
        streams = [bytearray(), bytearray()]

        def drain(index: int, receive: Callable[[int], bytes]) -> None:
            while data := receive(65536):
                streams[index] += data

        readers = [
            threading.Thread(target=drain, args=(0, channel.recv), daemon=True),
            threading.Thread(target=drain, args=(1, channel.recv_stderr), daemon=True),
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
        status = channel.recv_exit_status() if channel.exit_status_ready() else -1
        channel.close()
        out, err = (bytes(stream).decode("utf-8", "backslashreplace") for stream in streams)
        return Outcome(status, out, err)

    def ok(self, command: str, **options: Any) -> str:
        """Like :meth:`run`; the status must be 0; returns standard output."""
        outcome = self.run(command, **options)
        assert outcome.status == 0, f"{command}: {outcome}"
        return outcome.out

    def until(self, command: str, timeout: float = 60) -> None:
        """Repeat a command on the board until its status is 0."""
        loop = f"while ! {{ {command}; }} >/dev/null 2>&1; do sleep 0.02; done"
        self.ok(f"timeout {timeout} sh -c {shlex.quote(loop)}", timeout=timeout + 5)

    def has(self, program: str) -> bool:
        """Whether the board's userland brings a program."""
        return self.run(f"command -v {program}").status == 0

    def _open_channel(self, timeout: float) -> paramiko.Channel:
        transport = self.connect().get_transport()
        assert transport is not None
        return transport.open_session(timeout=timeout)

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Orderly end of the emulator; the exit status must be 0."""
        self.disconnect()
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.stderr is not None
        try:
            _, errors = self.process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode in (0, -9), errors.decode()
        assert b"Traceback" not in errors, errors.decode()


def need_dev_fuse() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse that this user may open: load the fuse module, chmod 0666")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedBoard]:
    """One board for all tests that leave it as they found it; writable variables."""
    need_dev_fuse()
    board = EmulatedBoard(tmp_path_factory.mktemp("board"))
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    yield board
    board.close()


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., EmulatedBoard]]:
    """Start boards with options of their own; they end with the test."""
    need_dev_fuse()
    boards: list[EmulatedBoard] = []

    def start(*options: str, state: Path | None = None, control: bool = True) -> EmulatedBoard:
        directory = state or tmp_path / f"board{len(boards)}"
        boards.append(EmulatedBoard(directory, options, control=control))
        return boards[-1]

    yield start
    for board in boards:
        board.close()


@pytest.fixture
def need_tool() -> Callable[[str, str], str]:
    """Skip, naming the package, when the host lacks a program."""

    def need(program: str, package: str) -> str:
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"needs {program}: install {package}")
        return path

    return need


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    """Blank boards, all with the same flash."""
    rigs: list[Rig] = []

    def make(**options: object) -> Rig:
        rig = Rig(tmp_path, **options)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.machine.close()


@pytest.fixture(scope="session")
def used_flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flash of a board that was booted once."""
    state = tmp_path_factory.mktemp("used")
    machine = Machine(BoardOptions(), state)
    machine.power_on(console=lambda data: None)
    machine.close()
    return state / "rpmb.img"


@pytest.fixture
def rig(make_rig: MakeRig, used_flash: Path, tmp_path: Path) -> Rig:
    """A running board with a supplicant and the driver bound, at its second boot."""
    shutil.copy(used_flash, tmp_path)
    rig = make_rig()
    rig.boot()
    return rig
