"""The board's SSH server: sessions are processes of the board, the socket belongs to the host.

asyncssh speaks the protocol in the supervisor's event loop; every shell, command and sftp-server is
a real process inside the board's namespaces, wired up with pipes or a pseudo-terminal of the
board's own devpts.  Nothing here touches the model of the machine, so a hung SetVariable never
stops a session.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncssh

from emulation.userland.jail.spawner import Account, Spawner

READ_SIZE: Final = 1 << 16
"""Bytes taken from a process at once: the size of a Linux pipe."""

SFTP_SERVERS: Final = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/lib/sftp-server",
)

ACCEPTED_ENVIRONMENT: Final = ("LANG", "LC_")
"""Prefixes of the variables a client may set (AcceptEnv of Debian's sshd_config)."""

SIGNALS: Final = frozenset(
    "ABRT ALRM FPE HUP ILL INT KILL PIPE QUIT SEGV TERM USR1 USR2".split()  # noqa: SIM905
)
"""Signal names of RFC 4254 section 6.10."""


def find_sftp_server(root: Path = Path("/")) -> str | None:
    """Path of the userland's sftp-server, or None when the package is not installed."""
    for path in SFTP_SERVERS:
        if os.access(root / path.lstrip("/"), os.X_OK):
            return path
    return None


@dataclass(frozen=True)
class Keys:
    """Files made for one run: the only key that may log in, and who the board is."""

    client_key: Path
    known_hosts: Path
    host: asyncssh.SSHKey
    authorized: asyncssh.SSHKey


def prepare_keys(state: Path, *, port: int) -> Keys:
    """Load the host key from ``state`` (it is the board's identity) or make it; make a fresh client
    key (mode 0600) and the matching known_hosts file."""
    import asyncssh

    host_path = state / "ssh_host_ed25519_key"
    if host_path.exists():
        host = asyncssh.read_private_key(str(host_path))
    else:
        host = asyncssh.generate_private_key("ssh-ed25519", comment="emulated board")
        _write_private(host_path, host.export_private_key("openssh"))
    client = asyncssh.generate_private_key("ssh-ed25519", comment="made for this run")
    client_path = state / "id_ed25519"
    _write_private(client_path, client.export_private_key("openssh"))
    known_hosts = state / "known_hosts"
    public = " ".join(host.export_public_key("openssh").decode().split()[:2])
    known_hosts.write_text(f"[127.0.0.1]:{port},[localhost]:{port} {public}\n")
    return Keys(client_path, known_hosts, host, client.convert_to_public())


def _write_private(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    fresh.rename(path)


class ReservedPort:
    """A loopback TCP port that stays ours while the board is off.

    A bound socket that does not listen answers connections with a reset, and Linux keeps the
    binding over ``shutdown`` of the listening state, so nobody can take the port in between.
    """

    def __init__(self, port: int = 0) -> None:
        if port == 0:
            # An explicit number is needed: the kernel gives automatic ones back on shutdown.
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.port = port
        self._is_listening = False

    def listening(self) -> socket.socket:
        """A new descriptor of the socket, which starts to listen."""
        self._socket.listen(64)
        self._is_listening = True
        return self._socket.dup()

    def refuse(self) -> None:
        """Refuse connections from now on; waiting ones are reset."""
        # Shutting down a socket that does not listen would mark it shut for good.
        if self._is_listening:
            self._is_listening = False
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class LoginPolicy:
    """Who may log in and what a session is given."""

    accounts: Mapping[str, Account]
    path: str
    sftp_server: str | None


class SshServer:
    """Listens while the board's sshd runs; all methods belong to the event loop's thread."""

    def __init__(self, port: ReservedPort, keys: Keys, policy: LoginPolicy) -> None:
        self._port = port
        self._keys = keys
        self._policy = policy
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="ssh-spawn")

    @property
    def running(self) -> bool:
        return self._acceptor is not None

    async def start(self, spawner: Spawner) -> None:
        """Answer on the port; sessions are started through ``spawner``."""
        import asyncssh

        server_class = _server_class()
        self._acceptor = await asyncssh.listen(
            sock=self._port.listening(),
            server_factory=lambda: server_class(self, spawner),
            server_host_keys=[self._keys.host],
            agent_forwarding=False,
            x11_forwarding=False,
            compression_algs=None,
            gss_host=None,
            password_auth=False,
            kbdint_auth=False,
            line_editor=False,
            login_timeout=30,
        )

    def refuse(self) -> None:
        """sshd is stopped: no new connection, the present ones stay."""
        self._port.refuse()
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None

    def cut(self) -> None:
        """The board is gone: refuse, and break every connection without a farewell."""
        self.refuse()
        for connection in tuple(self._connections):
            connection.abort()
        self._connections.clear()

    def disconnect(self) -> None:
        """Orderly end of all sessions, as sshd does when the system goes down."""
        self.refuse()
        for connection in tuple(self._connections):
            connection.close()

    def close(self) -> None:
        self.cut()
        self._port.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _server_class() -> Callable[[SshServer, Spawner], asyncssh.SSHServer]:
    """The asyncssh subclasses, made on first use because asyncssh is slow to import."""
    import asyncssh

    class Server(asyncssh.SSHServer):
        """One connection: public-key login of the board's accounts, sessions, nothing else."""

        def __init__(self, owner: SshServer, spawner: Spawner) -> None:
            self._owner = owner
            self._spawner = spawner
            self._connection: asyncssh.SSHServerConnection | None = None
            self._user = ""

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection = conn
            self._owner._connections.add(conn)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._connection is not None:
                self._owner._connections.discard(self._connection)

        def begin_auth(self, username: str) -> bool:
            self._user = username
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            known = username in self._owner._policy.accounts
            return known and key == self._owner._keys.authorized

        def session_requested(
            self,
        ) -> tuple[asyncssh.SSHServerChannel[bytes], asyncssh.SSHServerSession[bytes]]:
            assert self._connection is not None
            channel: asyncssh.SSHServerChannel[bytes] = self._connection.create_server_channel(
                encoding=None, window=2 << 20, max_pktsize=32768
            )
            account = self._owner._policy.accounts[self._user]
            return channel, Session(self._owner, self._spawner, account)

    class Session(asyncssh.SSHServerSession[bytes]):
        """One channel: glue between asyncssh's callbacks and a :class:`_Process`."""

        def __init__(self, owner: SshServer, spawner: Spawner, account: Account) -> None:
            self._process = _Process(owner, spawner, account)

        def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
            self._process.channel = chan

        def pty_requested(
            self,
            term_type: str,
            term_size: tuple[int, int, int, int],
            term_modes: Mapping[int, int],
        ) -> bool:
            return self._process.request_pty(term_type, term_size)

        def shell_requested(self) -> bool:
            self._process.argv = [self._process.account.shell, "-l"]
            return True

        def exec_requested(self, command: str) -> bool:
            self._process.argv = [self._process.account.shell, "-c", command]
            return True

        def subsystem_requested(self, subsystem: str) -> bool:
            server = self._process.owner._policy.sftp_server
            if subsystem != "sftp" or server is None:
                return False
            self._process.argv = [server]
            return True

        def session_started(self) -> None:
            self._process.start()

        def data_received(self, data: bytes, datatype: int | None) -> None:
            self._process.feed(data)

        def eof_received(self) -> bool:
            self._process.feed_eof()
            return True

        def pause_writing(self) -> None:
            self._process.pause_output()

        def resume_writing(self) -> None:
            self._process.resume_output()

        def terminal_size_changed(
            self, width: int, height: int, pixwidth: int, pixheight: int
        ) -> None:
            self._process.resize((width, height, pixwidth, pixheight))

        def signal_received(self, signal: str) -> None:
            self._process.signal(signal)

        def connection_lost(self, exc: Exception | None) -> None:
            self._process.hang_up()

    return Server


class _Process:
    """A process of the board behind an SSH channel: three pipes or one pseudo-terminal."""

    def __init__(self, owner: SshServer, spawner: Spawner, account: Account) -> None:
        self.owner = owner
        self.account = account
        self.argv: Sequence[str] = ()
        self.channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._spawner = spawner
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
        future = self._loop.run_in_executor(self.owner._executor, self._spawn, slots)
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

        return self._spawner.spawn(
            self.argv,
            env=self._environment(),
            cwd=self.account.home,
            fds=fds,
            controlling_tty=self._terminal is not None,
            uid=self.account.uid,
            gid=self.account.gid,
            on_exit=exited,
        )

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
            "PATH": self.owner._policy.path,
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
