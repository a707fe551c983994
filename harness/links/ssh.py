"""The SSH link: one transport, three lanes.

A persistent shell for commands (:mod:`harness.links.lane`), SFTP for bytes, a fresh exec for
isolation. All are opened when first needed and replaced when lost.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from harness.errors import (
    HilError,
    HostError,
    LinkError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    OutcomeUnknown,
)
from harness.links import lane as lanes
from harness.links import posix
from harness.links.address import SshAddress
from harness.links.transport import ConnectRefused, connect
from harness.shell import Result

if TYPE_CHECKING:
    from paramiko import Channel, SFTPClient, Transport

RETRY_INTERVAL = 0.05  # seconds between connection attempts to a board that boots
ATTEMPT_LIMIT = 5.0  # seconds for one of several connection attempts
POLL_INTERVAL = 0.05  # seconds between looks at a command whose lane was lost
INLINE_STDIN = 2048  # bytes of standard input that travel inside the command frame
_CHUNK = 1 << 20


class _LaneBroken(Exception):
    """The lane ended while a command was on it."""


class _NotStarted(Exception):
    """The connection broke, and the board tells that the command certainly did not run."""


class _LaneLate(Exception):
    """The deadline passed."""


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


@contextlib.contextmanager
def _bounded(channel: Channel, deadline: float) -> Iterator[None]:
    """Close ``channel`` at the deadline: some of paramiko's waits take no timeout.

    Raises ``_LaneLate`` if that happened, ``_LaneBroken`` if the peer broke off.
    """
    import paramiko

    timer = threading.Timer(_left(deadline), channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (paramiko.SSHException, EOFError) as error:
        raise (_LaneLate if _left(deadline) == 0 else _LaneBroken) from error
    except OSError as error:
        # an errno is the answer of the SFTP server; a closed channel has none
        if error.errno is not None or not channel.closed:
            raise
        raise (_LaneLate if _left(deadline) == 0 else _LaneBroken) from error
    finally:
        timer.cancel()


@contextlib.contextmanager
def _told_when_not_started() -> Iterator[None]:
    try:
        yield
    except _NotStarted as error:
        raise LinkLost(
            "the connection broke before the command was started",
            remedy="the command did not run; check the board, then repeat",
        ) from error


def _open_channel(transport: Transport, deadline: float) -> Channel:
    import paramiko

    try:
        return transport.open_session(timeout=_left(deadline) or 0.01)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise (_LaneLate if _left(deadline) == 0 else _LaneBroken) from error


class _Arrival(threading.Event):
    """Set when either stream of a channel has bytes or has ended.

    paramiko's own ``Channel.fileno()`` loses a wake-up when one stream is drained while the
    other fills (its OrPipe has no lock), so the buffers' events are used, and only the reader
    clears them.
    """

    def clear(self) -> None:
        """Called by a drained buffer; the other one may still hold bytes."""

    def wait_once(self, timeout: float) -> bool:
        arrived = self.wait(timeout)
        super().clear()
        return arrived


class _Streams:
    """Both output streams of a channel, always drained together."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.out = bytearray()
        self.err = bytearray()
        self._arrival = _Arrival()
        channel.in_buffer.set_event(self._arrival)
        channel.in_stderr_buffer.set_event(self._arrival)

    def pump(self, deadline: float) -> None:
        """Wait for bytes and take them. Raises ``_LaneLate``, ``_LaneBroken`` at the end."""
        while not self.take():
            if self.channel.eof_received or self.channel.closed:
                raise _LaneBroken
            left = deadline - time.monotonic()
            if left <= 0 or not self._arrival.wait_once(left):
                raise _LaneLate

    def take(self) -> bool:
        """Take what is there without waiting; whether there was anything."""
        channel = self.channel
        out = channel.recv(_CHUNK) if channel.recv_ready() else b""
        err = channel.recv_stderr(_CHUNK) if channel.recv_stderr_ready() else b""
        self.out += out
        self.err += err
        return bool(out or err)

    def clear(self) -> None:
        while self.take():
            pass
        self.out.clear()
        self.err.clear()


@dataclass(frozen=True, slots=True)
class _Output:
    status: int
    stdout: bytes
    stderr: bytes


