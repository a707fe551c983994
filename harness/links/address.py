"""Where a board's links end: plain records, built from a board file or by a power driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SshAddress:
    """One SSH end point and how to prove both sides' identity.

    The host key is always checked: against ``host_key_fingerprint`` (``SHA256:…`` as
    ``ssh-keygen -l`` prints it) if given, else against ``known_hosts``, else against the files
    that ssh(1) would read. ``shell`` is the POSIX shell the lanes run (e.g. ``sh`` or
    ``busybox sh``). What is None is ssh_config's to say (:mod:`harness.links.route`), unless
    ``ssh_config`` is false; then, or where it is silent, the port is 22 and the user root.
    """

    host: str
    port: int | None = None
    user: str | None = None
    key: Path | None = None
    host_key_fingerprint: str | None = None
    known_hosts: Path | None = None
    password: str | None = field(default=None, repr=False)
    shell: str = "sh"
    ssh_config: bool = True

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Login:
    """The account used at a ``login:`` prompt; ``password`` None where none is asked."""

    user: str = "root"
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Regular expressions that end the last line on a console when the board waits for input
    (decoded as UTF-8, and what is none as Latin-1; escape sequences are removed before).
    ``interrupt_text`` is what a firmware shows while it counts down to the boot, and
    ``interrupt_key`` what stops it; empty for what U-Boot and its vendors say."""

    login: str = r"\blogin: ?$"
    password: str = r"[Pp]assword: ?$"
    shell: str = r"(?:[$>]|(?<![#\d])[#%]) ?$"
    firmware: str = r"^(=>|U-Boot>|[\w-]+=>) ?$"
    interrupt_text: str = ""
    interrupt_key: str = ""


@dataclass(frozen=True, slots=True)
class SerialAddress:
    """One serial console: ``url`` is a device path, ``socket://host:port`` or
    ``rfc2217://host:port``; ``baud`` in bit/s, 8N1; ``capture`` the file that keeps
    everything the board says."""

    url: str
    baud: int = 115200
    login: Login = Login()
    prompts: Prompts = Prompts()
    capture: Path | None = None

    def __str__(self) -> str:
        return self.url
