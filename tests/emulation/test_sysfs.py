"""/sys and /proc of the board, by the paths and texts that were recorded."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulation.linux.kernel import Task
from emulation.linux.sysfs import Sysfs
from emulation.linux.tee_bus import BusDriver, TeeDevice
from emulation.machine import Machine
from emulation.optee.stmm_partition import STMM_UUID
from emulation.options import BoardOptions
from tests.emulation.supplicant_thread import read_sysfs, resolve

ROOT = Task(1)
DEVICE = f"optee-ta-{STMM_UUID}"
DRIVER = "/sys/bus/tee/drivers/tee-stmm-efi"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A board whose firmware does not use StandaloneMM, so that nothing is bound by itself."""
    machine = Machine(BoardOptions(variant="file", driver="manual"), tmp_path)
    machine.power_on(console=lambda data: None)
    yield machine
    machine.close()


def listing(sysfs: Sysfs, path: str) -> dict[str, str]:
    """What ``ls -l`` shows: name -> mode letters, links with their target."""
    shown = {}
    directory = resolve(sysfs, path, ROOT)
    for entry in sysfs.readdir(ROOT, directory):
        attr = sysfs.lookup(ROOT, directory, entry.name)
        text = stat.filemode(attr.mode)
        if stat.S_ISLNK(attr.mode):
            text += f" -> {sysfs.readlink(ROOT, attr.ino).decode()}"
        shown[entry.name.decode()] = text
    return shown


def write(sysfs: Sysfs, path: str, data: bytes) -> int:
    handle = sysfs.open(ROOT, resolve(sysfs, path, ROOT), 1)
    try:
        return sysfs.write(ROOT, handle, 0, data)
    finally:
        sysfs.release(handle)


def bind_fake_driver(machine: Machine) -> None:
    machine.running.optee.bus.add_device(TeeDevice(STMM_UUID, needs_supplicant=True))
    machine.running.optee.bus.register_driver(
        BusDriver("tee-stmm-efi", frozenset([STMM_UUID]), lambda: None, lambda: None)
    )


def test_before_the_supplicant_the_bus_is_empty(machine: Machine) -> None:
    assert listing(machine.running.sysfs, "/sys/bus/tee/devices") == {}
    assert listing(machine.running.sysfs, "/sys/bus/tee/drivers") == {}


def test_a_bound_device_as_recorded(machine: Machine) -> None:
    # truth p2a-016, p2a-017, p2c-010
    bind_fake_driver(machine)
    sysfs = machine.running.sysfs
    link = f"lrwxrwxrwx -> ../../../devices/{DEVICE}"
    assert listing(sysfs, "/sys/bus/tee/devices") == {DEVICE: link}
    assert listing(sysfs, DRIVER) == {
        "bind": "--w-------",
        DEVICE: f"lrwxrwxrwx -> ../../../../devices/{DEVICE}",
        "uevent": "--w-------",
        "unbind": "--w-------",
    }
    uevent = read_sysfs(sysfs, f"/sys/bus/tee/devices/{DEVICE}/uevent", ROOT)
    assert uevent == f"DRIVER=tee-stmm-efi\nMODALIAS=tee:{STMM_UUID}\n"
    assert "need_supplicant" in listing(sysfs, f"/sys/devices/{DEVICE}")
    assert sysfs.getattr(ROOT, resolve(sysfs, "/sys/bus/tee", ROOT)).nlink == 4


def test_bind_and_unbind_by_writing(machine: Machine) -> None:
    # truth drv-001, drv-005, drv-008, drv-009
    bind_fake_driver(machine)
    sysfs, name = machine.running.sysfs, DEVICE.encode()
    assert write(sysfs, f"{DRIVER}/unbind", name + b"\n") == len(name) + 1
    assert DEVICE not in listing(sysfs, DRIVER)
    for file, data, expected in (
        ("unbind", name, errno.ENODEV),
        ("bind", b"nonsense\n", errno.ENODEV),
        ("bind", name, 0),
        ("bind", name, errno.EBUSY),
    ):
        try:
            write(sysfs, f"{DRIVER}/{file}", data)
            result: int | None = 0
        except OSError as error:
            result = error.errno
        assert result == expected


