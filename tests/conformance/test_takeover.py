"""The driver takes over efivars when StandaloneMM appears and gives them back when unbound.

Promises of the kernel series "introduce tee-based EFI Runtime Variable Service" (v10, Nov 2023):
efivarfs is read-only without SetVariable, turns read-write by itself when the driver registers,
and no remount forces it. Recorded rows: drv-001 to drv-009, p2a-012 to p2a-017, p2c-003 to -010.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator

import pytest

from harness.board.board import Board
from harness.capabilities import STMM_DEVICE, STMM_DRIVER
from harness.errors import CommandFailed, MissingCapability
from harness.expectations import recorded
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.instruments.efivars import Efivars, MountState
from harness.instruments.kernel_log import KernelLog, Mark
from harness.instruments.outcomes import accepted, refused, succeeded
from harness.instruments.tee import Tee, routing_model
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store.gauge import SpaceGauge

pytestmark = [
    pytest.mark.needs("driver_bound", "writable"),
    pytest.mark.consents("unbind_driver", "write_rpmb"),
    pytest.mark.disturbs,
]

UNREGISTERED = "efivars: Unregistered efivars operations"
REGISTERED = "efivars: Registered efivars operations"
TAKEN_OVER = "Using TEE-based EFI runtime variable services"
NO_SET_VARIABLE = "Firmware does not support SetVariableRT. Can not remount with rw"
TAKE_OVER_MESSAGES = [UNREGISTERED, TAKEN_OVER, REGISTERED]

DEVICE = f"/sys/bus/tee/devices/{STMM_DEVICE}"
MODULE = "tee_stmm_efi"

KEPT = b"kept"
ONE_RECORD = pytest.mark.cost(store_bytes=72)
"""One variable with a name of up to two letters and up to four bytes."""
TWO_RECORDS = pytest.mark.cost(store_bytes=144)


@pytest.fixture
def unbound(tee: Tee, efivars: Efivars) -> Iterator[None]:
    """The variable "Ub" is written, then the driver unbound during the test and bound after it."""
    efivars.write("Ub", KEPT)
    tee.unbind()
    yield
    if not tee.is_bound():
        tee.bind()
        tee.wait_until_bound()


def _messages(lines: list[str]) -> list[str]:
    """Log lines without their time stamps."""
    return [line.split("] ", 1)[-1] for line in lines]


def _efivars_messages(lines: list[str]) -> list[str]:
    """Messages of efivars and the driver; other drivers may have something to say as well."""
    known = {*TAKE_OVER_MESSAGES, NO_SET_VARIABLE}
    return [message for message in _messages(lines) if message in known]


def _mount(efivars: Efivars) -> MountState:
    state = efivars.mount_state()
    assert state is not None, "efivarfs is not mounted"
    return state


def test_after_boot_the_driver_is_bound_and_efivarfs_is_writable(
    tee: Tee, efivars: Efivars
) -> None:
    assert tee.is_bound()
    assert _mount(efivars).writable


@pytest.mark.needs("kernel_log")
@pytest.mark.pain(12)
def test_unbind_and_bind_say_so_in_the_kernel_log(tee: Tee, kernel_log: KernelLog) -> None:
    # drv-001, drv-006
    mark = kernel_log.mark()
    tee.unbind()
    assert _messages(kernel_log.since(mark)) == [UNREGISTERED, REGISTERED]
    mark = kernel_log.mark()
    tee.bind()
    assert _messages(kernel_log.since(mark)) == TAKE_OVER_MESSAGES


class TestWithoutTheDriver:
    """The firmware's own run-time services have no SetVariable."""

    pytestmark = [pytest.mark.usefixtures("unbound"), ONE_RECORD]

    @pytest.mark.cases(320)
    def test_the_superblock_is_read_only_and_the_mount_is_not(self, efivars: Efivars) -> None:
        # drv-001
        state = _mount(efivars)
        assert state.superblock_read_only
        assert not state.mount_read_only

    @pytest.mark.cases(320)
    def test_proc_mounts_says_read_only(self, shell: Shell, efivars: Efivars) -> None:
        # drv-001: the file that users look at shows one flag for both
        assert _shown_options(shell, efivars.path)[0] == "ro"

    @pytest.mark.cases(320)
    def test_create_is_refused(self, efivars: Efivars) -> None:
        with refused(recorded(errno.EROFS, "drv-002[5]")):
            efivars.write("C", b"x")
        assert not efivars.exists("C")

    @pytest.mark.cases(320)
    def test_open_for_write_is_refused(self, efivars: Efivars) -> None:
        with refused(recorded(errno.EROFS, "drv-002[4]")):
            efivars.write("Ub", b"x", flags="O_WRONLY")

    @pytest.mark.cases(320)
    def test_unlink_is_refused(self, efivars: Efivars) -> None:
        with refused(recorded(errno.EROFS, "drv-002[6]")):
            efivars.unlink("Ub")
        assert efivars.exists("Ub")

    def test_the_immutable_flag_cannot_be_cleared(self, efivars: Efivars) -> None:
        with refused(recorded(errno.EROFS, "drv-002[3]")):
            efivars.set_immutable("Ub", False)

    @pytest.mark.cases(344)
    def test_a_remount_cannot_force_it(self, efivars: Efivars) -> None:
        # drv-003, p2c-003
        with pytest.raises(CommandFailed):
            efivars.remount("rw")
        assert _mount(efivars).superblock_read_only
        with refused(errno.EROFS):
            efivars.write("C", b"x")

    @pytest.mark.cases(344)
    @pytest.mark.needs("kernel_log")
    def test_the_kernel_says_why_a_remount_is_refused(
        self, efivars: Efivars, kernel_log: KernelLog
    ) -> None:
        # drv-003
        mark = kernel_log.mark()
        with pytest.raises(CommandFailed):
            efivars.remount("rw")
        assert _messages(kernel_log.since(mark)) == [NO_SET_VARIABLE]

    @pytest.mark.cases(322)
    def test_a_remount_read_only_is_still_allowed(self, efivars: Efivars) -> None:
        # p2a-006
        efivars.remount("ro")
        assert _mount(efivars).mount_read_only

    def test_the_listing_stays(self, efivars: Efivars) -> None:
        # drv-003
        assert "Ub" in {name.name for name in efivars.own()}

    def test_the_size_shown_stays(self, efivars: Efivars) -> None:
        assert efivars.size("Ub") == 4 + len(KEPT)

    def test_a_variable_of_the_secure_store_reads_as_empty(self, efivars: Efivars) -> None:
        # drv-002: the firmware's own copy never had it; NOT_FOUND reads as end of file.
        assert efivars.read_raw("Ub") == b""

    @accepted()
    def test_variables_of_boot_time_are_still_read(self, efivars: Efivars) -> None:
        # drv-003: efibootmgr works
        mode = efivars.read("SecureBoot", GLOBAL_VARIABLE_GUID)
        assert mode.attributes == 6
        assert mode.data in (b"\0", b"\1")

    def test_df_shows_no_figures_of_the_secure_store(
        self, board: Board, efivars: Efivars, tee: Tee
    ) -> None:
        space = efivars.space()
        if board.capabilities.has("exit_boot_services_told"):
            assert SpaceGauge(board).settles_at(0) == 0
            space = efivars.space()
            assert (space.total, space.free, space.available) == (0, 0, 0)
        else:
            # A firmware with a store of its own answers for that one.
            tee.bind()
            assert efivars.space() != space

    @pytest.mark.cases(323)
    def test_unbinding_again_finds_no_device(self, tee: Tee) -> None:
        # drv-005
        with refused(errno.ENODEV):
            tee.unbind()


