"""How often a board's RPMB was written: a ledger for each board, kept over all runs.

One line of JSON for each begin and end of a run, so that a run that was killed can be told from
one that ended. The RPMB write counter never goes back and never wraps (JESD84-B51 6.6.22), so what
it says between two runs was written by somebody else, or by boots.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from harness.board import state_dir as place
from harness.board.board import Board
from harness.errors import HostError

# Boots write a little by themselves, and nobody counts boots.
_WRITES_OF_BOOTS: Final = 16
# A factor from less than this says nothing about the store.
_TELLING_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A run's begin or end. ``counter`` is the RPMB write counter then, ``spent`` the writes of
    the run, of which ``by_tests`` were neither reclaims nor restoring; ``store_bytes`` what the
    tests that ran had declared; ``unreclaimed`` what was written to the store since its last
    reclaim, where the board shows no figures."""

    event: Literal["begin", "end"]
    counter: int
    suite: str
    date: str = ""
    spent: int = 0
    by_tests: int = 0
    store_bytes: int = 0
    unreclaimed: int = 0


class Ledger:
    """The ledger of one board. Raises :class:`HostError` when it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # How much of the file is whole lines; None: all of it.
        self._whole: int | None = None
        self._entries = list(self._read())

    @classmethod
    def of(cls, board: Board) -> Self:
        """The ledger of a started board, kept with its snapshot."""
        return cls(place.directory(board.power, board.file) / "wear.jsonl")

    def add(self, entry: Entry) -> None:
        """Append one line, dated now (UTC)."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        line: dict[str, Any] = {**asdict(entry), "date": date}
        try:
            if self._whole is not None:
                os.truncate(self.path, self._whole)
                self._whole = None
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._unusable(error.strerror) from error
        self._entries.append(Entry(**line))

    def total(self) -> int:
        """RPMB writes of all runs that ended."""
        return sum(entry.spent for entry in self._entries)

    def writes_per_byte(self) -> float | None:
        """RPMB writes for each declared byte of the store in the last run that tells."""
        for entry in reversed(self._entries):
            if entry.store_bytes >= _TELLING_BYTES and entry.by_tests:
                return entry.by_tests / entry.store_bytes
        return None

    def unreclaimed(self) -> int:
        """Bytes written to the store since its last reclaim."""
        return self._entries[-1].unreclaimed if self._entries else 0

    def oddity(self, counter: int) -> str | None:
        """What the counter at the begin of a run says about the time since the last one."""
        if not self._entries:
            return None
        last = self._entries[-1]
        moved = counter - last.counter
        if moved < 0:
            return (
                f"the RPMB write counter went back from {last.counter} ({last.date}) to {counter}: "
                "another eMMC with the same CID, or one restored from an image"
            )
        if moved <= _WRITES_OF_BOOTS:
            return None
        if last.event == "begin":
            return f"{moved} RPMB writes since the run of {last.date}, which did not end"
        return f"{moved} RPMB writes by somebody else since the run that ended on {last.date}"

    def _read(self) -> Iterator[Entry]:
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error.strerror) from error
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            # A run was killed while it wrote.
            self._whole = len(text.encode()) - len(lines.pop().encode())
        for number, line in enumerate(lines, 1):
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError):
                raise self._unusable(f"line {number} is no entry") from None

    def _unusable(self, why: str | None) -> HostError:
        return HostError(
            f"the wear ledger {self.path}: {why}", remedy="mend the file, or move it away"
        )
