"""Units of the board's service manager: what systemd knows of a service, and its life cycle.

State names, result names and journal lines are systemd's (systemd.service(5), and the transcripts
truth/log.jsonl log-kill2-hang, log-kill4, log-file-variant4).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from emulation.userland.jail.spawner import Program, Spawner
from emulation.userland.system.journal import Journal

CLEAN_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
"""Signals whose death counts as success (systemd.service(5), SuccessExitStatus=)."""

START_LIMIT_BURST: Final = 5
START_LIMIT_INTERVAL: Final = 10.0
"""DefaultStartLimitBurst= and DefaultStartLimitIntervalSec= (seconds)."""

STOP_TIMEOUT: Final = 90.0
"""DefaultTimeoutStopSec=: seconds from SIGTERM to SIGKILL."""


class StartLimitHit(Exception):
    """Started too often within the interval; ``reset-failed`` clears the count."""


@dataclass(frozen=True)
class StopCommand:
    """One ExecStop= line; ``ignore_errors``: it begins with a dash."""

    argv: tuple[str, ...]
    ignore_errors: bool

    @classmethod
    def parse(cls, line: str) -> StopCommand:
        """Raises ValueError for a quotation that does not end."""
        command = line.lstrip("-@:+!")
        return cls(tuple(shlex.split(command)), "-" in line[: len(line) - len(command)])


@dataclass(frozen=True)
class UnitFile:
    """What the unit file says."""

    name: str
    description: str
    path: str
    enabled: bool = True
    aliases: tuple[str, ...] = ()
    text: str = ""
    """The file's content."""
    drop_ins: tuple[tuple[str, str], ...] = ()
    """Path and content of each drop-in, in the order in which they count."""
    uid: int = 0
    """User= and its group, as a number."""

    @property
    def title(self) -> str:
        return f"{self.name} - {self.description}"

    @property
    def stop_commands(self) -> tuple[StopCommand, ...]:
        """ExecStop=: what runs, one after the other, before the service's process is asked to
        end. An empty one forgets those before it (systemd.service(5))."""
        commands: list[StopCommand] = []
        for text in (self.text, *(text for _, text in self.drop_ins)):
            for line in text.splitlines():
                key, equals, value = line.partition("=")
                if not equals or key.strip() != "ExecStop":
                    continue
                if value.strip():
                    commands.append(StopCommand.parse(value.strip()))
                else:
                    commands.clear()
        return tuple(commands)

    @property
    def file_state(self) -> str:
        return "enabled" if self.enabled else "disabled"


@dataclass(frozen=True)
class Exit:
    """How the main process ended."""

    pid: int
    status: int  # wait status

    @property
    def signal(self) -> signal.Signals | None:
        number = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        return signal.Signals(number) if number else None

    @property
    def code(self) -> int:
        return os.WEXITSTATUS(self.status)

    @property
    def clean(self) -> bool:
        return self.signal in CLEAN_SIGNALS if self.signal else self.code == 0

    @property
    def result(self) -> str:
        if self.clean:
            return "success"
        return "signal" if self.signal else "exit-code"

    def describe(self) -> str:
        """``code=killed, status=9/KILL`` of the journal."""
        if self.signal:
            kind = "dumped" if os.WCOREDUMP(self.status) else "killed"
            return f"code={kind}, status={self.signal.value}/{_short(self.signal)}"
        meaning = {0: "SUCCESS", 1: "FAILURE", 203: "EXEC"}.get(self.code, "n/a")
        return f"code=exited, status={self.code}/{meaning}"

    def describe_status(self) -> str:
        """``code=killed, signal=KILL`` of ``systemctl status``."""
        if self.signal:
            return f"code=killed, signal={_short(self.signal)}"
        return self.describe()


def _short(number: signal.Signals) -> str:
    return number.name.removeprefix("SIG")


