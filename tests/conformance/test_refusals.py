"""The refusal of the non-blocking SetVariable, as user space sees it: it is efi-pstore's, and the
driver refuses it, so a crash leaves no record and, above all, does not hang.
"""

from __future__ import annotations

import contextlib
from uuid import UUID

import pytest

from harness.board import Board
from harness.errors import LinkError
from harness.instruments.efivars import Efivars

CRASH_GUID = UUID("cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0")
"""LINUX_EFI_CRASH_GUID, the vendor of efi-pstore's records (K6 include/linux/efi.h)."""


@pytest.mark.needs("driver_bound", "efi_pstore", "sysrq")
@pytest.mark.consents("crash_kernel", "power_cycle")
@pytest.mark.destructive
@pytest.mark.power
def test_a_crash_leaves_no_record_and_nothing_hangs(board: Board, efivars: Efivars) -> None:
    # It registers only with efivars that can be written, so after the driver.
    board.shell.run("test -d /sys/module/efi_pstore || modprobe efi_pstore").check()
    before = efivars.names()
    counter = board.rpmb.counter() if board.capabilities.has("rpmb_access") else None
    with contextlib.suppress(LinkError):
        board.shell.run_isolated("echo c > /proc/sysrq-trigger", timeout=3)
    board.power_cycle()
    assert [name for name in board.efivars.names() if name.guid == CRASH_GUID] == []
    assert board.efivars.names() == before
    assert board.shell.run("ls /sys/fs/pstore").text == ""
    if counter is not None:
        # A boot costs the replay guard's write and nothing like a record's.
        assert board.rpmb.counter() - counter < 10
