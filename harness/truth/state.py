"""Brings the board into the state that a row found: files, free space, phase of the stack.

Everything is done as anybody could do it on a real board: writing and deleting variables,
starting and stopping the service, binding and unbinding, rebooting. What cannot be reached
raises :class:`StateUnknown`.
"""

import re
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from harness.board.board import Board
from harness.capabilities import EFIVARS_PATH, STMM_DRIVER, VENDOR_GUID
from harness.errors import HilError, HostError
from harness.instruments.tee import routing_model
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.probe.steps import Outcome, Step
from harness.store.records import LARGEST_FILLER, RECORDED, SMALLEST_RECORD, data_for, record_size
from harness.truth import space
from harness.truth.needs import FileNeed, Needs, Phase
from harness.truth.recipes import Recipes
from harness.truth.rig import Rig
from harness.truth.rows import Row
from harness.truth.steps import (
    GLOBAL_GUID,
    NV_BS_RT,
    READ_BYTES,
    CannotTake,
    Written,
    any_bytes,
    path,
    variable_name,
)

STEP_SECONDS = 180.0
"""For one row: a relocating write takes up to half a minute on slow boards."""
_CERTDB_GUID = "d9bee56e-75dc-49d9-b4d7-b534210f637a"
_FILLER = f"F-{VENDOR_GUID}"
_ATTEMPTS = 3


class StateUnknown(Exception):
    """The board cannot be brought to the state that the row found; says which."""


@dataclass(frozen=True)
class Found:
    """A file as it is: None for one that is not there."""

    content: bytes | None
    size: int | None

    @property
    def present(self) -> bool:
        return self.size is not None


