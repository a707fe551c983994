"""U-Boot's prompt, reached, driven and left over a real pty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import CommandFailed, LinkTimeout
from harness.links.address import Login, SerialAddress
from harness.links.console import Console, Stage
from harness.links.firmware_prompt import FirmwarePrompt
from harness.links.serial import SerialShell
from tests.harness.support.line import Line, Weather

UBOOT = Path(__file__).parent / "support" / "uboot_prompt.py"


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["dash", "-i"], environment={"PS1": "# "}, program=UBOOT)
    yield line
    line.close()


@pytest.fixture
def console(line: Line) -> Iterator[Console]:
    console = Console(SerialAddress(line.device, login=Login("root")))
    yield console
    console.close()


def test_the_prompt_is_reached_driven_and_left(line: Line, console: Console) -> None:
    firmware = FirmwarePrompt(console)
    firmware.reach(timeout=10, since=0)
    assert console.stage is Stage.FIRMWARE
    assert "Boot0000:" in firmware.run("printenv -e").check().text
    assert firmware.run("mmc dev 1").text.startswith("switch to partitions #0, OK\n")
    assert firmware.run("setenv greeting hello; echo ${greeting}").text == "hello\n"
    with pytest.raises(CommandFailed, match="MMC Device 7 not found"):
        firmware.run("mmc dev 7").check()
    firmware.boot("bootefi bootmgr", timeout=10)
    assert console.stage is not Stage.FIRMWARE
    assert SerialShell(console).run("echo linux").text == "linux"


def test_without_a_key_it_boots_by_itself(console: Console) -> None:
    console.wait_for("board login: ", timeout=20, since=0)
    with pytest.raises(LinkTimeout, match="no firmware prompt"):
        FirmwarePrompt(console).reach(timeout=0.3)


def test_what_is_typed_damaged_is_not_run(line: Line, console: Console) -> None:
    firmware = FirmwarePrompt(console)
    firmware.reach(timeout=10, since=0)
    line.weather = Weather(lost_input=0.02)
    for number in range(8):
        assert firmware.run(f"echo number {number}", timeout=20).text == f"number {number}\n"


def test_a_command_without_end_is_told(console: Console) -> None:
    firmware = FirmwarePrompt(console)
    firmware.reach(timeout=10, since=0)
    with pytest.raises(LinkTimeout, match="no end of 'boot'"):
        firmware.run("boot", timeout=1)
