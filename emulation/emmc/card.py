"""The eMMC as its host controller sees it: registers, and the commands that Linux and U-Boot use.

Source: JESD84-B51 6.10, 7.2 - 7.4; stack 1.5 and 1.6; QE emmc_set_ext_csd for the values of the
recorded board.
"""

import errno
import struct
from typing import Final

from emulation.emmc import groups
from emulation.emmc.image import RpmbImage
from emulation.emmc.rpmb import QEMU, Profile, RpmbPartition
from emulation.emmc.user_area import UserArea
from emulation.faults import Faults
from harness.formats.mmc import (
    EXT_CSD_PARTITION_CONFIG,
    EXT_CSD_REL_WR_SEC_C,
    EXT_CSD_REV,
    EXT_CSD_RPMB_SIZE_MULT,
    EXT_CSD_SEC_COUNT,
    EXT_CSD_SIZE,
    EXT_CSD_WR_REL_PARAM,
    MMC_READ_MULTIPLE_BLOCK,
    MMC_SECTOR,
    MMC_SEND_EXT_CSD,
    MMC_SEND_STATUS,
    MMC_SWITCH,
    MMC_WRITE_MULTIPLE_BLOCK,
    RELIABLE_WRITE,
)

QEMU_CID: Final = bytes.fromhex("aa015851454d55212101deadbeef2900")
"""CID of the recorded board (truth log-optee-boot1-fresh)."""
USER_SECTORS: Final = 128 * 1024 * 1024 // MMC_SECTOR
"""Size of the user area, in sectors of 512 bytes."""

_READY_IN_TRANSFER_STATE: Final = 0x900
_BLOCK_LENGTH_ERROR: Final = 1 << 29
_SWITCH_ERROR: Final = 1 << 7

_ENHANCED_RPMB: Final = 1 << 4
"""EN_RPMB_REL_WR in EXT_CSD[166]."""
_ENHANCED_RELIABLE_WRITE: Final = 1 << 2
"""EN_REL_WR in EXT_CSD[166]."""
_USER_WP: Final = 171
_OF_GROUPS: Final = (
    groups.SET_WRITE_PROT, groups.CLR_WRITE_PROT, groups.SEND_WRITE_PROT,
    groups.SEND_WRITE_PROT_TYPE, groups.ERASE_GROUP_START, groups.ERASE_GROUP_END, groups.ERASE,
)  # fmt: skip
_READ_ONLY_FROM: Final = 192
"""EXT_CSD from here on is the properties segment."""

_PROPERTIES: Final = {
    160: 0x07,  # PARTITIONING_SUPPORT
    181: 0x01,  # ERASED_MEM_CONT
    EXT_CSD_REV: 0x05,  # 1.5, MMC 4.41
    194: 0x02,  # CSD_STRUCTURE
    196: 0x03,  # DEVICE_TYPE: 26 and 52 MHz
    **dict.fromkeys(range(205, 211), 0x46),  # MIN_PERF_*
    217: 0x01,  # S_A_TIMEOUT
    219: 0x01,  # S_C_VCCQ
    220: 0x01,  # S_C_VCC
    221: 0x01,  # HC_WP_GRP_SIZE
    223: 0x01,  # ERASE_TIMEOUT_MULT
    224: 0x01,  # HC_ERASE_GRP_SIZE
    225: 0x01,  # ACC_SIZE
    504: 0x01,  # S_CMD_SET
}

Response = tuple[int, int, int, int]


