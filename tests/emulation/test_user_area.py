"""The eMMC's user area: its partition table, its block devices and what programs see of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulation.emmc.card import USER_SECTORS, EmmcCard
from emulation.emmc.gpt import ESP, read_table
from emulation.emmc.image import ImageError, RpmbImage
from emulation.emmc.user_area import UserArea
from emulation.faults import PowerLost
from emulation.linux.devices import DeviceNode
from emulation.linux.efivarfs import REFUSED_WRITE
from emulation.linux.kernel import Kernel
from emulation.linux.mmc_ioctl import MmcBlock, MmcNode
from emulation.userland.jail import probe
from emulation.userland.jail.seccomp import LONGEST_WRITE
from tests.emulation.board_processes import EFIVARS, NEW, Board

SECTOR = 512


@pytest.fixture
def area(tmp_path: Path) -> Iterator[UserArea]:
    area = UserArea.open(tmp_path / "user", USER_SECTORS)
    yield area
    area.close()


def test_table_of_a_new_card(area: UserArea) -> None:
    first, second = read_table(area)
    # truth special-051: HD(1,GPT,a29769bf-...,0x800,0x20000)
    assert (first.number, first.type, first.name) == (1, ESP, "ESP")
    assert str(first.guid) == "a29769bf-d244-45b9-97b6-26eb9344794d"
    assert (first.first, first.sectors) == (0x800, 0x20000)
    assert second.first == first.last + 1
    assert second.last < USER_SECTORS - 33


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        ((), 2),
        ((1,), 2),  # the primary header: the backup at the end serves
        ((2,), 2),  # the primary entries
        ((1, USER_SECTORS - 1), 0),
        ((0,), 0),  # the protective boot record
    ],
)
def test_damaged_tables(area: UserArea, damaged: tuple[int, ...], found: int) -> None:
    for sector in damaged:
        content = area.read(sector * SECTOR, SECTOR)
        area.write(sector * SECTOR, bytes(byte ^ 0xFF for byte in content))
    assert len(read_table(area)) == found


def test_content_survives_and_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "user"
    area = UserArea.open(path, USER_SECTORS)
    area.write(1 << 20, b"kept")
    area.close()
    area.close()
    again = UserArea.open(path, USER_SECTORS)
    assert again.read(1 << 20, 4) == b"kept"
    again.close()
    with pytest.raises(ImageError, match="more than"):
        UserArea.open(path, USER_SECTORS // 2)
    assert path.stat().st_blocks * SECTOR < 1 << 20


def test_process_that_died_while_making_it(tmp_path: Path) -> None:
    path = tmp_path / "user"
    path.write_bytes(bytes(3 * SECTOR))
    area = UserArea.open(path, USER_SECTORS)
    assert len(read_table(area)) == 2
    area.close()


def test_disks_are_windows_on_the_area(area: UserArea) -> None:
    kernel = Kernel()
    block = MmcBlock(kernel, EmmcCard(RpmbImage.in_memory(), user_area=area))
    whole, first, second = block.disks.values()
    assert [(disk.name, disk.major, disk.minor) for disk in (whole, first, second)] == [
        ("mmcblk0", 179, 0), ("mmcblk0p1", 179, 1), ("mmcblk0p2", 179, 2),
    ]  # fmt: skip
    assert first.write(0, b"boot sector") == 11
    assert whole.read(0x800 * SECTOR, 11) == b"boot sector"
    assert first.write(first.size - 2, b"abcd") == 2
    assert first.read(first.size - 2, 10) == b"ab"
    assert first.read(first.size, 10) == first.read(first.size + 5, 10) == b""
    assert second.read(0, 2) == bytes(2)
    with pytest.raises(OSError, match="end of the device") as caught:
        first.write(first.size, b"x")
    assert caught.value.errno == errno.ENOSPC
    kernel.cut_power()
    with pytest.raises(PowerLost):
        whole.read(0, 1)


# --- on a board ---


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    failed = probe.failure(probe.check())
    if failed is not None:
        pytest.skip(f"{failed.name}: {failed.detail}; {failed.remedy}")
    block = MmcBlock(Kernel(), EmmcCard(RpmbImage.in_memory()))
    nodes = [
        DeviceNode(f"/dev/{disk.name}", MmcNode(block, disk.name), disk.major, disk.minor, disk)
        for disk in block.disks.values()
    ]
    board = Board(nodes=nodes)
    yield board
    board.jail.kill()


def test_open_block_device_is_a_block_device(board: Board) -> None:
    code = """
