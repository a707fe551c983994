"""The Shell contract over a serial line with a login program and three shells behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.links.address import Login, SerialAddress
from harness.links.serial import SerialShell
from harness.shell import Shell
from tests.harness.support.contract import ShellContract
from tests.harness.support.line import Line
from tests.harness.support.servers import need

SHELLS = {
    "dash": (["dash", "-i"], {"PS1": "# "}),
    "bash-readline": (["bash", "--norc", "-i"], {"PS1": r"\[\e[01;32m\]root@board\[\e[0m\]:\w# "}),
    "busybox": (["busybox", "ash", "-i"], {"PS1": "~ # "}),
}


@pytest.fixture(scope="module", params=list(SHELLS))
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    argv, environment = SHELLS[request.param]
    need(argv[0], {"busybox": "busybox-static"}.get(argv[0], argv[0]))
    line = Line(argv, password="secret", environment=environment)
    yield line
    line.close()


@pytest.fixture(scope="module")
def shell(line: Line) -> Iterator[Shell]:
    shell = SerialShell.open(SerialAddress(line.device, login=Login("root", "secret")))
    yield shell
    shell.close()


class TestSerial(ShellContract):
    volume = 64 << 10

    @pytest.fixture
    def shell(self, line: Line, shell: SerialShell) -> SerialShell:
        """The console stays closed after the test of closing; the others want it open."""
        if not shell.console.alive:
            shell.console.reopen()
        return shell
