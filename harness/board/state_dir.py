"""Where on this machine the things that belong to one board's flash are kept."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HostError, LabError

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile
    from harness.power.driver import PowerDriver

STATE_ENVIRONMENT = "XDG_STATE_HOME"
_PRIVATE = 0o700


def directory(power: PowerDriver, file: BoardFile) -> Path:
    """The directory of the board's snapshot and wear ledger, made private (0700) and for its
    owner only: variables may hold secrets. Its power has been switched on.

    A board that exists only in software keeps it with the image of its flash; for a real one it
    is ``$XDG_STATE_HOME/stmm-hil/CID`` (default ``~/.local/state``), so that two board files of
    one board share it. Raises :class:`HostError` when it cannot be made.
    """
    place = _of_board(power, file)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
        place.chmod(_PRIVATE)
    except OSError as error:
        raise HostError(
            f"cannot make the directory {place}: {error.strerror}",
            remedy=f"make it writable, or set {STATE_ENVIRONMENT} to a directory that is",
            board=file.name,
        ) from error
    return place


def console_logs(power: PowerDriver, file: BoardFile) -> Path:
    """The folder with what the board said on its console, one file a boot, whoever listened. It
    may not exist yet."""
    return _of_board(power, file) / "console"


class Claim:
    """The board's directory, held by this process until :meth:`release` or its end: the snapshot
    of a run that still runs is not to be restored by another."""

    def __init__(self, power: PowerDriver, file: BoardFile) -> None:
        """Raises :class:`LabError` while another process holds it."""
        self.directory = directory(power, file)
        self._descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise LabError(
                "another run is using this board and will restore it",
                remedy="wait until it has ended",
                board=file.name,
            ) from error

    def release(self) -> None:
        """Give it back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _of_board(power: PowerDriver, file: BoardFile) -> Path:
    return power.keeps() or _state_home() / "stmm-hil" / file.emmc_cid


def _state_home() -> Path:
    # A relative path in it is invalid and to be ignored (XDG Base Directory Specification).
    given = Path(os.environ.get(STATE_ENVIRONMENT, ""))
    return given if given.is_absolute() else Path("~/.local/state").expanduser()