class _Lane:
    """A shell program on one channel that runs commands one after the other."""

    def __init__(self, channel: Channel, streams: _Streams, stored: lanes.Stored) -> None:
        self.channel = channel
        self.stored = stored
        self.number = 0
        self._kept = 0
        self._streams = streams

    @classmethod
    def open(cls, transport: Transport, shell: str, deadline: float) -> _Lane:
        """Start the lane. Raises ``_LaneLate``, ``_LaneBroken``, ``HostError``."""
        channel = _open_channel(transport, deadline)
        token = lanes.new_token()
        name = f"hil-{secrets.token_hex(6)}"
        with _bounded(channel, deadline):
            channel.exec_command(lanes.start_command(shell, name))
            channel.sendall(f"{token}\n".encode())
        streams = _Streams(channel)
        start = f"{token} ".encode()
        try:
            # whatever the login shell's start-up files print comes before the ready line
            while (at := streams.out.find(start)) < 0 or b"\n" not in streams.out[at:]:
                streams.pump(deadline)
        except _LaneBroken:
            said = bytes(streams.err).decode("utf-8", "backslashreplace").strip()
            # a shell killed by a signal has no exit status: its board is going down
            if not transport.is_active() or not (said or channel.exit_status > 0):
                raise
            raise HostError(
                f"the board's {shell!r} does not run the command lane: {said or 'no message'}",
                remedy="check that the account has a POSIX shell and a writable /run or /tmp",
            ) from None
        ready = bytes(streams.out[at:]).split(b"\n", 1)[0]
        return cls(channel, streams, lanes.parse_ready(ready))

    @property
    def alive(self) -> bool:
        return not (self.channel.closed or self.channel.eof_received)

    def run(self, command: str, deadline: float) -> _Output:
        """Send one command and wait for the end of both streams. Raises as :class:`_Streams`."""
        streams = self._streams
        streams.clear()
        self.number += 1
        forget = self._kept > lanes.FORGET_AFTER
        frame = lanes.request(self.number, command, forget=forget)
        self._send(frame, deadline)
        out_end = self._wait_for_end(deadline)
        out = bytes(streams.out[: out_end.offset])
        self._kept = len(out) if forget else self._kept + len(out)
        if not out_end.has_errors:
            return _Output(out_end.status, out, b"")
        end = self.stored.end_of_errors(self.number)
        while not streams.err.endswith(end):
            streams.pump(deadline)
        return _Output(out_end.status, out, bytes(streams.err[: -len(end)]))

    def _wait_for_end(self, deadline: float) -> lanes.End:
        streams = self._streams
        longest = len(self.stored.token) + 24
        searched = 0
        while True:
            streams.pump(deadline)
            end = self.stored.find_end(self.number, streams.out, searched)
            if end is not None:
                return end
            searched = max(0, len(streams.out) - longest)

    def _send(self, frame: bytes, deadline: float) -> None:
        if len(frame) < 16384:
            # fits the window of a lane whose last command was answered: cannot block
            try:
                self.channel.sendall(frame)
            except (OSError, EOFError) as error:  # paramiko says EOFError for a reset connection
                raise _LaneBroken from error
            return
        with _bounded(self.channel, deadline):
            self.channel.sendall(frame)

    def say_goodbye(self) -> None:
        """Let the target tidy up; best effort."""
        with contextlib.suppress(Exception):
            if self.alive:
                self.channel.settimeout(0.2)
                self.channel.sendall(lanes.GOODBYE)
                self.channel.shutdown_write()

    def throw_away(self) -> None:
        with contextlib.suppress(Exception):
            self.channel.close()