import fcntl, os, stat, struct
fd = os.open("/dev/mmcblk0", os.O_RDONLY)
by_fd, by_name, directory = os.fstat(fd), os.stat("/dev/mmcblk0"), os.open("/dev", os.O_RDONLY)
print(by_fd == by_name, stat.S_ISBLK(by_fd.st_mode), os.major(by_fd.st_rdev), by_fd.st_size)
print(os.fstat(os.dup(fd)) == by_fd, stat.S_ISDIR(os.fstat(directory).st_mode))
print(os.lseek(fd, 0, os.SEEK_END), os.pread(fd, 8, 512), os.read(fd, 1), os.lseek(fd, 0, 0))
size = bytearray(8)
fcntl.ioctl(fd, 0x80081272, size)
print(struct.unpack("<Q", size)[0], os.get_inheritable(fd))
"""
    assert board.text(f"python3 -c '{code}'").splitlines() == [
        "True True 179 0",
        "True True",
        f"{USER_SECTORS * SECTOR} b'EFI PART' b'' 0",
        f"{USER_SECTORS * SECTOR} False",
    ]
    assert board.text("stat -c '%F' - < /dev/mmcblk0p1") == "block special file"


def test_statx_of_a_descriptor(board: Board) -> None:
    code = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
for path in ("/dev/mmcblk0p2", "/"):
    fd, buffer = os.open(path, os.O_RDONLY), ctypes.create_string_buffer(256)
    print(libc.statx(fd, b"", 0x1000, 0x7ff, buffer), end=" ")
    mode, numbers = struct.unpack_from("<H", buffer, 28)[0], struct.unpack_from("<2I", buffer, 128)
    print("%o" % (mode >> 12), *numbers)
"""
    assert board.text(f"python3 -c '{code}'").splitlines() == ["0 6 179 2", "0 4 0 0"]


def test_writing(board: Board) -> None:
    command = "printf root | dd of=/dev/mmcblk0p2 bs=4 seek=1024 conv=notrunc,fsync 2>&1"
    assert "4 bytes copied" in board.text(command)
    first = 0x20800 * SECTOR + 4096
    assert board.text(f"dd if=/dev/mmcblk0 bs=4 skip={first // 4} count=1 2>/dev/null") == "root"
    full = board.run("dd if=/dev/zero of=/dev/mmcblk0p2 bs=1M seek=61 count=4")
    assert full.status == 1
    assert "No space left on device" in full.out
    refused = board.run("exec 3</dev/mmcblk0; /bin/echo x >&3")
    assert "Bad file descriptor" in refused.out


def write_at_once(board: Board, size: int) -> tuple[str, list[int]]:
    """What a write(2) returned, and the lengths of what reached the file by FUSE."""
    # The buffer begins 2 bytes before a page, so it spans a page more than it fills.
    code = f"""
import mmap, os
buffer = memoryview(mmap.mmap(-1, {size} + 8192))[4094:][:{size}]
print(os.write(os.open("{EFIVARS}/{NEW}", os.O_WRONLY | os.O_CREAT), buffer))
"""
    board.handlers.events.clear()
    written = board.text(f"python3 -c '{code}'")
    ino = board.efivarfs.nodes[board.efivarfs.root].children[NEW.encode()]
    board.text(f"chattr -i {EFIVARS}/{NEW}; rm {EFIVARS}/{NEW}")
    return written, [len(data) for _, data in board.efivarfs.nodes[ino].writes]


def test_write_that_fuse_carries(board: Board) -> None:
    assert write_at_once(board, LONGEST_WRITE) == (str(LONGEST_WRITE), [LONGEST_WRITE])
    assert board.handlers.events == []


@pytest.mark.parametrize(
    ("size", "arrives"),
    [(LONGEST_WRITE + 1, LONGEST_WRITE + 1), (1 << 22, 1 << 22), (16 << 20, REFUSED_WRITE)],
)
def test_longer_write_is_one_write_too(board: Board, size: int, arrives: int) -> None:
    assert write_at_once(board, size) == (str(arrives), [])
    (event,) = board.handlers.events
    assert event.startswith(f"write {arrives} to ")


def test_long_write_elsewhere_is_the_kernels(board: Board) -> None:
    command = "head -c 3000000 /dev/zero | dd bs=3000000 iflag=fullblock of=/tmp/long 2>/dev/null"
    assert board.text(f"{command}; stat -c %s /tmp/long") == "3000000"
    code = f"""
import os
try:
    os.write(os.open("{EFIVARS}/{NEW}", os.O_RDONLY | os.O_CREAT), bytes(1 << 21))
except OSError as error:
    print(error.errno)
"""
    assert board.text(f"python3 -c '{code}'") == str(errno.EBADF)
