"""What StandaloneMM sees of OP-TEE's secure storage: one file, read and written at offsets."""

from __future__ import annotations

from typing import Protocol


class SecureStorage(Protocol):
    """The storage service at FF-A endpoint 4 (stack 3).

    Codes are what arrives in x3 as the partition sees it: 0 is success, anything else is a
    32-bit code zero-extended to 64 bits (0xFFFFFFFE, not -2). Any method may raise
    ``emulation.faults.PowerLost``; nothing in this package catches it.
    """

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        """Read ``length`` bytes at ``offset`` (bytes): (code, data); data is empty on failure."""
        ...

    def write(self, offset: int, data: bytes) -> int:
        """Write ``data`` at ``offset`` (bytes): code."""
        ...


class MemoryStorage:
    """A storage in memory, absent until first written; counts its writes. For tests and tools."""

    NOT_FOUND = 0xFFFFFFFE

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.writes: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        """Fails like a missing or short file if the range is not there whole."""
        if offset + length > len(self.content):
            return self.NOT_FOUND, b""
        return 0, bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        """Extend with zeros as a file would, then store."""
        self.writes.append((offset, len(data)))
        if len(self.content) < offset + len(data):
            self.content.extend(bytes(offset + len(data) - len(self.content)))
        self.content[offset : offset + len(data)] = data
        return 0
