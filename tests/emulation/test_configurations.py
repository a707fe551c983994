"""Boards that differ by one option, each booted from its flash to efivarfs.

The variants of the firmware and of RPMB routing are in test_machine.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from emulation.linux.vfs import Attr
from emulation.options import BoardOptions, OptionError
from harness.formats.efi import EfiStatus
from harness.formats.mm import MM_VARIABLE_GUID, AccessVariable, Message, VariableFunction
from harness.formats.tee import Param
from tests.emulation.conftest import EmulatedBoard
from tests.emulation.rig import GUID, ROOT, MakeRig, Rig, errno_of, name

NO_SPACE = "result:0xffff3041"
"""TEE_ERROR_STORAGE_NO_SPACE."""


def set_status(rig: Rig, variable: str, data: bytes) -> EfiStatus:
    """What StandaloneMM itself answers to SetVariable, past the Linux driver."""
    request = AccessVariable(MM_VARIABLE_GUID, variable, len(data), 7, data)
    buffer = bytearray(Message(VariableFunction.SET_VARIABLE, request.pack()).pack())
    client = rig.machine.running.optee.client()
    session = client.open_session(MM_VARIABLE_GUID)
    client.invoke(session, 0, [Param.memref_inout(buffer), Param.value_output()])
    client.close_session(session)
    return EfiStatus(Message.unpack(buffer).status)


def create(rig: Rig, entry: str) -> tuple[Attr, int]:
    fs = rig.machine.running.efivarfs
    return fs.create(ROOT, fs.root, entry.encode(), 0o644, os.O_WRONLY)


def size_shown(rig: Rig, entry: str) -> int:
    fs = rig.machine.running.efivarfs
    return fs.lookup(ROOT, fs.root, entry.encode()).size


# OP-TEE 4.1 and the StandaloneMM of its time


@pytest.mark.cases(310)
@pytest.mark.pain(6)
def test_a_relocating_write_of_optee_41_makes_the_next_start_reclaim(make_rig: MakeRig) -> None:
    # 15bbaa331: what lies behind the rewritten chunk becomes zero, so StandaloneMM finds bytes that
    # are not erased behind its last record, and working space and spare block are gone.
    writes = {}
    for release in ("4.10", "4.1"):
        rig = make_rig(optee=release)
        rig.boot()
        rig.write(name("Crossing"), b"c" * 300)
        before = rig.counter
        rig.reboot()
        writes[release] = rig.counter - before
        assert rig.read(name("Crossing")) == b"c" * 300
        rig.machine.close()
        (rig.machine.state / "rpmb.img").unlink()
    assert writes["4.10"] == 1
    assert writes["4.1"] > 2900


@pytest.mark.parametrize(("release", "writes"), [("4.10", 2), ("4.1", 4)])
@pytest.mark.cases(314)
def test_writes_of_a_record_inside_one_block(make_rig: MakeRig, release: str, writes: int) -> None:
    # edk2 88580a79d4: header, state 0x7F, name with data and state 0x3F became record and state.
    rig = make_rig(optee=release)
    rig.boot()
    costs = []
    for short in ("A", "B", "C"):
        before = rig.counter
        rig.write(name(short), b"0" * 8)
        costs.append(rig.counter - before)
    assert min(costs) == writes


@pytest.mark.parametrize(
    ("release", "status"),
    [("4.10", EfiStatus.INVALID_PARAMETER), ("4.1", EfiStatus.ACCESS_DENIED)],
)
@pytest.mark.cases(330)
def test_a_storage_code_seen_as_64_bits_is_access_denied(
    make_rig: MakeRig, release: str, status: EfiStatus
) -> None:
    # Stack 3: the code arrives zero-extended, the comparison is with a 64-bit -2.
    rig = make_rig(optee=release)
    rig.boot()
    rig.machine.faults.arm(f"storage.write:1+={NO_SPACE}")
    assert set_status(rig, "X", b"x") == status
    assert errno_of(lambda: rig.write(name("X"), b"x")) == errno.EINVAL


def test_optee_41_cannot_leave_rpmb_to_the_kernel() -> None:
    # Stack 1.8: probing by the kernel came with 4.4.
    with pytest.raises(OptionError, match="needs OP-TEE"):
        BoardOptions.parse(["optee=4.1", "variant=mm-kernel-rpmb"])


# efivarfs of K7 (stack 6.7)


@pytest.mark.parametrize(("series", "stays"), [("K6", True), ("K7", False)])
@pytest.mark.cases(349)
def test_a_file_never_written(make_rig: MakeRig, series: str, stays: bool) -> None:
    rig = make_rig(efivarfs=series)
    rig.boot()
    _attr, handle = create(rig, name("Empty"))
    assert name("Empty") in rig.names()
    rig.machine.running.efivarfs.release(handle)
    assert (name("Empty") in rig.names()) is stays


@pytest.mark.parametrize(("series", "shown"), [("K6", 1000), ("K7", 7)])
@pytest.mark.cases(404)
def test_truncate(make_rig: MakeRig, series: str, shown: int) -> None:
    rig = make_rig(efivarfs=series)
    rig.boot()
    attr, handle = create(rig, name("T"))
    fs = rig.machine.running.efivarfs
    fs.write(ROOT, handle, 0, b"\7\0\0\0abc")
    fs.setattr(ROOT, attr.ino, size=1000)
    fs.release(handle)
    assert size_shown(rig, name("T")) == shown
    assert rig.read(name("T")) == b"abc"


@pytest.mark.parametrize(("series", "code"), [("K6", errno.ENOSPC), ("K7", errno.EIO)])
@pytest.mark.cases(332)
@pytest.mark.pain(15)
def test_no_memory_for_a_message(make_rig: MakeRig, series: str, code: int) -> None:
    rig = make_rig(efivarfs=series)
    rig.boot()
    rig.machine.faults.arm("driver.allocation=fail")
    with rig.costs(0):
        assert errno_of(lambda: rig.write(name("M"), b"m")) == code
    rig.write(name("M"), b"m")


@pytest.mark.cases(413)
def test_thaw_brings_what_others_wrote(make_rig: MakeRig) -> None:
    rig = make_rig(efivarfs="K7")
    rig.boot()
    assert set_status(rig, "Other", b"behind the kernel's back") == EfiStatus.SUCCESS
    entry = f"Other-{MM_VARIABLE_GUID}"
    assert entry not in rig.names()
    rig.machine.running.efivarfs.thaw(task=ROOT)
    assert rig.read(entry) == b"behind the kernel's back"
    assert GUID not in "".join(rig.names())


# Variants: what a kernel that routes RPMB itself still does, and what it does not


def test_kernel_routing_survives_reboots_and_needs_no_supplicant(make_rig: MakeRig) -> None:
    rig = make_rig(variant="mm-kernel-rpmb")
    for value in (b"first", b"second"):
        rig.boot(supplicant=False)
        rig.wait(lambda: not rig.machine.running.efivarfs.read_only)
        rig.write(name("Routed"), value)
        assert rig.read(name("Routed")) == value
        rig.machine.power_cut()


def test_variant_mm_differs_from_mm_query_in_statfs_only(make_rig: MakeRig) -> None:
    rig = make_rig(variant="mm")
    rig.boot()
    assert rig.free() == (0, 0)
    rig.write(name("V"), b"v")
    rig.reboot()
    assert rig.read(name("V")) == b"v"


def test_the_file_of_u_boot_and_the_store_in_rpmb_are_two_stores(make_rig: MakeRig) -> None:
    rig = make_rig(variant="file")
    rig.boot()
    rig.write(name("InRpmb"), b"r")
    rig.reboot()
    # Mounted before the driver came: the directory shows what U-Boot's file had.
    assert name("InRpmb") not in rig.names()
    rig.machine.running.efivarfs.unmount()
    rig.machine.running.efivarfs.mount(task=ROOT)
    assert rig.read(name("InRpmb")) == b"r"


# The same, as a user meets them


@pytest.mark.parametrize(
    ("option", "shown", "size", "free"),
    [
        ("variant=mm-query", "user", 16284, 15352),
        ("variant=mm", "user", 0, 0),
        ("variant=file", "user", 16284, 16032),
        ("variant=mm-kernel-rpmb", "kernel", 0, 0),
        ("efivarfs=K7", "user", 16284, 15352),
        ("optee=4.1", "user", 16284, 15352),
    ],
)
def test_boards_one_can_log_in_to(
    boot: Callable[..., EmulatedBoard], option: str, shown: str, size: int, free: int
) -> None:
    board = boot(option)
    efivars = "/sys/firmware/efi/efivars"
    # Where U-Boot never met StandaloneMM it formats its store now: 3900 writes by the supplicant.
    board.until("grep -q 'efivarfs rw' /proc/mounts", timeout=60)
    assert board.ok("cat /sys/class/tee/tee0/rpmb_routing_model") == f"{shown}\n"
    assert board.ok(f"stat -f -c '%b %a' {efivars}") == f"{size} {free}\n"
    board.ok(f"printf '\\7\\0\\0\\0kept' > {efivars}/{name('K')}")
    assert board.control("off") == {"power": "off"}
    assert board.control("on") == {"power": "on"}
    board.disconnect()
    board.until("grep -q 'efivarfs rw' /proc/mounts")
    if option == "variant=file":
        board.ok(f"umount {efivars}; mount -t efivarfs efivarfs {efivars}")
    assert board.ok(f"cat {efivars}/{name('K')}").endswith("kept")
