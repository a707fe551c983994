"""A storage for StandaloneMM without an OP-TEE below it."""

from __future__ import annotations


class MemoryStorage:
    """A storage in memory, absent until first written; counts its writes."""

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