class TestOpenFiles:
    """A descriptor outlives the change of operations behind it."""

    @pytest.mark.cases(321)
    @ONE_RECORD
    def test_a_read_after_unbind_ends_and_after_bind_goes_on(
        self, tee: Tee, efivars: Efivars, probe: Probe
    ) -> None:
        efivars.write("Ub", KEPT)
        probe.steps([do.Open("v", efivars.file("Ub"))])
        tee.unbind()
        (without,) = probe.steps([do.Read("v", 100)])
        tee.bind()
        back, _ = probe.steps([do.Read("v", 100), do.Close("v")])
        succeeded(without)
        succeeded(back)
        assert (without.data, back.data) == (b"", b"\7\0\0\0" + KEPT)

    @pytest.mark.cases(321)
    @TWO_RECORDS
    def test_a_write_after_unbind_and_bind_is_made(
        self, tee: Tee, efivars: Efivars, probe: Probe
    ) -> None:
        efivars.write("Ub", KEPT)
        efivars.set_immutable("Ub", False)
        probe.steps([do.Open("v", efivars.file("Ub"), "O_WRONLY")])
        tee.unbind()
        tee.bind()
        written, _ = probe.steps([do.Write("v", b"\7\0\0\0new"), do.Close("v")])
        succeeded(written)
        assert efivars.read("Ub").data == b"new"


