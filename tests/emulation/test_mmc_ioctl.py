"""ioctls of /dev/mmcblk0 and /dev/mmcblk0rpmb, errno by errno (stack 1.6)."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.faults import PowerLost
from emulation.linux.kernel import Kernel, Task
from emulation.linux.mmc_ioctl import MmcBlock
from harness.formats import mmc, tee_ioctl
from harness.formats.mmc import IocCommand
from harness.formats.rpmb import FRAME_SIZE, RpmbFrame, counter_request

ROOT, USER = Task(1), Task(2, uid=1000, gid=1000, capable=False)
BASE = 0x10000


class Memory:
    """The memory of a process: one mapping of 1 MiB."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 20)

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return bytes(self.bytes[address - BASE : address - BASE + size])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.bytes[address - BASE : address - BASE + len(data)] = data

    def _check(self, address: int, size: int) -> None:
        if not BASE <= address <= address + size <= BASE + len(self.bytes):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def block(kernel: Kernel) -> MmcBlock:
    return MmcBlock(kernel, EmmcCard(RpmbImage.in_memory()))


def command(opcode: int, *, blocks: int, data: int, write: bool = False, blksz: int = 512) -> bytes:
    return IocCommand(int(write), opcode, 0, blksz, blocks, data).pack()


def multi(memory: Memory, *commands: bytes, count: int | None = None) -> int:
    """Lay a multi command at the start of memory; its address."""
    number = len(commands) if count is None else count
    memory.write(BASE, struct.pack("<Q", number) + b"".join(commands))
    return BASE


def failing(block: MmcBlock, node: str, request: int, arg: int, memory: Memory, task: Task) -> int:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is what is tested)
        block.ioctl(node, request, arg, memory, task)
    assert caught.value.errno is not None
    return caught.value.errno


@pytest.mark.cases(1, 45)
def test_read_counter_before_a_key_exists(block: MmcBlock, memory: Memory) -> None:
    request, reply = BASE + 0x1000, BASE + 0x2000
    memory.write(request, counter_request(b"n" * 16))
    arg = multi(
        memory,
        command(25, blocks=1, data=request, write=True),
        command(18, blocks=1, data=reply),
    )
    assert block.ioctl("mmcblk0rpmb", mmc.MMC_IOC_MULTI_CMD, arg, memory, USER) == 0
    frame = RpmbFrame.unpack(memory.read(reply, FRAME_SIZE))
    assert (frame.kind, frame.result) == (0x0200, 7)
    answered = IocCommand.unpack(memory.read(BASE + 8, mmc.IOC_CMD.size))
    assert answered.response[0] == 0x900


@pytest.mark.cases(54)
def test_ext_csd_through_the_block_node(block: MmcBlock, memory: Memory) -> None:
    memory.write(BASE, command(mmc.MMC_SEND_EXT_CSD, blocks=1, data=BASE + 0x1000))
    block.ioctl("mmcblk0", mmc.MMC_IOC_CMD, BASE, memory, ROOT)
    assert memory.read(BASE + 0x1000 + mmc.EXT_CSD_RPMB_SIZE_MULT, 1) == b"\x10"


@pytest.mark.parametrize(
    ("node", "request_number", "task", "expected"),
    [
        ("mmcblk0rpmb", 0x5401, ROOT, errno.EINVAL),
        ("mmcblk0rpmb", 0x1260, ROOT, errno.EINVAL),  # BLKGETSIZE
        ("mmcblk0", 0x5401, ROOT, errno.EINVAL),
        ("mmcblk0p1", mmc.MMC_IOC_CMD, ROOT, errno.EPERM),
        ("mmcblk0", mmc.MMC_IOC_CMD, USER, errno.EPERM),
        ("mmcblk0", mmc.MMC_IOC_MULTI_CMD, USER, errno.EPERM),
    ],
)
@pytest.mark.cases(38, 46, 47)
def test_who_may_do_what(
    block: MmcBlock, memory: Memory, node: str, request_number: int, task: Task, expected: int
) -> None:
    assert failing(block, node, request_number, BASE, memory, task) == expected


