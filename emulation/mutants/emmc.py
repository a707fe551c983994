"""The eMMC's RPMB, broken."""

from typing import Any, Final
from weakref import WeakKeyDictionary

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.emmc.rpmb import RpmbPartition
from emulation.mutants.mutant import Mutant, Original, Patches
from harness.formats.rpmb import DATA_SIZE, RpmbFrame, RpmbRequest, RpmbResult

_Undo = list[tuple[int, bytes]]
"""What was at a half sector before each write, oldest first."""


def _forget_at_power_cycle(patches: Patches, keep: int | None) -> None:
    """Take the newest ``keep`` writes of a power-on (None: all) back when the power goes."""
    written: WeakKeyDictionary[RpmbImage, _Undo] = WeakKeyDictionary()

    def commit(
        original: Original, self: RpmbImage, counter: int, address: int = 0, data: bytes = b""
    ) -> None:
        undo = written.setdefault(self, [])
        undo.append((address, self.read(address, len(data) // DATA_SIZE)))
        original(self, counter, address, data)

    def power_cycle(original: Original, self: EmmcCard) -> None:
        image: RpmbImage = self.rpmb._image
        undo = written.pop(image, [])
        for address, before in reversed(undo if keep is None else undo[-keep:]):
            image._apply(address, before)
        original(self)

    patches.wrap(RpmbImage, "commit", commit)
    patches.wrap(EmmcCard, "power_cycle", power_cycle)


def flash_forgets_everything(patches: Patches) -> None:
    """the card keeps RPMB writes in a cache that dies with the power"""
    _forget_at_power_cycle(patches, None)


def flash_forgets_last_write(patches: Patches) -> None:
    """the last RPMB write before the power goes never reaches the flash"""
    _forget_at_power_cycle(patches, 1)


def counter_stands_still(patches: Patches) -> None:
    """reading the write counter answers its value at power-on"""
    at_power_on: WeakKeyDictionary[RpmbPartition, int] = WeakKeyDictionary()

    def power_cycle(original: Original, self: RpmbPartition) -> None:
        original(self)
        at_power_on[self] = self.write_counter

    def execute(
        original: Original, self: RpmbPartition, request: RpmbFrame, *args: Any
    ) -> RpmbFrame:
        answer: RpmbFrame = original(self, request, *args)
        if request.kind == RpmbRequest.READ_COUNTER and answer.result == RpmbResult.OK:
            answer = answer._replace(write_counter=at_power_on[self])
        return answer

    patches.wrap(RpmbPartition, "power_cycle", power_cycle)
    patches.wrap(RpmbPartition, "_execute", execute)


def _ignore(patches: Patches, ignored: RpmbResult) -> None:
    def refusal(
        original: Original, self: RpmbPartition, request: RpmbFrame, *args: Any
    ) -> RpmbResult | None:
        result: RpmbResult | None = original(self, request, *args)
        return None if result == ignored else result

    patches.wrap(RpmbPartition, "_refusal", refusal)


def wrong_key_accepted(patches: Patches) -> None:
    """the card takes RPMB writes whose MAC was made with another key"""
    _ignore(patches, RpmbResult.AUTHENTICATION_FAILURE)


def rpmb_replay_accepted(patches: Patches) -> None:
    """the card takes an authenticated write whose counter was used before"""
    _ignore(patches, RpmbResult.COUNTER_FAILURE)


def wrong_key_is_general_failure(
    original: Original, self: RpmbPartition, *args: Any
) -> RpmbResult | None:
    """a write with a wrong MAC is reported as a general failure"""
    result: RpmbResult | None = original(self, *args)
    return RpmbResult.GENERAL_FAILURE if result == RpmbResult.AUTHENTICATION_FAILURE else result


def refused_write_counts(original: Original, self: RpmbPartition, *args: Any) -> RpmbResult | None:
    """a write with a wrong MAC moves the write counter"""
    result: RpmbResult | None = original(self, *args)
    if result == RpmbResult.AUTHENTICATION_FAILURE:
        self._image.commit(self.write_counter + 1)
    return result


MUTANTS: Final = (
    Mutant(flash_forgets_everything, ("persist",)),
    Mutant(flash_forgets_last_write, ("persist",)),
    Mutant(counter_stands_still, ("rpmb",)),
    Mutant(wrong_key_accepted, ("rpmb",)),
    Mutant(rpmb_replay_accepted, ("rpmb",)),
    Mutant(wrong_key_is_general_failure, ("rpmb",), RpmbPartition, "_refusal"),
    Mutant(refused_write_counts, ("rpmb",), RpmbPartition, "_refusal"),
)