class Unit:
    """State that every unit has. Subclasses start and stop something; event-loop thread only."""

    def __init__(self, file: UnitFile, journal: Journal) -> None:
        self.file = file
        self.journal = journal
        self.active = "inactive"
        self.sub = "dead"
        self.result = "success"
        self.main_pid = 0
        self.last_exit: Exit | None = None
        self.invocation = ""
        self.changed = time.time()
        self.activated = 0.0
        self._starts: deque[float] = deque(maxlen=START_LIMIT_BURST)

    @property
    def command(self) -> str:
        """Path of ExecStart=, for ``systemctl status``."""
        return ""

    def say(self, text: str) -> None:
        self.journal.add("systemd", text, pid=1, unit=self.file.name)

    async def start(self) -> None:
        """Raises :class:`StartLimitHit`; a running unit is left alone."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Returns when the unit has stopped."""
        raise NotImplementedError

    def kill(self, number: int) -> None:
        """``systemctl kill``. Raises ``OSError`` when there is nothing to signal."""
        raise ProcessLookupError(f"{self.file.name} has no processes")

    def reset_failed(self) -> None:
        self._starts.clear()
        if self.active == "failed":
            self._become("inactive", "dead")
            self.result = "success"

    def _become(self, active: str, sub: str) -> None:
        self.active, self.sub, self.changed = active, sub, time.time()
        if active == "active":
            self.activated = self.changed

    def _count_start(self) -> None:
        now = time.monotonic()
        full = len(self._starts) == START_LIMIT_BURST
        if full and now - self._starts[0] < START_LIMIT_INTERVAL:
            self.say(f"{self.file.name}: Start request repeated too quickly.")
            self.say(f"{self.file.name}: Failed with result 'start-limit-hit'.")
            self.result = "start-limit-hit"
            self._become("failed", "failed")
            raise StartLimitHit
        self._starts.append(now)
        self.invocation = secrets.token_hex(16)


