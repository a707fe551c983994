"""EFI_ACCESS_DENIED and the refusal of the non-blocking SetVariable, as user space sees them.

The series gave Linux the status EFI_ACCESS_DENIED and no errno of its own: it is EINVAL
(K6 drivers/firmware/efi/efi.c, efi_status_to_err). The non-blocking SetVariable is efi-pstore's:
the driver refuses it, so a crash leaves no record and, above all, does not hang.
"""

from __future__ import annotations

import contextlib
import errno
from uuid import UUID

import pytest

from harness.board import Board
from harness.errors import LinkError
from harness.instruments import refused
from harness.instruments.efivars import Efivars

MOR_GUID = UUID("e20939be-32d4-41be-a150-897f85d49829")
MOR_LOCK_GUID = UUID("bb983ccf-151d-40e1-a07b-4a17be168292")
CRASH_GUID = UUID("cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0")
"""LINUX_EFI_CRASH_GUID, the vendor of efi-pstore's records (K6 include/linux/efi.h)."""


@pytest.mark.needs("writable")
@pytest.mark.consents("write_rpmb", "power_cycle")
@pytest.mark.destructive
@pytest.mark.power
def test_access_denied_is_an_invalid_argument(board: Board, efivars: Efivars) -> None:
    """A locked MemoryOverwriteRequestControl answers EFI_ACCESS_DENIED (contract 4.9); it cannot
    be deleted afterwards, hence only on a disposable board."""
    efivars.overwrite("MemoryOverwriteRequestControl", b"\0", guid=MOR_GUID)
    efivars.overwrite("MemoryOverwriteRequestControlLock", b"\1", guid=MOR_LOCK_GUID)
    with refused(errno.EINVAL):
        efivars.overwrite("MemoryOverwriteRequestControl", b"\1", guid=MOR_GUID)
    assert efivars.read("MemoryOverwriteRequestControl", MOR_GUID).data == b"\0"
    # The lock holds until the firmware starts afresh.
    board.reboot()


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
