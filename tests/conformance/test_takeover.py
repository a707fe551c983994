"""The driver takes over efivars when StandaloneMM appears and gives them back when unbound.

Promises of the kernel series "introduce tee-based EFI Runtime Variable Service" (v10, Nov 2023):
efivarfs is read-only without SetVariable, turns read-write by itself when the driver registers,
and no remount forces it. Recorded rows: drv-001 to drv-009, p2a-001 to p2a-015, mount-001, -002.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator

import pytest

from harness.board import Board
from harness.errors import CommandFailed
from harness.instruments import refused
from harness.instruments.efivars import Efivars
from harness.instruments.kernel_log import KernelLog
from harness.instruments.tee import Tee

UNREGISTERED = "efivars: Unregistered efivars operations"
REGISTERED = "efivars: Registered efivars operations"
TAKEN_OVER = "Using TEE-based EFI runtime variable services"
NO_SET_VARIABLE = "Firmware does not support SetVariableRT. Can not remount with rw"

FLIP_SECONDS = 5.0


@pytest.fixture
def unbound(tee: Tee, efivars: Efivars) -> Iterator[None]:
    """The driver is unbound during the test and bound again after it."""
    efivars.write("BeforeUnbind", b"kept")
    tee.unbind()
    yield
    if not tee.is_bound():
        tee.bind()
        tee.wait_until_bound()


def _messages(lines: list[str]) -> list[str]:
    """Log lines without their time stamps."""
    return [line.split("] ", 1)[-1] for line in lines]


@pytest.mark.needs("driver_bound", "writable")
def test_after_boot_the_driver_is_bound_and_efivarfs_is_writable(efivars: Efivars) -> None:
    state = efivars.mount_state()
    assert state is not None
    assert not state.superblock_read_only
    assert not state.mount_read_only


@pytest.mark.needs("driver_bound", "kernel_log")
@pytest.mark.consents("unbind_driver")
@pytest.mark.disturbs
def test_unbind_and_bind_say_so_in_the_kernel_log(tee: Tee, kernel_log: KernelLog) -> None:
    mark = kernel_log.mark()
    tee.unbind()
    assert _messages(kernel_log.since(mark)) == [UNREGISTERED, REGISTERED]
    mark = kernel_log.mark()
    tee.bind()
    assert _messages(kernel_log.since(mark)) == [UNREGISTERED, TAKEN_OVER, REGISTERED]


@pytest.mark.needs("driver_bound", "writable")
@pytest.mark.consents("unbind_driver", "write_rpmb")
@pytest.mark.disturbs
class TestWithoutTheDriver:
    """The firmware's own run-time services have no SetVariable."""

    pytestmark = pytest.mark.usefixtures("unbound")

    def test_the_superblock_is_read_only_and_the_mount_is_not(self, efivars: Efivars) -> None:
        state = efivars.mount_state()
        assert state is not None
        assert state.superblock_read_only
        assert not state.mount_read_only

    def test_create_is_refused(self, efivars: Efivars) -> None:
        with refused(errno.EROFS):
            efivars.write("WhileUnbound", b"x")
        assert not efivars.exists("WhileUnbound")

    def test_open_for_write_is_refused(self, efivars: Efivars) -> None:
        with refused(errno.EROFS):
            efivars.write("BeforeUnbind", b"x", flags="O_WRONLY")

    def test_unlink_is_refused(self, efivars: Efivars) -> None:
        with refused(errno.EROFS):
            efivars.unlink("BeforeUnbind")
        assert efivars.exists("BeforeUnbind")

    def test_the_immutable_flag_cannot_be_cleared(self, efivars: Efivars) -> None:
        with refused(errno.EROFS):
            efivars.set_immutable("BeforeUnbind", False)

    def test_a_remount_cannot_force_it(self, efivars: Efivars) -> None:
        with pytest.raises(CommandFailed):
            efivars.remount("rw")
        state = efivars.mount_state()
        assert state is not None
        assert state.superblock_read_only
        with refused(errno.EROFS):
            efivars.write("WhileUnbound", b"x")

    @pytest.mark.needs("kernel_log")
    def test_the_kernel_says_why_a_remount_is_refused(
        self, efivars: Efivars, kernel_log: KernelLog
    ) -> None:
        mark = kernel_log.mark()
        with pytest.raises(CommandFailed):
            efivars.remount("rw")
        assert _messages(kernel_log.since(mark)) == [NO_SET_VARIABLE]

    def test_the_listing_stays(self, efivars: Efivars) -> None:
        assert efivars.exists("BeforeUnbind")

    def test_a_variable_of_the_secure_store_reads_as_empty(self, efivars: Efivars) -> None:
        # drv-002: the firmware's own copy never had it; NOT_FOUND reads as end of file.
        assert efivars.read_raw("BeforeUnbind") == b""

    def test_df_shows_no_figures(self, efivars: Efivars) -> None:
        space = efivars.space()
        assert (space.total, space.free, space.available) == (0, 0, 0)

    def test_unbinding_again_finds_no_device(self, tee: Tee) -> None:
        with refused(errno.ENODEV):
            tee.unbind()


