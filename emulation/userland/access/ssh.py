"""The board's SSH server: sessions are processes of the board, the socket belongs to the host.

asyncssh speaks the protocol in the supervisor's event loop; every shell, command and sftp-server is
a real process inside the board's namespaces, wired up with pipes or a pseudo-terminal of the
board's own devpts.  Nothing here touches the model of the machine, so a hung SetVariable never
stops a session.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncssh

from emulation.userland.access.ssh_process import SshProcess
from emulation.userland.jail.spawner import Account, Spawner

MAX_CONNECTIONS: Final = 64
MAX_SESSIONS: Final = 64
"""Connections, and sessions of each, that the server has at once; OpenSSH's MaxStartups and
MaxSessions are 100 and 10."""

SFTP_SERVERS: Final = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/lib/sftp-server",
)


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
        self._crowded = False
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

    def _admit(self, connection: asyncssh.SSHServerConnection) -> bool:
        """Whether there is room for one more; the first for which there is none is told of."""
        if len(self._connections) < MAX_CONNECTIONS:
            self._connections.add(connection)
            self._crowded = False
            return True
        if not self._crowded:
            self._crowded = True
            text = f"{MAX_CONNECTIONS} SSH connections are open: further ones are closed"
            print(f"emulation: {text}", file=sys.stderr)
        return False

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
            self._sessions: set[Session] = set()

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            if self._owner._admit(conn):
                self._connection = conn
            else:
                conn.abort()

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
        ) -> tuple[asyncssh.SSHServerChannel[bytes], asyncssh.SSHServerSession[bytes]] | bool:
            self._sessions = {session for session in self._sessions if not session.ended}
            if self._connection is None or len(self._sessions) >= MAX_SESSIONS:
                return False
            channel: asyncssh.SSHServerChannel[bytes] = self._connection.create_server_channel(
                encoding=None, window=2 << 20, max_pktsize=32768
            )
            account = self._owner._policy.accounts[self._user]
            session = Session(self._owner, self._spawner, account)
            self._sessions.add(session)
            return channel, session

    class Session(asyncssh.SSHServerSession[bytes]):
        """One channel: glue between asyncssh's callbacks and a :class:`SshProcess`."""

        def __init__(self, owner: SshServer, spawner: Spawner, account: Account) -> None:
            self._process = SshProcess(spawner, account, owner._policy.path, owner._executor)
            self._sftp_server = owner._policy.sftp_server
            self.ended = False

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
            if subsystem != "sftp" or self._sftp_server is None:
                return False
            self._process.argv = [self._sftp_server]
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
            self.ended = True
            self._process.hang_up()

    return Server