@pytest.mark.cases(54)
def test_attributes_of_the_card_that_the_supplicant_reads(machine: Machine) -> None:
    card = "/sys/class/mmc_host/mmc0/mmc0:0001"
    assert (
        read_sysfs(machine.running.sysfs, f"{card}/cid", ROOT)
        == "aa015851454d55212101deadbeef2900\n"
    )
    assert read_sysfs(machine.running.sysfs, f"{card}/raw_rpmb_size_mult", ROOT) == "0x10\n"
    assert read_sysfs(machine.running.sysfs, f"{card}/rel_sectors", ROOT) == "0x1\n"
    assert read_sysfs(machine.running.sysfs, "/sys/block/mmcblk0/dev", ROOT) == "179:0\n"


def test_every_link_leads_somewhere(machine: Machine) -> None:
    bind_fake_driver(machine)
    sysfs, links = machine.running.sysfs, 0
    paths = ["/sys"]
    while paths:
        path = paths.pop()
        for name, mode in listing(sysfs, path).items():
            if mode.startswith("l"):
                resolve(sysfs, f"{path}/{name}", ROOT)
                links += 1
            elif mode.startswith("d"):
                paths.append(f"{path}/{name}")
    assert links > 15


def test_tee_devices(machine: Machine) -> None:
    tee = "/sys/class/tee"
    assert read_sysfs(machine.running.sysfs, f"{tee}/tee0/rpmb_routing_model", ROOT) == "user\n"
    assert read_sysfs(machine.running.sysfs, f"{tee}/tee0/implementation_id", ROOT) == "1\n"
    uevent = read_sysfs(machine.running.sysfs, f"{tee}/tee0/uevent", ROOT)
    assert uevent == "MAJOR=253\nMINOR=0\nDEVNAME=tee0\n"
    assert read_sysfs(machine.running.sysfs, f"{tee}/teepriv0/dev", ROOT) == "253:16\n"


def test_sysfs_is_not_for_creating_or_removing(machine: Machine) -> None:
    sysfs = machine.running.sysfs
    with pytest.raises(PermissionError):
        sysfs.create(ROOT, sysfs.root, b"new", 0o644, 1)
    with pytest.raises(PermissionError):
        sysfs.unlink(ROOT, sysfs.root, b"block")
    with pytest.raises(PermissionError):
        sysfs.open(ROOT, resolve(sysfs, "/sys/block/mmcblk0/dev", ROOT), 1)
    with pytest.raises(FileNotFoundError):
        sysfs.lookup(ROOT, sysfs.root, b"nothing")


def test_modules_as_lsmod_and_proc_show_them(machine: Machine) -> None:
    def text(path: str) -> str:
        return machine.running.proc_files[path](ROOT).decode()

    assert text("/proc/modules") == "efivarfs 16384 0 - Live 0x0000000000000000\n"
    machine.running.efivarfs.mount(task=ROOT)
    machine.running.modules.modprobe("tee-stmm-efi")
    assert text("/proc/modules").splitlines() == [
        "tee_stmm_efi 12288 0 - Live 0x0000000000000000",
        "efivarfs 16384 1 - Live 0x0000000000000000",
    ]
    assert "tee-stmm-efi" in listing(machine.running.sysfs, "/sys/bus/tee/drivers")
    assert read_sysfs(machine.running.sysfs, "/sys/module/efivarfs/refcnt", ROOT) == "1\n"
    with pytest.raises(OSError, match="in use"):
        machine.running.modules.rmmod("efivarfs")
    machine.running.modules.rmmod("tee_stmm_efi")
    with pytest.raises(FileNotFoundError):
        machine.running.modules.rmmod("tee_stmm_efi")
    with pytest.raises(FileNotFoundError):
        machine.running.modules.modprobe("nonsense")
    assert "efivarfs" in text("/proc/filesystems")
    assert machine.running.boot_id in text("/proc/sys/kernel/random/boot_id")
    assert machine.release in text("/proc/version")
