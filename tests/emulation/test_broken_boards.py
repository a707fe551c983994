"""Boards that are broken as boards of bring-up are: one option each."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import pytest

from emulation.emmc.image import RpmbImage
from emulation.linux.kernel import Task
from emulation.machine import Machine
from emulation.options import BoardOptions, OptionError
from emulation.userland.system.tee_supplicant import EmulatedRpmb
from harness.formats.mm import MM_VARIABLE_GUID
from harness.formats.rpmb import OPTEE_TEST_KEY
from harness.formats.tee import TeeError, TeeResult
from tests.emulation.conftest import EmulatedBoard
from tests.emulation.rig import MakeRig, errno_of

OTHER_KEY = "11" * 32


def config_of(machine: Machine) -> list[str]:
    packed = machine.running.proc_files["/proc/config.gz"](Task(1))
    return gzip.decompress(packed).decode().splitlines()


def key_in(state: Path) -> bytes | None:
    image = RpmbImage.open(state / "rpmb.img")
    try:
        return image.key
    finally:
        image.close()


def powered(tmp_path: Path, *options: str) -> Machine:
    machine = Machine(BoardOptions.parse(options), tmp_path)
    machine.power_on(console=lambda data: None)
    return machine


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("driver=auto", "CONFIG_TEE_STMM_EFI=m"),
        ("driver=builtin", "CONFIG_TEE_STMM_EFI=y"),
        ("driver=absent", "# CONFIG_TEE_STMM_EFI is not set"),
        ("preempt_rt=no", "# CONFIG_PREEMPT_RT is not set"),
        ("preempt_rt=yes", "CONFIG_EFI_DISABLE_RUNTIME=y"),
    ],
)
def test_the_kernel_tells_how_it_was_built(tmp_path: Path, option: str, line: str) -> None:
    assert line in config_of(powered(tmp_path, option))


def test_a_kernel_without_the_driver_cannot_load_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        powered(tmp_path, "driver=absent").running.modules.modprobe("tee_stmm_efi")


@pytest.mark.pain(20)
def test_preempt_rt_has_no_efivarfs_until_the_driver_is_bound(make_rig: MakeRig) -> None:
    rig = make_rig(preempt_rt=True)
    machine = rig.machine
    machine.power_on(console=rig.console.extend)
    assert "PREEMPT_RT" in machine.version
    assert b"EFI runtime services will be disabled." in rig.console
    assert b"efi: EFI v2.10" in rig.console
    assert errno_of(lambda: machine.running.efivarfs.mount(task=Task(1))) == errno.EOPNOTSUPP
    assert rig.supplicant.start()
    rig.wait(lambda: b"Using TEE-based" in rig.console)
    rig.wait(lambda: rig.console.count(b"Registered efivars") == 1)
    machine.running.efivarfs.mount(task=Task(1))
    assert not machine.running.efivarfs.read_only


def test_an_optee_without_stmm_announces_and_opens_none(tmp_path: Path) -> None:
    machine = powered(tmp_path, "stmm=no")
    assert machine.running.secure_world.enumerate_devices(1) == []
    with pytest.raises(TeeError) as refusal:
        machine.running.secure_world.open_session(MM_VARIABLE_GUID)
    assert refusal.value.result == TeeResult.ITEM_NOT_FOUND


@pytest.mark.pain(9)
def test_another_key_is_told_on_the_secure_console(tmp_path: Path) -> None:
    console = bytearray()
    machine = Machine(BoardOptions.parse([f"rpmb_key={OTHER_KEY}"]), tmp_path)
    machine.power_on(console=console.extend)
    assert b"E/TC:? 0 legacy_rpmb_init Verify key failed!" in console
    assert b"Cannot initialize UEFI sub-system" in console
    machine.close()
    assert key_in(tmp_path) == bytes.fromhex(OTHER_KEY)


def test_a_key_is_programmed_once(tmp_path: Path) -> None:
    for options in ([], [f"rpmb_key={OTHER_KEY}"]):
        powered(tmp_path, *options).close()
        assert key_in(tmp_path) == OPTEE_TEST_KEY


@pytest.mark.parametrize("key", ["11", "zz" * 32])
def test_a_key_is_32_bytes(key: str) -> None:
    with pytest.raises(OptionError, match="64 hexadecimal digits"):
        BoardOptions(rpmb_key=key)


@pytest.mark.pain(11)
def test_nodes_as_udev_left_them(tmp_path: Path) -> None:
    plain = {node.path: node for node in powered(tmp_path / "a").nodes}
    assert plain["/dev/mmcblk0rpmb"].mode == plain["/dev/teepriv0"].mode == 0o600
    assert "/dev/mmcblk0rpmb" not in {
        node.path for node in powered(tmp_path / "b", "rpmb_node=no").nodes
    }
    rootless = {node.path: node for node in powered(tmp_path / "c", "supplicant_user=tee").nodes}
    assert (rootless["/dev/teepriv0"].mode, rootless["/dev/teepriv0"].gid) == (0o660, 900)
    assert rootless["/dev/mmcblk0rpmb"].gid == 0


@pytest.mark.pain(21)
def test_a_build_with_rpmb_emu_complains_in_its_log(capfd: pytest.CaptureFixture[str]) -> None:
    emulated = EmulatedRpmb()
    emulated.transfer(0, 4, bytes(512), 1)
    assert "Cannot compute MAC (key not set)" in capfd.readouterr().err
    emulated.transfer(0, 3, bytes(512), 1)
    assert "Cannot check MAC (key not set)" in capfd.readouterr().err


@pytest.mark.pain(1)
def test_what_fstab_mounts_read_only_stays_so(tmp_path: Path) -> None:
    board = EmulatedBoard(tmp_path, ["mount=read-only", "supplicant_unbinds=yes"])
    try:
        line = board.run("grep efivarfs /proc/self/mountinfo").out.split()
        assert (line[5].split(",")[0], line[-1]) == ("ro", "rw")
        assert " ro," in board.run("grep efivarfs /etc/fstab").out
        assert board.run("mount -o remount,rw /sys/firmware/efi/efivars").status == 0
        line = board.run("grep efivarfs /proc/self/mountinfo").out.split()
        assert (line[5].split(",")[0], line[-1]) == ("rw", "rw")
        # ... and the drop-in, on the same board.
        unit = board.run("systemctl cat tee-supplicant").out
        assert "ExecStop=-/bin/sh -c 'echo optee-ta-" in unit
        bound = "ls /sys/bus/tee/drivers/tee-stmm-efi | grep -c optee-ta"
        assert board.run(bound).out == "1\n"
        assert board.run("systemctl stop tee-supplicant").status == 0
        assert board.run(bound).out == "0\n"
        assert board.run("pidof tee-supplicant").out == ""
        # ... and one more that takes it back, once the service manager has read it.
        folder = "/run/systemd/system/tee-supplicant.service.d"
        board.ok(f"mkdir -p {folder}; printf '[Service]\\nExecStop=\\n' >{folder}/zz.conf")
        stops = "systemctl show -p ExecStop tee-supplicant"
        assert "argv[]=/bin/sh -c echo optee-ta-" in board.run(stops).out
        board.ok("systemctl daemon-reload")
        assert board.run(stops).out == ""
        assert f"# {folder}/zz.conf" in board.run("systemctl cat tee-supplicant").out
        board.ok("systemctl start tee-supplicant")
        board.ok(
            "echo optee-ta-ed32d533-99e6-4209-9cc0-2d72cdd998a7 >"
            " /sys/bus/tee/drivers/tee-stmm-efi/bind"
        )
        board.ok("systemctl stop tee-supplicant")
        assert board.run(bound).out == "1\n"
    finally:
        board.close()
