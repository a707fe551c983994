"""Power lost at every single storage write: neither the old nor the new value is ever lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulation.faults import PowerLost
from emulation.stmm.config import StmmConfig
from harness.formats.efi import EfiStatus
from tests.emulation.stmm_client import CuttableStorage, Partition

OLD, NEW = b"old value", b"the new value, longer"


def prepared(config: StmmConfig) -> bytes:
    """Flash content with one variable."""
    board = Partition(config=config)
    assert board.set("Keep", b"untouched") == EfiStatus.SUCCESS
    assert board.set("Var", OLD) == EfiStatus.SUCCESS
    return bytes(board.storage.content)


def nearly_full() -> bytes:
    """Flash content where the next update must reclaim."""
    board = Partition()
    assert board.set("Keep", b"untouched") == EfiStatus.SUCCESS
    assert board.set("Var", OLD) == EfiStatus.SUCCESS
    room = board.free() - 2 * (60 + len("Fill?") * 2 + 2) - 8
    for name, size in (("Fill1", room // 2), ("Fill2", room - room // 2)):
        assert board.set(name, bytes(size)) == EfiStatus.SUCCESS
    assert board.set("Fill1", b"") == EfiStatus.SUCCESS
    return bytes(board.storage.content)


def header_erased(storage: CuttableStorage) -> bool:
    """The one gap in the real firmware: between erasing the variable store's blocks and writing
    the first of them the volume header is gone, and the flash driver, which starts before the
    fault tolerant write driver, formats what it does not recognise (stack 4.12)."""
    return storage.content[40:44] != b"_FVH"


def survive(flash: bytes, config: StmmConfig, act: Callable[[Partition], object]) -> list[object]:
    """Values of "Var" after a cut at each write of ``act``, one after another."""
    values: list[object] = []
    for cut in range(200):
        board = Partition(CuttableStorage(flash), config)
        board.storage.cut_at = cut
        try:
            act(board)
        except PowerLost:
            if header_erased(board.storage):
                values.append("formatted")
                continue
            board.boot()
            assert board.value("Keep") == b"untouched", cut
            values.append(board.value("Var"))
            assert [name for name, _ in board.names()].count("Var") == (values[-1] is not None)
            # The board goes on as if nothing had happened.
            assert board.set("Var", b"later") == EfiStatus.SUCCESS
            board.boot()
            assert board.value("Var") == b"later"
        else:
            values.append(board.value("Var"))
            return values
    pytest.fail("the operation never ended")


@pytest.mark.parametrize("release", [202502, 202311])
@pytest.mark.cases(303, 304, 305)
def test_update(release: int) -> None:
    config = StmmConfig(release=release)
    values = survive(prepared(config), config, lambda board: board.set("Var", NEW))
    writes_before_the_new_one_counts = 2 if release >= 202402 else 4
    assert values == [OLD] * (writes_before_the_new_one_counts + 1) + [NEW] * 2


def test_delete() -> None:
    config = StmmConfig()
    assert survive(prepared(config), config, lambda board: board.set("Var", b"")) == [OLD, None]


@pytest.mark.cases(306, 307, 308)
def test_reclaim() -> None:
    config = StmmConfig()
    values = survive(nearly_full(), config, lambda board: board.set("Var", NEW))
    # 22 writes: the old state byte, then the reclaim's 15 large and 6 small ones. From the mark
    # "spare complete" (number 9) on the new value is the one that counts.
    target_erased = 11
    assert values == [OLD] * 10 + [NEW] + ["formatted"] + [NEW] * 11
    assert values[target_erased] == "formatted"


def test_the_gap_of_the_real_firmware() -> None:
    """See header_erased: after this one cut the store starts empty."""
    board = Partition(CuttableStorage(nearly_full()))
    board.storage.cut_at = 11
    with pytest.raises(PowerLost):
        board.set("Var", NEW)
    assert header_erased(board.storage)
    board.boot()
    assert board.value("Keep") is None
    assert board.free() == 16032


def test_two_cuts_in_updates_of_one_variable_bring_back_the_oldest_value() -> None:
    """The first leaves the old record in transition behind the new one, the second puts the new
    one in transition too; the reclaim at the next start keeps the first it meets, the oldest."""
    board = Partition()
    for value, cut in ((b"oldest", None), (b"middle", 3), (b"newest", 2)):
        board.storage.cut_at = cut
        try:
            board.set("Var", value)
        except PowerLost:
            board.boot()
        assert board.value("Var") == {b"newest": b"oldest"}.get(value, value)


@pytest.mark.cases(307, 308)
def test_cut_again_while_recovering() -> None:
    """Power lost in the reclaim, and again at each write of the start that repairs it."""
    flash = nearly_full()
    for cut, expected in ((8, OLD), (9, OLD), (12, NEW), (14, NEW), (16, NEW), (21, NEW)):
        board = Partition(CuttableStorage(flash))
        board.storage.cut_at = cut
        with pytest.raises(PowerLost):
            board.set("Var", NEW)
        broken = bytes(board.storage.content)
        for again in range(60):
            board = Partition.unstarted(CuttableStorage(broken))
            try:
                board.restart_losing_power(again)
            except PowerLost:
                if header_erased(board.storage):
                    continue
                board.boot()
                assert board.value("Keep") == b"untouched"
                assert board.value("Var") == expected
            else:
                break


def test_first_boot() -> None:
    """Power lost at each write of the very first start: the next start is a clean one."""
    golden = bytes(Partition().storage.content)
    for cut in range(100):
        board = Partition.unstarted(CuttableStorage())
        try:
            board.restart_losing_power(cut)
        except PowerLost:
            board.boot()
            board.boot()
            assert bytes(board.storage.content[:0x4020]) == golden[:0x4020], cut
        else:
            return
    pytest.fail("the first start never ended")


def test_failing_writes_leave_a_usable_service() -> None:
    """Every write of an update fails once, as when a supplicant goes and comes back."""
    config = StmmConfig()
    flash = prepared(config)
    for good in range(4):
        storage = CuttableStorage(flash)
        board = Partition(storage, config)
        storage.fail_after(good)
        assert board.set("Var", NEW) == EfiStatus.OUT_OF_RESOURCES, good
        storage.fail_after(None)
        assert board.value("Var") in (OLD, NEW)
        assert board.set("Var", b"after") == EfiStatus.SUCCESS
        assert board.value("Var") == b"after"
        board.boot()
        assert board.value("Var") == b"after"
        assert board.value("Keep") == b"untouched"


@pytest.mark.cases(306)
def test_failing_reclaim_is_aborted_and_ends_with_the_store_whole() -> None:
    """A flash failure inside FTW is EFI_ABORTED, which Linux shows as EINTR."""
    flash = nearly_full()
    for good in (1, 5, 9, 15, 20):
        storage = CuttableStorage(flash)
        board = Partition(storage)
        storage.fail_after(good)
        assert board.set("Var", NEW) == EfiStatus.ABORTED, good
        storage.fail_after(None)
        board.boot()
        assert board.value("Keep") == b"untouched"
        assert board.value("Var") in (OLD, NEW)


@pytest.mark.cases(310)
def test_garbage_behind_the_last_variable_is_reclaimed_at_start() -> None:
    """What OP-TEE 4.1 to 4.9 leave when they lose the end of a chunk (stack 2.4)."""
    board = Partition()
    assert board.set("Keep", b"untouched") == EfiStatus.SUCCESS
    board.storage.content[0x3000:0x3100] = bytes(0x100)
    before = len(board.storage.writes)
    board.boot()
    assert len(board.storage.writes) - before == 21
    assert board.value("Keep") == b"untouched"
    assert set(board.storage.content[0x3000:0x3100]) == {0xFF}


@pytest.mark.cases(309)
def test_damaged_working_space_is_made_anew_and_the_store_kept() -> None:
    board = Partition()
    assert board.set("Keep", b"untouched") == EfiStatus.SUCCESS
    board.storage.content[0x4000] ^= 0xFF
    board.boot()
    assert board.value("Keep") == b"untouched"
    assert board.storage.content[0x4014] == 0xFE


@pytest.mark.parametrize("offset", [0x4000, 0x4020, 0x4023, 0x4038, 0x4048, 0x4050, 0x8000])
def test_hostile_working_space_never_raises(offset: int) -> None:
    flash = bytearray(Partition().storage.content)
    for value in (0x00, 0x55, 0xFC, 0xFE):
        storage = CuttableStorage(bytes(flash))
        storage.content[offset : offset + 60] = bytes([value]) * 60
        board = Partition(storage)
        assert board.set("Alive", b"x") == EfiStatus.SUCCESS
