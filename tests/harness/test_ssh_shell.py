"""The Shell contract over SSH: OpenSSH with three shells, OpenSSH without SFTP, dropbear."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.links.ssh import SshShell
from harness.shell import Shell
from tests.harness.support.contract import ShellContract
from tests.harness.support.servers import Server, dropbear, need, openssh

KINDS = ["openssh-dash", "openssh-bash", "openssh-busybox", "openssh-no-sftp", "dropbear"]


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    kind = str(request.param)
    folder = tmp_path_factory.mktemp(kind)
    if kind == "dropbear":
        server = dropbear(folder)
    elif kind == "openssh-no-sftp":
        server = openssh(folder, sftp=False)
    else:
        shell = kind.removeprefix("openssh-")
        need(shell, {"busybox": "busybox-static"}.get(shell, shell))
        server = openssh(folder, shell="busybox sh" if shell == "busybox" else shell)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shell(server: Server) -> Iterator[Shell]:
    shell = SshShell(server.address)
    yield shell
    shell.close()


class TestSsh(ShellContract):
    pass
