"""The SSH server with processes of the host in place of the board's: the protocol side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import asyncssh
import pytest

from emulation.userland.access.ssh import (
    Keys,
    LoginPolicy,
    ReservedPort,
    SshServer,
    find_sftp_server,
    prepare_keys,
)
from emulation.userland.jail.spawner import Account, Program, Pty


class HostSpawner:
    """Processes of this machine with the board's interface."""

    def spawn(self, program: Program, fds: Sequence[int], on_exit: Callable[[int], None]) -> int:
        # As a board's init does; under nohup it would stay ignored.
        command = ["env", "--default-signal=HUP", shutil.which("setsid") or "setsid"]
        command += [*(["-c"] if program.controlling_tty else []), *program.argv]
        process = subprocess.Popen(
            command,
            env=dict(program.env),
            cwd=program.cwd,
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
        )

        def reap() -> None:
            _, status = os.waitpid(process.pid, 0)
            process.returncode = 0
            on_exit(status)

        threading.Thread(target=reap, daemon=True).start()
        return process.pid

    def signal(self, pid: int, number: int) -> None:
        os.kill(pid, number)

    def open_pty(self) -> Pty:
        master, slave = os.openpty()
        return Pty(master, slave, os.ttyname(slave))


class Running:
    """A server in a thread of its own, as the supervisor has it."""

    def __init__(self, state: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = ReservedPort()
        self.keys: Keys = prepare_keys(state, port=self.port.port)
        accounts = {"root": Account("root", os.getuid(), os.getgid(), str(state), "/bin/sh")}
        policy = LoginPolicy(accounts, os.environ["PATH"], find_sftp_server())
        self.server = SshServer(self.port, self.keys, policy)
        self.start()

    def start(self) -> None:
        started = self.server.start(HostSpawner())
        asyncio.run_coroutine_threadsafe(started, self.loop).result(5)

    def call(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self.loop).result(5)

    def close(self) -> None:
        self.call(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    def ssh(
        self, *arguments: str, stdin: bytes = b"", timeout: float = 20
    ) -> subprocess.CompletedProcess[bytes]:
        if shutil.which("ssh") is None:
            pytest.skip("needs ssh: install openssh-client")
        options = ["-F", "none", "-i", str(self.keys.client_key), "-p", str(self.port.port)]
        options += ["-o", f"UserKnownHostsFile={self.keys.known_hosts}", "-o", "BatchMode=yes"]
        command = ["ssh", *options, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path)
    yield server
    server.close()


AT = "root@127.0.0.1"


def test_command_status_streams_and_environment(running: Running) -> None:
    result = running.ssh(AT, "cat; echo err >&2; echo $USER $SSH_CONNECTION; exit 7", stdin=b"in\n")
    assert result.returncode == 7
    assert result.stdout.splitlines()[0] == b"in"
    assert result.stdout.splitlines()[1].startswith(b"root 127.0.0.1 ")
    assert result.stderr == b"err\n"


def test_death_by_signal_is_reported_as_such(running: Running) -> None:
    async def run() -> asyncssh.SSHCompletedProcess:
        async with _client(running) as connection:
            result: asyncssh.SSHCompletedProcess = await connection.run("kill -USR1 $$")
            return result

    result = asyncio.run(run())
    assert result.exit_signal is not None
    assert result.exit_signal[0] == "USR1"


def test_large_input_and_output_with_a_slow_reader(running: Running) -> None:
    block = os.urandom(1 << 20)
    size = 6
    result = running.ssh(
        AT, "sleep 0.2; cat; dd if=/dev/zero bs=1M count=3 >&2", stdin=block * size
    )
    assert result.stdout == block * size
    assert result.stderr.startswith(bytes(3 << 20))


def test_output_nobody_reads_is_not_collected(running: Running) -> None:
    async def run() -> int:
        async with _client(running) as connection:
            process = await connection.create_process("cat /dev/zero", encoding=None)
            await process.stdout.readexactly(1 << 16)
            before = _rss()
            await asyncio.sleep(0.3)
            process.kill()
            return _rss() - before

    assert asyncio.run(run()) < 64 << 20


def test_terminal(running: Running) -> None:
    result = running.ssh("-tt", AT, "tty; stty size; test -t 2 && echo $TERM", stdin=b"")
    lines = result.stdout.split(b"\r\n")
    assert lines[0].startswith(b"/dev/pts/")
    assert len(lines[1].split()) == 2


def test_login_shell_on_a_terminal_reads_commands_and_window_size(running: Running) -> None:
    async def run() -> str:
        async with _client(running) as connection:
            process = await connection.create_process(term_type="vt100", term_size=(91, 17))
            process.stdin.write("stty size; exit 3\n")
            output = await asyncio.wait_for(process.stdout.read(), 10)
            assert process.exit_status == 3
            return str(output)

    assert "17 91" in asyncio.run(run())


def test_a_lost_client_hangs_up_the_terminal(running: Running, tmp_path: Path) -> None:
    async def run() -> None:
        async with _client(running) as connection:
            command = (
                f"trap 'echo hup > {tmp_path}/hup; exit' HUP; echo up; while :; do sleep 0.05; done"
            )
            process = await connection.create_process(command, term_type="vt100")
            await process.stdout.readline()
            connection.abort()

    asyncio.run(run())
    deadline = threading.Event()
    for _ in range(400):
        if (tmp_path / "hup").exists():
            break
        deadline.wait(0.05)
    assert (tmp_path / "hup").exists()


def test_sftp_uses_the_real_server(running: Running, tmp_path: Path) -> None:
    if find_sftp_server() is None:
        pytest.skip("needs sftp-server: install openssh-sftp-server")

    async def run() -> bytes:
        async with _client(running) as connection, connection.start_sftp_client() as sftp:
            async with sftp.open(str(tmp_path / "file"), "wb") as stream:
                await stream.write(b"content")
            return (tmp_path / "file").read_bytes()

    assert asyncio.run(run()) == b"content"


def test_only_the_key_of_the_run_logs_in(running: Running, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")

    async def run(**options: object) -> None:
        async with _client(running, **options):
            pass

    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run(client_keys=[other]))
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run(client_keys=None, password="root"))
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run(username="nobody"))
    assert running.keys.client_key.stat().st_mode & 0o777 == 0o600


