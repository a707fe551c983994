"""The variable store as a budget: what is left, what is kept back, and how it is won back.

Nothing that is deleted at run time gives space back. StandaloneMM reclaims when a SetVariable
*before* ExitBootServices does not fit (stack 4.13), and the firmware is the only one to make
one then. So the store is filled until a boot option that the firmware makes by itself no longer
fits, that option is deleted, and the board rebooted: the firmware makes it again, and StandaloneMM
has to reclaim for it (about 3000 RPMB writes).
"""

import errno
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Final
from uuid import UUID

from harness.board.board import Board
from harness.capabilities import VENDOR_GUID, Capability
from harness.consents import Consent
from harness.errors import ConsentMissing, FirmwareError, HilError, MissingCapability
from harness.formats import variable_store as layout
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.instruments.efivars import Space, VariableName
from harness.probe import steps as do
from harness.store.records import (
    LARGEST_FILLER,
    RECORDED,
    SMALLEST_RECORD,
    Geometry,
    data_for,
    record_size,
)

CACHED_SECONDS: Final = 3.0
"""How old figures from a cache may be, with a margin: Linux 7 asks the firmware five times in two
seconds (K7 fs/efivarfs/super.c)."""
AUTO_CREATED: Final = UUID("8108ac4e-9f11-4d59-850e-e21a522c59b2")
"""Optional data that ends a boot option which U-Boot makes by itself (stack 8)."""

FOREIGN: Final = ("Boot[0-9A-F][0-9A-F][0-9A-F][0-9A-F]", "BootOrder")
"""Variables outside our vendor GUID that a reclaim writes, as a ``foreign`` marker names them."""

_CONSENTS: Final = (Consent.POWER_CYCLE, Consent.WRITE_RPMB, Consent.FOREIGN_VARIABLES)
_FILLER: Final = "Filler"
_BOOT_OPTION: Final = re.compile(r"Boot[0-9A-F]{4}")
_BOOT_ORDER: Final = VariableName("BootOrder", GLOBAL_VARIABLE_GUID)
# A full store makes a write relocate OP-TEE's file several times.
_WRITE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02


def is_live(board: Board) -> bool:
    """Whether the figures are those of now."""
    return board.capabilities.has(Capability.STATFS_IS_LIVE)


