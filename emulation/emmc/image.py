"""The flash behind an RPMB: half sectors, authentication key and write counter in one file.

The file is mapped, and a store into the mapping belongs to the kernel's page cache the moment it
is made.  So the death of this process at any instruction, which is what a power cut of the
emulated board is, loses nothing, and no fsync is needed: thousands of writes a second.  A crash of
the *host* may lose the last writes; nothing here protects from that.

A write must appear whole or not at all, together with its count.  It is first recorded in one of
two journal slots, in turn, then applied; the newer slot whose checksum is right is the truth, and
is applied again when the image is opened.

Layout: the half sectors of the whole 16-bit address space (what a card without an address check
reaches beyond its partition), sparse; then the key record; then the journal slots.
"""

import fcntl
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final, Self

from harness.formats.rpmb import DATA_SIZE, SIZE_UNIT

_DATA_BYTES: Final = (1 << 16) * DATA_SIZE
_MAX_BLOCKS: Final = 32
"""The longest atomic write, in half sectors (enhanced reliable write, JESD84-B51 6.6.22)."""

_HEADER: Final = struct.Struct("<8sB")
_HEADER_MAGIC: Final = b"HIL-RPMB"
_KEY: Final = struct.Struct("<32sI")
_SLOT: Final = struct.Struct("<IHHI")
_HEADER_OFFSET: Final = _DATA_BYTES
_KEY_OFFSET: Final = _HEADER_OFFSET + 64
_SLOT_BYTES: Final = 64 + _MAX_BLOCKS * DATA_SIZE
_SLOT_OFFSETS: Final = (_HEADER_OFFSET + 4096, _HEADER_OFFSET + 4096 + _SLOT_BYTES)
IMAGE_BYTES: Final = _HEADER_OFFSET + 8 * 4096
"""Size of an image file."""


class ImageError(Exception):
    """The file is not an RPMB image, is of another size, or another board uses it."""


class RpmbImage:
    """The persistent state of one RPMB.  Use :meth:`open` or :meth:`in_memory`."""

    def __init__(self, medium: mmap.mmap, size_mult: int, descriptor: int | None = None) -> None:
        self._medium = medium
        self._descriptor = descriptor
        self.size_mult = size_mult
        """Capacity in units of 128 KiB."""
        self.write_counter = 0
        """The write counter."""
        self._turn = 0
        self._recover()
        self.key = self._read_key()
        """The authentication key, or None on a blank part."""

    @classmethod
    def open(cls, path: Path, size_mult: int = 16) -> Self:
        """Open the image at ``path``, or make a blank one of ``size_mult`` * 128 KiB.

        Raises ImageError if the file is something else, has another size or is in use, OSError
        where the host refuses.
        """
        _check_size(size_mult)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ImageError(f"{path} is in use by another emulated board") from None
            size = os.fstat(descriptor).st_size
            if size not in (0, IMAGE_BYTES):
                raise ImageError(f"{path} is no RPMB image")
            if size == 0:
                os.ftruncate(descriptor, IMAGE_BYTES)
                os.posix_fallocate(descriptor, 0, size_mult * SIZE_UNIT)
            medium = mmap.mmap(descriptor, IMAGE_BYTES)
            magic, found = _HEADER.unpack_from(medium, _HEADER_OFFSET)
            # A process that died before this line leaves a file of zeros: blank, so start it again.
            if magic == bytes(8):
                _HEADER.pack_into(medium, _HEADER_OFFSET, _HEADER_MAGIC, size_mult)
            elif magic != _HEADER_MAGIC:
                raise ImageError(f"{path} is no RPMB image")
            elif found != size_mult:
                raise ImageError(f"{path} has {found} * 128 KiB, the board wants {size_mult}")
            return cls(medium, size_mult, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def in_memory(cls, size_mult: int = 16) -> Self:
        """A blank image that lives as long as the object."""
        _check_size(size_mult)
        return cls(mmap.mmap(-1, IMAGE_BYTES), size_mult)

    def close(self) -> None:
        """Let go of the file; the image cannot be used any more."""
        self._medium.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def blocks(self) -> int:
        """Half sectors of the partition."""
        return self.size_mult * SIZE_UNIT // DATA_SIZE

    def program_key(self, key: bytes) -> None:
        """Store the key, 32 bytes."""
        _KEY.pack_into(self._medium, _KEY_OFFSET, key, _key_check(key))
        self.key = key

    def read(self, address: int, count: int = 1) -> bytes:
        """``count`` half sectors from ``address`` on; the address wraps as 16 bits do."""
        start = address * DATA_SIZE
        end = start + count * DATA_SIZE
        if end <= _DATA_BYTES:
            return self._medium[start:end]
        return b"".join(self.read((address + offset) & 0xFFFF) for offset in range(count))

    def commit(self, counter: int, address: int = 0, data: bytes = b"") -> None:
        """Write ``data`` (up to 32 half sectors) at ``address`` and set the counter, atomically."""
        blocks = len(data) // DATA_SIZE
        if blocks > _MAX_BLOCKS or len(data) % DATA_SIZE:
            raise ValueError(f"{len(data)} bytes are not up to {_MAX_BLOCKS} half sectors")
        self._record(counter, address, blocks, data)
        self._apply(address, data)
        self.write_counter = counter

    def _record(self, counter: int, address: int, blocks: int, data: bytes) -> None:
        slot = _SLOT_OFFSETS[self._turn]
        self._turn ^= 1
        # The data first: until the checksum is in place the slot does not count.
        self._medium[slot + _SLOT.size : slot + _SLOT.size + len(data)] = data
        check = _slot_check(counter, address, blocks, data)
        _SLOT.pack_into(self._medium, slot, counter, address, blocks, check)

    def _apply(self, address: int, data: bytes) -> None:
        start = address * DATA_SIZE
        inside = min(len(data), _DATA_BYTES - start)
        self._medium[start : start + inside] = data[:inside]
        if inside < len(data):
            self._apply(0, data[inside:])

    def _recover(self) -> None:
        newest: tuple[int, int, bytes] | None = None
        for turn, offset in enumerate(_SLOT_OFFSETS):
            counter, address, blocks, check = _SLOT.unpack_from(self._medium, offset)
            start = offset + _SLOT.size
            data = self._medium[start : start + min(blocks, _MAX_BLOCKS) * DATA_SIZE]
            if check == 0 or check != _slot_check(counter, address, blocks, data):
                continue
            if newest is None or counter >= newest[0]:
                newest = (counter, address, data)
                self._turn = turn ^ 1
        if newest is not None:
            self.write_counter, address, data = newest
            self._apply(address, data)

    def _read_key(self) -> bytes | None:
        key, check = _KEY.unpack_from(self._medium, _KEY_OFFSET)
        return key if check != 0 and check == _key_check(key) else None


def _check_size(size_mult: int) -> None:
    if not 1 <= size_mult <= 128:
        raise ValueError(f"size_mult {size_mult} is not 1..128")


def _slot_check(counter: int, address: int, blocks: int, data: bytes) -> int:
    """Checksum of a journal slot; never 0, so that a blank slot does not look right."""
    fields = _SLOT.pack(counter, address, blocks, 0)
    return zlib.crc32(data, zlib.crc32(fields)) | 1


def _key_check(key: bytes) -> int:
    return zlib.crc32(key) | 1
