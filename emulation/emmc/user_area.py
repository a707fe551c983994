"""The user area of the eMMC: what ``/dev/mmcblk0`` shows, in a sparse file.

A card comes from the factory with a partition table, an EFI system partition, which is an empty
FAT, and a root partition, which is blank.
The system partition is the one that the recorded boot entry names (truth
special-051).  As with the RPMB (:mod:`emulation.emmc.image`), what was written survives the death
of this process at any instruction.
"""

import errno
import os
import weakref
from pathlib import Path
from typing import Final, Self
from uuid import UUID

from emulation.emmc.fat import write_fat16
from emulation.emmc.gpt import ESP, ROOT_ARM64, Partition, write_table
from emulation.emmc.image import ImageError
from harness.formats.mmc import MMC_SECTOR

_DISK: Final = UUID("5b1f0a4c-6f0e-4a53-9a3c-5f1d5a0c7e21")
_SYSTEM_PARTITION: Final = UUID("a29769bf-d244-45b9-97b6-26eb9344794d")
_ROOT_PARTITION: Final = UUID("0e2d7c1b-93c4-4d0e-8f55-3e6a7d1c9b40")
_SYSTEM_FIRST: Final = 0x800
_SYSTEM_SECTORS: Final = 0x20000
_RESERVED_AT_END: Final = 0x800


class UserArea:
    """``sectors`` of 512 bytes.  Use :meth:`open` or :meth:`in_memory`."""

    def __init__(self, descriptor: int, sectors: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self.sectors = sectors
        self.protected: tuple[range, ...] = ()
        # The last sector is written last, so a file that is too short was never finished.
        if os.fstat(descriptor).st_size < sectors * MMC_SECTOR:
            partitions = _factory_partitions(sectors)
            write_fat16(self, partitions[0], _DISK.int & 0xFFFFFFFF)
            write_table(self, _DISK, partitions)

    @classmethod
    def open(cls, path: Path, sectors: int) -> Self:
        """Open the file at ``path``, or make a new one as it comes from the factory.

        Raises ImageError if it belongs to a larger card, OSError where the host refuses.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(descriptor).st_size > sectors * MMC_SECTOR:
            os.close(descriptor)
            raise ImageError(f"{path} has more than {sectors} sectors")
        return cls(descriptor, sectors)

    @classmethod
    def in_memory(cls, sectors: int) -> Self:
        """A new card's, for as long as the object lives."""
        return cls(os.memfd_create("user-area", os.MFD_CLOEXEC), sectors)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at byte ``offset``, both within the area."""
        return os.pread(self._descriptor, size, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at byte ``offset``, all of it within the area; OSError EIO where the card
        protects any of it (``protected``: ranges of bytes)."""
        end = offset + len(data)
        if any(part.start < end and offset < part.stop for part in self.protected):
            raise OSError(errno.EIO, "the card protects it from writing")
        os.pwrite(self._descriptor, data, offset)

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._close()


def _factory_partitions(sectors: int) -> tuple[Partition, Partition]:
    after = _SYSTEM_FIRST + _SYSTEM_SECTORS
    end = sectors - _RESERVED_AT_END - 1
    return (
        Partition(1, ESP, _SYSTEM_PARTITION, _SYSTEM_FIRST, after - 1, "ESP"),
        Partition(2, ROOT_ARM64, _ROOT_PARTITION, after, end, "root"),
    )