class Readiness(Protocol):
    """How a ``Type=notify`` service says that it serves."""

    def about_to_start(self) -> None:
        """What it said before this does not count."""

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Block until the service is ready or ``given_up`` is true; on a worker thread."""

    def wake(self) -> None:
        """Make :meth:`wait` ask ``given_up`` again."""


class ProcessUnit(Unit):
    """A service of one main process, a child of PID 1, its output in the journal: ``Type=notify``
    with a ``readiness``, else ``Type=simple``."""

    def __init__(
        self,
        file: UnitFile,
        journal: Journal,
        spawner: Spawner,
        argv: Sequence[str],
        env: Mapping[str, str],
        readiness: Readiness | None = None,
    ) -> None:
        super().__init__(file, journal)
        self._spawner = spawner
        self._argv = argv
        self._env = env
        self._readiness = readiness
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._ended.set()
        self._early_exit: int | None = None

    @property
    def command(self) -> str:
        return self._argv[0]

    async def start(self) -> None:
        if self.active == "deactivating":
            await self._ended.wait()
        if self.active == "active":
            return
        self._count_start()
        self._ended.clear()
        self.last_exit = self._early_exit = None
        if self._readiness is not None:
            self._readiness.about_to_start()
        try:
            self.main_pid = await asyncio.to_thread(self._spawn)
        except OSError as error:
            self._ended.set()
            self.say(f"{self.file.name}: Failed at step EXEC spawning {self.command}: {error}")
            self.say(f"{self.file.name}: Failed with result 'exit-code'.")
            self.result = "exit-code"
            self._become("failed", "failed")
            return
        self.result = "success"
        self._become("activating", "start")
        if self._early_exit is not None:
            self._exited(self._early_exit)
        elif self._readiness is not None:
            await asyncio.to_thread(self._readiness.wait, self._ended.is_set)
        if self.active == "activating":
            self._become("active", "running")
            self.say(f"Started {self.file.title}.")
        else:
            self.say(f"Failed to start {self.file.title}.")

    async def stop(self) -> None:
        if self.active == "failed":
            self._become("inactive", "dead")
        if self.active not in ("active", "activating", "deactivating"):
            return
        self.say(f"Stopping {self.file.title}...")
        if self.active == "active":
            self._become("deactivating", "stop")
            for command in self.file.stop_commands:
                await self._run_stop_command(command.argv)
        self._become("deactivating", "stop-sigterm")
        try:
            self._spawner.signal(self.main_pid, signal.SIGTERM)
            self._spawner.signal(self.main_pid, signal.SIGCONT)  # systemd.kill(5)
            await asyncio.wait_for(self._ended.wait(), STOP_TIMEOUT)
        except ProcessLookupError:
            await self._ended.wait()
        except TimeoutError:
            self.say(f"{self.file.name}: State 'stop-sigterm' timed out. Killing.")
            self._spawner.signal(self.main_pid, signal.SIGKILL)
            await self._ended.wait()
        self.say(f"Stopped {self.file.title}.")

    def kill(self, number: int) -> None:
        if not self.main_pid:
            raise ProcessLookupError("No main process to kill")
        self._spawner.signal(self.main_pid, number)

    async def _run_stop_command(self, argv: Sequence[str]) -> None:
        """One command of ExecStop=, whose result does not matter here."""
        ended = asyncio.Event()
        null = os.open(os.devnull, os.O_RDWR)

        def exited(status: int) -> None:
            self._loop.call_soon_threadsafe(ended.set)

        try:
            await asyncio.to_thread(
                self._spawner.spawn, Program(argv, self._env), (null, null, null), exited
            )
            await asyncio.wait_for(ended.wait(), STOP_TIMEOUT)
        except (OSError, TimeoutError) as error:
            self.say(f"{self.file.name}: Control process failed: {error}")
        finally:
            os.close(null)

    def _spawn(self) -> int:
        null = os.open(os.devnull, os.O_RDONLY)
        reader, writer = os.pipe()
        try:
            program = Program(self._argv, self._env, uid=self.file.uid, gid=self.file.uid)
            pid = self._spawner.spawn(program, (null, writer, writer), self._exited_elsewhere)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(null)
            os.close(writer)
        self._loop.call_soon_threadsafe(self._listen, reader, pid)
        return pid

    def _exited_elsewhere(self, status: int) -> None:
        self._loop.call_soon_threadsafe(self._exited, status)

    def _listen(self, reader: int, pid: int) -> None:
        """Copy the process's output to the journal, a line an entry."""
        name = self.command.rpartition("/")[2]
        pending = bytearray()
        os.set_blocking(reader, False)

        def readable() -> None:
            try:
                data = os.read(reader, 1 << 16)
            except BlockingIOError:
                return
            pending.extend(data)
            *lines, rest = pending.split(b"\n")
            if not data:
                self._loop.remove_reader(reader)
                os.close(reader)
                lines, rest = [line for line in (*lines, rest) if line], bytearray()
            pending[:] = rest
            for line in lines:
                text = line.decode("utf-8", "backslashreplace")
                self.journal.add(name, text, pid=pid, unit=self.file.name)

        self._loop.add_reader(reader, readable)

    def _exited(self, status: int) -> None:
        if not self.main_pid:  # gone before the start was complete
            self._early_exit = status
            return
        ended = Exit(self.main_pid, status)
        self.last_exit, self.main_pid = ended, 0
        self.result = ended.result
        if not ended.clean:
            self.say(f"{self.file.name}: Main process exited, {ended.describe()}")
            self.say(f"{self.file.name}: Failed with result '{ended.result}'.")
            self._become("failed", "failed")
        else:
            self.say(f"{self.file.name}: Deactivated successfully.")
            self._become("inactive", "dead")
        self._ended.set()
        if self._readiness is not None:
            self._readiness.wake()


class SwitchUnit(Unit):
    """A service that the supervisor provides itself (sshd): on and off are two calls."""

    def __init__(
        self,
        file: UnitFile,
        journal: Journal,
        *,
        on: Callable[[], Awaitable[None]],
        off: Callable[[], None],
    ) -> None:
        super().__init__(file, journal)
        self._on, self._off = on, off

    @property
    def command(self) -> str:
        return "/usr/sbin/sshd"

    async def start(self) -> None:
        if self.active != "active":
            self._count_start()
            await self._on()
            self._become("active", "running")
            self.say(f"Started {self.file.title}.")

    async def stop(self) -> None:
        if self.active == "active":
            self.say(f"Stopping {self.file.title}...")
            self._off()
            self._become("inactive", "dead")
            self.say(f"Stopped {self.file.title}.")
