"""Other people's programs and suites on the emulated board, each where its package is installed.

Debian ships no tests of efivar; its programs stand for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.emulation.conftest import EmulatedBoard

pytestmark = [pytest.mark.slow, pytest.mark.fault("U6")]

EFIVARS = "/sys/firmware/efi/efivars"
VENDOR = "12345678-1234-1234-1234-123456789abc"

Need = Callable[[str, str], str]


def names(board: EmulatedBoard) -> list[str]:
    return sorted(board.ok(f"ls {EFIVARS}").split())


def test_stress_ng_finds_nothing_wrong(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("stress-ng", "stress-ng")
    before = names(emulated)
    said = emulated.run("cd /tmp && stress-ng --efivar 2 --efivar-ops 40 -t 60 2>&1", timeout=120)
    assert said.status == 0, said
    assert "fail:" not in said.out
    assert "skipped" not in said.out, said
    assert names(emulated) == before


def test_bootctl_sees_uefi(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("bootctl", "systemd-boot")
    said = emulated.run("bootctl status --no-pager 2>&1")
    assert "Secure Boot" in said.out, said
    assert "Failed to read machine" not in said.out


def test_mokutil_tells_the_state(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("mokutil", "mokutil")
    assert re.search(r"SecureBoot (en|dis)abled", emulated.run("mokutil --sb-state 2>&1").out)
    for option in ("--pk", "--kek", "--db", "--dbx"):
        said = emulated.run(f"mokutil {option} 2>&1")
        assert "rror" not in said.out, (option, said)


def test_efitools_read_every_list(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("efi-readvar", "efitools")
    said = emulated.ok("efi-readvar")
    for name in ("PK", "KEK", "db", "dbx"):
        assert f"Variable {name}" in said


def test_efivar_writes_what_it_reads(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("efivar", "efivar")
    before = names(emulated)
    name = f"{VENDOR}-Peer"
    emulated.ok(f"printf abc > /tmp/d && efivar -n {name} -w -t 7 -f /tmp/d")
    try:
        assert re.search(r"^00000000  61 62 63 ", emulated.ok(f"efivar -p -n {name}"), re.M)
        emulated.ok(f"printf de > /tmp/d && efivar -n {name} -a -t 7 -f /tmp/d")
        assert re.search(r"^00000000  61 62 63 64 65 ", emulated.ok(f"efivar -p -n {name}"), re.M)
    finally:
        emulated.ok(f"chattr -i {EFIVARS}/Peer-{VENDOR}; rm {EFIVARS}/Peer-{VENDOR}")
    assert names(emulated) == before


def test_fwts_finds_no_failure(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("fwts", "fwts")
    said = emulated.run("cd /tmp && fwts -q securebootcert uefibootpath -r - 2>&1", timeout=300)
    assert "FAILED" not in said.out, said


def test_mmc_utils_ask_everything(emulated: EmulatedBoard, need_tool: Need) -> None:
    need_tool("mmc", "mmc-utils")
    assert "Extended CSD rev" in emulated.ok("mmc extcsd read /dev/mmcblk0")
    emulated.ok("mmc status get /dev/mmcblk0")
    assert "Counter value" in emulated.ok("mmc rpmb read-counter /dev/mmcblk0rpmb")