def space_once(board: Board, settled: Callable[[Space], bool]) -> Space:
    """The figures once they are ``settled``, or what they are when no cache can hold others."""
    space = board.efivars.space()
    if settled(space) or is_live(board):
        return space
    deadline = time.monotonic() + CACHED_SECONDS
    while not settled(space) and time.monotonic() < deadline:
        Event().wait(_POLL_SECONDS)
        space = board.efivars.space()
    return space


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What one reclaim gave back in bytes, and what it cost in RPMB writes; None where the board
    shows no figures."""

    freed: int | None
    rpmb_writes: int | None


class StoreSpace:
    """The variable store of one board; a test gets it as the fixture ``store``.

    ``spent`` is what has been written since the last reclaim as far as anybody told, for boards
    that show no figures.
    """

    def __init__(self, board: Board, *, spent: int = 0, geometry: Geometry = RECORDED) -> None:
        self._board = board
        self.geometry = geometry
        self.spent = spent
        """Bytes written since the last reclaim, as far as anybody told."""
        self._visible: int | None = None
        # Whether the firmware was seen to make a deleted option again; None: not tried.
        self._remakes: bool | None = None

    # --- what there is ------------------------------------------------------------------------

    def free(self) -> int | None:
        """Free bytes as ``df`` shows them; None where the firmware gives no figures."""
        if not self._board.capabilities.has(Capability.QUERY_VARIABLE_INFO):
            return None
        # Figures from a cache may be those of a moment without the driver.
        space = space_once(self._board, lambda space: space.total > 0)
        return space.free if space.total else None

    def at_least_free(self) -> int:
        """Free bytes: the figure, or a cautious estimate from the visible variables and what was
        written since the last reclaim."""
        free = self.free()
        return self.after_reclaim() - self.spent if free is None else free

    def after_reclaim(self) -> int:
        """Free bytes that a reclaim would leave, cautiously."""
        if self._visible is None:
            self._visible = sum(self.records().values())
        return self.geometry.capacity - self._visible - self.geometry.invisible

    def records(self) -> Mapping[VariableName, int]:
        """Bytes of the record of each visible variable that is kept: not ours, or a fixture's."""
        efivars = self._board.efivars
        kept = self._board.kept_variables
        names = [name for name in efivars.names() if name.guid != VENDOR_GUID or name in kept]
        outcomes = self._board.probe.steps(
            [do.Stat(efivars.file(name.name, name.guid)) for name in names]
        )
        return {
            name: record_size(name.name, max((outcome.value or 0) - 4, 0))
            for name, outcome in zip(names, outcomes, strict=True)
        }

    def took(self, store_bytes: int) -> None:
        """Somebody wrote so many bytes."""
        self.spent += store_bytes

    def reclaims_by_itself(self) -> bool:
        """Whether StandaloneMM was never told ExitBootServices: it reclaims whenever a variable
        does not fit (stack 4.13)."""
        return not self._board.capabilities.has(Capability.EXIT_BOOT_SERVICES_TOLD)

    # --- reclaim ------------------------------------------------------------------------------

    def why_not(self) -> str | None:
        """Why this board's store cannot be reclaimed; None when it can. Changes nothing."""
        try:
            for consent in _CONSENTS:
                self._board.require_consent(consent)
            self._automatic_option()
        except (ConsentMissing, MissingCapability) as error:
            return error.what
        return None

    @property
    def proved(self) -> bool:
        """Whether :meth:`reclaim` was seen to work on this board."""
        return bool(self._remakes)

    def reclaim(self) -> Reclaimed:
        """Make StandaloneMM drop deleted records; one reboot, two at the first time. Boot options
        and BootOrder are afterwards as before.

        Raises :class:`harness.errors.ConsentMissing`, :class:`MissingCapability` when the firmware
        makes no boot option by itself, :class:`FirmwareError` when nothing was won back.
        """
        for consent in _CONSENTS:
            self._board.require_consent(consent)
        option = self._automatic_option()
        before = self._boot_entries()
        free, counter = self.free(), self._counter()
        with self._board.foreign_writes.allowing(*FOREIGN):
            try:
                record = record_size(option.name, len(before[option]) - 4)
                # A store that is full already needs no proof and no filling: one boot does both.
                if free is None or free >= record or not self._board.file.disposable:
                    self._prove_remaking(option, before)
                    self._fill(record)
                self._remake(option)
                self.spent = 0
            finally:
                self._put_back(before)
        self._check_reclaimed(free)
        self._visible = None
        now, spent = self.free(), self._counter()
        return Reclaimed(
            freed=None if now is None or free is None else now - free,
            rpmb_writes=None if spent is None or counter is None else spent - counter,
        )

    def _automatic_option(self) -> VariableName:
        """The firmware's own boot option with the largest record."""
        marked = {
            name: record_size(name.name, len(content) - 4)
            for name, content in self._boot_entries().items()
            if name != _BOOT_ORDER and content.endswith(AUTO_CREATED.bytes_le)
        }
        if not marked:
            raise MissingCapability(
                "the store cannot be reclaimed: no boot option that the firmware makes by itself",
                remedy="use a U-Boot with CONFIG_BOOTMETH_EFI_BOOTMGR, or a store with room",
                board=self._board.name,
            )
        return max(marked, key=lambda name: (marked[name], name))

    def _boot_entries(self) -> dict[VariableName, bytes]:
        """Content (attributes and data) of Boot#### and BootOrder; an empty file is no variable."""
        efivars = self._board.efivars
        return {
            name: content
            for name in efivars.names()
            if name.guid == GLOBAL_VARIABLE_GUID
            and (name == _BOOT_ORDER or _BOOT_OPTION.fullmatch(name.name))
            and (content := efivars.read_raw(name.name, name.guid))
        }

    def _prove_remaking(self, option: VariableName, before: Mapping[VariableName, bytes]) -> None:
        """Once: the deleted option comes back while there is still room to write it by hand."""
        if self._remakes is None:
            order = record_size(_BOOT_ORDER.name, 2 * (len(before) + 1))
            room = 2 * (record_size(option.name, len(before[option])) + order)
            if self.at_least_free() < room and not self._board.file.disposable:
                raise MissingCapability(
                    f"{self.at_least_free()} bytes of the store are left: too few to try safely "
                    "whether the firmware makes its boot options again",
                    remedy="reclaim by hand: set a variable in the firmware's own prompt",
                    board=self._board.name,
                )
            self._remake(option)
            self._remakes = before[option] in self._boot_entries().values()
            if self._remakes:
                return
        if not self._remakes:
            raise MissingCapability(
                f"the store cannot be reclaimed: the firmware did not make {option.name} again",
                remedy="boot once with U-Boot's own boot manager; or reclaim by hand in its prompt",
                board=self._board.name,
            )

    def _remake(self, option: VariableName) -> None:
        self._board.efivars.delete(option.name, option.guid)
        self._board.reboot()

    def _fill(self, too_much: int) -> None:
        """Fill until a record of ``too_much`` bytes does not fit; the fillers are deleted."""
        free = self.free()
        if free is None or not is_live(self._board):
            self._fill_blindly()
            return
        while free >= too_much:
            # What is left must be too little for the option, and the filler no smaller than can be.
            record = min(LARGEST_FILLER, max(free - too_much + 4, SMALLEST_RECORD + 16))
            self._write_filler(layout.align(record))
            now = self.free()
            if now is None or now >= free:
                raise FirmwareError(
                    f"a record of {record} bytes took none of {free} free bytes",
                    remedy="look at what QueryVariableInfo answers",
                    board=self._board.name,
                )
            free = now

    def _fill_blindly(self) -> None:
        record = LARGEST_FILLER
        while record >= SMALLEST_RECORD + 16:
            try:
                self._write_filler(layout.align(record))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                record //= 2

    def _write_filler(self, record: int) -> None:
        efivars = self._board.efivars
        try:
            efivars.write(_FILLER, bytes(data_for(_FILLER, record)), timeout=_WRITE_SECONDS)
        finally:
            if efivars.exists(_FILLER):
                efivars.delete(_FILLER)

    def _put_back(self, before: Mapping[VariableName, bytes]) -> None:
        """Boot options and BootOrder as they were; what is as it was is not written."""
        efivars = self._board.efivars
        now = self._boot_entries()
        for name in now.keys() - before.keys():
            efivars.delete(name.name, name.guid)
        for name, content in before.items():
            if now.get(name) != content:
                attributes = int.from_bytes(content[:4], "little")
                efivars.overwrite(name.name, content[4:], attributes, name.guid)
                self.spent += record_size(name.name, len(content) - 4)

    def _check_reclaimed(self, before: int | None) -> None:
        """Free space rose; without figures, a record that could not fit before fits now."""
        # What fixtures keep has been written since it was last added up.
        self._visible = None
        now = self.free()
        if now is None or before is None:
            try:
                self._write_filler(LARGEST_FILLER)
                self.spent += LARGEST_FILLER
            except OSError as error:
                raise self._nothing_won("a variable still does not fit") from error
        elif now < self.after_reclaim():
            raise self._nothing_won(f"{now} bytes are free, {before} were before")

    def _nothing_won(self, what: str) -> FirmwareError:
        return FirmwareError(
            f"the store was full, the firmware set a variable while booting, and {what}",
            remedy="StandaloneMM must reclaim before ExitBootServices (EDK2 Variable.c); "
            "power-cycle and look at the console",
            board=self._board.name,
        )

    def _counter(self) -> int | None:
        try:
            return self._board.rpmb.counter()
        except HilError:
            return None
