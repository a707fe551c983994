"""``hil shell``: log in to a board."""

from __future__ import annotations

import argparse

from harness.cli.command import Command, add_board, opened


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_board(parser)
    parser.set_defaults(link="ssh")


def _run(options: argparse.Namespace) -> int:
    import subprocess

    with opened(options, purpose="hil shell") as board:
        address = board.links.ssh.address
        command = ["ssh", "-p", str(address.port), "-l", address.user]
        if address.key is not None:
            command += ["-i", str(address.key), "-o", "IdentitiesOnly=yes"]
        if address.known_hosts is not None:
            command += ["-o", f"UserKnownHostsFile={address.known_hosts}"]
            command += ["-o", "StrictHostKeyChecking=yes"]
        return subprocess.run([*command, address.host], check=False).returncode


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