class TestRebind:
    @pytest.mark.cases(319)
    @pytest.mark.pain(1)
    @ONE_RECORD
    def test_the_same_mount_turns_writable_by_itself(
        self, tee: Tee, efivars: Efivars, measurement: Callable[[str, float, str], None]
    ) -> None:
        tee.unbind()
        started = time.monotonic()
        tee.bind()
        # The driver registers, and so tells the file system, before bind returns.
        assert _mount(efivars).writable
        measurement("rebind_until_writable", (time.monotonic() - started) * 1000, "ms")
        efivars.write("A", b"new")
        assert efivars.read("A").data == b"new"

    @ONE_RECORD
    def test_variables_are_the_same_as_before(self, tee: Tee, efivars: Efivars) -> None:
        efivars.write("A", KEPT)
        before = efivars.names()
        tee.unbind()
        tee.bind()
        assert efivars.names() == before
        assert efivars.read("A").data == KEPT

    @pytest.mark.cases(322)
    @pytest.mark.pain(1)
    @ONE_RECORD
    def test_a_mount_made_read_only_by_hand_stays_so(self, tee: Tee, efivars: Efivars) -> None:
        # p2a-013: the mount's own flag is not the superblock's
        efivars.remount("ro")
        tee.unbind()
        tee.bind()
        assert _mount(efivars).mount_read_only
        with refused(errno.EROFS):
            efivars.write("A", b"x")
        efivars.remount("rw")
        efivars.write("A", b"x")
        assert efivars.read("A").data == b"x"

    @pytest.mark.cases(323)
    def test_binding_twice_is_busy(self, tee: Tee) -> None:
        # drv-008
        with refused(errno.EBUSY):
            tee.bind()
        assert tee.is_bound()

    @pytest.mark.cases(323)
    @pytest.mark.needs("kernel_log")
    def test_binding_twice_registers_nothing(self, tee: Tee, kernel_log: KernelLog) -> None:
        mark = kernel_log.mark()
        with refused(errno.EBUSY):
            tee.bind()
        assert _messages(kernel_log.since(mark)) == []

    @pytest.mark.parametrize("device", ["nonsense", "", "optee-ta-" + "0" * 8])
    def test_binding_an_unknown_device_finds_none(self, tee: Tee, device: str) -> None:
        # drv-009
        with refused(errno.ENODEV):
            tee.bind(device)

    def test_unbinding_an_unknown_device_changes_nothing(self, tee: Tee) -> None:
        with refused(errno.ENODEV):
            tee.unbind("nonsense")
        assert tee.is_bound()

    @pytest.mark.cases(338)
    @pytest.mark.needs("kernel_log")
    @ONE_RECORD
    def test_many_times_in_a_row(self, tee: Tee, efivars: Efivars, kernel_log: KernelLog) -> None:
        rounds = 8
        mark = kernel_log.mark()
        for _ in range(rounds):
            tee.unbind()
            tee.bind()
        expected = [UNREGISTERED, REGISTERED, *TAKE_OVER_MESSAGES] * rounds
        assert _messages(kernel_log.since(mark)) == expected
        efivars.write("A", b"x")
        assert efivars.read("A").data == b"x"


