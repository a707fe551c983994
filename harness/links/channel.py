"""One channel of an SSH connection: every wait bounded, both streams drained together."""

from __future__ import annotations

import contextlib
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.errors import HilError, HostError, OutputWithoutEnd
from harness.links import posix
from harness.links.userkeys import PasswordExpired, asks_for_change, told

if TYPE_CHECKING:
    from paramiko import Channel, Transport
    from paramiko.buffered_pipe import BufferedPipe

OUTPUT_LIMIT: Final = 64 << 20
"""Bytes that are taken of one command (both streams together) or one file, on every link."""

_CHUNK = 1 << 20
_WINDOW: Final = 2 << 20  # bytes that a server may send before somebody has read the last ones


class LaneBroken(Exception):
    """The lane ended while something was on it."""


class SessionRefused(LaneBroken):
    """The server lets this connection have no further session (MaxSessions)."""


class LaneLate(Exception):
    """The deadline passed; its argument is what was said until then, if anything."""


def left(deadline: float) -> float:
    """Seconds until ``deadline`` (monotonic), 0 after it."""
    return max(0.0, deadline - time.monotonic())


@contextlib.contextmanager
def bounded(channel: Channel, deadline: float) -> Iterator[None]:
    """Close ``channel`` at the deadline: some of paramiko's waits take no timeout.

    Raises ``LaneLate`` if that happened, ``LaneBroken`` if the peer broke off or sent what paramiko
    cannot read.
    """
    import paramiko

    garbage = (paramiko.SFTPError, struct.error, LookupError, ValueError, TypeError)
    timer = threading.Timer(left(deadline), channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (paramiko.SSHException, EOFError, *garbage) as error:
        raise (LaneLate if left(deadline) == 0 else LaneBroken) from error
    except OSError as error:
        # an errno is the answer of the SFTP server; a closed channel has none
        if error.errno is not None or not channel.closed:
            raise
        raise (LaneLate if left(deadline) == 0 else LaneBroken) from error
    finally:
        timer.cancel()


def open_channel(transport: Transport, deadline: float) -> Channel:
    """A new channel. Raises ``LaneLate``, ``LaneBroken``."""
    import paramiko

    try:
        channel = transport.open_session(_WINDOW, timeout=left(deadline) or 0.01)
    except paramiko.ChannelException as error:
        raise SessionRefused from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise (LaneLate if left(deadline) == 0 else LaneBroken) from error
    for pipe in (channel.in_buffer, channel.in_stderr_buffer):
        _hold_to_window(pipe)
    return channel


def _hold_to_window(pipe: BufferedPipe[bytes]) -> None:
    """paramiko takes whatever a server sends beyond its window (RFC 4254, 5.2). What is raised
    here ends the connection."""
    import paramiko

    feed = pipe.feed

    def bounded_feed(data: bytes) -> None:
        if len(pipe) + len(data) > 2 * _WINDOW:
            raise paramiko.SSHException("the server sends beyond the channel's window")
        feed(data)

    pipe.feed = bounded_feed  # type: ignore[method-assign]


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


class Streams:
    """Both output streams of a channel, always drained together."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.out = bytearray()
        self.err = bytearray()
        self._arrival = _Arrival()
        channel.in_buffer.set_event(self._arrival)
        channel.in_stderr_buffer.set_event(self._arrival)

    def pump(self, deadline: float) -> None:
        """Wait for bytes and take them. Raises ``LaneLate``, ``LaneBroken`` at the end,
        :class:`OutputWithoutEnd` above :data:`OUTPUT_LIMIT`."""
        while not self.take():
            if self.channel.eof_received or self.channel.closed:
                raise LaneBroken
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._arrival.wait_once(remaining):
                raise LaneLate
        if len(self.out) + len(self.err) > OUTPUT_LIMIT:
            self.out, self.err = bytearray(), bytearray()
            raise OutputWithoutEnd("the command", OUTPUT_LIMIT)

    def take(self) -> bool:
        """Take what is there without waiting; whether there was anything."""
        channel = self.channel
        out = channel.recv(_CHUNK) if channel.recv_ready() else b""
        err = channel.recv_stderr(_CHUNK) if channel.recv_stderr_ready() else b""
        self.out += out
        self.err += err
        return bool(out or err)

    def clear(self) -> None:
        """Forget what is there. What still comes then, of something that prints in the
        background, is the next command's."""
        for _ in range(2 * _WINDOW // _CHUNK):
            if not self.take():
                break
        self.out.clear()
        self.err.clear()


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended, and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


def said_by(streams: Streams) -> str:
    """What somebody said who was not asked for, as text."""
    return bytes(streams.err + b" " + streams.out).decode("utf-8", "backslashreplace").strip()


def no_shell(shell: str, streams: Streams, status: int) -> HilError:
    """Why the account does not run our commands, in its own words first."""
    said = said_by(streams)
    if asks_for_change(said):
        return PasswordExpired(said)
    return HostError(
        told([said], f"the account does not run {shell!r}") + f" (status {status})",
        remedy="is its login shell nologin, or does the server force a command? The account needs"
        " a POSIX shell (`shell` in the board file) and a writable /run or /tmp",
    )


def execute(transport: Transport, shell: str, script: str, stdin: bytes, deadline: float) -> Output:
    """``script`` in the board's ``shell`` on a channel of its own, with raw streams: what start-up
    files print is left out.

    Raises ``LaneLate``, ``LaneBroken``, :class:`OutputWithoutEnd`, and ``HostError`` where the
    account does not run it; then it has lost its channel.
    """
    channel = open_channel(transport, deadline)
    begin = secrets.token_hex(16)
    try:
        with bounded(channel, deadline):
            channel.exec_command(
                posix.command_line(shell, f"echo {begin}; echo {begin} >&2\n{script}")
            )
            if stdin:
                with contextlib.suppress(OSError):  # it may end without reading all
                    channel.sendall(stdin)
            channel.shutdown_write()
        streams = Streams(channel)
        with contextlib.suppress(LaneBroken):
            while True:
                streams.pump(deadline)
        if not channel.status_event.wait(left(deadline)):
            raise LaneLate
        if channel.exit_status < 0 and not transport.is_active():
            raise LaneBroken
        mark = f"{begin}\n".encode()
        _, begun, out = bytes(streams.out).partition(mark)
        if not begun:
            raise no_shell(shell, streams, channel.exit_status)
        return Output(channel.exit_status, out, bytes(streams.err).partition(mark)[2])
    finally:
        with contextlib.suppress(Exception):
            channel.close()
