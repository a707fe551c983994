"""The MMC block driver's user ABI: ``/dev/mmcblk0``, its partitions and ``/dev/mmcblk0rpmb``.

Source: stack 1.6, K6 drivers/mmc/core/block.c.  A command sequence holds the card from its
first to its last command, as mmc_get_card does, so that the result register one caller reads is
the one of its own request.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from emulation.emmc.card import EmmcCard, Response
from emulation.emmc.gpt import read_table
from emulation.emmc.user_area import UserArea
from emulation.linux.devices import UserMemory
from emulation.linux.kernel import Kernel, Task
from harness.formats.mmc import (
    EXT_CSD_SEC_COUNT,
    IOC_CMD,
    IOC_RESPONSE,
    IOC_RESPONSE_OFFSET,
    MMC_BLOCK_MAJOR,
    MMC_IOC_CMD,
    MMC_IOC_MAX_BYTES,
    MMC_IOC_MAX_CMDS,
    MMC_IOC_MULTI_CMD,
    MMC_SECTOR,
    MULTI_COUNT,
    IocCommand,
)

WHOLE: Final = "mmcblk0"
RPMB: Final = "mmcblk0rpmb"

_EXTENDED_MAJOR: Final = 259
"""BLOCK_EXT_MAJOR, for partitions beyond the minors of a disk."""
_MINORS: Final = 8
"""CONFIG_MMC_BLOCK_MINORS."""

_BLKROGET: Final = 0x125E
_BLKGETSIZE: Final = 0x1260
_BLKFLSBUF: Final = 0x1261
_BLKSSZGET: Final = 0x1268
_BLKBSZGET: Final = 0x80081270
_BLKGETSIZE64: Final = 0x80081272
_BLKPBSZGET: Final = 0x127B


class MmcNode:
    """One of the device nodes; every open file of it is the same."""

    def __init__(self, block: MmcBlock, name: str) -> None:
        self._block = block
        self._name = name

    def open(self, task: Task, flags: int = 0) -> MmcNode:
        """open(2)."""
        return self

    def may_sleep(self, request: int) -> bool:
        """Commands wait for the card when it honours postsleep_min_us."""
        return self._block.honours_postsleep

    def ioctl(self, request: int, argument: int, memory: UserMemory, task: Task) -> int:
        """See :meth:`MmcBlock.ioctl`."""
        return self._block.ioctl(self._name, request, argument, memory, task)

    def close(self) -> None:
        """Nothing is kept for an open file."""


@dataclass(frozen=True)
class Disk:
    """A block device: the user area (partition 0) or one of its partitions.

    ``first`` and ``sectors`` in units of 512 bytes.
    """

    name: str
    major: int
    minor: int
    partition: int
    first: int
    sectors: int
    label: str
    _kernel: Kernel
    _area: UserArea

    @property
    def size(self) -> int:
        """Bytes."""
        return self.sectors * MMC_SECTOR

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at byte ``offset``; nothing at and beyond the end."""
        self._kernel.check_power()
        return self._area.read(self._position(offset), max(0, min(size, self.size - offset)))

    def write(self, offset: int, data: bytes) -> int:
        """Store as much as fits; ENOSPC at the end (K6 block/fops.c)."""
        self._kernel.check_power()
        taken = min(len(data), self.size - offset)
        if data and taken <= 0:
            raise OSError(errno.ENOSPC, "the end of the device")
        self._area.write(self._position(offset), data[:taken])
        return taken

    def _position(self, offset: int) -> int:
        return self.first * MMC_SECTOR + offset


