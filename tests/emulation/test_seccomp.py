"""The seccomp filter for both architectures, and the layouts shared with the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from pathlib import Path

import pytest

from emulation.userland.jail import seccomp
from emulation.userland.jail.dispatch import SYSTEM_CALLS
from emulation.userland.jail.mounts import BoardView, MountEntry, containing, parse_mountinfo
from emulation.userland.jail.syscalls import (
    AARCH64,
    X86_64,
    Architecture,
    NodeStat,
    ProcessMemory,
    encode_dev,
    host_architecture,
    pack_statfs,
    pack_utsname,
    raw,
)

ALLOW, NOTIFY, ENOSYS = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
COOKIE = 0x1122334455667788
BOTH = pytest.mark.parametrize("architecture", [X86_64, AARCH64], ids=lambda a: a.name)


def run(program: bytes, number: int, arch: int, *args: int) -> int:
    """A classic BPF machine: the action for a system call."""
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<iIQ6Q", number, arch, 0, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator, position = 0, 0
    while True:
        operation, true, false, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            position += true if accumulator == value else false
        elif operation == 0x25:
            position += true if accumulator > value else false
        elif operation == 0x35:
            position += true if accumulator >= value else false
        elif operation == 0x06:
            return int(value)
        else:
            raise AssertionError(f"instruction {operation:#x}")


@BOTH
def test_filter(architecture: Architecture) -> None:
    program = seccomp.build_filter(architecture, COOKIE)
    numbers = architecture.numbers

    def action(name: str, *args: int) -> int:
        return run(program, numbers[name], architecture.audit, *args)

    for name in ("openat", "openat2", "statfs", "fstatfs", "uname", "syslog", "reboot", "lseek"):
        assert action(name) == NOTIFY, name
    for name in ("mount", "umount2"):
        assert action(name) == NOTIFY
        assert action(name, 0, 0, 0, 0, 0, COOKIE) == ALLOW
        assert action(name, 0, 0, 0, 0, 0, COOKIE ^ 1 << 40) == NOTIFY
        assert action(name, 0, 0, 0, 0, 0, COOKIE ^ 1) == NOTIFY
    for name in ("fsopen", "fspick", "fsconfig", "mount_setattr", "io_uring_setup", "statmount"):
        assert action(name) == ENOSYS
        assert action(name, 0, 0, 0, 0, 0, COOKIE) == ALLOW
    for request in (0xC048B300, 0xC008B301, 0xC010A403, 0x80081272, 0x40086602, 0x401C5820):
        assert action("ioctl", 3, request) == NOTIFY, hex(request)
    for request in (0x5401, 0x80086601, 0x801C581F, 0x8933):
        assert action("ioctl", 3, request) == ALLOW, hex(request)
    assert action("write", 1, 0x1000, 0) == NOTIFY
    assert action("write", 1, 0x1000, 5) == ALLOW
    assert action("write", 1, 0x1000, seccomp.LONGEST_WRITE) == ALLOW
    assert action("write", 1, 0x1000, seccomp.LONGEST_WRITE + 1) == NOTIFY
    assert action("write", 1, 0x1000, 1 << 32) == NOTIFY
    assert action("writev", 1, 0x1000, 1) == ALLOW
    assert action("writev", 1, 0x1000, 2) == NOTIFY
    assert action("fstat", 3, 0x1000) == NOTIFY
    assert action("newfstatat", 3, 0x1000, 0x2000, 0x1100) == NOTIFY
    assert action("newfstatat", 3, 0x1000, 0x2000, 0x100) == ALLOW
    assert action("statx", 3, 0x1000, 0x1000, 0x7FF, 0x2000) == NOTIFY
    assert action("statx", 3, 0x1000, 0x100, 0x1000, 0x2000) == ALLOW
    named = {*numbers.values()}
    for number in range(600):
        if number not in named:
            assert run(program, number, architecture.audit) == ALLOW
    for other in (0x40000003, 0x40000028):  # i386, arm
        assert run(program, numbers["openat"], other) == ENOSYS
    assert run(program, 0x40000000 | numbers["openat"], architecture.audit) == ENOSYS  # x32


def test_what_is_notified_is_what_is_answered() -> None:
    notified = [*seccomp.NOTIFIED, *seccomp.SOMETIMES]
    assert sorted(call.name for call in SYSTEM_CALLS) == sorted(notified)


@BOTH
def test_jumps_fit(architecture: Architecture) -> None:
    program = seccomp.build_filter(architecture, COOKIE)
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096
    assert program[-8:] == struct.pack("<HBBI", 0x06, 0, 0, ALLOW)


@pytest.mark.parametrize(
    ("header", "architecture"),
    [
        ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", X86_64),
        ("/usr/include/asm-generic/unistd.h", AARCH64),
    ],
)
def test_numbers_are_those_of_the_headers(header: str, architecture: Architecture) -> None:
    path = Path(header)
    if not path.exists():
        pytest.skip("kernel headers: package linux-libc-dev")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text()))
    compared = {name: int(found[name]) for name in architecture.numbers if name in found}
    assert compared == {name: architecture.numbers[name] for name in compared}
    assert len(compared) > 20


def test_layouts() -> None:
    # include/uapi/linux/seccomp.h
    assert seccomp._NOTIF.size == 80
    assert seccomp._RESPONSE.size == 24
    assert seccomp._ADDFD.size == 24
    assert seccomp.NOTIF_RECV == 0xC0502100
    assert seccomp.NOTIF_SEND == 0xC0182101
    assert seccomp.NOTIF_ID_VALID == 0x40082102
    assert seccomp.NOTIF_ADDFD == 0x40182103
    # arch/x86/include/uapi/asm/stat.h, include/uapi/asm-generic/stat.h, include/uapi/linux/stat.h
    status = NodeStat(59, 4, 0o60660, 0, 6, os.makedev(179, 1), 1.5)
    packed = status.pack(AARCH64)
    assert len(packed) == 128
    assert struct.unpack_from("<2Q4IQ", packed) == (59, 4, 0o60660, 1, 0, 6, 179 << 8 | 1)
    assert struct.unpack_from("<qixxxxqqQqQqQ", packed, 48) == (0, 4096, 0, *(1, 500000000) * 3)
    # include/uapi/asm-generic/statfs.h on a 64-bit architecture
    packed = pack_statfs(0xDE5E81E4, 1, 2, 3, 4, 5, 6, 7, 255, 9, 0x1020)
    assert len(packed) == 120
    assert struct.unpack("<15q", packed)[:11] == (0xDE5E81E4, 1, 2, 3, 4, 5, 6, 7, 255, 9, 0x1020)
    names = pack_utsname("Linux", "n" * 80, "6.12", "#1", "aarch64", "(none)")
    assert len(names) == 390
    assert names[65 : 65 + 65] == b"n" * 64 + b"\0"
    assert encode_dev(0, 50) == 50
    assert encode_dev(8, 0x1FF) == 0x1008FF
    assert encode_dev(179, 8) == 179 << 8 | 8


def test_stat_layouts_are_those_of_this_kernel(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "empty", os.O_RDONLY | os.O_CREAT)
    moment = 1_700_000_000.25
    os.utime(fd, (moment, moment))
    try:
        real = os.fstat(fd)
        status = NodeStat(
            real.st_dev, real.st_ino, real.st_mode, real.st_uid, real.st_gid, 0, moment
        )
        stat_buffer, statx_buffer = (ctypes.create_string_buffer(size) for size in (256, 256))
        raw("fstat", fd, ctypes.addressof(stat_buffer))
        raw("statx", fd, b"", 0x1000, 0x7FF, ctypes.addressof(statx_buffer))
    finally:
        os.close(fd)
    packed = status.pack(host_architecture())
    times = slice(72, 104)  # atime and mtime; ctime cannot be set
    assert packed[:56] == stat_buffer.raw[:56]
    assert packed[times] == stat_buffer.raw[times]
    packed = status.pack_statx()
    assert len(packed) == 256
    assert packed[4:8] == statx_buffer.raw[4:8]  # behind the mask
    assert packed[16:56] == statx_buffer.raw[16:56]
    assert packed[64:76] == statx_buffer.raw[64:76]
    assert packed[112:144] == statx_buffer.raw[112:144]


def test_memory_of_a_process() -> None:
    memory = ProcessMemory(os.getpid())
    buffer = ctypes.create_string_buffer(b"path/of/a/file", 64)
    address = ctypes.addressof(buffer)
    assert memory.read_string(address) == b"path/of/a/file"
    assert memory.read(address + 5, 2) == b"of"
    memory.write(address, b"PATH")
    assert buffer.value == b"PATH/of/a/file"
    assert memory.read(8, 0) == b""
    with pytest.raises(OSError, match="Bad address"):
        memory.read(8, 1)
    with pytest.raises(OSError, match="Bad address"):
        memory.write(8, b"x")
    long = ctypes.create_string_buffer(b"x" * 5000)
    with pytest.raises(OSError, match="too long"):
        memory.read_string(ctypes.addressof(long))


def test_string_at_the_end_of_the_last_page() -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    page = os.sysconf("SC_PAGE_SIZE")
    start = libc.mmap(None, ctypes.c_size_t(2 * page), 3, 0x22, -1, ctypes.c_long(0))
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    memory = ProcessMemory(os.getpid())
    memory.write(start + page - 4, b"end\0")
    assert memory.read_string(start + page - 4) == b"end"
    memory.write(start + page - 1, b"x")
    with pytest.raises(OSError, match="Bad address"):
        memory.read_string(start + page - 4)
    libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(2 * page))


TABLE = """\
42 75 0:40 / / rw,relatime - tmpfs tmpfs rw,mode=755
43 42 0:41 / /proc rw,nosuid shared:5 master:1 - proc proc rw
60 42 254:0 /usr /usr ro,relatime - ext4 /dev/vda rw,discard
63 42 0:50 / /mnt/a\\040b rw,relatime - fuse fuse rw,user_id=0,group_id=0,allow_other
64 42 0:50 / /m ro,noexec - fuse fuse rw,user_id=0
65 42 0:50 / /n rw,noexec - fuse fuse ro,user_id=0
"""


def test_mount_table() -> None:
    entries = parse_mountinfo(TABLE)
    assert "".join(entry.mountinfo() for entry in entries) == TABLE
    view = BoardView({"0:50": "efivarfs"})
    view.hidden = {60}
    view.sources = {64: "none"}
    shown = view.apply(entries)
    assert "".join(entry.mounts() for entry in shown[2:]) == (
        "efivarfs /mnt/a\\040b efivarfs rw,relatime 0 0\n"
        "none /m efivarfs ro,noexec 0 0\n"
        "efivarfs /n efivarfs ro,noexec 0 0\n"
    )
    assert shown[2].mountinfo().endswith("- efivarfs efivarfs rw\n")
    assert shown[0].mounts() == "tmpfs / tmpfs rw,relatime,mode=755 0 0\n"
    assert shown[2].mountstats() == "device efivarfs mounted on /mnt/a\\040b with fstype efivarfs\n"


def test_mount_table_shows_the_file_systems_own_options() -> None:
    view = BoardView({"0:50": "efivarfs"}, lambda _: True, lambda _: ",uid=1000")
    shown = view.apply(parse_mountinfo(TABLE))
    assert shown[3].mountinfo().endswith("- efivarfs efivarfs ro,uid=1000\n")
    assert shown[3].mounts() == "efivarfs /mnt/a\\040b efivarfs ro,relatime,uid=1000 0 0\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", 42), ("/mnt/a b/x", 63), ("/mnt/a bc", 42), ("/m", 64), ("/proc/1", 43)],
)
def test_mount_that_contains_a_path(path: str, expected: int) -> None:
    entry = containing(parse_mountinfo(TABLE), path)
    assert isinstance(entry, MountEntry)
    assert entry.id == expected
