"""Fault tolerant write: replace blocks so that a power cut leaves the old or the new content.

Source: stack 4.13; ED MdeModulePkg/Universal/FaultTolerantWriteDxe.
"""

from contextlib import suppress
from typing import Final

from emulation.stmm.fvb import FirmwareVolumeBlock
from emulation.stmm.refusal import Refused, refuse_if
from harness.formats.efi import EfiStatus
from harness.formats.variable_store import (
    BLOCK_SIZE,
    DESTINATION_COMPLETED,
    HEADER_ALLOCATED,
    SPARE_COMPLETED,
    SPARE_OFFSET,
    SPARE_SIZE,
    WORKING_BIT_INVALID,
    WORKING_BIT_VALID,
    WORKING_HEADER_SIZE,
    WORKING_OFFSET,
    WORKING_SIZE,
    WORKING_STATE_OFFSET,
    WRITE_HEADER_SIZE,
    WRITE_RECORD_SIZE,
    WRITE_TOTAL_SIZE,
    WRITES_ALLOCATED,
    WRITES_COMPLETED,
    WriteHeader,
    WriteRecord,
    working_block_header,
)

SPARE_BLOCKS: Final = SPARE_SIZE // BLOCK_SIZE
WORKING_BLOCKS: Final = WORKING_SIZE // BLOCK_SIZE
_SPARE_LBA: Final = SPARE_OFFSET // BLOCK_SIZE
_WORKING_LBA: Final = WORKING_OFFSET // BLOCK_SIZE
_VALID_HEADER: Final = working_block_header()