def test_no_forwarding(running: Running) -> None:
    async def run() -> None:
        async with _client(running) as connection:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_connection("127.0.0.1", running.port.port)

    asyncio.run(run())


def test_port_refuses_while_off_and_answers_again(running: Running) -> None:
    running.call(running.server.refuse)
    running.call(running.server.cut)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port.port), 2)
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(("127.0.0.1", running.port.port))
    running.start()
    assert running.ssh(AT, "echo back").stdout == b"back\n"


def test_a_power_cut_breaks_sessions_at_once(running: Running) -> None:
    async def run() -> None:
        async with _client(running) as connection:
            process = await connection.create_process("echo up; sleep 60")
            await process.stdout.readline()
            running.call(running.server.cut)
            await asyncio.wait_for(process.wait_closed(), 5)
            assert process.exit_status is None

    with contextlib.suppress(asyncssh.ConnectionLost):
        asyncio.run(run())


def test_host_key_is_the_boards_identity_and_the_client_key_is_fresh(tmp_path: Path) -> None:
    first = prepare_keys(tmp_path, port=1)
    client = first.client_key.read_bytes()
    second = prepare_keys(tmp_path, port=2)
    assert first.host.get_fingerprint() == second.host.get_fingerprint()
    assert second.client_key.read_bytes() != client
    assert second.known_hosts.read_text().startswith("[127.0.0.1]:2,[localhost]:2 ssh-ed25519 ")


def test_signal_request_reaches_the_process_group(running: Running) -> None:
    async def run() -> asyncssh.SSHCompletedProcess:
        async with _client(running) as connection:
            process = await connection.create_process("echo up; exec sleep 60")
            await process.stdout.readline()
            process.send_signal("TERM")
            return await asyncio.wait_for(process.wait(), 5)

    result = asyncio.run(run())
    assert result.exit_signal is not None
    assert result.exit_signal[0] == signal.Signals.SIGTERM.name.removeprefix("SIG")


def _client(running: Running, **changes: object) -> asyncssh.misc._ACMWrapper:  # type: ignore[type-arg]
    options: dict[str, object] = {
        "username": "root",
        "client_keys": [str(running.keys.client_key)],
        "known_hosts": str(running.keys.known_hosts),
        "agent_path": None,
        "config": None,
    }
    return asyncssh.connect("127.0.0.1", running.port.port, **(options | changes))


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
