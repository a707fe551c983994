"""The way to an SSH server: the board file's word, then what ssh_config says.

ssh(1) itself reads ssh_config (``ssh -G``) and is the jump to a server behind another (``ssh -W``);
nothing here parses its files.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.errors import ConfigurationError, HostError, LinkTimeout
from harness.links.address import SshAddress

_NO_SSH: Final = " (ssh(1) is not installed, so ssh_config was not read)"
# As an ssh that takes its defaults from this file, after the user's own and the machine's.
_DEFAULTS: Final = b"Include ~/.ssh/config\nInclude /etc/ssh/ssh_config\nMatch all\nUser root\n"


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach the server, and with what: ``address`` has host, port and user as ssh(1) would
    use them. ``proxy`` is a command whose standard input and output are the connection.
    ``old`` are algorithms with SHA-1 that ssh_config allows for this host. ``note`` says what was
    not read."""

    address: SshAddress
    port: int = 22
    user: str = "root"
    name: str = ""
    known_hosts: tuple[Path, ...] = ()
    identities: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    identities_only: bool = False
    agent: str | None = None
    proxy: tuple[str, ...] | None = None
    old: frozenset[str] = frozenset()
    note: str = ""

    @property
    def host(self) -> str:
        return self.address.host

    @property
    def place(self) -> str:
        """For messages: ``HOST port PORT``, and through what."""
        through = f" through `{' '.join(self.proxy)}`" if self.proxy else ""
        return f"{self.host} port {self.port}{through}"


def find_route(address: SshAddress, *, timeout: float) -> Route:
    """Ask ssh_config, where ``address`` does not forbid it. Raises :class:`ConfigurationError` for
    one that ssh(1) refuses, and for what only ssh(1) can do."""
    if address.host.startswith("[") and address.host.endswith("]"):
        address = replace(address, host=address.host[1:-1])
    ssh = shutil.which("ssh")
    if not address.ssh_config or ssh is None:
        home = Path(_myself().pw_dir, ".ssh")
        return Route(
            address,
            address.port or 22,
            address.user or "root",
            known_hosts=(home / "known_hosts", home / "known_hosts2"),
            identities=tuple(home / f"id_{kind}" for kind in ("rsa", "ecdsa", "ed25519")),
            agent=os.environ.get("SSH_AUTH_SOCK"),
            note=_NO_SSH if ssh is None and address.ssh_config else "",
        )
    words = [ssh, "-G"]
    words += ["-p", str(address.port)] if address.port else []
    words += ["-l", address.user] if address.user else []
    words += ["--", address.host]
    said = _ask(words, timeout=timeout)
    if address.user is None and said["user"][0] == _myself().pw_name != "root":
        # ssh(1) has a default of its own: is this that, or what somebody wrote?
        said = _ask([ssh, "-F", "/dev/stdin", *words[1:]], _DEFAULTS, timeout=timeout)
    return _read(address, ssh, said)


def _myself() -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError as error:
        # Without a descriptor to spare nobody is found either: that is told as what it is.
        os.close(os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC))
        raise HostError(
            f"no user exists for uid {os.getuid()} (ssh(1) says the same)",
            remedy="add one to /etc/passwd of this machine or container",
        ) from error


def _ask(words: Sequence[str], config: bytes = b"", *, timeout: float) -> dict[str, list[str]]:
    """What ``ssh -G`` prints, by its keys. ``config`` is its standard input."""
    # a file, as ssh may read it twice
    file = os.memfd_create("ssh_config")
    try:
        os.write(file, config)
        os.lseek(file, 0, os.SEEK_SET)
        done = subprocess.run(
            words, stdin=file, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise LinkTimeout(
            f"`{' '.join(words)}` did not end within {timeout:.3g} s",
            remedy="does a `Match exec` of ssh_config, or the name service, hang?",
        ) from error
    finally:
        os.close(file)
    if done.returncode != 0:
        raise ConfigurationError(
            f"ssh(1) says: {done.stderr.strip()}",
            remedy="mend ssh_config, or `host` in the board file",
        )
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key, []).append(value)
    return said