@pytest.mark.cases(39, 40, 41, 42)
def test_numbers_and_sizes_are_checked(block: MmcBlock, memory: Memory) -> None:
    request = mmc.MMC_IOC_MULTI_CMD
    assert failing(block, "mmcblk0rpmb", request, 0, memory, ROOT) == errno.EFAULT
    assert block.ioctl("mmcblk0rpmb", request, multi(memory, count=0), memory, ROOT) == 0
    too_many = multi(memory, count=256)
    assert failing(block, "mmcblk0rpmb", request, too_many, memory, ROOT) == errno.EINVAL
    large = multi(memory, command(18, blocks=1025, data=BASE))
    assert failing(block, "mmcblk0rpmb", request, large, memory, ROOT) == errno.EOVERFLOW
    astray = multi(memory, command(25, blocks=1, data=16, write=True))
    assert failing(block, "mmcblk0rpmb", request, astray, memory, ROOT) == errno.EFAULT
    unreachable = multi(memory, command(18, blocks=1, data=16))
    assert failing(block, "mmcblk0rpmb", request, unreachable, memory, ROOT) == errno.EFAULT


def test_an_unknown_command_times_out_after_what_was_answered(
    block: MmcBlock, memory: Memory
) -> None:
    arg = multi(
        memory,
        command(mmc.MMC_SEND_EXT_CSD, blocks=1, data=BASE + 0x1000),
        command(60, blocks=0, data=0),
    )
    request = mmc.MMC_IOC_MULTI_CMD
    assert failing(block, "mmcblk0rpmb", request, arg, memory, ROOT) == errno.ETIMEDOUT
    assert memory.read(BASE + 0x1000 + mmc.EXT_CSD_RPMB_SIZE_MULT, 1) == b"\x10"


def test_block_device_size(block: MmcBlock, memory: Memory) -> None:
    block.ioctl("mmcblk0", 0x80081272, BASE, memory, USER)
    assert struct.unpack("<Q", memory.read(BASE, 8))[0] == block.disks["mmcblk0"].sectors * 512


def test_no_command_reaches_the_card_after_a_power_cut(
    kernel: Kernel, block: MmcBlock, memory: Memory
) -> None:
    kernel.cut_power()
    arg = multi(memory, command(18, blocks=1, data=BASE + 0x1000))
    with pytest.raises(PowerLost):
        block.ioctl("mmcblk0rpmb", mmc.MMC_IOC_MULTI_CMD, arg, memory, ROOT)


_PROBE = r"""
#include <linux/tee.h>
#include <linux/mmc/ioctl.h>
#include <stddef.h>
#include <stdio.h>
#define P(x) printf("%s %llu\n", #x, (unsigned long long)(x))
int main(void) {
  P(MMC_IOC_CMD); P(MMC_IOC_MULTI_CMD); P(sizeof(struct mmc_ioc_cmd));
  P(MMC_IOC_MAX_BYTES); P(MMC_IOC_MAX_CMDS);
  P(offsetof(struct mmc_ioc_cmd, opcode)); P(offsetof(struct mmc_ioc_cmd, flags));
  P(offsetof(struct mmc_ioc_cmd, blksz)); P(offsetof(struct mmc_ioc_cmd, data_ptr));
  P(TEE_IOC_VERSION); P(TEE_IOC_SHM_ALLOC); P(TEE_IOC_OPEN_SESSION); P(TEE_IOC_INVOKE);
  P(TEE_IOC_CANCEL); P(TEE_IOC_CLOSE_SESSION); P(TEE_IOC_SUPPL_RECV); P(TEE_IOC_SUPPL_SEND);
  P(TEE_IOC_SHM_REGISTER); P(TEE_MAX_ARG_SIZE);
  P(sizeof(struct tee_ioctl_param)); P(sizeof(struct tee_ioctl_open_session_arg));
  P(sizeof(struct tee_ioctl_invoke_arg)); P(sizeof(struct tee_iocl_supp_recv_arg));
  P(sizeof(struct tee_iocl_supp_send_arg)); P(sizeof(struct tee_ioctl_shm_register_data));
  return 0;
}
"""

