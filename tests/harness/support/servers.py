"""Real SSH servers on loopback, run as the current user, for the tests of the SSH link."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.links.address import SshAddress

_LOWEST, _PORT_COUNT = 20000, 12000
_PORTS = itertools.count(os.getpid() * 64)


def need(tool: str, package: str) -> str:
    """The path of ``tool``; skips the test naming the package that brings it."""
    path = shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{tool} is missing; install the package {package}")
    return path


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of loopback that nobody else takes before it is used: the kernel hands out higher
    ones, and each process (a worker of pytest-xdist) begins elsewhere and gives none twice."""
    for number in _PORTS:
        port = _LOWEST + number % _PORT_COUNT
        with socket.socket(type=kind) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def make_key(path: Path, kind: str = "ed25519") -> Path:
    subprocess.run(
        [need("ssh-keygen", "openssh-client"), "-q", "-t", kind, "-N", "", "-f", str(path)],
        check=True,
    )
    return path


def fingerprint(public_key: Path) -> str:
    output = subprocess.run(
        [need("ssh-keygen", "openssh-client"), "-lf", str(public_key)],
        check=True,
        capture_output=True,
        text=True,
    )
    return output.stdout.split()[1]


@dataclass
class Server:
    """An SSH server process and how to reach it."""

    address: SshAddress
    argv: list[str]
    environment: dict[str, str]
    names: tuple[str, ...] = ("sshd", "dropbear")
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as sock:
                if sock.connect_ex((self.address.host, self.address.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError(f"{self.argv[0]} does not listen")

    def sessions(self) -> list[int]:
        """The server's processes that serve a connection."""
        assert self.process is not None
        return [pid for pid in _descendants(self.process.pid) if _name_of(pid) in self.names]

    def signal_sessions(self, number: signal.Signals) -> None:
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        if self.process is None:
            return
        sessions = self.sessions()
        for pid in [self.process.pid, *sessions]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def _descendants(parent: int) -> list[int]:
    text = _read(f"/proc/{parent}/task/{parent}/children")
    children = [int(pid) for pid in text.split()]
    return [*children, *(pid for child in children for pid in _descendants(child))]


def _name_of(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").strip()


def _read(path: str) -> str:
    """A file of /proc; empty if the process has just ended."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def openssh(folder: Path, *, sftp: bool = True, shell: str = "sh") -> Server:
    """A private sshd: key only, one user, no PAM."""
    sshd = need("sshd", "openssh-server")
    host_key = make_key(folder / "host_key")
    user_key = make_key(folder / "user_key")
    (folder / "authorized_keys").write_bytes(Path(f"{user_key}.pub").read_bytes())
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin yes",
        "MaxSessions 50",
    ]
    if sftp:
        lines.append("Subsystem sftp internal-sftp")
    (folder / "sshd_config").write_text("\n".join(lines) + "\n", encoding="ascii")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    address = SshAddress(
        "127.0.0.1",
        port,
        getpass.getuser(),
        key=user_key,
        host_key_fingerprint=fingerprint(Path(f"{host_key}.pub")),
        shell=shell,
    )
    return Server(address, [sshd, "-D", "-f", f"{folder}/sshd_config"], dict(os.environ))


def dropbear(folder: Path) -> Server:
    """A private dropbear without an SFTP server, as on small boards."""
    program = need("dropbear", "dropbear-bin")
    subprocess.run(
        [need("dropbearkey", "dropbear-bin"), "-t", "ed25519", "-f", f"{folder}/host_key"],
        check=True,
        capture_output=True,
    )
    public = subprocess.run(
        ["dropbearkey", "-y", "-f", f"{folder}/host_key"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()[1]
    (folder / "host_key.pub").write_text(public + "\n", encoding="ascii")
    user_key = make_key(folder / "user_key")
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    authorized = home / ".ssh/authorized_keys"
    authorized.write_bytes(Path(f"{user_key}.pub").read_bytes())
    authorized.chmod(0o600)
    port = free_port()
    address = SshAddress(
        "127.0.0.1",
        port,
        getpass.getuser(),
        key=user_key,
        host_key_fingerprint=fingerprint(folder / "host_key.pub"),
    )
    serve = f"exec {program} -F -E -s -p 127.0.0.1:{port} -r {folder}/host_key -P {folder}/pid"
    argv = _with_home(home, folder / "passwd", serve)
    return Server(address, argv, dict(os.environ))


def _with_home(home: Path, passwd: Path, command: str) -> list[str]:
    """Run ``command`` where the current user's home is ``home``: dropbear takes the keys from
    there and has no option for it."""
    entry = pwd.getpwuid(os.getuid())
    text = Path("/etc/passwd").read_text(encoding="utf-8")
    line = f"{entry.pw_name}:x:{entry.pw_uid}:{entry.pw_gid}::{home}:/bin/sh\n"
    others = [one for one in text.splitlines(True) if not one.startswith(f"{entry.pw_name}:")]
    passwd.write_text(line + "".join(others), encoding="utf-8")
    unshare = [need("unshare", "util-linux"), "--mount"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-current-user", "--keep-caps"]
    # mount(8) insists on uid 0 where the system call asks for a capability only
    script = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mount(sys.argv[1].encode(), b'/etc/passwd', None, 4096, None):\n"
        "    sys.exit(os.strerror(ctypes.get_errno()))\n"
        "os.execv('/bin/sh', ['sh', '-c', sys.argv[2]])\n"
    )
    argv = [*unshare, sys.executable, "-c", script, str(passwd)]
    probe = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no private mount namespace here: {probe.stderr.strip()}")
    return [*argv, command]
