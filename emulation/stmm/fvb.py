"""The flash driver: a RAM image in front of OP-TEE's RPMB file.

Source: stack 4.12; EP Drivers/OpTee/OpteeRpmbPkg/OpTeeRpmbFvb.c.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from emulation.stmm.config import StmmConfig
from emulation.stmm.storage import SecureStorage
from harness.formats.efi import EfiStatus
from harness.formats.variable_store import (
    AUTHENTICATED_VARIABLE_GUID,
    BLOCK_SIZE,
    STORE_SIZE,
    SYSTEM_NV_DATA_FV_GUID,
    VOLUME_HEADER_SIZE,
    VOLUME_REVISION,
    VOLUME_SIGNATURE,
    VOLUME_SIZE,
    StoreHeader,
    VolumeHeader,
    checksum_ok,
)

BLOCKS: Final = VOLUME_SIZE // BLOCK_SIZE

_STATUS: Final[Mapping[str, Mapping[int, EfiStatus]]] = MappingProxyType(
    {
        "spm": {
            -1: EfiStatus.UNSUPPORTED,
            -2: EfiStatus.INVALID_PARAMETER,
            -3: EfiStatus.ACCESS_DENIED,
            -5: EfiStatus.OUT_OF_RESOURCES,
        },
        "ffa": {
            -1: EfiStatus.UNSUPPORTED,
            -2: EfiStatus.INVALID_PARAMETER,
            -3: EfiStatus.OUT_OF_RESOURCES,
            -6: EfiStatus.ACCESS_DENIED,
            -9: EfiStatus.NOT_FOUND,
        },
    }
)


class FirmwareVolumeBlock:
    """Flash of 12 blocks of 4096 bytes. Reads come from ``image``; writes go to the storage first.

    ``image`` is the RAM copy, valid after a successful ``start``.
    """

    def __init__(self, storage: SecureStorage, config: StmmConfig) -> None:
        self.image = bytearray(VOLUME_SIZE)
        self._storage = storage
        mask = (1 << config.storage_code_bits) - 1
        # -2 as a 64-bit constant is not 0xFFFFFFFE, so with 64 bits nothing below ever matches.
        self._status = {
            code & mask: status for code, status in _STATUS[config.storage_codes].items()
        }

    def start(self) -> EfiStatus:
        """Load the file; format it if it is not a variable store. The read's result is ignored."""
        _, content = self._storage.read(0, VOLUME_SIZE)
        self.image[: len(content)] = content[:VOLUME_SIZE]
        if _valid(self.image):
            return EfiStatus.SUCCESS
        status = self.write(0, b"\xff" * VOLUME_SIZE)
        if status.is_error:
            return status
        return self.write(0, VolumeHeader().pack() + StoreHeader().pack())

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the RAM copy."""
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes) -> EfiStatus:
        """One write of the flash driver; the RAM copy changes only if the storage took it."""
        code = self._storage.write(offset, data)
        if code:
            return self._status.get(code, EfiStatus.ACCESS_DENIED)
        self.image[offset : offset + len(data)] = data
        return EfiStatus.SUCCESS

    def write_across_blocks(self, offset: int, data: bytes) -> EfiStatus:
        """Write as the variable and FTW drivers do: one driver write for each block touched."""
        position = 0
        while position < len(data):
            room = BLOCK_SIZE - (offset + position) % BLOCK_SIZE
            status = self.write(offset + position, data[position : position + room])
            if status.is_error:
                return status
            position += room
        return EfiStatus.SUCCESS

    def erase(self, lba: int, blocks: int) -> EfiStatus:
        """Fill blocks with 0xFF in one write."""
        if lba + blocks > BLOCKS:
            return EfiStatus.INVALID_PARAMETER
        return self.write(lba * BLOCK_SIZE, b"\xff" * (blocks * BLOCK_SIZE))


def _valid(image: bytearray) -> bool:
    """ValidateFvHeader: what the driver looks at before it trusts a file."""
    volume = VolumeHeader.unpack(image)
    if (volume.revision, volume.signature, volume.length) != (
        VOLUME_REVISION,
        VOLUME_SIGNATURE,
        VOLUME_SIZE,
    ):
        return False
    if volume.guid != SYSTEM_NV_DATA_FV_GUID or not checksum_ok(image):
        return False
    store = StoreHeader.unpack(image, VOLUME_HEADER_SIZE)
    return store.guid == AUTHENTICATED_VARIABLE_GUID and store.size == STORE_SIZE
