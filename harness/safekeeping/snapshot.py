"""The snapshot of a board's variables: taken before the first test, on disk until every variable
is back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from harness.consents import Consent
from harness.edges import AT_THE_EDGE
from harness.errors import HostError, TargetError, of_host
from harness.instruments.efivars import VariableName, is_named, is_ours
from harness.safekeeping.variables import Stored, nature, read_all

if TYPE_CHECKING:
    from harness.board.board import Board

VERSION = 1
"""Of the file; a reader refuses any other."""

_PENDING = "snapshot.json"
_RESTORED = "snapshot.restored.json"
_UNFINISHED = ".snapshot-"


@dataclass(frozen=True)
class Snapshot:
    """A board's variables before a run.

    ``declared`` names the foreign variables that tests of the run may write, and
    ``foreign_consent`` says whether the owner had allowed that; both decide what a later restore
    may touch. ``taken`` is UTC in ISO 8601.
    """

    board: str
    cid: str
    boot_id: str
    taken: str
    declared: tuple[str, ...]
    foreign_consent: bool
    variables: Mapping[VariableName, Stored] = field(repr=False)

    def room(self) -> int:
        """Bytes of the store that restoring may take at most: a whole new record for each
        variable that this run may change."""
        from harness.store.records import record_size

        return sum(
            record_size(name.name, len(stored.data))
            for name, stored in self.variables.items()
            if stored.is_variable
            and nature(stored) is None
            and (is_ours(name) or is_named(name, self.declared))
        )


def take(board: Board, declared: Iterable[str] = ()) -> Snapshot:
    """Read every variable of a board that is in its standard state; two round trips. Raises
    :class:`TargetError` where the directory does not show the store, the link's errors."""
    standing = board.standing()
    if not (standing.bound and standing.mounted):
        raise TargetError(
            "the store cannot be seen: "
            + ("efivarfs is not mounted" if standing.bound else "the driver is not bound"),
            remedy="bring the board into its standard state; `hil shell` shows why it is not",
            board=board.name,
        )
    return Snapshot(
        board=board.name,
        cid=board.file.emmc_cid,
        boot_id=board.links.boot_id,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        declared=tuple(sorted(set(declared))),
        foreign_consent=board.file.consents_to(Consent.FOREIGN_VARIABLES),
        variables=read_all(board.probe),
    )


# --- on disk ------------------------------------------------------------------------------------


def keep(snapshot: Snapshot, directory: Path) -> Path:
    """Write it so that it is whole or absent, and survives a crash of this machine. One that is
    there is never overwritten: raises :class:`HostError`, also for a full disk."""
    path = directory / _PENDING
    written = _write(snapshot, directory)
    try:
        # Unlike a rename, a link fails where there is one already.
        path.hardlink_to(written)
    except FileExistsError as error:
        raise HostError(
            f"{path} is the snapshot of another run that was never restored",
            remedy=f"`hil restore {snapshot.board}` gives the board back as it was",
            board=snapshot.board,
        ) from error
    finally:
        written.unlink()
    _sync(directory)
    return path


def declare(snapshot: Snapshot, directory: Path, declared: Iterable[str]) -> Snapshot:
    """The kept snapshot with more variables that tests may write."""
    more = replace(snapshot, declared=tuple(sorted({*snapshot.declared, *declared})))
    if more != snapshot:
        _write(more, directory).replace(directory / _PENDING)
        _sync(directory)
    return more


def pending(directory: Path) -> Snapshot | None:
    """The snapshot of a run that did not restore it; what one that was killed had not finished
    writing is removed. Raises :class:`HostError` for a file that is none."""
    path = directory / _PENDING
    for unfinished in directory.glob(f"{_UNFINISHED}*"):
        unfinished.unlink()
    try:
        return _unpack(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (*AT_THE_EDGE, LookupError, TypeError, AttributeError) as error:
        raise HostError(
            f"{path} is not a snapshot that this version reads: {error}",
            remedy="restore with the version that wrote it, or move the file away",
        ) from error


def finish(directory: Path) -> None:
    """Everything that could come back has: the snapshot no longer waits (it stays to be looked
    at, until the next one)."""
    (directory / _PENDING).replace(directory / _RESTORED)
    _sync(directory)


def _write(snapshot: Snapshot, directory: Path) -> Path:
    # mkstemp: for its owner only, whatever the umask.
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=_UNFINISHED)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(_pack(snapshot), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        Path(name).unlink()
        raise (of_host(error) or error) from error
    return Path(name)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pack(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "version": VERSION,
        "board": snapshot.board,
        "cid": snapshot.cid,
        "boot_id": snapshot.boot_id,
        "taken": snapshot.taken,
        "declared": list(snapshot.declared),
        "foreign_consent": snapshot.foreign_consent,
        "variables": [_pack_one(stored) for stored in snapshot.variables.values()],
    }


def _pack_one(stored: Stored) -> dict[str, Any]:
    found = {"name": stored.name.name, "guid": str(stored.name.guid), "immutable": stored.immutable}
    if stored.is_variable:
        return found | {"attributes": int(stored.attributes), "data": stored.data.hex()}
    # A file that was never written, or one that could not be read.
    return found | {"problem": stored.problem}


def _unpack(read: dict[str, Any]) -> Snapshot:
    if read["version"] != VERSION:
        raise ValueError(f"version {read['version']} instead of {VERSION}")
    variables = [_unpack_one(one) for one in read["variables"]]
    return Snapshot(
        board=read["board"],
        cid=read["cid"],
        boot_id=read["boot_id"],
        taken=read["taken"],
        declared=tuple(read["declared"]),
        foreign_consent=read["foreign_consent"],
        variables={stored.name: stored for stored in variables},
    )


def _unpack_one(one: dict[str, Any]) -> Stored:
    name = VariableName(one["name"], UUID(one["guid"]))
    if "data" in one:
        content = int(one["attributes"]).to_bytes(4, "little") + bytes.fromhex(one["data"])
        return Stored(name, content, one["immutable"])
    return Stored(name, None if one["problem"] else b"", one["immutable"], one["problem"])
