"""The allocator of RPMB space: first fit from the top, in half sectors.

Source: OT41 core/mm/tee_mm.c with TEE_MM_POOL_HI_ALLOC; stack 2.1.
"""

from bisect import insort

from harness.formats.rpmb import DATA_SIZE


class Pool:
    """What is taken of ``size`` bytes; addresses and sizes are in bytes."""

    def __init__(self, size: int) -> None:
        self._end = size // DATA_SIZE
        self._taken: list[tuple[int, int]] = []

    def reserve(self, address: int, size: int) -> bool:
        """Take what lies there; False if some of it is taken already or lies outside."""
        start = address // DATA_SIZE
        end = -(-(address + size) // DATA_SIZE)
        if end > self._end or any(start < other[1] and other[0] < end for other in self._taken):
            return False
        insort(self._taken, (start, end))
        return True

    def allocate(self, size: int) -> int | None:
        """Address of the highest free area of ``size`` bytes, now taken; None if there is none."""
        wanted = -(-size // DATA_SIZE)
        top = self._end
        for start, end in reversed([(0, 0), *self._taken]):
            if top - end >= wanted:
                insort(self._taken, (top - wanted, top))
                return (top - wanted) * DATA_SIZE
            top = start
        return None