class MmcBlock:
    """``mmcblk0``, its partitions and its RPMB character device on one card.

    ``disks``: the block devices, as the partition table says when the driver finds the card.
    ``claim`` is shared with others who send commands to the card.  ``honour_postsleep`` makes a
    command wait as long as its caller asked for (postsleep_min_us); the emulated card is ready at
    once, so it is off unless latency is under test.
    """

    def __init__(
        self,
        kernel: Kernel,
        card: EmmcCard,
        claim: threading.Lock | None = None,
        *,
        honour_postsleep: bool = False,
    ) -> None:
        self._kernel = kernel
        self._card = card
        self.honours_postsleep = honour_postsleep
        self._claimed = claim or threading.Lock()
        self.disks = {disk.name: disk for disk in self._scan()}

    def _scan(self) -> Iterator[Disk]:
        area = self._card.user_area
        field = self._card.ext_csd[EXT_CSD_SEC_COUNT : EXT_CSD_SEC_COUNT + 4]
        sectors = int.from_bytes(field, "little")
        yield Disk(WHOLE, MMC_BLOCK_MAJOR, 0, 0, 0, sectors, "", self._kernel, area)
        for part in read_table(area):
            n = part.number
            number = (MMC_BLOCK_MAJOR, n) if n < _MINORS else (_EXTENDED_MAJOR, n - _MINORS)
            where = (n, part.first, part.sectors)
            yield Disk(f"{WHOLE}p{n}", *number, *where, part.name, self._kernel, area)

    def ioctl(self, node: str, request: int, arg: int, memory: UserMemory, task: Task) -> int:
        """Carry out one ioctl for ``task``; returns 0 or raises OSError."""
        disk = self.disks.get(node)
        if disk is not None:
            size = self._block_ioctl(disk, request, arg, memory)
            if size is not None:
                return size
        if request not in (MMC_IOC_CMD, MMC_IOC_MULTI_CMD):
            raise OSError(errno.EINVAL, "not an MMC ioctl")
        if disk is not None and (disk.partition or not task.capable):
            raise OSError(errno.EPERM, "only with CAP_SYS_RAWIO, only on the whole device")
        if request == MMC_IOC_CMD:
            self._run(arg, 1, memory, rpmb=node == RPMB)
            return 0
        (count,) = MULTI_COUNT.unpack(memory.read(arg, MULTI_COUNT.size))
        if count > MMC_IOC_MAX_CMDS:
            raise OSError(errno.EINVAL, "too many commands")
        self._run(arg + MULTI_COUNT.size, count, memory, rpmb=node == RPMB)
        return 0

    def _run(self, first: int, count: int, memory: UserMemory, *, rpmb: bool) -> None:
        structures = memory.read(first, count * IOC_CMD.size)
        places = range(0, len(structures), IOC_CMD.size)
        addresses = [first + place for place in places]
        loaded = [self._load(structures[place:][: IOC_CMD.size], memory) for place in places]
        failure: OSError | None = None
        results: list[tuple[bytes, Response]] = []
        with self._claimed:
            for command, data in loaded:
                self._kernel.check_power()
                try:
                    results.append(self._execute(command, data, rpmb=rpmb))
                except OSError as error:
                    failure = error
                    break
                self._postsleep(command)
        # What was answered before a failure is copied back too.
        for address, (command, _), (data, response) in zip(
            addresses, loaded, results, strict=False
        ):
            memory.write(address + IOC_RESPONSE_OFFSET, IOC_RESPONSE.pack(*response))
            if not command.write_flag and command.data_length:
                memory.write(command.data_ptr, data)
        if failure is not None:
            raise failure

    def _execute(self, command: IocCommand, data: bytes, *, rpmb: bool) -> tuple[bytes, Response]:
        return self._card.execute(
            command.opcode,
            command.arg,
            command.blksz,
            command.blocks,
            command.write_flag,
            data,
            rpmb_selected=rpmb,
        )

    @staticmethod
    def _load(structure: bytes, memory: UserMemory) -> tuple[IocCommand, bytes]:
        command = IocCommand.unpack(structure)
        if command.data_length > MMC_IOC_MAX_BYTES:
            raise OSError(errno.EOVERFLOW, "more than 512 KiB in one command")
        # memdup_user copies the buffer whichever way the data goes, so it must be readable.
        data = memory.read(command.data_ptr, command.data_length) if command.data_length else b""
        return command, data

    def _postsleep(self, command: IocCommand) -> None:
        if self.honours_postsleep and command.postsleep_min_us:
            self._kernel.wait(
                lambda: False, task=Task.kernel(), timeout=command.postsleep_min_us / 1e6
            )

    @staticmethod
    def _block_ioctl(disk: Disk, request: int, arg: int, memory: UserMemory) -> int | None:
        """The block layer's own requests (K6 block/ioctl.c); None when it has none such."""
        if request == _BLKFLSBUF:
            return 0
        answers = {
            _BLKROGET: struct.pack("<i", 0),
            _BLKGETSIZE: struct.pack("<Q", disk.sectors),
            _BLKSSZGET: struct.pack("<i", MMC_SECTOR),
            _BLKBSZGET: struct.pack("<i", 4096),
            _BLKPBSZGET: struct.pack("<I", MMC_SECTOR),
            _BLKGETSIZE64: struct.pack("<Q", disk.size),
        }
        if request not in answers:
            return None
        memory.write(arg, answers[request])
        return 0