class State:
    """The state of the board of a :class:`Rig` during one group."""

    def __init__(self, rig: Rig, recipes: Recipes) -> None:
        self.rig = rig
        self._recipes = recipes
        self.row: Row | None = None
        """The row that is prepared."""
        self._original: dict[str, bytes] = {}
        self._serial = 0

    @property
    def board(self) -> Board:
        return self.rig.board

    def begin(self) -> None:
        """Remember the variables that the firmware made."""
        self._original = {}
        for name in self.names():
            content = self.look(name).content
            if content is not None:
                self._original[name] = content

    def is_original(self, file: str) -> bool:
        """Whether the firmware made the file."""
        return file in self._original

    # --- looking ------------------------------------------------------------------------------

    def take(self, steps: Sequence[Step]) -> list[Outcome]:
        """Probe steps with the time that a slow store needs. Raises :class:`CannotTake` where only
        python3 can take one and the board has none."""
        if not any(isinstance(step, do.Poll | do.SignalledWrite) for step in steps):
            return self.board.probe.steps(steps, timeout=STEP_SECONDS)
        guard = self.board.foreign_writes.check
        with Probe(self.board.shell, backend="python3", guard=guard) as probe:
            try:
                return probe.steps(steps, timeout=STEP_SECONDS)
            except HostError as error:
                raise CannotTake(f"only python3 can take it: {error.what}") from error

    def look(self, file: str) -> Found:
        """Size and content of a file."""
        where = path(file)
        stat, _, content, _ = self.take(
            [do.Stat(where), do.Open("l", where), do.Read("l", READ_BYTES), do.Close("l")]
        )
        return Found(content.data if content.ok else None, stat.value if stat.ok else None)

    def names(self) -> list[str]:
        """Every file name that efivarfs shows."""
        (listed,) = self.take([do.ListDir(EFIVARS_PATH)])
        return [name.decode("utf-8", "surrogateescape") for name in listed.names]

    def free(self) -> int | None:
        """Free bytes; None where the board shows no figures."""
        (outcome,) = self.take([do.StatFs(EFIVARS_PATH)])
        if not outcome.ok or not outcome.field("blocks"):
            return None
        # U-Boot's own file has another size than StMM's store.
        if outcome.field("blocks") != RECORDED.capacity:
            return None
        return outcome.field("bfree") * outcome.field("bsize")

    def certdb(self) -> int:
        """Bytes of certdb's data."""
        found = self.look(f"certdb-{_CERTDB_GUID}")
        # Not its size: that of an inode is the one at the mount.
        return max(len(found.content or b"") - 4, 4)

    def counter(self) -> int:
        """The RPMB write counter."""
        return self.board.rpmb.counter()

    def phase(self) -> Phase:
        """Where the stack stands."""
        standing = self.board.standing()
        served = standing.supplicant or routing_model(self.board.shell) == "kernel"
        if standing.bound:
            return Phase.LIVE if served else Phase.STOPPED
        return Phase.UNBOUND if standing.supplicant else Phase.COLD

    # --- phases -------------------------------------------------------------------------------

    def enter(self, wanted: Phase) -> None:
        """Bring the stack to a phase. Raises :class:`StateUnknown`."""
        if self.phase() is wanted:
            return
        try:
            if wanted is Phase.COLD:
                self.rig.restart(autostart=False)
                return
            self._go_live()
            if wanted is Phase.STOPPED:
                self.board.tee.stop_supplicant()
            elif wanted is Phase.UNBOUND:
                self.board.tee.unbind()
        except (CannotTake, HilError) as error:
            raise StateUnknown(f"cannot reach the phase '{wanted}': {_short(error)}") from error
        if self.phase() is not wanted:
            raise StateUnknown(f"cannot reach the phase '{wanted}'")

    def _go_live(self) -> None:
        tee = self.board.tee
        # Only a device that appears binds by itself.
        was_there = tee.has_stmm_device()
        if not self.board.standing().supplicant and routing_model(self.board.shell) != "kernel":
            tee.start_supplicant()
        if not self.board.standing().bound:
            if was_there:
                tee.bind()
            tee.wait_until_bound()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """The stack live and the mount read-write for a while."""
        before = self.phase()
        self.enter(Phase.LIVE)
        mount = self.board.efivars.mount_state()
        by_hand = mount is not None and mount.mount_read_only
        if mount is None:
            self.board.efivars.mount()
        elif by_hand:
            self.board.efivars.remount("rw")
        try:
            yield
        finally:
            if by_hand:
                self.board.efivars.remount("ro")
            if before is not Phase.LIVE:
                self.enter(before)

    # --- the store ----------------------------------------------------------------------------

    def settle(
        self,
        needs: Needs,
        *,
        free: Callable[[], int | None],
        fits: Callable[[int], bool] | None,
        record: int,
    ) -> None:
        """Bring about the needs of a row. ``free()`` is the free space that it found, as far as
        it tells; ``fits(free)`` says whether a store with so much free space would cost what the
        row cost, for a record of ``record`` bytes. Raises :class:`StateUnknown`."""
        if needs.phase is not None:
            self.enter(needs.phase)
        if needs.driver_loaded:
            self.board.shell.run(f"test -d {STMM_DRIVER} || modprobe tee_stmm_efi")
        if needs.phase is None and needs.enumerated and self.phase() is Phase.COLD:
            self.enter(Phase.LIVE)
        self._files(needs, free)
        self._mount(needs)
        self._count(needs)
        self._boot_entries(needs.boot_entries)
        self._flags(needs)
        if fits is not None and free() is None:
            self._move_end(fits, record)
        self._read_only(needs)

    def _flags(self, needs: Needs) -> None:
        """What a command changes without being refused had its flag cleared before."""
        if not needs.clear_flags:
            return
        for name in needs.files:
            where = path(name)
            self.take([do.Open("f", where), do.SetFlags("f", 0), do.Close("f")])

    def _read_only(self, needs: Needs) -> None:
        """The mount's own flag, which only somebody's hand sets and clears."""
        mount = self.board.efivars.mount_state()
        if needs.read_only is None or mount is None:
            return
        if needs.read_only and mount.writable:
            self.board.efivars.remount("ro")
        elif not needs.read_only and mount.mount_read_only:
            self.board.efivars.remount("rw")

    def _files(self, needs: Needs, free: Callable[[], int | None]) -> None:
        for _ in range(_ATTEMPTS):
            missing = {
                name: need for name, need in needs.files.items() if not self._holds(name, need)
            }
            extra = self._unlisted(needs)
            target = free()
            seen = self.free() if target is not None else None
            if target is not None and seen is None:
                raise StateUnknown("this board shows no free space")
            if not missing and not extra and seen == target:
                return
            if not self._bring(missing, extra, target, needs):
                self._renew(f"{target} bytes free")
        left = [name for name, need in needs.files.items() if not self._holds(name, need)]
        if left:
            raise StateUnknown(f"{', '.join(left)} cannot be brought to what the row found")
        if free() is not None and self.free() != free():
            raise StateUnknown(f"{free()} bytes free; this store has {self.free()}")

    def _mount(self, needs: Needs) -> None:
        """Options of the mount: those of the init system, or none given by hand."""
        state = self.board.efivars.mount_state()
        if needs.mounted_by_hand is None or state is None:
            return
        by_hand = "nosuid" not in state.options
        if needs.mounted_by_hand and not by_hand:
            self.board.efivars.unmount()
            self.board.efivars.mount()
        elif by_hand and not needs.mounted_by_hand:
            self._reboot_into(self.phase())

    def _renew(self, why: str) -> None:
        try:
            self.rig.renew()
        except CannotTake as error:
            raise StateUnknown(f"{why}: {error}") from error
        self.begin()

    def _holds(self, name: str, need: FileNeed) -> bool:
        found = self.look(name)
        if not found.present and need.shown not in (None, name):
            found = self.look(str(need.shown))
        if need.present is False:
            return not found.present
        if need.present and not found.present:
            return False
        if need.content is not None:
            content = found.content or b""
            same = content[: len(need.content)] if need.prefix else content
            return same == need.content
        if need.size is not None:
            return found.size == need.size
        return not (need.committed and not found.content)

    def _unlisted(self, needs: Needs) -> list[str]:
        """Committed variables that a complete listing does not show. Those that were never
        committed stay: that a remount drops them is what such rows show."""
        if not needs.only_listed:
            return []
        others = set(self.names()) - needs.listed - set(self._original)
        return [name for name in others if self.look(name).content]

    def _bring(
        self,
        missing: Mapping[str, FileNeed],
        extra: Sequence[str],
        target: int | None,
        needs: Needs,
    ) -> bool:
        """Make files and fill the store; False when only a fresh store could help."""
        with self._writable():
            for name in extra:
                self.delete(name)
            gap = 0
            if target is not None:
                gap = (self.free() or 0) - target
            contents: dict[str, bytes] = {}
            certdb = self.certdb() if any(name in self._recipes for name in missing) else 4
            for name, need in missing.items():
                if need.present is False:
                    self.delete(name)
                    if self.look(name).present:
                        return False  # e.g. signed: only a fresh store is without it
                    continue
                if name.endswith(_CERTDB_GUID):
                    continue  # follows from the signed variables
                contents[name] = self._content(name, need, gap, last=len(missing) == 1)
            sizes = {
                name: space.taken(_as_written(name, content), None, certdb)
                for name, content in contents.items()
                if content
            }
            if target is not None:
                rest = gap - sum(sizes.values())
                if rest < 0 or 0 < rest < SMALLEST_RECORD:
                    return False
                self.fill(rest)
            for name, content in contents.items():
                self.delete(name)
                self.create(name, content)
        if needs.listed_at_boot and contents and self.phase() is Phase.UNBOUND:
            self._reboot_into(Phase.UNBOUND)
        return True

    def _reboot_into(self, phase: Phase) -> None:
        """While the driver is unbound the firmware's copy of the boot is shown."""
        try:
            self.rig.restart()
        except CannotTake as error:
            raise StateUnknown(str(error)) from error
        self.enter(phase)

    def _content(self, name: str, need: FileNeed, gap: int, *, last: bool) -> bytes:
        recipe = self._recipes.find(name, need.size, self.row)
        if recipe is not None and need.content is None:
            return recipe
        if need.signed:
            raise StateUnknown(f"{name} is signed, and no given row tells how it was made")
        if need.content is not None:
            return need.content
        if need.size is not None:
            if name in self._original and len(self._original[name]) == need.size:
                return self._original[name]
            return self._new(need.size - 4) if need.size >= 4 else b""
        smallest = record_size(variable_name(name), 1)
        if last and smallest <= gap <= LARGEST_FILLER:
            return self._new(data_for(variable_name(name), gap))
        return self._new(8)

    def _new(self, size: int) -> bytes:
        self._serial += 1
        return b"\7\0\0\0" + any_bytes(size, f"prepared {self._serial}")

    def create(self, name: str, content: bytes) -> None:
        """Write a variable, or make an empty file for an empty content."""
        where = path(name)
        steps: list[Step] = [do.Open("c", where, "O_WRONLY|O_CREAT")]
        if content:
            steps.append(do.Write("c", content))
        outcomes = self.take([*steps, do.Close("c")])
        failed = next((one.errno for one in outcomes if one.errno), None)
        if failed:
            raise StateUnknown(f"{name} cannot be written: {failed}")

    def delete(self, name: str) -> None:
        """Clear the flag and unlink; a file that is not there is no error."""
        where = path(name)
        self.take([do.Open("f", where), do.SetFlags("f", 0), do.Close("f"), do.Unlink(where)])

    def fill(self, amount: int) -> None:
        """Take ``amount`` bytes of free space with records that are then deleted."""
        if not amount:
            return
        while amount:
            chunk = min(amount, LARGEST_FILLER)
            if 0 < amount - chunk < SMALLEST_RECORD:
                chunk -= SMALLEST_RECORD
            data = data_for(variable_name(_FILLER), chunk)
            self.delete(_FILLER)
            self.create(_FILLER, self._new(data))
            amount -= chunk
        self.delete(_FILLER)

    # --- where the next record begins -----------------------------------------------------------

    def _move_end(self, fits: Callable[[int], bool], record: int) -> None:
        """Move the end of the store to where a record costs what the row cost."""
        free = self.free()
        if free is None:
            self._move_end_blindly(fits, record)
            return
        if fits(free):
            return
        for amount in range(SMALLEST_RECORD, 2 * RECORDED.block, 4):
            if free - amount > record and fits(free - amount):
                with self._writable():
                    self.fill(amount)
                return
        raise StateUnknown("no place in this store at which the row could cost what it did")

    def _move_end_blindly(self, fits: Callable[[int], bool], record: int) -> None:
        """Without figures the position is found by its cost: fillers are written until one crosses
        a half sector."""
        smallest = SMALLEST_RECORD
        half_sector = RECORDED.half_sector
        with self._writable():
            for _ in range(2 * half_sector // smallest):
                before = self.counter()
                self.fill(smallest)
                if self.counter() - before >= RECORDED.relocation:
                    break
            else:
                raise StateUnknown("the position of the next record cannot be found by its cost")
            # The next record begins 4 to 64 bytes behind a half sector's begin.
            possible = range(4, smallest + 1, 4)
            for amount in (0, *range(smallest, 2 * half_sector, 4)):
                if all(fits(RECORDED.area - position - amount) for position in possible):
                    self.fill(amount)
                    return
        raise StateUnknown("no place in this store at which the row could cost what it did")

    # --- counts and boot entries ----------------------------------------------------------------

    def _count(self, needs: Needs) -> None:
        """A counted listing states how many variables there are: placeholders stand for those
        of earlier groups."""
        if needs.count is None:
            return
        lacking = needs.count - len(self.names())
        if lacking <= 0:
            return
        with self._writable():
            for number in range(lacking):
                self.create(f"Placeholder{number}-{VENDOR_GUID}", self._new(1))

    def _boot_entries(self, entries: Mapping[str, str]) -> None:
        """efibootmgr shows every entry there is, those of failed creations too."""
        if entries:
            for name in self.names():
                entry = re.fullmatch(rf"Boot([0-9A-F]{{4}})-{GLOBAL_GUID}", name)
                if entry and entry[1] not in entries:
                    self.delete(name)
        for number, shown in entries.items():
            name = f"Boot{number}-{GLOBAL_GUID}"
            if not self.look(name).present:
                label, _, where = shown.partition("\t")
                with self._writable():
                    self.create(name, b"\7\0\0\0" + load_option(label, where))


def load_option(label: str, shown: str) -> bytes:
    """EFI_LOAD_OPTION (UEFI 3.1.3) for a file on a partition, as efibootmgr shows it."""
    file = re.search(r"File\(([^)]*)\)", shown)
    nodes = b""
    disk = re.search(r"HD\((\d+),GPT,([0-9a-f-]{36}),0x([0-9a-f]+),0x([0-9a-f]+)\)", shown)
    if disk:
        body = struct.pack("<IQQ", int(disk[1]), int(disk[3], 16), int(disk[4], 16))
        nodes += b"\4\1" + struct.pack("<H", 42) + body + uuid.UUID(disk[2]).bytes_le + b"\2\2"
    text = (file[1] if file else "").encode("utf-16-le") + b"\0\0"
    nodes += b"\4\4" + struct.pack("<H", 4 + len(text)) + text + b"\x7f\xff\4\0"
    return struct.pack("<IH", 1, len(nodes)) + label.encode("utf-16-le") + b"\0\0" + nodes


def _as_written(name: str, content: bytes) -> Written:
    attributes = int.from_bytes(content[:4], "little") or NV_BS_RT
    return Written(name, attributes, content[4:], 0)


def _short(error: Exception) -> str:
    return error.what if isinstance(error, HilError) else str(error)
