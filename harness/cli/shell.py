"""``hil shell``: log in to a board."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from harness.cli.command import Command, add_board, opened

if TYPE_CHECKING:
    from pathlib import Path

_ALIAS: Final = "the-board"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    parser.set_defaults(link="ssh")


def _run(options: argparse.Namespace) -> int:
    import shutil
    import subprocess
    import tempfile
    from pathlib import Path

    from harness.errors import HostError

    if shutil.which("ssh") is None:
        raise HostError(
            "ssh(1) is not installed, and `hil shell` is it",
            remedy="install the package openssh-client; `hil run` does without",
        )
    with opened(options, purpose="hil shell") as board, tempfile.TemporaryDirectory() as folder:
        link = board.links.ssh
        address, route = link.address, link.route
        known_hosts = Path(folder, "known_hosts")
        known_hosts.write_text(link.known_host(_ALIAS), "ascii")
        command = ["ssh", "-p", str(route.port), "-l", route.user]
        command += [] if address.ssh_config else ["-F", "none"]
        if address.key is not None:
            command += ["-i", str(address.key), "-o", "IdentitiesOnly=yes"]
        for option in _only_key_in(known_hosts, sha1="ssh-rsa" in route.old):
            command += ["-o", option]
        return subprocess.run([*command, "--", address.host], check=False).returncode


def _only_key_in(known_hosts: Path, *, sha1: bool) -> list[str]:
    """Options by which ssh(1) takes that one key and no other, whatever its own files say: the
    key that our own connection has verified."""
    kind = known_hosts.read_text("ascii").split()[1]
    algorithms = "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind
    algorithms += ",ssh-rsa" if sha1 else ""
    return [
        f'UserKnownHostsFile="{known_hosts}"',
        f"HostKeyAlias={_ALIAS}",
        f"HostKeyAlgorithms={algorithms}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "CheckHostIP=no",
        "UpdateHostKeys=no",
        "VerifyHostKeyDNS=no",
        "IgnoreUnknown=KnownHostsCommand",
        "KnownHostsCommand=none",
        "ControlPath=none",  # a connection that is shared was verified by somebody else
    ]


COMMAND = Command(
    "shell",
    "board",
    "log in to a board by ssh",
    """
  hil shell desk3
  hil shell emulated                     a board in software, until you log out
""",
    _run,
    _add_arguments,
)