_DECLARED = {
    "MMC_IOC_CMD": mmc.MMC_IOC_CMD,
    "MMC_IOC_MULTI_CMD": mmc.MMC_IOC_MULTI_CMD,
    "MMC_IOC_MAX_BYTES": mmc.MMC_IOC_MAX_BYTES,
    "MMC_IOC_MAX_CMDS": mmc.MMC_IOC_MAX_CMDS,
    "sizeof(struct mmc_ioc_cmd)": mmc.IOC_CMD.size,
    "offsetof(struct mmc_ioc_cmd, opcode)": 8,
    "offsetof(struct mmc_ioc_cmd, flags)": 32,
    "offsetof(struct mmc_ioc_cmd, blksz)": 36,
    "offsetof(struct mmc_ioc_cmd, data_ptr)": 64,
    "TEE_IOC_VERSION": tee_ioctl.TEE_IOC_VERSION,
    "TEE_IOC_SHM_ALLOC": tee_ioctl.TEE_IOC_SHM_ALLOC,
    "TEE_IOC_OPEN_SESSION": tee_ioctl.TEE_IOC_OPEN_SESSION,
    "TEE_IOC_INVOKE": tee_ioctl.TEE_IOC_INVOKE,
    "TEE_IOC_CANCEL": tee_ioctl.TEE_IOC_CANCEL,
    "TEE_IOC_CLOSE_SESSION": tee_ioctl.TEE_IOC_CLOSE_SESSION,
    "TEE_IOC_SUPPL_RECV": tee_ioctl.TEE_IOC_SUPPL_RECV,
    "TEE_IOC_SUPPL_SEND": tee_ioctl.TEE_IOC_SUPPL_SEND,
    "TEE_IOC_SHM_REGISTER": tee_ioctl.TEE_IOC_SHM_REGISTER,
    "TEE_MAX_ARG_SIZE": tee_ioctl.TEE_MAX_ARG_SIZE,
    "sizeof(struct tee_ioctl_param)": tee_ioctl.PARAM.size,
    "sizeof(struct tee_ioctl_open_session_arg)": tee_ioctl.OPEN_SESSION_ARG.size,
    "sizeof(struct tee_ioctl_invoke_arg)": tee_ioctl.INVOKE_ARG.size,
    "sizeof(struct tee_iocl_supp_recv_arg)": tee_ioctl.SUPP_RECV_ARG.size,
    "sizeof(struct tee_iocl_supp_send_arg)": tee_ioctl.SUPP_SEND_ARG.size,
    "sizeof(struct tee_ioctl_shm_register_data)": tee_ioctl.SHM_REGISTER_DATA.size,
}


@pytest.mark.cases(43)
def test_declared_layouts_are_those_of_the_kernel_headers(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    if not Path("/usr/include/linux/tee.h").exists():
        pytest.skip("no kernel headers: install linux-libc-dev")
    source = tmp_path / "probe.c"
    source.write_text(_PROBE)
    subprocess.run([compiler, source, "-o", tmp_path / "probe"], check=True, timeout=60)
    output = subprocess.run(
        [tmp_path / "probe"], check=True, capture_output=True, text=True, timeout=10
    ).stdout
    lines = [line.rpartition(" ") for line in output.splitlines()]
    compiled = {name: int(value) for name, _, value in lines}
    assert compiled == _DECLARED


def test_commands_are_packed_at_the_declared_offsets() -> None:
    packed = IocCommand(1, 2, 3, blksz=4, blocks=5, data_ptr=6, flags=7).pack()
    for field, value in (("opcode", 2), ("flags", 7), ("blksz", 4), ("data_ptr", 6)):
        offset = _DECLARED[f"offsetof(struct mmc_ioc_cmd, {field})"]
        assert struct.unpack_from("<I", packed, offset) == (value,)
    assert IocCommand.unpack(packed).pack() == packed


def test_the_supplicant_uses_the_same_numbers() -> None:
    from emulation.userland.system import tee_supplicant

    for name in ("VERSION", "SHM_ALLOC", "SUPPL_RECV", "SUPPL_SEND"):
        declared = getattr(tee_ioctl, f"TEE_IOC_{name}")
        assert getattr(tee_supplicant, f"TEE_IOC_{name}") == declared
    assert tee_supplicant.MMC_IOC_MULTI_CMD == mmc.MMC_IOC_MULTI_CMD
    assert len(tee_supplicant.command(18, 0, 1, 0)) == mmc.IOC_CMD.size
