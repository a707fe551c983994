"""A process of the board behind an SSH channel: its pipes or its terminal, and how it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncssh

from emulation.userland.jail.spawner import Account, Program, Spawner

READ_SIZE: Final = 1 << 16
"""Bytes taken from a process at once: the size of a Linux pipe."""

ACCEPTED_ENVIRONMENT: Final = ("LANG", "LC_")
"""Prefixes of the variables a client may set (AcceptEnv of Debian's sshd_config)."""

SIGNALS: Final = frozenset(
    "ABRT ALRM FPE HUP ILL INT KILL PIPE QUIT SEGV TERM USR1 USR2".split()  # noqa: SIM905
)
"""Signal names of RFC 4254 section 6.10."""


class SshProcess:
    """A process of the board behind an SSH channel: three pipes or one pseudo-terminal."""

    def __init__(
        self, spawner: Spawner, account: Account, path: str, executor: ThreadPoolExecutor
    ) -> None:
        self.account = account
        self.argv: Sequence[str] = ()
        self.channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._spawner = spawner
        self._path = path
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._terminal: str | None = None
        self._pty_name = ""
        self._input: int | None = None
        self._outputs: dict[int, int | None] = {}  # descriptor -> SSH extended data type
        self._child_side: list[int] = []
        self._pending: deque[memoryview] = deque()
        self._input_ended = False
        self._output_paused = False
        self._pid: int | None = None
        self._status: int | None = None

    # ---------------------------------------------------------------- start

    def request_pty(self, terminal: str, size: tuple[int, int, int, int]) -> bool:
        try:
            pty = self._spawner.open_pty()
        except OSError:
            return False
        os.set_blocking(pty.master, False)
        self._terminal, self._pty_name = terminal, pty.name
        self._input, self._outputs = pty.master, {pty.master: None}
        self._child_side = [pty.slave]
        self.resize(size)
        return True

    def start(self) -> None:
        if not self._child_side:
            self._open_pipes()
        slots = self._child_side if len(self._child_side) == 3 else self._child_side * 3
        future = self._loop.run_in_executor(self._executor, self._spawn, slots)
        future.add_done_callback(self._started)

    def _open_pipes(self) -> None:
        import asyncssh

        stdin, self._input = os.pipe()
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        self._outputs = {out: None, err: asyncssh.EXTENDED_DATA_STDERR}
        self._child_side = [stdin, stdout, stderr]
        for descriptor in (self._input, out, err):
            os.set_blocking(descriptor, False)

    def _spawn(self, fds: list[int]) -> int:
        def exited(status: int) -> None:
            self._loop.call_soon_threadsafe(self._exited, status)

        account = self.account
        program = Program(
            self.argv,
            self._environment(),
            account.home,
            account.uid,
            account.gid,
            controlling_tty=self._terminal is not None,
        )
        return self._spawner.spawn(program, fds, exited)

    def _environment(self) -> dict[str, str]:
        assert self.channel is not None
        asked = self.channel.get_environment()
        peer = self.channel.get_extra_info("peername") or ("127.0.0.1", 0)
        local = self.channel.get_extra_info("sockname") or ("127.0.0.1", 22)
        environment = {
            key: value for key, value in asked.items() if key.startswith(ACCEPTED_ENVIRONMENT)
        }
        environment |= {
            "USER": self.account.name,
            "LOGNAME": self.account.name,
            "HOME": self.account.home,
            "SHELL": self.account.shell,
            "PATH": self._path,
            "SSH_CLIENT": f"{peer[0]} {peer[1]} {local[1]}",
            "SSH_CONNECTION": f"{peer[0]} {peer[1]} {local[0]} {local[1]}",
        }
        if self._terminal is not None:
            environment |= {"TERM": self._terminal or "dumb", "SSH_TTY": self._pty_name}
        return environment

    def _started(self, future: asyncio.Future[int]) -> None:
        for descriptor in self._child_side:
            os.close(descriptor)
        self._child_side = []
        if future.cancelled() or future.exception() is not None:
            self._give_up(future)
            return
        self._pid = future.result()
        if not self._outputs:  # hung up meanwhile
            return
        self.resume_output()
        self._flush_input()

    def _give_up(self, future: asyncio.Future[int]) -> None:
        channel = self.channel
        self.hang_up()
        if channel is not None:
            if not future.cancelled():
                channel.write_stderr(f"{self.argv[0]}: {future.exception()}\n".encode())
            channel.exit(255)

    # --------------------------------------------------------------- output

    def pause_output(self) -> None:
        self._output_paused = True
        for descriptor in self._outputs:
            self._loop.remove_reader(descriptor)

    def resume_output(self) -> None:
        self._output_paused = False
        if self._pid is not None:
            for descriptor, datatype in self._outputs.items():
                self._loop.add_reader(descriptor, self._readable, descriptor, datatype)

    def _readable(self, descriptor: int, datatype: int | None) -> None:
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last user of the terminal closed it
            data = b""
        if data:
            self._send(data, datatype)
        else:
            self._close_output(descriptor)
            self._finish_if_done()

    def _send(self, data: bytes, datatype: int | None = None) -> None:
        try:
            if self.channel is not None:
                self.channel.write(data, datatype)
        except OSError:  # the client closed the channel and we have not been told yet
            self.hang_up()

    def _close_output(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        del self._outputs[descriptor]
        if descriptor != self._input:
            os.close(descriptor)

    # ---------------------------------------------------------------- input

    def feed(self, data: bytes) -> None:
        if self._input is None:
            return
        self._pending.append(memoryview(data))
        if self._pid is not None and len(self._pending) == 1:
            self._flush_input()
        elif self._pid is None and self.channel is not None:
            self.channel.pause_reading()

    def feed_eof(self) -> None:
        self._input_ended = True
        if self._pid is not None and not self._pending:
            self._close_input()

    def _flush_input(self) -> None:
        """Write what is pending; when the process does not read, let the SSH window run dry."""
        assert self.channel is not None
        while self._pending and self._input is not None:
            try:
                written = os.write(self._input, self._pending[0])
            except BlockingIOError:
                self.channel.pause_reading()
                self._loop.add_writer(self._input, self._flush_input)
                return
            except OSError:  # EPIPE, EIO: the reader is gone
                self._pending.clear()
                self._close_input()
                break
            rest = self._pending.popleft()[written:]
            if rest:
                self._pending.appendleft(rest)
        if self._input is not None:
            self._loop.remove_writer(self._input)
        if self._input_ended:
            self._close_input()
        self.channel.resume_reading()

    def _close_input(self) -> None:
        """End of input; a terminal stays open because it also carries the output."""
        if self._input is not None and self._terminal is None:
            self._loop.remove_writer(self._input)
            os.close(self._input)
            self._input = None

    # ------------------------------------------------------------------ end

    def _exited(self, status: int) -> None:
        self._status = status
        if self._terminal is not None and self._input in self._outputs:
            self._drain_terminal()
        self._finish_if_done()

    def _drain_terminal(self) -> None:
        """The session leader is gone: take what is left; background jobs lose the terminal."""
        assert self._input is not None
        while self._input in self._outputs:
            try:
                data = os.read(self._input, READ_SIZE)
            except OSError:
                data = b""
            if data:
                self._send(data)
            else:
                self._close_output(self._input)

    def _finish_if_done(self) -> None:
        if self._status is None or self._outputs or self.channel is None:
            return
        code = os.waitstatus_to_exitcode(self._status)
        name = signal.Signals(-code).name.removeprefix("SIG") if code < 0 else ""
        channel = self.channel
        self.hang_up()
        if name in SIGNALS:
            channel.exit_with_signal(name, core_dumped=os.WCOREDUMP(self._status))
        else:
            channel.exit(code if code >= 0 else 128 - code)

    def hang_up(self) -> None:
        """Close our ends: pipes break, and the terminal sends SIGHUP to its session."""
        for descriptor in tuple(self._outputs):
            self._close_output(descriptor)
        if self._input is not None:
            self._loop.remove_reader(self._input)
            self._loop.remove_writer(self._input)
            os.close(self._input)
            self._input = None
        self._pending.clear()
        self.channel = None

    # --------------------------------------------------------------- events

    def resize(self, size: tuple[int, int, int, int]) -> None:
        if self._terminal is None or self._input is None:
            return
        columns, rows, width, height = (min(max(value, 0), 0xFFFF) for value in size)
        fcntl.ioctl(
            self._input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height)
        )

    def signal(self, name: str) -> None:
        """RFC 4254 6.9; to the process group, as sshd does."""
        if name in SIGNALS and self._pid is not None and self._status is None:
            try:
                self._spawner.signal(-self._pid, getattr(signal, f"SIG{name}"))
            except OSError:
                return
