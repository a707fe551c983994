"""Targets that answer late, and boards that are not to be disturbed while they boot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.errors import LinkTimeout
from harness.links.address import Login, SerialAddress
from harness.links.console import Console, Stage
from harness.links.patience import LEAST, MOST, Patience
from harness.links.serial import SerialShell
from tests.harness.support.line import Line, Weather
from tests.pace import within


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["dash", "-i"], environment={"PS1": "# "})
    yield line
    line.close()


@pytest.fixture
def shell(line: Line) -> Iterator[SerialShell]:
    shell = SerialShell.open(SerialAddress(line.device, login=Login("root")))
    yield shell
    line.weather = Weather()
    shell.close()


@pytest.mark.slow
def test_a_target_that_answers_late_is_waited_for(line: Line, shell: SerialShell) -> None:
    """As an emulated processor on a loaded host: every answer comes 0.3 to 1 s later."""
    line.weather = Weather(delay=(0.15, 0.5))
    shell.reconnect(deadline=120)
    assert shell.run("echo late; exit 3", timeout=30).stdout == b"late\n"


def test_reconnect_has_its_own_deadline(line: Line, shell: SerialShell) -> None:
    shell.login_timeout = 0.1
    line.weather = Weather(delay=(0.02, 0.03))
    shell.reconnect(deadline=60)
    assert shell.run("true").ok


def test_reconnect_ends_at_its_deadline(line: Line, shell: SerialShell) -> None:
    line.weather = Weather(cut=True)
    with within(2.0, waiting=1.0), pytest.raises(LinkTimeout, match="did not come back"):
        shell.reconnect(deadline=1.0)


def test_a_booting_board_is_not_typed_at(line: Line) -> None:
    """QEMU's PL011 takes no more input once a line feed came before its driver."""
    shell = SerialShell.open(SerialAddress(line.device, login=Login("root")))
    shell.console.wait_for("login: $", timeout=10, since=0)
    shell.console.expect_boot()
    line.print_from_kernel("\r\n[    0.000000] Booting Linux on physical CPU 0x0\r\n")
    sent = line.sent
    with pytest.raises(LinkTimeout):
        shell.reconnect(deadline=1.5)
    assert line.sent == sent
    line.print_from_kernel("\r\nboard login: ")
    shell.reconnect(deadline=20)
    assert shell.run("echo up").text == "up"
    shell.close()


def test_expecting_a_boot_forgets_the_prompt(line: Line) -> None:
    console = Console(SerialAddress(line.device))
    line.print_from_kernel("\r\nboard login: ")
    assert console.wait_for("login", timeout=5, since=0)
    stages = [console.stage]
    console.expect_boot()
    stages.append(console.stage)
    assert stages == [Stage.LOGIN, Stage.BOOTING]
    console.close()


def test_patience_follows_what_was_measured() -> None:
    patience = Patience()
    for _ in range(20):
        patience.learn(0.001)
    assert patience.seconds == LEAST
    patience.failed()
    assert patience.seconds == 2 * LEAST
    for _ in range(20):
        patience.failed()
    assert patience.seconds == MOST
    patience.learn(2.0)
    for _ in range(20):
        patience.learn(2.0)
    assert 2.0 < patience.seconds < 3.0


def test_a_login_prompt_under_kernel_messages_is_seen(line: Line) -> None:
    """labgrid#546. The prompt stands there when the console is opened: nothing is typed but the
    user's name."""
    first = Console(SerialAddress(line.device))
    first.wait_for("login: $", timeout=10, since=0)
    first.close()
    line.print_from_kernel("\r\n[    0.000000] Linux version 6.12\r\nboard login: ")
    line.print_from_kernel("[    0.400000] efivars: Registered efivars operations\r\n")
    shell = SerialShell.open(SerialAddress(line.device, login=Login("root")))
    assert shell.console.stage is Stage.KERNEL
    sent = line.sent
    with within(4.0):
        assert shell.run("true", timeout=20).ok
    assert line.sent > sent
    shell.close()
