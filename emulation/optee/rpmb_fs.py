"""OP-TEE's file system in the RPMB.

Source: stack 2; OTH core/tee/tee_rpmb_fs.c (upper half); truth log-optee-boot1-fresh.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from emulation.optee.config import OpTeeConfig, Trace
from emulation.optee.keys import BlockCipher, FileKeys
from emulation.optee.pool import Pool
from emulation.optee.rpmb_client import RpmbClient
from harness.formats.rpmb import DATA_SIZE
from harness.formats.rpmb_fs import (
    FAT_START,
    MAGIC,
    VERSION,
    FatEntry,
    FatFlags,
    PartitionHeader,
)
from harness.formats.tee import TeeError, TeeResult

ENTRIES_PER_READ: Final = 8
"""CFG_RPMB_FS_RD_ENTRIES."""
CHUNK: Final = 4096
"""Bytes that a relocating write moves at once."""
_ADDRESSES: Final = 1 << 32


@dataclass
class FileHandle:
    """An open file; ``address`` is where its table entry lies, 0 before it is known."""

    name: str
    owner: UUID
    address: int = 0
    entry: FatEntry = field(default_factory=FatEntry)


class RpmbFileSystem:
    """Files of 256-byte blocks, each written whole or not at all.

    Every method raises TeeError with what the RPMB gave, or what its own text names.
    """

    def __init__(self, config: OpTeeConfig, client: RpmbClient, trace: Trace) -> None:
        self._config = config
        self._client = client
        self._trace = trace
        self._pool_size: int | None = None
        self._keys: dict[UUID, FileKeys] = {}
        self._ciphers: dict[bytes, BlockCipher] = {}

    def open(self, name: str, owner: UUID) -> FileHandle:
        """Open an existing file; ITEM_NOT_FOUND if there is none."""
        self._mount()
        handle = FileHandle(name, owner)
        self._look_up(handle)
        return handle

    def create(self, name: str, owner: UUID) -> FileHandle:
        """Open a file, making an empty one if there is none.

        OUT_OF_MEMORY if the table says that two files overlap.
        """
        handle = FileHandle(name, owner)
        try:
            self._mount()
            self._look_up(handle, Pool(self._space))
            if not handle.entry.active:
                handle.entry = FatEntry(
                    flags=FatFlags.ACTIVE, name=name, fek=self._file_keys(owner).generate()
                )
                self._trace.debug("rpmb_fs_open_internal", "GENERATE FEK key")
                self._write_entry(handle)
        except TeeError as failure:
            self._withdraw(handle)
            raise failure from None
        return handle

    def read(self, handle: FileHandle, position: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``position`` on; fewer at the end of the file."""
        if size == 0:
            return b""
        self._show(handle)
        self._look_up(handle)
        entry = handle.entry
        size = min(size, entry.data_size - position)
        if size <= 0:
            return b""
        return self._read_data(handle, entry.start_address + position, size)

    def write(self, handle: FileHandle, position: int, data: bytes) -> None:
        """Write ``data`` at ``position``, atomically: in place if that is one RPMB request,
        otherwise by a copy of the whole file elsewhere and a new table entry.

        STORAGE_NO_SPACE if there is no room for the copy, BAD_PARAMETERS if the end overflows.
        """
        if not data:
            return
        self._show(handle)
        pool = Pool(self._space)
        self._look_up(handle, pool)
        entry = handle.entry
        if entry.last:
            # OP-TEE's core panics here; a failed call tells more than a board that hangs.
            raise TeeError(TeeResult.GENERIC)
        end = position + len(data)
        if end >= _ADDRESSES or entry.start_address + position >= _ADDRESSES:
            raise TeeError(TeeResult.BAD_PARAMETERS)
        address = entry.start_address + position
        if end <= entry.data_size and self._client.writes_atomically(address, len(data)):
            self._trace.debug("rpmb_fs_write_primitive", "Updating data in-place")
            self._client.write(address, data, self._cipher(handle))
            return
        self._trace.debug("rpmb_fs_write_primitive", "Need to re-allocate")
        new_size = max(end, entry.data_size)
        new_start = pool.allocate(new_size)
        if new_start is None:
            self._trace.debug("rpmb_fs_write_primitive", "RPMB: No space left")
            raise TeeError(TeeResult.STORAGE_NO_SPACE)
        self._copy(handle, position, data, new_start, new_size)
        handle.entry = replace(entry, start_address=new_start, data_size=new_size)
        self._write_entry(handle)

    def _copy(
        self, handle: FileHandle, position: int, data: bytes, new_start: int, new_size: int
    ) -> None:
        """The file with ``data`` at ``position``, written to ``new_start`` chunk by chunk."""
        entry = handle.entry
        # Up to 4.9 a chunk behind ``position`` was not read, so its old bytes became zeros
        # (64c6d2917d12, mended by 15bbaa331).
        readable = entry.data_size
        if self._config.release == "4.1":
            readable = min(readable, position)
        for offset in range(0, new_size, CHUNK):
            chunk = bytearray(min(CHUNK, new_size - offset))
            if offset < readable:
                old = min(len(chunk), entry.data_size - offset)
                chunk[:old] = self._read_data(handle, entry.start_address + offset, old)
            start = max(position, offset)
            stop = min(position + len(data), offset + len(chunk))
            if start < stop:
                chunk[start - offset : stop - offset] = data[start - position : stop - position]
            self._client.write(new_start + offset, bytes(chunk), self._cipher(handle))

    @property
    def _space(self) -> int:
        if self._pool_size is None:
            raise TeeError(TeeResult.GENERIC)
        return self._pool_size

    def _mount(self) -> None:
        """rpmb_fs_setup: once a boot; formats what does not look like a file system.

        ACCESS_DENIED if the version on the card is another one.
        """
        if self._pool_size is not None:
            return
        # The last half sector is never used.
        size = self._client.max_block * DATA_SIZE
        first = self._client.read(0, DATA_SIZE)
        # This write makes the counter move, so that a write of an earlier boot that was held
        # back cannot be let through now; and what it wrote might be in block 0, so read again.
        self._client.write(0, first)
        header = PartitionHeader.unpack(self._client.read(0, PartitionHeader.SIZE))
        if header.magic != MAGIC or self._config.reset_fat:
            if self._config.reset_fat:
                self._trace.error("rpmb_fs_setup", "**** Clearing Storage ****")
            self._client.write(FAT_START, FatEntry(flags=FatFlags.LAST_ENTRY).pack())
            fresh = replace(header, magic=MAGIC, version=VERSION, fat_start=FAT_START)
            self._client.write(0, fresh.pack())
        elif header.version != VERSION:
            self._trace.error("rpmb_fs_setup", "Wrong software is in use.")
            raise TeeError(TeeResult.ACCESS_DENIED)
        self._pool_size = size

    def _entries(self) -> Iterator[tuple[int, FatEntry]]:
        """The table with addresses, up to and with its last entry."""
        address = FAT_START
        while True:
            raw = self._client.read(address, ENTRIES_PER_READ * FatEntry.SIZE)
            for offset in range(0, len(raw), FatEntry.SIZE):
                entry = FatEntry.unpack(raw, offset)
                yield address + offset, entry
                if entry.last:
                    return
            address += len(raw)

    def _look_up(self, handle: FileHandle, pool: Pool | None = None) -> None:
        """read_fat: the first active entry with the file's name; ITEM_NOT_FOUND if none.

        With ``pool`` all space in use is reserved there, and a file without an entry gets the
        first unused one; if that is the last of the table, a new last one is written behind it.
        """
        found = False
        extend = False
        address = FAT_START
        for address, entry in self._entries():
            if entry.active and entry.name == handle.name and not found:
                found = True
                handle.address, handle.entry = address, entry
                if pool is None:
                    break
            if pool is not None:
                if entry.active and entry.data_size:
                    _reserve(pool, entry.start_address, entry.data_size)
                if not entry.active and handle.address == 0:
                    handle.address, handle.entry = address, entry
                extend = entry.last and handle.address == address
        if pool is not None:
            behind = address + FatEntry.SIZE
            _reserve(pool, 0, behind + (FatEntry.SIZE if extend else 0))
            if extend:
                last = FatEntry(flags=FatFlags.LAST_ENTRY)
                self._write_entry(FileHandle("", handle.owner, behind, last))
        if handle.address == 0:
            raise TeeError(TeeResult.ITEM_NOT_FOUND)

    def _withdraw(self, handle: FileHandle) -> None:
        """Clear the entry of a file that could not be made; failing again changes nothing."""
        try:
            self._look_up(handle)
            handle.entry = FatEntry()
            self._write_entry(handle)
        except TeeError:
            self._trace.debug("rpmb_fs_create", "could not be undone")

    def _write_entry(self, handle: FileHandle) -> None:
        self._client.write(handle.address, handle.entry.pack())

    def _read_data(self, handle: FileHandle, address: int, size: int) -> bytes:
        if not any(handle.entry.fek):
            # The file was made by an OP-TEE without encryption.
            raise TeeError(TeeResult.SECURITY)
        return self._client.read(address, size, self._cipher(handle))

    def _file_keys(self, owner: UUID) -> FileKeys:
        if owner not in self._keys:
            self._keys[owner] = FileKeys(self._config, owner)
        return self._keys[owner]

    def _cipher(self, handle: FileHandle) -> BlockCipher:
        fek = handle.entry.fek
        if fek not in self._ciphers:
            self._ciphers = {fek: self._file_keys(handle.owner).cipher(fek)}
        return self._ciphers[fek]

    def _show(self, handle: FileHandle) -> None:
        if self._trace.debugging:
            entry = handle.entry
            self._trace.debug("dump_fh", f"fh->filename={handle.name}")
            self._trace.debug("dump_fh", f"fh->rpmb_fat_address={handle.address}")
            self._trace.debug("dump_fh", f"fh->fat_entry.start_address={entry.start_address}")
            self._trace.debug("dump_fh", f"fh->fat_entry.data_size={entry.data_size}")


def _reserve(pool: Pool, address: int, size: int) -> None:
    if not pool.reserve(address, size):
        raise TeeError(TeeResult.OUT_OF_MEMORY)
