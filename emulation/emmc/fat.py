"""An empty FAT16 file system: what a factory leaves on the EFI system partition.

Source: Microsoft FAT specification (August 2005) 3 to 6; the same choices as mkfs.fat(8).
"""

import struct
from typing import Final

from emulation.emmc.gpt import Medium, Partition
from harness.formats.mmc import MMC_SECTOR

_BOOT_SECTOR: Final = struct.Struct("<3s8sHBHBHHBHHHIIBxBI11s8s")
_CLUSTER: Final = 4
"""Sectors; a FAT16 has 4085 to 65524 clusters."""
_ROOT_ENTRIES: Final = 512
_FATS: Final = 2
_FIXED_DISK: Final = 0xF8
_EXTENDED: Final = 0x29
_VOLUME_LABEL: Final = 0x08


def write_fat16(medium: Medium, part: Partition, serial: int) -> None:
    """Make the file system in ``part``, with the partition's name as label."""
    label = part.name.upper().encode("ascii").ljust(11)
    size = -(-(part.sectors // _CLUSTER + 2) * 2 // MMC_SECTOR)
    boot = _BOOT_SECTOR.pack(
        b"\xeb\x3c\x90", b"mkfs.fat", MMC_SECTOR, _CLUSTER, _CLUSTER, _FATS, _ROOT_ENTRIES, 0,
        _FIXED_DISK, size, 32, 2, part.first, part.sectors, 0x80, _EXTENDED, serial, label,
        b"FAT16   ",
    )  # fmt: skip
    start = part.first * MMC_SECTOR
    medium.write(start, boot.ljust(MMC_SECTOR - 2, b"\0") + b"\x55\xaa")
    fat = start + _CLUSTER * MMC_SECTOR
    for number in range(_FATS):
        medium.write(fat + number * size * MMC_SECTOR, b"\xf8\xff\xff\xff")
    root = fat + _FATS * size * MMC_SECTOR
    medium.write(root, label + bytes([_VOLUME_LABEL]))
