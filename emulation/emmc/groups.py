"""Erase groups and write-protection groups of the user area: CMD28 to CMD31, CMD35, CMD36, CMD38.

Source: JESD84-B51 6.6.9 (erase), 6.6.14 (write protection), 6.13 (status bits), 7.3 (CSD).  A card
of up to 2 GiB is addressed by bytes.
"""

from typing import Final

from emulation.emmc.user_area import UserArea
from harness.formats.mmc import MMC_SECTOR

ERASE_GROUP: Final = 32 * 32 * MMC_SECTOR
"""Bytes: (ERASE_GRP_SIZE + 1) * (ERASE_GRP_MULT + 1) write blocks, as CSD says."""
PROTECTION_GROUP: Final = 32 * ERASE_GROUP
"""Bytes: WP_GRP_SIZE + 1 erase groups."""

SET_WRITE_PROT, CLR_WRITE_PROT, SEND_WRITE_PROT, SEND_WRITE_PROT_TYPE = 28, 29, 30, 31
ERASE_GROUP_START, ERASE_GROUP_END, ERASE = 35, 36, 38

_ADDRESS_OUT_OF_RANGE: Final = 1 << 31
_ERASE_SEQ_ERROR: Final = 1 << 28
_ERASE_PARAM: Final = 1 << 27
_WP_ERASE_SKIP: Final = 1 << 15

TEMPORARY, POWER_ON, PERMANENT = 1, 2, 3
_GROUPS_SHOWN: Final = 32


class Groups:
    """What erase and protection commands of one card know; ``area`` refuses protected writes."""

    def __init__(self, area: UserArea) -> None:
        self._area = area
        self._size = area.sectors * MMC_SECTOR
        self._start: int | None = None
        self._end: int | None = None
        self._types: dict[int, int] = {}

    def power_cycle(self) -> None:
        """Protection until the next power-on ends, and an erase sequence."""
        self._start = self._end = None
        self._types = {group: kind for group, kind in self._types.items() if kind != POWER_ON}
        self._apply()

    def execute(self, opcode: int, arg: int, user_wp: int) -> tuple[bytes, int]:
        """One of the commands: its data and the status bits it raises.

        ``user_wp``: EXT_CSD's USER_WP, which says what kind of protection CMD28 sets."""
        if opcode == ERASE:
            return b"", self._erase()
        if arg >= self._size:
            return bytes(8), _ADDRESS_OUT_OF_RANGE
        group = arg // PROTECTION_GROUP
        if opcode == ERASE_GROUP_START:
            self._start = arg
        elif opcode == ERASE_GROUP_END:
            self._end = arg
        elif opcode == SET_WRITE_PROT:
            kind = PERMANENT if user_wp & 4 else POWER_ON if user_wp & 1 else TEMPORARY
            self._types[group] = max(kind, self._types.get(group, 0))
        elif opcode == CLR_WRITE_PROT and self._types.get(group) == TEMPORARY:
            del self._types[group]
        self._apply()
        shown = [self._types.get(group + number, 0) for number in range(_GROUPS_SHOWN)]
        if opcode == SEND_WRITE_PROT:
            return sum(bool(kind) << n for n, kind in enumerate(shown)).to_bytes(4, "big"), 0
        return sum(kind << 2 * n for n, kind in enumerate(shown)).to_bytes(8, "big"), 0

    def _erase(self) -> int:
        start, end = self._start, self._end
        self._start = self._end = None
        if start is None or end is None:
            return _ERASE_SEQ_ERROR
        if end < start:
            return _ERASE_PARAM
        skipped = 0
        for at in range(start // ERASE_GROUP * ERASE_GROUP, end + 1, ERASE_GROUP):
            try:
                # ERASED_MEM_CONT of EXT_CSD: what is erased reads as ones.
                self._area.write(at, b"\xff" * min(ERASE_GROUP, self._size - at))
            except OSError:
                skipped = _WP_ERASE_SKIP
        return skipped

    def _apply(self) -> None:
        self._area.protected = tuple(
            range(group * PROTECTION_GROUP, (group + 1) * PROTECTION_GROUP) for group in self._types
        )
