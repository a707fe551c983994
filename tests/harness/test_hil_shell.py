"""``hil shell``: ssh(1) takes the host key that the harness has verified, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.support.servers import Server, need, openssh

SECONDS = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    need("ssh", "openssh-client")
    server = openssh(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    return {
        **os.environ,
        "HOME": str(home),
        "HIL_LEASES": str(tmp_path / "leases"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
    }


def _board_file(folder: Path, server: Server) -> Path:
    one = server.address
    cid = "aa015851454d55212101deadbeef2900"
    path = folder / "desk3.toml"
    path.write_text(
        f'emmc_cid = "{cid}"\n[ssh]\nhost = "{one.host}"\nport = {one.port}\nuser = "{one.user}"\n'
        f'key = "{one.key}"\nhost_key_fingerprint = "{one.host_key_fingerprint}"\n'
        '[power]\ndriver = "manual"\n'
    )
    return path


def _ssh_that(folder: Path, script: str) -> str:
    """A PATH whose first ``ssh`` is a script that ends in the real one, which is left alone when it
    is only asked what its files say."""
    tools = folder / "tools"
    tools.mkdir()
    ssh = need("ssh", "openssh-client")
    asked = f'[ "$1" = -G ] && exec {ssh} "$@"'
    (tools / "ssh").write_text(f'#!/bin/sh\n{asked}\n{script}\nexec {ssh} "$@"\n')
    (tools / "ssh").chmod(0o755)
    return f"{tools}:{os.environ['PATH']}"


def _shell(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "shell", str(file)],
        env=environment,
        input="echo answer-$((40+2))\nexit 7\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.fault("C2")
def test_a_pinned_key_is_enough(
    server: Server, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Nothing is asked, nothing is learnt, nothing is left."""
    done = _shell(_board_file(tmp_path, server), environment)
    assert "answer-42" in done.stdout, done.stderr
    assert done.returncode == 7
    assert list((tmp_path / "home/.ssh").iterdir()) == []
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.fault("C2")
@pytest.mark.parametrize("trusted", ["nobody", "the user trusts the other"])
def test_another_machine_is_refused(
    server: Server, tmp_path: Path, environment: dict[str, str], trusted: str
) -> None:
    """Between our connection and ssh's another machine takes the address."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = openssh(folder)
    (folder / "authorized_keys").write_text((tmp_path / "authorized_keys").read_text())
    theirs = folder / "known_hosts"
    if trusted != "nobody":
        public = (folder / "host_key.pub").read_text()
        theirs.write_text(f"[127.0.0.1]:{other.address.port} {public}")
    (folder / "ssh_config").write_text(f"Host *\nUserKnownHostsFile {theirs}\n")
    path = _ssh_that(
        tmp_path, f'shift 2; set -- -F "{folder}/ssh_config" -p {other.address.port} "$@"'
    )
    other.start()
    try:
        done = _shell(_board_file(tmp_path, server), {**environment, "PATH": path})
    finally:
        other.stop()
    assert "answer-42" not in done.stdout
    assert "Host key verification failed" in done.stderr
