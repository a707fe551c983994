"""How Linux packs an ioctl number (K6 include/uapi/asm-generic/ioctl.h; x86 and Arm alike)."""

from typing import Final

_READ: Final = 2
_WRITE: Final = 1


def _pack(direction: int, magic: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | magic << 8 | number


def ior(magic: int, number: int, size: int) -> int:
    """_IOR: the caller reads ``size`` bytes back."""
    return _pack(_READ, magic, number, size)


def iowr(magic: int, number: int, size: int) -> int:
    """_IOWR: ``size`` bytes go in and come back."""
    return _pack(_READ | _WRITE, magic, number, size)
