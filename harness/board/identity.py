"""Which board answers, and the proof that it is the one of the board file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.board.links import Links
from harness.errors import WrongBoard, of_board
from harness.links.names import LinkName

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile

_CID = "cat /sys/class/mmc_host/mmc*/mmc*/cid"
# The last byte holds the CRC, which some host controllers do not pass on.
_CID_DIGITS = 30
_FIRMWARE = (
    "dmesg | sed -n -e 's/.*efi: EFI v/EFI v/p' -e 's/.*optee: revision /OP-TEE /p' | sort -u"
)
_IDENTITY = f"uname -srm; {_FIRMWARE}"
SOFTWARE = f"{{ uname -srvm; cat /proc/cmdline; {_FIRMWARE}; }} 2>/dev/null"
"""Prints what decides what a board can do: kernel, firmware, root file system."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What answered: for the report's header and for messages."""

    board: str
    link: str
    firmware: str
    kernel: str
    emmc_cids: tuple[str, ...]
    boot_id: str


def same_emmc(cid: str, other: str) -> bool:
    """Whether two CIDs (32 hex digits) are those of one eMMC."""
    return cid[:_CID_DIGITS] == other[:_CID_DIGITS]


def identity(board: str, links: Links) -> Identity:
    """What answers on the chosen link now."""
    kernel, *lines = links.shell.run(_IDENTITY).check().text.split("\n")
    firmware = ", ".join(line for line in lines if line)
    return Identity(
        board=board,
        link=links.shell.name,
        firmware=firmware or "unknown (no line in the kernel log)",
        kernel=kernel,
        emmc_cids=tuple(_read_cids(links)),
        boot_id=links.boot_id,
    )


def check_right_board(file: BoardFile, links: Links, names: Collection[LinkName]) -> None:
    """Prove that this is the board of the board file: the boot id is the same over the links of
    these ``names``, and one eMMC has the board file's CID. Raises :class:`WrongBoard`."""
    with of_board(file.name):
        boot_id = links.compare(names)
        cids = _read_cids(links)
        if not any(same_emmc(file.emmc_cid, cid) for cid in cids):
            raise WrongBoard(
                f"no eMMC with the CID {file.emmc_cid}; this board has {', '.join(cids) or 'none'}",
                remedy="check wiring and address, or correct emmc_cid in the board file",
            )
        links.boot.id = boot_id
        links.boot.right_board = True


def _read_cids(links: Links) -> list[str]:
    return links.shell.run(_CID).text.split()