class SshShell:
    """:class:`harness.shell.Shell` over SSH. Connects at the first use.

    A lost connection is made anew by the next call; ``connect_timeout`` (seconds) bounds that
    within the call's own timeout.
    """

    def __init__(self, address: SshAddress, *, connect_timeout: float = 10.0) -> None:
        self.address = address
        self.connect_timeout = connect_timeout
        self.least_timeout = 0.0
        self._connection = threading.RLock()
        self._commands = threading.RLock()
        self._bytes = threading.RLock()
        self._transport: Transport | None = None
        self._lane: _Lane | None = None
        self._sftp: SFTPClient | None = None
        self._sftp_missing = False
        self._abandoned: list[lanes.Stored] = []

    @property
    def name(self) -> str:
        return f"ssh {self.address}"

    def run(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        timeout = max(timeout, self.least_timeout)
        with self._commands, self._located(command):
            start = time.monotonic()
            deadline = start + timeout
            try:
                output = self._run_persistent(command, stdin, deadline, timeout)
            except _NotStarted:
                # e.g. an idle connection whose end was not noticed yet
                with _told_when_not_started():
                    output = self._run_persistent(command, stdin, deadline, timeout)
        return self._result(command, output, start)

    def run_isolated(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        timeout = max(timeout, self.least_timeout)
        with self._located(command):
            start = time.monotonic()
            deadline = start + timeout
            lane = self._open_lane(deadline, command)
            try:
                with _told_when_not_started():
                    text = self._with_stdin(command, stdin, lane, deadline)
                    output = self._run_on(lane, text, command, deadline, timeout)
            finally:
                lane.say_goodbye()
                lane.throw_away()
        return self._result(command, output, start)

    def offers_sftp(self, *, timeout: float = 10.0) -> bool:
        """Whether the server offers SFTP; without it files move by shell commands."""
        deadline = time.monotonic() + timeout
        with self._bytes, self._located("open SFTP"), self._timed(timeout):
            return self._open_sftp(deadline) is not None

    def read_file(self, path: str, *, timeout: float = 10.0) -> bytes:
        timeout = max(timeout, self.least_timeout)
        deadline = time.monotonic() + timeout
        with self._bytes, self._located(f"read {path}"), self._timed(timeout):
            sftp = self._open_sftp(deadline)
            if sftp is not None:
                try:
                    return self._sftp_read(sftp, path, deadline)
                except OSError as error:
                    if error.errno is not None:
                        raise OSError(error.errno, os.strerror(error.errno), path) from error
            # no SFTP server, or its answer is "failure": a shell's message has the errno
            output = self._exec(f"exec cat <{quote(path)}", b"", deadline)
        if output.status != 0:
            raise posix.os_error(output.stderr, path)
        return output.stdout

    def write_file(
        self, path: str, data: bytes, *, mode: int = 0o644, timeout: float = 30.0
    ) -> None:
        timeout = max(timeout, self.least_timeout)
        deadline = time.monotonic() + timeout
        with self._bytes, self._located(f"write {path}"), self._timed(timeout):
            sftp = self._open_sftp(deadline)
            if sftp is not None and self._sftp_write(sftp, path, data, mode, deadline):
                # SFTP's pipelined writes are checked by what the file holds now
                output = self._exec(f"{posix.CKSUM}; cksum <{quote(path)}", b"", deadline)
            else:
                target = quote(path)
                output = self._exec(
                    f"{posix.CKSUM}; cat >{target} && chmod {mode:o} {target} && cksum <{target}",
                    data,
                    deadline,
                )
        if output.status != 0:
            raise posix.os_error(output.stderr, path)
        if output.stdout.split()[:2] != f"{posix.cksum(data)} {len(data)}".encode().split():
            raise LinkError(
                f"{path} on the board does not hold what was written",
                remedy="check the free space of that file system and whether something else"
                " writes to the file",
                link=self.name,
            )

    def reconnect(self, *, deadline: float) -> None:
        end = time.monotonic() + deadline
        with self._connection, self._located(None):
            self._drop()
            self._transport = self._connect_until(end)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._lane is not None:
                self._lane.say_goodbye()
        # closing joins paramiko's thread, which may hang on a dead peer
        closing = threading.Thread(target=self._drop, daemon=True)
        closing.start()
        closing.join(1.5)

    # connection

    @contextlib.contextmanager
    def _located(self, command: str | None) -> Iterator[None]:
        try:
            yield
        except HilError as error:
            error.located(link=self.name)
            error.command = error.command or command
            raise

    @contextlib.contextmanager
    def _timed(self, timeout: float) -> Iterator[None]:
        """Turn the end of a byte transfer into the matching link error."""
        try:
            yield
        except _LaneLate as late:
            self._drop_sftp()
            raise _timed_out(timeout) from late
        except _LaneBroken as broken:
            self._drop_sftp()
            raise LinkLost(
                "the connection broke during a file transfer",
                remedy="the file may be incomplete; check that the board still runs and repeat",
            ) from broken

    def _live_transport(self, deadline: float) -> Transport:
        with self._connection:
            transport = self._transport
            if transport is None or not transport.is_active():
                self._drop()
                limit = min(self.connect_timeout, _left(deadline))
                self._transport = transport = connect(self.address, timeout=limit)
            return transport

    def _connect_until(self, end: float) -> Transport:
        """Connect; while the board boots, try again until ``end``."""
        while True:
            try:
                return connect(self.address, timeout=min(ATTEMPT_LIMIT, max(0.1, _left(end))))
            except (ConnectRefused, LinkLost) as error:
                if _left(end) <= RETRY_INTERVAL:
                    raise LinkTimeout(
                        f"the board did not come back in time; last: {error.what}",
                        remedy=error.remedy,
                    ) from error
            time.sleep(RETRY_INTERVAL)

    def _drop(self) -> None:
        with self._connection:
            transport, self._transport = self._transport, None
            self._lane = None
            self._sftp = None
            self._sftp_missing = False
            if transport is not None:
                transport.close()

    def _drop_sftp(self) -> None:
        self._sftp = None

    # commands

    def _open_lane(self, deadline: float, command: str) -> _Lane:
        """A fresh lane, on a fresh connection if the present one turns out to be dead."""
        fresh = self._transport is None
        while True:
            transport = self._live_transport(deadline)
            try:
                self._kill_abandoned(transport, deadline)
                return _Lane.open(transport, self.address.shell, deadline)
            except (_LaneBroken, _LaneLate) as error:
                self._drop()
                if fresh or isinstance(error, _LaneLate):
                    raise LinkLost(
                        "the board did not start a shell on the connection",
                        remedy="check that the board is not hung; the command was not sent",
                    ) from error
                fresh = True

    def _run_persistent(
        self, command: str, stdin: bytes, deadline: float, timeout: float
    ) -> _Output:
        """Run on the persistent lane, which is opened if there is none."""
        lane = self._lane
        if lane is None or not lane.alive:
            self._lane = lane = self._open_lane(deadline, command)
        try:
            text = self._with_stdin(command, stdin, lane, deadline)
            return self._run_on(lane, text, command, deadline, timeout)
        finally:
            if not lane.alive:
                self._lane = None

    def _kill_abandoned(self, transport: Transport, deadline: float) -> None:
        """End what timed-out commands left running."""
        while self._abandoned:
            stored = self._abandoned[-1]
            kill = lanes.kill_command(self.address.shell, stored.boot, [stored.pid])
            _exec(transport, kill, b"", deadline)
            self._abandoned.pop()

    def _with_stdin(self, command: str, stdin: bytes, lane: _Lane, deadline: float) -> str:
        """The command with its standard input prepared in the lane's directory."""
        if not stdin:
            return command
        path = f"{lane.stored.directory}/stdin"
        if len(stdin) <= INLINE_STDIN:
            prepare = f"printf '{posix.octal(stdin)}' >{quote(path)} && "
            return prepare + posix.from_file(command, path)
        self.write_file(path, stdin, mode=0o600, timeout=_left(deadline))
        return posix.from_file(command, path)

    def _run_on(
        self, lane: _Lane, text: str, command: str, deadline: float, timeout: float
    ) -> _Output:
        try:
            return lane.run(text, deadline)
        except _LaneLate as late:
            self._abandoned.append(lane.stored)
            lane.throw_away()
            raise _timed_out(timeout) from late
        except _LaneBroken:
            lane.throw_away()
            return self._recover(lane, deadline, timeout)

    def _recover(self, lane: _Lane, deadline: float, timeout: float) -> _Output:
        """Fetch the stored result of the lane's last command over a new connection."""
        fetch = lane.stored.fetch_command(self.address.shell)
        while True:
            try:
                with self._connection:
                    if self._transport is None or not self._transport.is_active():
                        self._drop()
                        self._transport = self._connect_until(deadline)
                    transport = self._transport
                output = _exec(transport, fetch, b"", deadline)
            except (LinkRefused, LinkLost, LinkTimeout, _LaneLate) as error:
                raise _unknown("the connection broke and did not come back in time") from error
            except _LaneBroken:
                continue
            found = lanes.parse_fetched(lane.stored, lane.number, output.stdout, output.stderr)
            if found.state == "done":
                return _Output(found.status, found.stdout, found.stderr)
            if found.state == "gone":
                raise _unknown("the connection broke and the board has lost the result (rebooted?)")
            if found.state == "over":
                raise _unknown("the connection broke and the command left no result (killed?)")
            if found.state == "never":
                raise _NotStarted
            if _left(deadline) <= POLL_INTERVAL:
                self._abandoned.append(lane.stored)
                raise _timed_out(timeout)
            time.sleep(POLL_INTERVAL)

    @staticmethod
    def _result(command: str, output: _Output, start: float) -> Result:
        duration = time.monotonic() - start
        return Result(command, output.status, output.stdout, output.stderr, duration)

    # bytes

    def _exec(self, command: str, stdin: bytes, deadline: float) -> _Output:
        line = f"exec {self.address.shell} -c {quote(command)}"
        return _exec(self._live_transport(deadline), line, stdin, deadline)

    def _open_sftp(self, deadline: float) -> SFTPClient | None:
        """The SFTP lane; None where the board has no SFTP server (dropbear)."""
        import paramiko

        transport = self._live_transport(deadline)
        if self._sftp_missing:
            return None
        if self._sftp is not None:
            channel = self._sftp.get_channel()
            if channel is not None and not channel.closed:
                return self._sftp
        channel = _open_channel(transport, deadline)
        try:
            with _bounded(channel, deadline):
                channel.invoke_subsystem("sftp")
                self._sftp = paramiko.SFTPClient(channel)
        except _LaneBroken:
            if not transport.is_active():
                raise
            self._sftp_missing = True
            return None
        return self._sftp

    def _sftp_read(self, sftp: SFTPClient, path: str, deadline: float) -> bytes:
        channel = sftp.get_channel()
        assert channel is not None
        with _bounded(channel, deadline), sftp.open(path, "rb") as file:
            parts = []
            while part := file.read(32768):
                parts.append(part)
        return b"".join(parts)

    def _sftp_write(
        self, sftp: SFTPClient, path: str, data: bytes, mode: int, deadline: float
    ) -> bool:
        """Whether SFTP took the data; if not, the shell's message will say why."""
        channel = sftp.get_channel()
        assert channel is not None
        try:
            with _bounded(channel, deadline):
                with sftp.open(path, "wb") as file:
                    file.set_pipelined(True)
                    file.write(data)
                sftp.chmod(path, mode)
        except OSError:
            return False
        return True


def _timed_out(timeout: float) -> LinkTimeout:
    return LinkTimeout(
        f"no end of the command within {timeout:g} s; its lane was thrown away",
        remedy="if the board is alive the command hangs: look at the kernel log, or give a longer"
        " timeout; otherwise power-cycle the board",
    )


def _unknown(what: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        what,
        remedy="the command may or may not have run and is not repeated: bring the board back and"
        " look at the state it should have changed",
    )


def _exec(transport: Transport, command: str, stdin: bytes, deadline: float) -> _Output:
    """A command line for the login shell on a channel of its own, with raw streams.

    Raises ``_LaneLate``, ``_LaneBroken``.
    """
    channel = _open_channel(transport, deadline)
    try:
        with _bounded(channel, deadline):
            channel.exec_command(command)
            if stdin:
                with contextlib.suppress(OSError):  # it may end without reading all
                    channel.sendall(stdin)
            channel.shutdown_write()
        streams = _Streams(channel)
        with contextlib.suppress(_LaneBroken):
            while True:
                streams.pump(deadline)
        if not channel.status_event.wait(_left(deadline)):
            raise _LaneLate
        if channel.exit_status < 0 and not transport.is_active():
            raise _LaneBroken
        return _Output(channel.exit_status, bytes(streams.out), bytes(streams.err))
    finally:
        with contextlib.suppress(Exception):
            channel.close()
