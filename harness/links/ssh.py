"""The SSH link: one transport, three lanes.

A persistent shell for commands (:mod:`harness.links.lane`), SFTP for bytes
(:mod:`harness.links.sftp`), a fresh exec for isolation. All are opened when first needed and
replaced when lost.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from shlex import quote
from typing import TYPE_CHECKING, TypeVar

from harness.errors import (
    HilError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    OutcomeUnknown,
    OutputWithoutEnd,
    of_target,
)
from harness.links import posix, sftp
from harness.links.address import SshAddress
from harness.links.channel import LaneBroken, LaneLate, Output, SessionRefused, execute, left
from harness.links.lane import Lane, Stored, kill_script, parse_fetched
from harness.links.route import Route, find_route
from harness.links.transport import ConnectRefused, connect
from harness.links.userkeys import told
from harness.shell import Result

if TYPE_CHECKING:
    from paramiko import SFTPClient, Transport

RETRY_INTERVAL = 0.05  # seconds between connection attempts to a board that boots
ATTEMPT_LIMIT = 5.0  # seconds for one of several connection attempts
POLL_INTERVAL = 0.05  # seconds between looks at a command whose lane was lost
INLINE_STDIN = 2048  # bytes of standard input that travel inside the command frame


_Session = TypeVar("_Session")


class _NotStarted(Exception):
    """The connection broke, and the board tells that the command certainly did not run."""


@contextlib.contextmanager
def _told_when_not_started() -> Iterator[None]:
    try:
        yield
    except _NotStarted as error:
        raise LinkLost(
            "the connection broke before the command was started",
            remedy="the command did not run; check the board, then repeat",
        ) from error


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
        self._route: Route | None = None
        self._transport: Transport | None = None
        self._further: list[Transport] = []
        self._lane: Lane | None = None
        self._sftp = sftp.SftpLane()
        self._abandoned: list[Stored] = []

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
            client = self._open_sftp(deadline)
            if client is not None:
                try:
                    return sftp.read(client, path, deadline)
                except OSError as error:
                    if error.errno is not None:
                        named = OSError(error.errno, os.strerror(error.errno), path)
                        raise of_target(named) from of_target(error)
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
            client = self._open_sftp(deadline)
            if client is not None and sftp.write(client, path, data, mode, deadline):
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
        posix.check_written(path, data, output.stdout, link=self.name)

    @property
    def route(self) -> Route:
        """Where the server is, by the board file and ssh_config, and with what we log in. Raises
        :class:`ConfigurationError`."""
        return self._find_route(self.connect_timeout)

    def known_host(self, alias: str, *, timeout: float = 10.0) -> str:
        """A line of known_hosts (sshd(8)) with the host key that was verified, for ``alias``."""
        with self._located(None):
            key = self._live_transport(time.monotonic() + timeout).get_remote_server_key()
        return f"{alias} {key.get_name()} {key.get_base64()}\n"

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
        except LaneLate as late:
            self._sftp.drop()
            raise _timed_out(timeout) from late
        except LaneBroken as broken:
            self._sftp.drop()
            raise LinkLost(
                "the connection broke during a file transfer",
                remedy="the file may be incomplete; check that the board still runs and repeat",
            ) from broken

    def _live_transport(self, deadline: float) -> Transport:
        with self._connection:
            transport = self._transport
            if transport is None or not transport.is_active():
                self._drop()
                limit = min(self.connect_timeout, left(deadline))
                self._transport = transport = connect(self._find_route(limit), timeout=limit)
            return transport

    def _find_route(self, timeout: float) -> Route:
        if self._route is None:
            self._route = find_route(self.address, timeout=timeout)
        return self._route

    def _with_session(self, use: Callable[[Transport], _Session], deadline: float) -> _Session:
        """``use`` a new session of the connection; of a connection more, as every ssh(1) has its
        own, where the server lets one have no more of them (MaxSessions)."""
        try:
            return use(self._live_transport(deadline))
        except SessionRefused:
            further = connect(self._find_route(left(deadline)), timeout=left(deadline))
        with self._connection:
            self._close_further(idle=True)
            self._further.append(further)
        return use(further)

    def _close_further(self, *, idle: bool) -> None:
        """Close the connections beside the first one; those that have no session, if ``idle``."""
        for one in [*self._further]:
            if not (idle and one.is_active() and one._channels.values()):  # type: ignore[attr-defined]
                self._further.remove(one)
                one.close()

    def _connect_until(self, end: float) -> Transport:
        """Connect; while the board boots, try again until ``end``."""
        while True:
            try:
                limit = min(ATTEMPT_LIMIT, max(0.1, left(end)))
                return connect(self._find_route(limit), timeout=limit)
            except (ConnectRefused, LinkLost) as error:
                if left(end) <= RETRY_INTERVAL:
                    raise LinkTimeout(
                        f"the board did not come back in time; last: {error.what}",
                        remedy=error.remedy,
                    ) from error
            time.sleep(RETRY_INTERVAL)

    def _drop(self) -> None:
        with self._connection:
            transport, self._transport = self._transport, None
            self._lane = None
            self._sftp = sftp.SftpLane()
            self._close_further(idle=False)
            if transport is not None:
                transport.close()

    # commands

    def _open_lane(self, deadline: float, command: str) -> Lane:
        """A fresh lane, on a fresh connection if the present one turns out to be dead."""
        fresh = self._transport is None
        while True:
            try:
                self._kill_abandoned(deadline)
                return self._with_session(
                    lambda transport: Lane.open(transport, self.address.shell, deadline), deadline
                )
            except (LaneBroken, LaneLate) as error:
                self._drop()
                if fresh or isinstance(error, LaneLate):
                    said = [str(one) for one in error.args]
                    raise LinkLost(
                        told(said, "the board did not start a shell on the connection"),
                        remedy="does its account run a menu, or the server force a command? Else"
                        " check that the board is not hung; the command was not sent"
                        if said
                        else "check that the board is not hung; the command was not sent",
                    ) from error
                fresh = True

    def _run_persistent(
        self, command: str, stdin: bytes, deadline: float, timeout: float
    ) -> Output:
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

    def _kill_abandoned(self, deadline: float) -> None:
        """End what timed-out commands left running."""
        while self._abandoned:
            self._exec(kill_script(self._abandoned[-1]), b"", deadline)
            self._abandoned.pop()

    def _with_stdin(self, command: str, stdin: bytes, lane: Lane, deadline: float) -> str:
        """The command with its standard input prepared in the lane's directory."""
        if not stdin:
            return command
        path = f"{lane.stored.directory}/stdin"
        if len(stdin) <= INLINE_STDIN:
            prepare = f"printf '{posix.octal(stdin)}' >{quote(path)} && "
            return prepare + posix.from_file(command, path)
        self.write_file(path, stdin, mode=0o600, timeout=left(deadline))
        return posix.from_file(command, path)

    def _run_on(
        self, lane: Lane, text: str, command: str, deadline: float, timeout: float
    ) -> Output:
        try:
            return lane.run(text, deadline)
        except LaneLate as late:
            self._abandoned.append(lane.stored)
            lane.throw_away()
            raise _timed_out(timeout) from late
        except OutputWithoutEnd:
            self._abandoned.append(lane.stored)
            lane.throw_away()
            raise
        except LaneBroken:
            lane.throw_away()
            return self._recover(lane, deadline, timeout)

    def _recover(self, lane: Lane, deadline: float, timeout: float) -> Output:
        """Fetch the stored result of the lane's last command over a new connection."""
        while True:
            try:
                with self._connection:
                    if self._transport is None or not self._transport.is_active():
                        self._drop()
                        self._transport = self._connect_until(deadline)
                output = self._exec(lane.stored.fetch_script, b"", deadline)
            except (LinkRefused, LinkLost, LinkTimeout, LaneLate) as error:
                raise OutcomeUnknown(
                    "the connection broke and did not come back in time"
                ) from error
            except LaneBroken:
                continue
            found = parse_fetched(lane.stored, lane.number, output.stdout, output.stderr)
            if found.state == "done":
                return Output(found.status, found.stdout, found.stderr)
            if found.state == "gone":
                raise OutcomeUnknown(
                    "the connection broke and the board has lost the result (rebooted?)"
                )
            if found.state == "over":
                raise OutcomeUnknown(
                    "the connection broke and the command left no result (killed?)"
                )
            if found.state == "never":
                raise _NotStarted
            if left(deadline) <= POLL_INTERVAL:
                self._abandoned.append(lane.stored)
                raise _timed_out(timeout)
            time.sleep(POLL_INTERVAL)

    @staticmethod
    def _result(command: str, output: Output, start: float) -> Result:
        duration = time.monotonic() - start
        return Result(command, output.status, output.stdout, output.stderr, duration)

    # bytes

    def _exec(self, script: str, stdin: bytes, deadline: float) -> Output:
        return self._with_session(
            lambda transport: execute(transport, self.address.shell, script, stdin, deadline),
            deadline,
        )

    def _open_sftp(self, deadline: float) -> SFTPClient | None:
        """None where the board has no SFTP server."""
        return self._with_session(lambda transport: self._sftp.open(transport, deadline), deadline)


def _timed_out(timeout: float) -> LinkTimeout:
    return LinkTimeout(
        f"no end of the command within {timeout:g} s; its lane was thrown away",
        remedy="if the board is alive the command hangs: look at the kernel log, or give a longer"
        " timeout; otherwise power-cycle the board",
    )