class TestModule:
    """The driver as a loadable module: unloading is unbinding."""

    @pytest.fixture(autouse=True)
    def _loadable(self, shell: Shell) -> Iterator[None]:
        loaded = f"grep -q '^{MODULE} ' /proc/modules"
        # Of a loaded module it says nothing where it knows the board's modules.
        if not shell.run(f"{loaded} && command -v rmmod && modprobe {MODULE}").ok:
            raise MissingCapability(
                f"{MODULE} is built in, or the board's modprobe does not know it",
                remedy="build it as a module (CONFIG_TEE_STMM_EFI=m) and install kmod",
            )
        yield
        shell.run_isolated(f"modprobe {MODULE}").check()

    @ONE_RECORD
    def test_unloading_gives_efivars_back(
        self, shell: Shell, efivars: Efivars, kernel_log: KernelLog
    ) -> None:
        efivars.write("M", KEPT)
        mark = kernel_log.mark()
        shell.run_isolated(f"rmmod {MODULE}").check()
        assert _messages(kernel_log.since(mark)) == [UNREGISTERED, REGISTERED]
        assert _mount(efivars).superblock_read_only
        assert not shell.run(f"test -e {STMM_DRIVER}").ok

    @pytest.mark.cases(319)
    @pytest.mark.pain(2)
    @ONE_RECORD
    def test_loading_takes_over_a_mount_that_was_there_before(
        self, tee: Tee, shell: Shell, efivars: Efivars
    ) -> None:
        # p2a-011, p2c-004
        shell.run_isolated(f"rmmod {MODULE}").check()
        shell.run_isolated(f"modprobe {MODULE}").check()
        assert tee.is_bound()
        assert _mount(efivars).writable
        efivars.write("M", b"x")
        assert efivars.read("M").data == b"x"

    def test_loading_twice_is_once(self, shell: Shell, kernel_log: KernelLog) -> None:
        mark = kernel_log.mark()
        shell.run_isolated(f"modprobe {MODULE}").check()
        assert _messages(kernel_log.since(mark)) == []

    def test_the_device_carries_the_alias_that_udev_loads_it_by(self, shell: Shell) -> None:
        # p2a-017
        told = dict(
            line.partition("=")[::2]
            for line in shell.run(f"cat {DEVICE}/uevent").check().text.splitlines()
        )
        alias = told["MODALIAS"]
        assert alias == f"tee:{STMM_DEVICE.removeprefix('optee-ta-')}"
        shell.run_isolated(f"rmmod {MODULE}").check()
        shell.run_isolated(f"modprobe {alias}").check()
        assert shell.run(f"test -e {STMM_DRIVER}/{STMM_DEVICE}").ok


