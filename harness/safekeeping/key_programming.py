"""Programming the RPMB key: once in the life of an eMMC, and never by accident."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass

from harness.board.board import Board, nobody_asked
from harness.board.identity import same_emmc
from harness.consents import Consent
from harness.errors import ConsentMissing, WrongBoard

OPTION = "--program-rpmb-key"
IDENTITY_OPTION = "--i-know-this-is"

_TERMINAL = "/dev/tty"
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class KeyProgramming:
    """Who runs the harness wants it (``wanted``), and has typed in of which board (``identity``:
    the eMMC's CID); without an identity a person is asked at the terminal where ``may_ask``."""

    wanted: bool = False
    identity: str | None = None
    may_ask: bool = False

    def require(self, board: Board) -> None:
        """Return if the key of this board's RPMB may be programmed: it was asked for by an option,
        the owner consents to ``program_key``, the board is disposable, and the identity that was
        typed in is that of the eMMC which answers now.

        Raises :class:`ConsentMissing` (a skip) for what is missing, :class:`WrongBoard` for the
        identity of another board.
        """
        if not self.wanted:
            nobody_asked(board)
        board.require_consent(Consent.PROGRAM_KEY)
        file = board.file
        if not file.disposable:
            raise _missing(
                board, "an RPMB key is for ever", "set disposable = true in its board file"
            )
        board.check_right_board()
        typed = self.identity or (_asked(board) if self.may_ask else "")
        if not typed:
            raise _missing(board, "nobody typed in the board's identity", f"{IDENTITY_OPTION} CID")
        if not same_emmc(typed.lower(), file.emmc_cid):
            raise WrongBoard(
                f"the identity typed in is {typed!r}, and this board's eMMC is {file.emmc_cid}",
                remedy="look at the board's label: is it the one that you mean?",
                board=board.name,
            )


def _missing(board: Board, what: str, how: str) -> ConsentMissing:
    return ConsentMissing(
        what, remedy=f"if it is really meant: {how}; it cannot be undone, ever", board=board.name
    )


def _asked(board: Board) -> str:
    """One line from the controlling terminal; empty without one, or when nobody answers."""
    try:
        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        question = "its RPMB key will be programmed FOR EVER. Type the CID of its eMMC: "
        os.write(terminal, f"\nBoard {board.name}: {question}".encode())
        if not select.select([terminal], [], [], _ANSWER_SECONDS)[0]:
            return ""
        return os.read(terminal, 4096).decode("ascii", "replace").strip()
    finally:
        os.close(terminal)
