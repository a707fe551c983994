"""The whole board without its userland: from efivarfs to the flash and back.

The supplicant is the board's own program on a thread; figures are those of the record.
"""

from __future__ import annotations

import errno
import threading
from functools import partial

import pytest

from emulation import machine as machine_module
from emulation.faults import PowerLost
from emulation.linux.kernel import Task, running
from emulation.options import Variant
from tests.emulation.rig import GLOBAL, ROOT, MakeRig, Rig, errno_of, name
from tests.emulation.supplicant_thread import SupplicantThread, read_sysfs
from tests.emulation.test_kernel import in_thread

RECORDED_FIRST_BOOT = 0xF2D
"""RPMB write counter after the first boot (truth state-002, log-kernel-rpmb-y)."""


@pytest.mark.cases(297, 416)
@pytest.mark.pain(10)
def test_first_boot_leaves_what_was_recorded(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.boot()
    assert rig.counter == RECORDED_FIRST_BOOT
    assert rig.free() == (16284, 15352)
    shown = {entry: len(rig.read(entry)) + 4 for entry in rig.names()}
    expected = {
        "AuditMode": 5,
        "Boot0000": 108,
        "Boot0001": 160,
        "BootOrder": 8,
        "DeployedMode": 5,
        "OsIndicationsSupported": 12,
        "PlatformLang": 10,
        "PlatformLangCodes": 10,
        "SecureBoot": 5,
        "SetupMode": 5,
        "SignatureSupport": 100,
        "VendorKeys": 5,
    }
    certificates = "d9bee56e-75dc-49d9-b4d7-b534210f637a"
    assert shown == {
        **{f"{key}-{GLOBAL}": size for key, size in expected.items()},
        f"certdb-{certificates}": 8,
        f"certdbv-{certificates}": 8,
    }


def test_the_order_of_variables_tells_what_uboot_did_first(rig: Rig) -> None:
    # truth p2a-010: lsattr shows the newest entry first
    fs = rig.machine.running.efivarfs
    entries = sorted(fs.readdir(ROOT, fs.root), key=lambda entry: -entry.ino)
    names = [entry.name.decode().split("-")[0] for entry in entries]
    assert names[:12] == [
        "PlatformLang",
        "BootOrder",
        "Boot0001",
        "Boot0000",
        "certdb",
        "OsIndicationsSupported",
        "PlatformLangCodes",
        "VendorKeys",
        "DeployedMode",
        "AuditMode",
        "certdbv",
        "SecureBoot",
    ]


@pytest.mark.cases(83, 420, 428)
def test_a_second_boot_costs_one_rpmb_write(rig: Rig) -> None:
    with rig.costs(1):
        rig.reboot()
    assert rig.free() == (16284, 15352)


def test_costs_of_small_changes(rig: Rig) -> None:
    with rig.costs(2, 198):
        rig.write(name("A"), b"0" * 8)
    with rig.costs(0):
        rig.write(name("A"), b"0" * 8)
    costs = []
    for round_number in range(8):
        before = rig.counter
        rig.write(name("A"), bytes([round_number]) * 8)
        costs.append(rig.counter - before)
    assert min(costs) == 4
    assert all(cost == 4 or 190 < cost < 400 for cost in costs)
    with rig.costs(1):
        rig.delete(name("A"))


def test_a_record_that_crosses_a_block_moves_the_whole_file(rig: Rig) -> None:
    with rig.costs(194, 198):
        rig.write(name("Crossing"), b"c" * 300)
    assert rig.read(name("Crossing")) == b"c" * 300


def test_create_read_overwrite_append_delete(rig: Rig) -> None:
    free = rig.free()[1]
    rig.write(name("V"), b"one")
    assert rig.read(name("V")) == b"one"
    rig.write(name("V"), b"two", attributes=0x47)
    assert rig.read(name("V")) == b"onetwo"
    rig.write(name("V"), b"three")
    assert rig.read(name("V")) == b"three"
    shrunk = rig.free()[1]
    assert shrunk < free
    rig.delete(name("V"))
    assert name("V") not in rig.names()
    assert rig.free()[1] == shrunk


def test_nonvolatile_variables_survive_a_power_cut(rig: Rig) -> None:
    rig.write(name("Keep"), b"for ever")
    rig.reboot()
    assert rig.read(name("Keep")) == b"for ever"


def test_flip_is_logged_as_recorded(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.boot(supplicant=False)
    assert rig.machine.running.efivarfs.read_only
    assert rig.free() == (0, 0)
    assert errno_of(lambda: rig.write(name("Early"), b"x")) == errno.EROFS
    mark = rig.machine.running.kernel.log.next_sequence
    assert rig.supplicant.start()
    rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
    rig.wait(lambda: len(rig.machine.running.kernel.log.records(mark)) >= 3)
    assert [record.text for record in rig.machine.running.kernel.log.records(mark)] == [
        "efivars: Unregistered efivars operations",
        "Using TEE-based EFI runtime variable services",
        "efivars: Registered efivars operations",
    ]
    assert rig.free() == (16284, 15352)


def test_stopping_the_supplicant_without_unbinding(rig: Rig) -> None:
    # truth p2c-008 .. p2c-022
    rig.write(name("C1"), b"a")
    rig.supplicant.stop()
    assert errno_of(lambda: rig.write(name("C2"), b"b")) == errno.ENOSPC
    assert errno_of(lambda: rig.write(name("C1"), b"b")) == errno.ENOSPC
    assert errno_of(lambda: rig.delete(name("C1"))) == errno.EINVAL
    assert rig.read(name("C1")) == b"a"
    assert not rig.machine.running.efivarfs.read_only
    assert rig.supplicant.start()
    rig.write(name("C3"), b"c")
    assert rig.read(name("C3")) == b"c"


def test_a_supplicant_killed_in_mid_write_hangs_the_writer(rig: Rig) -> None:
    # truth kill2, log-kill3, log-kill4
    writer, reader = Task(236), Task(400)
    rig.supplicant.hold()
    seen = rig.supplicant.requests
    join = in_thread(lambda: rig.write(name("K0"), b"k" * 3000, writer))
    # The second request is the first that OP-TEE's shared memory is held for.
    rig.wait(lambda: rig.supplicant.requests > seen)
    rig.supplicant.release_one()
    rig.wait(lambda: rig.supplicant.requests > seen + 1)
    rig.supplicant.kill()
    other = SupplicantThread(rig.machine)
    assert not other.start()
    blocked = in_thread(lambda: rig.read(f"BootOrder-{GLOBAL}", reader))
    finished = threading.Event()

    def watch() -> None:
        blocked()
        finished.set()

    threading.Thread(target=watch, daemon=True).start()
    assert not finished.wait(0.1)
    writer.fatal.set()
    join()
    assert finished.wait(5)
    assert other.start()
    rig.supplicant = other
    rig.write(name("After"), b"again")
    assert rig.read(name("After")) == b"again"


def test_unbind_and_rebind(rig: Rig) -> None:
    # truth drv-001 .. drv-007
    device = next(iter(rig.machine.running.optee.bus.devices))
    with running(ROOT):
        rig.machine.running.optee.bus.unbind("tee-stmm-efi", device)
        assert rig.machine.running.efivarfs.read_only
        assert rig.free() == (0, 0)
        rig.machine.running.optee.bus.bind("tee-stmm-efi", device)
    rig.write(name("D3"), b"rebound")
    assert rig.read(name("D3")) == b"rebound"


def test_removing_the_module_unbinds(rig: Rig) -> None:
    rig.machine.running.modules.rmmod("tee_stmm_efi", task=ROOT)
    assert rig.machine.running.efivarfs.read_only
    rig.machine.running.modules.modprobe("tee_stmm_efi", task=ROOT)
    assert not rig.machine.running.efivarfs.read_only


@pytest.mark.parametrize("nth", [1, 2, 3, 60, 193, 194])
@pytest.mark.cases(92, 93)
def test_power_cut_at_a_write_leaves_old_or_new(rig: Rig, nth: int) -> None:
    rig.write(name("P"), b"o" * 300)
    rig.machine.faults.arm(f"rpmb.write:{nth}=power-cut")
    assert isinstance(in_thread(lambda: rig.write(name("P"), b"n" * 300))(), PowerLost)
    rig.machine.faults.disarm()
    rig.reboot()
    assert rig.read(name("P")) in (b"o" * 300, b"n" * 300)
    rig.write(name("Q"), b"works")


def test_power_cut_in_firmware_ends_power_on(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.machine.faults.arm("rpmb.write:500=power-cut")
    with pytest.raises(PowerLost):
        rig.machine.power_on(console=rig.console.extend)
    rig.boot()
    rig.write(name("Later"), b"x")


def test_kernel_routed_board_needs_no_supplicant(make_rig: MakeRig) -> None:
    # truth log-kernel-rpmb-y
    rig = make_rig(variant="mm-kernel-rpmb")
    rig.boot(supplicant=False)
    rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
    assert rig.counter == RECORDED_FIRST_BOOT
    with rig.costs(2):
        rig.write(name("X"), b"x")
    routing = read_sysfs(rig.machine.running.sysfs, "/sys/class/tee/tee0/rpmb_routing_model", ROOT)
    assert routing == "kernel\n"
    assert rig.free() == (0, 0)
    assert len(rig.machine.running.optee.bus.devices) == 2


def test_file_variant_never_tells_stmm(make_rig: MakeRig) -> None:
    # truth log-file-variant, log-file-variant5
    rig = make_rig(variant="file")
    rig.boot(supplicant=False)
    assert rig.free() == (131048, 131048 - 976)
    assert f"SignatureSupport-{GLOBAL}" not in rig.names()
    assert rig.counter == 0
    assert rig.supplicant.start()
    rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
    assert rig.free() == (16284, 16284 - 252)
    # Boot-service variables are seen, because StMM does not know that boot services ended.
    rig.machine.running.efivarfs.unmount()
    rig.machine.running.efivarfs.mount(task=ROOT)
    assert any(entry.startswith("CustomMode-") for entry in rig.names())
    rig.reboot()
    assert f"Boot0001-{GLOBAL}" in rig.names()


def test_udev_kills_a_hanging_modprobe(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    # truth log-file-variant3 and -4: killed while StMM formats its store, the driver ends up bound
    # to a half-initialised StMM, and the supplicant's late answer is refused
    rig = make_rig(variant="file")
    rig.boot(supplicant=False)
    monkeypatch.setattr(machine_module, "UDEV_EVENT_TIMEOUT", 3.0)
    rig.supplicant.hold(after=1200)
    assert rig.supplicant.start()
    rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
    rig.supplicant.release_one()
    rig.wait(lambda: not rig.supplicant.alive)
    assert rig.free() == (16284, 16284)
    assert errno_of(lambda: rig.write(name("Fv"), b"x")) == errno.EINVAL
    monkeypatch.undo()
    rig.reboot()
    assert rig.free() == (16284, 16284 - 252)
    rig.write(name("Fv"), b"healed")


@pytest.mark.parametrize("variant", ["mm", "mm-query"])
def test_df_follows_the_advertised_services(make_rig: MakeRig, variant: Variant) -> None:
    rig = make_rig(variant=variant)
    rig.boot()
    assert rig.free() == ((16284, 15352) if variant == "mm-query" else (0, 0))


@pytest.mark.cases(70)
@pytest.mark.pain(21)
def test_supplicant_built_with_an_emulated_rpmb(rig: Rig) -> None:
    # truth log-debian-emu-supplicant: bound, reads work, every write is EINVAL
    rig.write(name("B2"), b"old")
    rig.machine.power_cut()
    rig.supplicant = SupplicantThread(rig.machine, emulated_rpmb=True)
    before = rig.counter
    rig.boot()
    for data in (b"new", b"newer"):
        assert errno_of(partial(rig.write, name("B2"), data)) == errno.EINVAL
    assert rig.read(name("B2")) == b"old"
    assert rig.counter == before + 1


def test_boot_log(rig: Rig) -> None:
    text = rig.console.decode()
    for line in (
        "NOTICE:  BL31: v2.12.1(release):\r\n",
        "optee optee: OP-TEE: revision 4.10\r\n",
        "] efi: EFI v2.10 by Das U-Boot\r\n",
        "] optee: initialized driver\r\n",
    ):
        assert line in text
    assert 2000 < len(text) < 6000


@pytest.mark.cases(331)
def test_panic_with_the_driver_bound_records_nothing(rig: Rig) -> None:
    rig.machine.running.modules.modprobe("efi_pstore")
    with rig.costs(0):
        rig.machine.crash()
    assert b"Kernel panic - not syncing" in rig.console


def test_a_built_in_driver_and_a_manual_one(make_rig: MakeRig) -> None:
    rig = make_rig(driver="builtin")
    rig.boot()
    assert "tee_stmm_efi" not in rig.machine.running.proc_files["/proc/modules"](ROOT).decode()
    rig.machine.close()
    rig = make_rig(driver="manual")
    rig.boot(supplicant=False)
    assert rig.supplicant.start()
    rig.wait(lambda: bool(rig.machine.running.optee.bus.devices))
    assert rig.machine.running.efivarfs.read_only
    rig.machine.running.modules.modprobe("tee_stmm_efi")
    assert not rig.machine.running.efivarfs.read_only


def test_boot_id_changes_and_the_old_system_is_dead(rig: Rig) -> None:
    kernel, boot_id = rig.machine.running.kernel, rig.machine.running.boot_id
    rig.reboot()
    assert rig.machine.running.boot_id != boot_id
    assert not kernel.powered
    assert rig.machine.running.kernel is not kernel
