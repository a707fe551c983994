"""The user ABI of MMC block devices, and the registers it gives access to.

Sources: K6 include/uapi/linux/mmc/ioctl.h, include/linux/mmc/mmc.h; JESD84-B51.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from harness.formats.ioctl import iowr

MMC_BLOCK_MAJOR: Final = 179
MMC_IOC_MAX_BYTES: Final = 512 * 1024
MMC_IOC_MAX_CMDS: Final = 255
MMC_SECTOR: Final = 512

IOC_CMD: Final = struct.Struct("<iiII4IIIIIIIIIQ")
"""``struct mmc_ioc_cmd``, 72 bytes; fields as in :class:`IocCommand`."""
IOC_RESPONSE: Final = struct.Struct("<4I")
IOC_RESPONSE_OFFSET: Final = 16
"""Where in it the response words are, all that the kernel copies back of a command."""
MULTI_COUNT: Final = struct.Struct("<Q")
"""num_of_cmds, in front of the array of ``struct mmc_ioc_multi_cmd``."""

MMC_IOC_CMD: Final = iowr(MMC_BLOCK_MAJOR, 0, IOC_CMD.size)
MMC_IOC_MULTI_CMD: Final = iowr(MMC_BLOCK_MAJOR, 1, MULTI_COUNT.size)

MMC_SWITCH: Final = 6
MMC_SEND_EXT_CSD: Final = 8
MMC_SEND_STATUS: Final = 13
MMC_READ_MULTIPLE_BLOCK: Final = 18
MMC_WRITE_MULTIPLE_BLOCK: Final = 25

RELIABLE_WRITE: Final = 1 << 31
"""Bit 31 of ``write_flag`` and of CMD23's argument."""
RSP_R1_ADTC: Final = 0x35
"""Flags of a data command with response R1: MMC_RSP_R1 | MMC_CMD_ADTC."""

EXT_CSD_WR_REL_PARAM: Final = 166
EXT_CSD_RPMB_SIZE_MULT: Final = 168
EXT_CSD_PARTITION_CONFIG: Final = 179
EXT_CSD_REV: Final = 192
EXT_CSD_SEC_COUNT: Final = 212
EXT_CSD_REL_WR_SEC_C: Final = 222
EXT_CSD_SIZE: Final = 512
RPMB_UNIT: Final = 128 * 1024
"""Bytes per unit of RPMB_SIZE_MULT."""


@dataclass(frozen=True)
class IocCommand:
    """One command of MMC_IOC_CMD or MMC_IOC_MULTI_CMD."""

    write_flag: int
    opcode: int
    arg: int
    blksz: int
    blocks: int
    data_ptr: int
    flags: int = RSP_R1_ADTC
    is_acmd: int = 0
    response: tuple[int, int, int, int] = (0, 0, 0, 0)
    postsleep_min_us: int = 0
    postsleep_max_us: int = 0
    data_timeout_ns: int = 0
    cmd_timeout_ms: int = 0

    @property
    def data_length(self) -> int:
        """Bytes moved: blksz * blocks."""
        return self.blksz * self.blocks

    def pack(self) -> bytes:
        """The 72 bytes of the structure."""
        return IOC_CMD.pack(
            self.write_flag - (1 << 32) if self.write_flag >= 1 << 31 else self.write_flag,
            self.is_acmd,
            self.opcode,
            self.arg,
            *self.response,
            self.flags,
            self.blksz,
            self.blocks,
            self.postsleep_min_us,
            self.postsleep_max_us,
            self.data_timeout_ns,
            self.cmd_timeout_ms,
            0,
            self.data_ptr,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the 72 bytes; ``write_flag`` comes out unsigned."""
        write_flag, is_acmd, opcode, arg, r0, r1, r2, r3, flags, blksz, blocks, *rest = (
            IOC_CMD.unpack(data)
        )
        postsleep_min, postsleep_max, data_timeout, cmd_timeout, _pad, data_ptr = rest
        return cls(
            write_flag=write_flag & 0xFFFF_FFFF,
            is_acmd=is_acmd,
            opcode=opcode,
            arg=arg,
            response=(r0, r1, r2, r3),
            flags=flags,
            blksz=blksz,
            blocks=blocks,
            postsleep_min_us=postsleep_min,
            postsleep_max_us=postsleep_max,
            data_timeout_ns=data_timeout,
            cmd_timeout_ms=cmd_timeout,
            data_ptr=data_ptr,
        )