class FaultTolerantWrite:
    """The FTW driver over one flash volume.

    ``_space`` is the driver's copy of the working space; the write queue is a row of 80-byte
    entries (header and one record) after the 32-byte working block header.
    """

    def __init__(self, flash: FirmwareVolumeBlock) -> None:
        self._flash = flash
        self._space = bytearray(b"\xff" * WORKING_SIZE)
        self._last = WORKING_HEADER_SIZE

    def start(self) -> None:
        """Make the working space valid and finish or drop an interrupted write (InitFtwProtocol).

        A failure of the flash ends it; EDK2 only asserts on that, and a release build goes on.
        """
        with suppress(Refused):
            self._refresh()
            if self._space[:WORKING_HEADER_SIZE] != _VALID_HEADER:
                self._adopt_or_create_space()
            self._settle_last_write()

    # --- start ----------------------------------------------------------------------------------

    def _adopt_or_create_space(self) -> None:
        self._space[:] = self._flash.read(SPARE_OFFSET, WORKING_SIZE)
        if self._space[:WORKING_HEADER_SIZE] == _VALID_HEADER:
            # Power went between writing the working space's copy and putting it in place.
            self._flush_spare_to_working()
            self._abort()
            self._refresh()
            return
        self._space[:] = b"\xff" * WORKING_SIZE
        self._space[:WORKING_HEADER_SIZE] = _VALID_HEADER
        self._reclaim_space(preserve=False)

    def _settle_last_write(self) -> None:
        header, record = self._last_header(), self._last_record()
        if header.has(HEADER_ALLOCATED) and not record.has(SPARE_COMPLETED):
            self._abort()
        if not header.has(WRITES_COMPLETED) and record.has(DESTINATION_COMPLETED):
            self._abort()
        end = self._last
        if end < WORKING_SIZE and self._space[end] != 0xFF:
            end += header.total_size
        if self._space[end:].strip(b"\xff"):
            self._reclaim_space(preserve=True)
        header, record = self._last_header(), self._last_record()
        if not header.has(WRITES_COMPLETED) and record.has(SPARE_COMPLETED):
            self._restart()
            self._abort()

    def _restart(self) -> None:
        """Put the spare area's content in place once more."""
        self._refresh()
        header, record = self._last_header(), self._last_record()
        if header.has(WRITES_COMPLETED) or record.has(DESTINATION_COMPLETED):
            return
        if not record.has(SPARE_COMPLETED):
            raise Refused(EfiStatus.ABORTED)
        self._complete(record)
        self._erase(_SPARE_LBA, SPARE_BLOCKS)

    def _abort(self) -> None:
        """Mark the pending write complete without doing it (FtwAbort)."""
        self._refresh()
        header = self._last_header()
        if not header.has(HEADER_ALLOCATED) or header.has(WRITES_COMPLETED):
            return
        self._set_state(self._last, WRITES_COMPLETED)
        self._find_last()

    # --- write ----------------------------------------------------------------------------------

    def write(self, lba: int, offset: int, data: bytes) -> None:
        """Replace ``data`` at ``offset`` bytes after block ``lba`` (FtwWrite).

        Refused: ABORTED on a flash failure, BAD_BUFFER_SIZE if the blocks do not fit into the spare
        area, ACCESS_DENIED or NOT_READY if the queue has an unfinished write.
        """
        self._refresh()
        if not self._entry(self._last, WRITE_HEADER_SIZE).strip(b"\xff"):
            self._allocate()
        header, record = self._last_header(), self._last_record()
        over = header.has(WRITES_COMPLETED) or record.has(DESTINATION_COMPLETED)
        refuse_if(over, EfiStatus.ACCESS_DENIED)
        refuse_if(record.has(SPARE_COMPLETED), EfiStatus.NOT_READY)
        blocks = _blocks(offset + len(data))
        refuse_if(blocks > SPARE_BLOCKS, EfiStatus.BAD_BUFFER_SIZE)
        record = WriteRecord(0xFF, lba, offset, len(data), lba * BLOCK_SIZE - SPARE_OFFSET)
        place = self._last + WRITE_HEADER_SIZE
        self._write_space(place, record.pack())
        content = bytearray(self._flash.read(lba * BLOCK_SIZE, blocks * BLOCK_SIZE))
        content[offset : offset + len(data)] = data
        spare = self._flash.read(SPARE_OFFSET, SPARE_SIZE)
        self._replace(_SPARE_LBA, SPARE_BLOCKS, bytes(content))
        self._set_state(place, SPARE_COMPLETED)
        self._complete(record)
        self._replace(_SPARE_LBA, SPARE_BLOCKS, spare)

    def _allocate(self) -> None:
        self._refresh()
        header = self._last_header()
        taken = header.has(HEADER_ALLOCATED) or header.has(WRITES_ALLOCATED)
        refuse_if(taken, EfiStatus.ACCESS_DENIED)
        if self._last + WRITE_TOTAL_SIZE > WORKING_SIZE:
            self._reclaim_space(preserve=True)
        self._write_space(self._last, WriteHeader(0xFF & ~HEADER_ALLOCATED).pack())
        self._set_state(self._last, WRITES_ALLOCATED)

    def _complete(self, record: WriteRecord) -> None:
        """Copy the spare area to its destination and mark record and header (FtwWriteRecord)."""
        blocks = _blocks(record.offset + record.length)
        content = self._flash.read(SPARE_OFFSET, SPARE_SIZE)[: blocks * BLOCK_SIZE]
        self._replace(record.lba, blocks, content)
        self._set_state(self._last + WRITE_HEADER_SIZE, DESTINATION_COMPLETED)
        self._set_state(self._last, WRITES_COMPLETED)

    # --- the working space ----------------------------------------------------------------------

    def _refresh(self) -> None:
        """Read the working space and find the first write that is not complete."""
        self._space[:] = self._flash.read(WORKING_OFFSET, WORKING_SIZE)
        if not self._find_last() or WORKING_SIZE - self._last < WRITE_TOTAL_SIZE:
            self._reclaim_space(preserve=True)
            self._space[:] = self._flash.read(WORKING_OFFSET, WORKING_SIZE)
            if not self._find_last():
                raise Refused(EfiStatus.ABORTED)

    def _find_last(self) -> bool:
        """Set ``_last``; False if complete entries fill the space to its end."""
        self._last = WORKING_HEADER_SIZE
        while (header := self._last_header()).has(WRITES_COMPLETED):
            if self._last + header.total_size >= WORKING_SIZE:
                return False
            self._last += header.total_size
        return True

    def _entry(self, offset: int, size: int) -> bytes:
        return bytes(self._space[offset : offset + size]).ljust(size, b"\xff")

    def _last_header(self) -> WriteHeader:
        return WriteHeader.unpack(self._entry(self._last, WRITE_HEADER_SIZE))

    def _last_record(self) -> WriteRecord:
        place = self._last + WRITE_HEADER_SIZE
        return WriteRecord.unpack(self._entry(place, WRITE_RECORD_SIZE))

    def _reclaim_space(self, *, preserve: bool) -> None:
        """Rewrite the working space without its completed entries (FtwReclaimWorkSpace)."""
        fresh = bytearray(b"\xff" * WORKING_SIZE)
        fresh[:WORKING_HEADER_SIZE] = self._space[:WORKING_HEADER_SIZE]
        if preserve and self._find_last():
            header = self._last_header()
            if header.has(HEADER_ALLOCATED):
                pending = self._entry(self._last, min(header.total_size, WORKING_SIZE))
                end = WORKING_HEADER_SIZE + len(pending)
                fresh[WORKING_HEADER_SIZE:end] = pending
                del fresh[WORKING_SIZE:]
        self._space[:] = fresh
        self._find_last()
        fresh[WORKING_STATE_OFFSET] = 0xFF
        spare = self._flash.read(SPARE_OFFSET, SPARE_SIZE)
        self._replace(_SPARE_LBA, SPARE_BLOCKS, bytes(fresh))
        self._update_bit(SPARE_OFFSET + WORKING_STATE_OFFSET, WORKING_BIT_VALID)
        self._update_bit(WORKING_OFFSET + WORKING_STATE_OFFSET, WORKING_BIT_INVALID)
        self._flush_spare_to_working()
        self._replace(_SPARE_LBA, SPARE_BLOCKS, spare)

    def _flush_spare_to_working(self) -> None:
        self._update_bit(SPARE_OFFSET + WORKING_STATE_OFFSET, WORKING_BIT_VALID)
        content = bytearray(self._flash.read(SPARE_OFFSET, WORKING_SIZE))
        content[:WORKING_HEADER_SIZE] = _VALID_HEADER
        content[WORKING_STATE_OFFSET] = 0xFF
        self._update_bit(WORKING_OFFSET + WORKING_STATE_OFFSET, WORKING_BIT_INVALID)
        self._replace(_WORKING_LBA, WORKING_BLOCKS, bytes(content))
        self._update_bit(WORKING_OFFSET + WORKING_STATE_OFFSET, WORKING_BIT_VALID)

    # --- flash ----------------------------------------------------------------------------------

    def _replace(self, lba: int, blocks: int, content: bytes) -> None:
        """Erase ``blocks`` and write ``content`` block by block."""
        self._erase(lba, blocks)
        for start in range(0, len(content), BLOCK_SIZE):
            _check(self._flash.write(lba * BLOCK_SIZE + start, content[start : start + BLOCK_SIZE]))

    def _erase(self, lba: int, blocks: int) -> None:
        _check(self._flash.erase(lba, blocks))

    def _write_space(self, offset: int, data: bytes) -> None:
        _check(self._flash.write_across_blocks(WORKING_OFFSET + offset, data))
        self._space[offset : offset + len(data)] = data

    def _set_state(self, offset: int, bit: int) -> None:
        """Set a state bit of a header or record, in flash and in the driver's copy."""
        self._update_bit(WORKING_OFFSET + offset, bit)
        self._space[offset] &= ~bit & 0xFF

    def _update_bit(self, offset: int, bit: int) -> None:
        """Set a state bit, that is, write it as 0; always one write, changed or not."""
        state = self._flash.image[offset] & ~bit & 0xFF
        _check(self._flash.write(offset, bytes([state])))


def _blocks(length: int) -> int:
    return -(-length // BLOCK_SIZE)


def _check(status: EfiStatus) -> None:
    """EDK2 answers EFI_ABORTED whatever the flash driver's reason was."""
    refuse_if(status.is_error, EfiStatus.ABORTED)
