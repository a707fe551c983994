"""A static program that takes raw system calls on a target without python3.

It is assembled from the sources beside this file; a test assembles them again and compares. The
ELF file around the code is made here, so that a board gets some 500 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

IN = 0x20000000
"""Where a request lies on the target; addresses within it are absolute."""

ROOM = 0x01000000
"""Bytes for the request and what its calls read; the answer has as many behind it."""

_CODE_AT = 0x400000
_HEADERS = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_READ_EXECUTE, _READ_WRITE = 5, 6


@dataclass(frozen=True, slots=True)
class Machine:
    """One kind of processor: its number in ELF headers, the code, its numbers of system calls and
    of the flags of open(2) that differ between processors."""

    elf: int
    code: bytes
    calls: Mapping[str, int]
    flags: Mapping[str, int]

    @property
    def program(self) -> bytes:
        """The ELF file: code where it lies in the file, and room for request and answer."""
        start = _HEADERS.size + 2 * _SEGMENT.size
        size = start + len(self.code)
        kind = b"\x7fELF\2\1\1".ljust(16, b"\0")
        header = _HEADERS.pack(
            kind, 2, self.elf, 1, _CODE_AT + start, _HEADERS.size, 0, 0,
            _HEADERS.size, _SEGMENT.size, 2, 0, 0, 0,
        )  # fmt: skip
        code = _SEGMENT.pack(1, _READ_EXECUTE, 0, _CODE_AT, _CODE_AT, size, size, 0x10000)
        room = _SEGMENT.pack(1, _READ_WRITE, 0, IN, IN, 0, 2 * ROOM, 0x10000)
        return header + code + room + self.code


_X86_64 = bytes.fromhex(
    "b82600000031ff488d354a01000031d20f05b80101000048c7c79cffffff488d352101000031d20f054885c0"
    "0f880b0100004989c4bb0000002031c04c89e74889deba0000002129da0f054885c07e054801c3ebe5b80300"
    "00004c89e70f05bb000000204c8b234883c30841bd000000214d85e474724c8b730831c949d1ee730d488b44"
    "cb10488b00488944cb10ffc183f90675e7488b03488b7b10488b7318488b53204c8b53284c8b43304c8b4b38"
    "0f0548894350498945004983c5084885c0781c488b73404885f67413488b4b484885c9480f44c84c89eff3a4"
    "4989fd4883c35849ffcceb89b80101000048c7c79cffffff488d3553000000ba010000000f054885c0783649"
    "89c4bb000000214c89ea4829da7417b8010000004c89e74889de0f054885c078144801c3ebe1b8030000004c"
    "89e70f05e9c3feffffb83c00000031ff0f057265717565737400616e73776572000000000000000000000000"
    "000000000000000008070000000000000000000000000000"
)
_AARCH64 = bytes.fromhex(
    "e80c80d2000080d2010b0010020080d2010000d4080780d2600c8092e1090010020080d2010000d42009f8b7"
    "f30300aa1400a4d2e80780d2e00313aae10314aa0220a4d2420014cb010000d41f0000f16d0000549402008b"
    "f7ffff17280780d2e00313aa010000d41400a4d2958640f81620a4d2350400b4890640f98a420091cb0080d2"
    "890000364c0140f98c0140f94c0100f929fd41d34a2100916b0500f121ffff54880240f9800641a9820e42a9"
    "841643a9010000d4802a00f9c08600f86001f8b7812240f9210100b4822640f95f0000f10200829aa20000b4"
    "23144038c3160038420400d1fcffff1794620191b50600d1e0ffff17080780d2600c809201030010220080d2"
    "010000d40002f8b7f30300aa1420a4d2c20214eb00010054080880d2e00313aae10314aa010000d4e000f8b7"
    "9402008bf8ffff17280780d2e00313aa010000d4aeffff17a80b80d2000080d2010000d47265717565737400"
    "616e7377657200000000000000000000000000000000000008070000000000000000000000000000"
)

_COMMON_FLAGS = {
    "O_RDONLY": 0,
    "O_WRONLY": 1,
    "O_RDWR": 2,
    "O_CREAT": 0o100,
    "O_EXCL": 0o200,
    "O_NOCTTY": 0o400,
    "O_TRUNC": 0o1000,
    "O_APPEND": 0o2000,
    "O_NONBLOCK": 0o4000,
    "O_DSYNC": 0o10000,
    "O_CLOEXEC": 0o2000000,
    "O_SYNC": 0o4010000,
    "O_PATH": 0o10000000,
}

MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(
        62,
        _X86_64,
        {
            "openat": 257, "read": 0, "write": 1, "writev": 20, "pread64": 17, "lseek": 8,
            "pwrite64": 18,
            "close": 3, "unlinkat": 263, "truncate": 76, "ftruncate": 77, "renameat2": 316,
            "linkat": 265, "symlinkat": 266, "mkdirat": 258, "mknodat": 259, "ioctl": 16,
            "statfs": 137, "getdents64": 217, "statx": 332,
            "fsync": 74, "fdatasync": 75, "fallocate": 285, "mmap": 9,
            "lsetxattr": 189, "lgetxattr": 192, "llistxattr": 195, "lremovexattr": 198,
        },
        {
            **_COMMON_FLAGS,
            "O_DIRECT": 0o40000, "O_DIRECTORY": 0o200000, "O_NOFOLLOW": 0o400000,
            "O_TMPFILE": 0o20200000,
        },
    ),
    "aarch64": Machine(
        183,
        _AARCH64,
        {
            "openat": 56, "read": 63, "write": 64, "writev": 66, "pread64": 67, "lseek": 62,
            "pwrite64": 68,
            "close": 57, "unlinkat": 35, "truncate": 45, "ftruncate": 46, "renameat2": 276,
            "linkat": 37, "symlinkat": 36, "mkdirat": 34, "mknodat": 33, "ioctl": 29,
            "statfs": 43, "getdents64": 61, "statx": 291,
            "fsync": 82, "fdatasync": 83, "fallocate": 47, "mmap": 222,
            "lsetxattr": 6, "lgetxattr": 9, "llistxattr": 12, "lremovexattr": 15,
        },
        {
            **_COMMON_FLAGS,
            "O_DIRECT": 0o200000, "O_DIRECTORY": 0o40000, "O_NOFOLLOW": 0o100000,
            "O_TMPFILE": 0o20040000,
        },
    ),
}  # fmt: skip
"""By the name of their source (Linux include/uapi/asm-generic/unistd.h, asm/fcntl.h)."""


def machine_of(header: bytes) -> Machine | None:
    """Which machine runs programs that begin with this ELF header (20 bytes of one that does);
    None for one that there is no code for."""
    if header[:6] != b"\x7fELF\2\1" or len(header) < 20:
        return None
    number = int.from_bytes(header[18:20], "little")
    return next((machine for machine in MACHINES.values() if machine.elf == number), None)