@pytest.mark.needs("driver_bound", "writable")
@pytest.mark.consents("unbind_driver", "write_rpmb")
@pytest.mark.disturbs
class TestRebind:
    def test_it_turns_writable_by_itself(
        self, tee: Tee, efivars: Efivars, record_property: Callable[[str, object], None]
    ) -> None:
        tee.unbind()
        started = time.monotonic()
        tee.bind()
        efivars.wait_until_writable(timeout=FLIP_SECONDS)
        record_property("flip_seconds", round(time.monotonic() - started, 3))
        efivars.write("AfterRebind", b"rebound")
        assert efivars.read("AfterRebind").data == b"rebound"

    def test_variables_are_the_same_as_before(self, tee: Tee, efivars: Efivars) -> None:
        efivars.write("Kept", b"across unbind and bind")
        tee.unbind()
        tee.bind()
        efivars.wait_until_writable(timeout=FLIP_SECONDS)
        assert efivars.read("Kept").data == b"across unbind and bind"

    def test_a_mount_made_read_only_by_hand_stays_so(self, tee: Tee, efivars: Efivars) -> None:
        efivars.remount("ro")
        tee.unbind()
        tee.bind()
        state = efivars.mount_state()
        assert state is not None
        assert state.mount_read_only
        with refused(errno.EROFS):
            efivars.write("OnReadOnlyMount", b"x")
        efivars.remount("rw")
        efivars.write("OnReadOnlyMount", b"x")
        assert efivars.read("OnReadOnlyMount").data == b"x"

    def test_binding_twice_is_busy(self, tee: Tee) -> None:
        with refused(errno.EBUSY):
            tee.bind()

    def test_binding_an_unknown_device_finds_none(self, tee: Tee) -> None:
        with refused(errno.ENODEV):
            tee.bind("nonsense")


@pytest.mark.needs("writable")
@pytest.mark.consents("write_rpmb")
@pytest.mark.disturbs
class TestRemountWithTheDriver:
    def test_read_only_and_back(self, efivars: Efivars) -> None:
        efivars.remount("ro")
        with refused(errno.EROFS):
            efivars.write("Remounted", b"x")
        efivars.remount("rw")
        efivars.write("Remounted", b"x")
        assert efivars.read("Remounted").data == b"x"

    def test_a_fresh_mount_lists_what_is_stored(self, efivars: Efivars) -> None:
        efivars.write("Listed", b"after a fresh mount")
        before = efivars.names()
        efivars.unmount()
        efivars.mount()
        assert efivars.names() == before
        assert efivars.read("Listed").data == b"after a fresh mount"

    def test_reads_work_on_a_read_only_mount(self, efivars: Efivars) -> None:
        efivars.write("Readable", b"r")
        efivars.remount("ro")
        assert efivars.read("Readable").data == b"r"


@pytest.mark.consents("power_cycle")
@pytest.mark.power
@pytest.mark.needs("driver_bound")
def test_the_driver_takes_over_at_every_boot(board: Board, efivars: Efivars) -> None:
    board.reboot()
    board.tee.wait_until_bound()
    board.efivars.wait_until_writable(timeout=FLIP_SECONDS)