class EmmcCard:
    """One eMMC from power-on to power-off; :meth:`power_cycle` begins the next life.

    ``image`` and ``user_area`` (by default a new card's) hold what survives.  ``enhanced_rpmb``
    sets EN_RPMB_REL_WR.
    """

    def __init__(
        self,
        image: RpmbImage,
        *,
        cid: bytes = QEMU_CID,
        rel_wr_sec_c: int = 1,
        enhanced_rpmb: bool = False,
        profile: Profile = QEMU,
        faults: Faults | None = None,
        user_area: UserArea | None = None,
    ) -> None:
        if len(cid) != 16:
            raise ValueError("a CID has 16 bytes")
        self.cid = cid
        self.user_area = user_area or UserArea.in_memory(USER_SECTORS)
        self._groups = groups.Groups(self.user_area)
        self.rpmb = RpmbPartition(
            image,
            rel_wr_sec_c=rel_wr_sec_c,
            enhanced=enhanced_rpmb,
            profile=profile,
            faults=faults,
        )
        reliability = _ENHANCED_RELIABLE_WRITE | (_ENHANCED_RPMB if enhanced_rpmb else 0)
        self._reset_values = _registers(
            self.user_area.sectors, image.size_mult, rel_wr_sec_c, reliability
        )
        self._ext_csd = bytearray(self._reset_values)

    @property
    def csd(self) -> bytes:
        """The 16 bytes of CSD, without their checksum as a host controller hands them on."""
        groups = min(self.user_area.sectors >> 9, 1 << 12)  # of 512 sectors: C_SIZE_MULT is 7
        fields = {126: 3, 122: 4, 112: 0x0F, 96: 0x32, 84: 0x0F5, 80: 9, 62: groups - 1, 47: 7}
        fields |= {42: 31, 37: 31, 32: 31, 31: 1, 26: 2, 22: 9}
        return sum(value << bit for bit, value in fields.items()).to_bytes(16, "big")

    @property
    def ext_csd(self) -> bytes:
        """The 512 bytes of EXT_CSD."""
        return bytes(self._ext_csd)

    def power_cycle(self) -> None:
        """The power went and came back: volatile registers have their reset values."""
        self._ext_csd[:] = self._reset_values
        self.rpmb.power_cycle()
        self._groups.power_cycle()

    def execute(
        self,
        opcode: int,
        arg: int,
        blksz: int,
        blocks: int,
        write_flag: int,
        data: bytes,
        *,
        rpmb_selected: bool,
    ) -> tuple[bytes, Response]:
        """One command, with the data it moves (``blksz`` * ``blocks`` bytes) and its response.

        ``write_flag`` bit 31 is reliable write, which the kernel passes on in CMD23.  Returns the
        data read and the four response words.  A command that the card does not know gets no
        answer: OSError ETIMEDOUT.  Commands read and write the RPMB only (and erase and protect
        the rest, which the block device has from ``user_area``).
        """
        if opcode == MMC_SEND_EXT_CSD:
            return self.ext_csd[: blksz * blocks], _r1()
        if opcode == MMC_SEND_STATUS:
            return b"", _r1()
        if opcode == MMC_SWITCH:
            return b"", _r1(self._switch(arg))
        if opcode in _OF_GROUPS:
            answer, errors = self._groups.execute(opcode, arg, self._ext_csd[_USER_WP])
            return answer[: blksz * blocks], _r1(errors)
        if rpmb_selected and opcode in (MMC_READ_MULTIPLE_BLOCK, MMC_WRITE_MULTIPLE_BLOCK):
            if blksz != MMC_SECTOR or blocks < 1:
                return bytes(blksz * blocks), _r1(_BLOCK_LENGTH_ERROR)
            if opcode == MMC_READ_MULTIPLE_BLOCK:
                return self.rpmb.read_frames(blocks), _r1()
            self.rpmb.write_frames(
                data[: blksz * blocks], reliable=bool(write_flag & RELIABLE_WRITE)
            )
            return b"", _r1()
        raise OSError(errno.ETIMEDOUT, f"the card does not answer CMD{opcode}")

    def _switch(self, arg: int) -> int:
        """CMD6; the bits it raises in the status."""
        access, index, value = arg >> 24 & 3, arg >> 16 & 0xFF, arg >> 8 & 0xFF
        if index >= _READ_ONLY_FROM:
            return _SWITCH_ERROR
        current = self._ext_csd[index]
        self._ext_csd[index] = (current, current | value, current & ~value & 0xFF, value)[access]
        return 0


def _r1(errors: int = 0) -> Response:
    return (_READY_IN_TRANSFER_STATE | errors, 0, 0, 0)


def _registers(sectors: int, size_mult: int, rel_wr_sec_c: int, reliability: int) -> bytes:
    registers = bytearray(EXT_CSD_SIZE)
    for index, value in _PROPERTIES.items():
        registers[index] = value
    registers[EXT_CSD_RPMB_SIZE_MULT] = size_mult
    registers[EXT_CSD_REL_WR_SEC_C] = rel_wr_sec_c
    registers[EXT_CSD_WR_REL_PARAM] = reliability
    registers[EXT_CSD_PARTITION_CONFIG] = 0
    struct.pack_into("<I", registers, EXT_CSD_SEC_COUNT, sectors)
    return bytes(registers)
