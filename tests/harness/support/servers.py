"""Real SSH servers on loopback, run as the current user, for the tests of the SSH link."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
            family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
            with socket.socket(family) as sock:
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


def openssh(
    folder: Path,
    *,
    sftp: bool = True,
    shell: str = "sh",
    config: Sequence[str] = (),
    host: str = "127.0.0.1",
    accounts: Sequence[Account] = (),
) -> Server:
    """A private sshd: key only, one user, no PAM. ``config`` are lines of sshd_config that come
    before its own; ``accounts`` are the users there are for it."""
    sshd = need("sshd", "openssh-server")
    host_key = make_key(folder / "host_key")
    user_key = make_key(folder / "user_key")
    (folder / "authorized_keys").write_bytes(Path(f"{user_key}.pub").read_bytes())
    port = free_port()
    lines = [
        *config,
        f"Port {port}",
        f"ListenAddress {host}",
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
        host,
        port,
        accounts[0].name if accounts else getpass.getuser(),
        key=user_key,
        host_key_fingerprint=fingerprint(Path(f"{host_key}.pub")),
        shell=shell,
    )
    argv = [sshd, "-D", "-f", f"{folder}/sshd_config"]
    if accounts:
        argv = with_accounts(accounts, folder, f"exec {' '.join(argv)}")
    return Server(address, argv, dict(os.environ))


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
    argv = _with_home(home, folder, serve)
    return Server(address, argv, dict(os.environ))


def _with_home(home: Path, folder: Path, command: str) -> list[str]:
    """Run ``command`` where the current user's home is ``home``: dropbear takes the keys from
    there and has no option for it."""
    return with_accounts([Account(home=home)], folder, command)


@dataclass(frozen=True)
class Account:
    """A user of a server: by default the current one. ``shadow`` is what shadow(5) has after the
    name; it needs root."""

    home: Path
    name: str = field(default_factory=getpass.getuser)
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    shell: str = "/bin/sh"
    shadow: str = ""


def with_accounts(accounts: Sequence[Account], folder: Path, command: str) -> list[str]:
    """Run ``command`` where there are these ``accounts``, too."""
    names = tuple(f"{one.name}:" for one in accounts)
    lines = {
        "passwd": [f"{a.name}:x:{a.uid}:{a.gid}::{a.home}:{a.shell}\n" for a in accounts],
        "shadow": [f"{a.name}:{a.shadow}\n" for a in accounts if a.shadow],
    }
    mounts = []
    for name, first in lines.items():
        if not first:
            continue
        others = Path("/etc", name).read_text(encoding="utf-8").splitlines(True)
        file = folder / name
        file.write_text("".join([*first, *(one for one in others if not one.startswith(names))]))
        mounts += [str(file), f"/etc/{name}"]
    unshare = [need("unshare", "util-linux"), "--mount"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-current-user", "--keep-caps"]
    # mount(8) insists on uid 0 where the system call asks for a capability only
    script = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "command, *files = sys.argv[1:]\n"
        "for one, place in zip(files[::2], files[1::2]):\n"
        "    if libc.mount(one.encode(), place.encode(), None, 4096, None):\n"
        "        sys.exit(os.strerror(ctypes.get_errno()))\n"
        "os.execv('/bin/sh', ['sh', '-c', command])\n"
    )
    argv = [*unshare, sys.executable, "-c", script]
    probe = subprocess.run([*argv, "true", *mounts], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no private mount namespace here: {probe.stderr.strip()}")
    return [*argv, command, *mounts]
