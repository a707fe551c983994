"""What StandaloneMM sees of OP-TEE's secure storage: one file, read and written at offsets."""

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
