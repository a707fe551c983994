"""Records in which StandaloneMM keeps variables: their size, where they lie and what they cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from harness.formats import rpmb
from harness.formats import variable_store as layout


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one stack keeps its variables in the RPMB; bytes, unless they are RPMB writes."""

    name: str
    area: int
    """Of the flash that holds variables, headers included."""
    headers: int
    """In front of the first record."""
    block: int
    """Of the flash driver, at whose ends it cuts a write."""
    half_sector: int
    """An RPMB block: a change within one is one RPMB write (stack 2.4)."""
    relocation: int
    """RPMB writes that OP-TEE needs to write the store's file anew."""
    reclaim: int
    """RPMB writes of one reclaim."""
    writes_per_byte: float
    """RPMB writes for each byte of the store: a record that crosses a half sector makes OP-TEE
    write its file anew (stack 2.4)."""
    invisible: int
    """Taken to be in use by variables without run-time access."""

    @property
    def capacity(self) -> int:
        """Bytes for records (stack 4.4)."""
        return self.area - self.headers

    def position(self, free: int) -> int:
        """Offset in OP-TEE's file where the next record begins when ``free`` bytes are left."""
        return self.area - free

    def rpmb_writes(self, free: int, record: int, *, replaces: bool = False) -> int:
        """RPMB writes of a SetVariable whose record begins where ``free`` bytes are left: its
        pieces, the state byte that makes it count, and two state bytes of the one that it
        ``replaces``."""
        moved = self.relocation * self.relocations(free, record)
        return moved + self.pieces(free, record) + (3 if replaces else 1)

    def relocations(self, free: int, record: int) -> int:
        """How often OP-TEE writes its file anew for a record that begins where ``free`` bytes are
        left: once for each piece, cut at the ends of blocks, that crosses a half sector."""
        ends = ((begin, end - 1) for begin, end in self._pieces(free, record))
        return sum(begin // self.half_sector != last // self.half_sector for begin, last in ends)

    def pieces(self, free: int, record: int) -> int:
        """Into how many flash writes the record is cut."""
        return len(list(self._pieces(free, record)))

    def _pieces(self, free: int, record: int) -> Iterator[tuple[int, int]]:
        begin = self.position(free)
        end = begin + record
        while begin < end:
            stop = min(end, (begin // self.block + 1) * self.block)
            yield begin, stop
            begin = stop


RECORDED: Final = Geometry(
    "EDK2 in OP-TEE's RPMB file system",
    area=layout.VARIABLE_AREA_SIZE,
    headers=layout.FIRST_VARIABLE_OFFSET,
    block=layout.BLOCK_SIZE,
    half_sector=rpmb.DATA_SIZE,
    relocation=layout.VOLUME_SIZE // rpmb.DATA_SIZE,
    reclaim=3000,  # stack 4.13, truth fill2
    writes_per_byte=0.8,
    invisible=1024,
)
"""The stack that the kernel series is used with."""


def record_size(name: str, data: int) -> int:
    """Bytes of a variable record with ``data`` bytes, its alignment included (stack 4.13)."""
    characters = len(name.encode("utf-16-le", "surrogatepass")) // 2
    return layout.align(layout.VARIABLE_HEADER_SIZE + 2 * (characters + 1) + data)


def data_for(name: str, record: int) -> int:
    """How much data makes a record of exactly ``record`` bytes, a multiple of four."""
    return record - record_size(name, 0)


SMALLEST_RECORD = record_size("F", 1)
"""Bytes of free space that the smallest filler takes."""
LARGEST_FILLER = 4000
"""Bytes of a record that takes room; larger ones are slow."""