def _read(address: SshAddress, ssh: str, said: Mapping[str, Sequence[str]]) -> Route:
    def one(key: str) -> str | None:
        value = said.get(key, ("none",))[0]
        return None if value == "none" else value

    host, port, user = said["hostname"][0], int(said["port"][0]), said["user"][0]
    names = {"h": host, "n": address.host, "p": str(port), "r": user, "%": "%"}
    me = _myself()
    names |= {"d": me.pw_dir, "u": me.pw_name, "i": str(me.pw_uid)}
    names |= {"L": socket.gethostname().split(".")[0], "l": socket.gethostname()}

    def path(text: str) -> Path:
        # ssh(1) does not ask $HOME
        return Path(re.sub("^~/", f"{me.pw_dir}/", os.path.expandvars(text))).expanduser()

    def paths(key: str) -> tuple[Path, ...]:
        texts = [_expanded(text, names, key) for text in said.get(key, ()) if text != "none"]
        return tuple(map(path, texts))

    files = " ".join(
        said.get(key, [""])[0] for key in ("userknownhostsfile", "globalknownhostsfile")
    )
    agent: str | None = said.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if agent == "SSH_AUTH_SOCK" or (agent or "").startswith("$"):
        agent = os.environ.get((agent or "").lstrip("${").rstrip("}"))
    elif agent != "none":
        agent = str(path(_expanded(agent or "", names, "identityagent")))
    if said.get("proxyusefdpass") == ["yes"]:
        raise ConfigurationError(
            "ssh_config has ProxyUseFdpass, which only ssh(1) can do",
            remedy="give a ProxyCommand that passes data, e.g. `nc %h %p`, or ProxyJump",
        )
    allowed = ("kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms")
    return Route(
        replace(address, host=host),
        port,
        user,
        name=one("hostkeyalias") or "",
        known_hosts=tuple(path(word) for word in files.split() if word != "none"),
        identities=paths("identityfile"),
        certificates=paths("certificatefile"),
        identities_only=said.get("identitiesonly") == ["yes"],
        agent=None if agent == "none" else agent,
        proxy=_proxy(ssh, one("proxyjump"), one("proxycommand"), names),
        old=frozenset(
            name
            for key in allowed
            for name in said.get(key, [""])[0].split(",")
            if name.endswith("-sha1") or name == "ssh-rsa"
        ),
    )


def _proxy(
    ssh: str, jump: str | None, command: str | None, names: Mapping[str, str]
) -> tuple[str, ...] | None:
    if jump is not None:
        *before, last = jump.split(",")
        words = [ssh, "-o", "BatchMode=yes", "-W", f"[{names['h']}]:{names['p']}"]
        words += ["-J", ",".join(before)] if before else []
        return (*words, "--", last if "://" in last else f"ssh://{last}")
    if command is not None:
        shell = os.environ.get("SHELL", "/bin/sh")
        return (shell, "-c", f"exec {_expanded(command, names, 'proxycommand')}")
    return None


def _expanded(text: str, names: Mapping[str, str], key: str) -> str:
    """ssh_config(5), TOKENS."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in names:
            raise ConfigurationError(
                f"ssh_config has {found[0]} in {key}, which only ssh(1) knows",
                remedy="write it out there, or give `key` in the board file",
            )
        return names[found[1]]

    return re.sub("%(.)", value, text)


class ProxySocket(socket.socket):
    """The connection through a command, which ends with it."""

    def __init__(self, words: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    words, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE
                )
            except OSError as error:
                ours.close()
                raise HostError(
                    f"{words[0]} cannot be started ({error.strerror})",
                    remedy="mend ProxyCommand in ssh_config",
                ) from error
        super().__init__(fileno=ours.detach())
        self._said = bytearray()
        self._reader = threading.Thread(target=self._read_said, daemon=True)
        self._reader.start()

    def _read_said(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while part := os.read(stream.fileno(), 4096):
                self._said += part
                del self._said[:-4096]
        self._process.wait()

    @property
    def said(self) -> str:
        """What the command has complained about."""
        self._reader.join(0.5)
        return bytes(self._said).decode("utf-8", "replace").strip()

    def close(self) -> None:
        super().close()
        if self._process.poll() is None:
            self._process.terminate()