class TestSysfs:
    def test_device_and_driver_point_at_each_other_while_bound(
        self, tee: Tee, shell: Shell
    ) -> None:
        # p2a-016
        look = (
            f"readlink -f {DEVICE}/driver; readlink -f {STMM_DRIVER}/{STMM_DEVICE}; "
            f"readlink -f {DEVICE}"
        )
        driver, found, device = shell.run(look).check().text.splitlines()
        assert (driver, found) == (STMM_DRIVER, device)
        tee.unbind()
        assert not shell.run(f"test -e {DEVICE}/driver || test -e {STMM_DRIVER}/{STMM_DEVICE}").ok

    def test_the_device_stays_when_unbound(self, tee: Tee) -> None:
        before = tee.devices()
        tee.unbind()
        assert tee.devices() == before
        assert STMM_DEVICE in before

    def test_uevent_names_the_driver_only_while_bound(self, tee: Tee, shell: Shell) -> None:
        # p2a-017
        alias = f"MODALIAS=tee:{STMM_DEVICE.removeprefix('optee-ta-')}"
        bound = shell.run(f"cat {DEVICE}/uevent").check().text.splitlines()
        tee.unbind()
        unbound = shell.run(f"cat {DEVICE}/uevent").check().text.splitlines()
        assert bound == ["DRIVER=tee-stmm-efi", alias]
        assert unbound == [alias]

    @pytest.mark.parametrize("attribute", ["bind", "unbind"])
    def test_only_root_may_write_bind_and_unbind(self, probe: Probe, attribute: str) -> None:
        # p2a-016: --w-------
        (found,) = probe.steps([do.Stat(f"{STMM_DRIVER}/{attribute}")])
        succeeded(found)
        assert (found.field("mode") & 0o7777, found.field("uid")) == (0o200, 0)

    @pytest.mark.cases(424, 426)
    @pytest.mark.pain(12)
    def test_a_device_found_for_the_supplicant_says_that_it_needs_one(self, shell: Shell) -> None:
        needs_one = shell.run(f"test -e {DEVICE}/need_supplicant").ok
        assert needs_one == (routing_model(shell) == "user")

    @pytest.mark.cases(425)
    def test_the_routing_model_is_one_word(self, shell: Shell) -> None:
        model = shell.run("cat /sys/class/tee/tee0/rpmb_routing_model 2>/dev/null")
        if not model.ok:
            raise MissingCapability(
                "no rpmb_routing_model in sysfs", remedy="use Linux 6.12 or later"
            )
        assert re.fullmatch("(user|kernel)\n", model.stdout.decode())

    @pytest.mark.needs("supplicant_service", "supplicant_routed_rpmb")
    @pytest.mark.consents("stop_supplicant")
    def test_the_device_outlives_the_supplicant(self, tee: Tee) -> None:
        # p2c-010
        tee.leave_driver_at_stop()
        tee.stop_supplicant()
        assert tee.has_stmm_device()
        assert tee.is_bound()


@pytest.mark.consents("power_cycle")
@pytest.mark.power
@pytest.mark.cases(319, 338, 423, 431)
@pytest.mark.pain(1, 2)
@ONE_RECORD
def test_the_driver_takes_over_at_every_boot(
    board: Board, efivars: Efivars, measurement: Callable[[str, float, str], None]
) -> None:
    efivars.write("A", KEPT)
    board.reboot()
    assert board.tee.is_bound()
    assert _mount(board.efivars).writable
    if not board.capabilities.has("exit_boot_services_told"):
        # Mounted before the driver, it lists what a firmware with a store of its own knew.
        assert not board.efivars.exists("A")
        board.efivars.unmount()
        board.efivars.mount()
    assert board.efivars.read("A").data == KEPT
    if board.capabilities.has("kernel_log"):
        lines = board.kernel_log.since(Mark(""))
        # Read-only with the firmware's own services first, then the driver.
        assert _efivars_messages(lines) == [REGISTERED, *TAKE_OVER_MESSAGES]
        measurement("boot_until_take_over", _seconds(lines, TAKEN_OVER), "s")


def _shown_options(shell: Shell, path: str) -> list[str]:
    """Options of the topmost mount of ``path`` in /proc/mounts."""
    lines = shell.run("cat /proc/mounts").check().text.splitlines()
    return [line.split()[3] for line in lines if line.split()[1] == path][-1].split(",")


def _seconds(lines: list[str], message: str) -> float:
    """The time stamp of the last line with ``message``."""
    stamps = [line.split("]")[0].strip("[ ") for line in lines if line.endswith(message)]
    return float(stamps[-1])
