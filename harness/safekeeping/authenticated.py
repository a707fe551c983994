"""Deletes authenticated variables that the suite itself made."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from harness.formats.efi import EfiTime
from harness.safekeeping.secure_boot import key_directory
from harness.signing import Signer, unsigned

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.instruments.efivars import VariableName

LAST: Final = EfiTime(2098, 12, 31)
"""Later than any time stamp of the suite: nothing that it wrote is too new to be deleted."""


def delete(board: Board, name: VariableName) -> None:
    """Delete it by an empty value signed with one of the keys kept for this board, or with none
    where the firmware takes the user's presence for given (stack 4.7).

    Raises the OSError of the last refusal: EACCES where none of the keys has a say.
    """
    attributes = board.efivars.read(name.name, name.guid).attributes
    directory = key_directory(board)
    for path in sorted(directory.glob("*.der")):
        pair = Signer.load(directory, path.stem)
        data = pair.update(name.name, name.guid, b"", LAST, attributes=attributes)
        with contextlib.suppress(PermissionError):
            board.efivars.overwrite(name.name, data, attributes, name.guid)
            return
    board.efivars.overwrite(name.name, unsigned(b"", LAST), attributes, name.guid)
