"""What OP-TEE leaves in the secure buffer for the partition to find at its start.

Source: OP-TEE 4.10 core/arch/arm/kernel/stmm_sp.c (build_stmm_boot_hob_list, load_stmm); FF-A 1.2
boot information; PI specification, hand-off blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

_HEADER: Final = struct.Struct("<IIIIIIQ")
_DESCRIPTOR: Final = struct.Struct("<16sBBHIQ")
_HOBS_OFFSET: Final = _HEADER.size + _DESCRIPTOR.size
_SIGNATURE: Final = 0x0FFA
_VERSION_1_2: Final = 0x10002
_TYPE_HOBS: Final = 1

_HAND_OFF: Final = struct.Struct("<HHIIIQQQQQ")
_HOB: Final = struct.Struct("<HHI")
_HOB_HAND_OFF, _HOB_GUID, _HOB_VOLUME, _HOB_END = 1, 4, 5, 0xFFFF
_HAND_OFF_VERSION: Final = 9

_NON_SECURE_BUFFER: Final = UUID("f00497e3-bfa2-41a1-9d29-54c2e93721c5")
_MEMORY_RANGES: Final = UUID("0703f912-bf8d-4e2a-be07-ab272525c592")
_CACHEABLE: Final = 0x08
_ALLOCATED: Final = 0x10


@dataclass(frozen=True, slots=True)
class Range:
    """Memory of the partition, bytes."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Image, heap and secure buffer lie behind one another; the shared buffer lies elsewhere."""

    image: Range
    heap: Range
    secure: Range
    shared: Range


def boot_information(memory: MemoryMap) -> bytes:
    """The secure buffer's content: FF-A header, its one descriptor, the list of hand-off blocks."""
    start = memory.secure.start + _HOBS_OFFSET
    shared = _region(memory.shared)
    regions = (_region(memory.image), _region(memory.secure), shared)
    # OP-TEE makes room for a fifth range and counts four.
    ranges = struct.pack("<II", 4, 0) + b"".join(regions) + _region(memory.heap, 0) + bytes(32)
    volume = struct.pack("<QQ", memory.image.start, memory.image.size)
    blocks = b"".join(
        (
            _HOB.pack(_HOB_VOLUME, _HOB.size + len(volume), 0) + volume,
            _guid_hob(_NON_SECURE_BUFFER, shared),
            _guid_hob(_MEMORY_RANGES, ranges),
        )
    )
    end = start + _HAND_OFF.size + len(blocks)
    hand_off = _HAND_OFF.pack(
        *(_HOB_HAND_OFF, _HAND_OFF.size, 0, _HAND_OFF_VERSION, 0),
        *(memory.secure.end, memory.image.start, memory.secure.end, end + _HOB.size, end),
    )
    hobs = hand_off + blocks + _HOB.pack(_HOB_END, _HOB.size, 0)
    header = _HEADER.pack(
        *(_SIGNATURE, _VERSION_1_2, _HOBS_OFFSET, _DESCRIPTOR.size, 1, _HEADER.size, 0)
    )
    return header + _DESCRIPTOR.pack(b"", _TYPE_HOBS, 0, 1, len(hobs), start) + hobs


def _region(memory: Range, state: int = _ALLOCATED) -> bytes:
    return struct.pack("<QQQQ", memory.start, memory.start, memory.size, _CACHEABLE | state)


def _guid_hob(guid: UUID, data: bytes) -> bytes:
    padded = data + bytes(-len(data) % 8)
    return _HOB.pack(_HOB_GUID, _HOB.size + 16 + len(padded), 0) + guid.bytes_le + padded
