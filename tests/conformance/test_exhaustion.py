"""A store without room, and how room comes back.

At run time nothing is reclaimed: a full store refuses whatever would need a record, also one that
would shrink a variable, and goes on answering and deleting. Deleting gives no room, nor does a
reboot; the next SetVariable before ExitBootServices that does not fit does (stack 4.13, truth
fill, fill2, log-reboot-b1). Filling and reclaiming cost about 6000 RPMB writes, so they are done
once, in the fixture ``full``; every test judges one part of what was seen.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pytest

from harness.board.board import Board
from harness.capabilities import VENDOR_GUID
from harness.errors import HilError, MissingCapability
from harness.expectations import recorded
from harness.instruments.efivars import Efivars, VariableName, content_of
from harness.instruments.outcomes import errno_of
from harness.pytest_plugin.budget import BUDGET
from harness.store.gauge import SpaceGauge
from harness.store.records import RECORDED, record_size
from harness.store.space import FOREIGN

ATTRIBUTES = b"\7\0\0\0"
LIVE = {
    "Small": b"s",
    "Tried": b"t" * 50,
    "Appended": b"onetwo",
    "Large": bytes(range(200)),
}
"""Variables that must survive; ``Tried`` is one that a full store refuses to change."""
FILLERS = tuple(f"Fill{number}" for number in range(6))
DEAD = ("Old", *FILLERS, "Final")
FILLER_BYTES = 3400
LAST_BYTES = 4000
"""What the last record may have; more than a filler, so that something is left for it."""
BOOT_OPTIONS = 512
"""What giving back boot options and their order may take after a reclaim."""

pytestmark = [
    pytest.mark.needs("writable"),
    pytest.mark.consents("write_rpmb", "power_cycle", "foreign_variables"),
    pytest.mark.foreign(*FOREIGN),
    pytest.mark.power,
    pytest.mark.wear,
    pytest.mark.cost(store_bytes=RECORDED.capacity, rpmb_writes=6000, story="full"),
]

figures = pytest.mark.needs("query_variable_info")


@dataclass(frozen=True)
class Full:
    """A store filled to its last byte, rebooted, reclaimed; errno values, None for success."""

    # filling
    one_too_many: int | None
    last: int | None
    free_when_full: int
    # full
    smallest: int | None
    overwrite: int | None
    shrink: int | None
    append: int | None
    volatile: int | None
    identical: int | None
    delete: int | None
    create_after_delete: int | None
    read: Mapping[str, bytes | None]
    listed: bool
    refused_file: bytes | None
    free_after_delete: int
    # after a reboot
    free_after_reboot: int
    create_after_reboot: int | None
    read_after_reboot: Mapping[str, bytes | None]
    # after a SetVariable before ExitBootServices
    failure: str | None
    free_after_reclaim: int
    live_bytes: int
    read_after_reclaim: Mapping[str, bytes | None]
    dead_after_reclaim: list[str]
    others_before: Mapping[VariableName, bytes]
    others_after: Mapping[VariableName, bytes]
    create_after_reclaim: int | None
    large_after_reclaim: int | None


@pytest.fixture(scope="session")
def full(board: Board, request: pytest.FixtureRequest) -> Full:
    """Fill, look, delete, reboot, look, reclaim, look."""
    board.capabilities.require("exit_boot_services_told")
    gauge = SpaceGauge(board)
    shown = board.capabilities.has("query_variable_info")
    _write_live(board.efivars)
    one_too_many, last = _fill(board)
    efivars = board.efivars
    free_when_full = gauge.settles_at(0) if shown else 0
    smallest = _set(efivars, "N", b"x")
    refused_file = content_of(efivars, "N")
    efivars.set_immutable("Tried", False)
    overwrite = _set(efivars, "Tried", b"o" * len(LIVE["Tried"]))
    shrink = _set(efivars, "Tried", b"o")
    append = _set(efivars, "Tried", b"o", 0x47)
    identical = _set(efivars, "Tried", LIVE["Tried"])
    volatile = _set(efivars, "Volatile", b"x", 0x6)
    read = _live(efivars)
    listed = set(LIVE) <= {name.name for name in efivars.own()}
    delete = _delete_dead(efivars)
    create_after_delete = _create(efivars, "N")
    free_after_delete = gauge.settles_at(0) if shown else 0
    others_before = _others(efivars)

    board.reboot()
    free_after_reboot = gauge.settles_at(0) if shown else 0
    create_after_reboot = _create(board.efivars, "N")
    read_after_reboot = _live(board.efivars)

    failure = _reclaim(request)
    efivars = board.efivars
    others_after = _others(efivars)
    return Full(
        one_too_many=one_too_many,
        last=last,
        free_when_full=free_when_full,
        smallest=smallest,
        overwrite=overwrite,
        shrink=shrink,
        append=append,
        volatile=volatile,
        identical=identical,
        delete=delete,
        create_after_delete=create_after_delete,
        read=read,
        listed=listed,
        refused_file=refused_file,
        free_after_delete=free_after_delete,
        free_after_reboot=free_after_reboot,
        create_after_reboot=create_after_reboot,
        read_after_reboot=read_after_reboot,
        failure=failure,
        free_after_reclaim=gauge.free() if shown else 0,
        live_bytes=_live_bytes(efivars),
        read_after_reclaim=_live(efivars),
        dead_after_reclaim=[name for name in DEAD if efivars.exists(name)],
        others_before=others_before,
        others_after=others_after,
        create_after_reclaim=_set(efivars, "After", b"x"),
        large_after_reclaim=_set(efivars, "Wide", bytes(4000)),
    )


def _reclaim(request: pytest.FixtureRequest) -> str | None:
    """Make the firmware reclaim; what went wrong, if anything."""
    try:
        request.config.stash[BUDGET].space.reclaim()
    except MissingCapability:
        raise
    except (HilError, OSError) as error:
        return str(error)
    return None


def _write_live(efivars: Efivars) -> None:
    """The variables of LIVE with dead records before, between and behind them."""
    efivars.write("Old", b"old")
    efivars.write("Small", b"first")
    efivars.overwrite("Small", LIVE["Small"])
    efivars.write("Tried", LIVE["Tried"])
    efivars.write("Appended", b"one")
    efivars.append("Appended", b"two")
    efivars.write("Large", LIVE["Large"])


def _fill(board: Board) -> tuple[int | None, int | None]:
    """Fill to the last byte; what one byte too many got, and what the last record that fits."""
    efivars = board.efivars
    if not board.capabilities.has("query_variable_info"):
        return _fill_blindly(efivars)
    gauge = SpaceGauge(board)
    for filler in FILLERS:
        room = gauge.free()
        if room <= LAST_BYTES:
            break
        _set(efivars, filler, bytes(FILLER_BYTES))
    data = bytes(room - record_size("Final", 0))
    one_too_many = _set(efivars, "Final", data + b"x")
    return one_too_many, errno_of(lambda: efivars.overwrite("Final", data, timeout=60))


def _fill_blindly(efivars: Efivars) -> tuple[int | None, int | None]:
    """Ever smaller variables, each size until it does not fit."""
    refused: int | None = None
    fits: int | None = errno.ENOSPC
    for size in (FILLER_BYTES, 800, 200, 50, 10, 1):
        for _ in FILLERS:
            refused = errno_of(partial(efivars.overwrite, "Final", bytes(size), timeout=60))
            if refused is not None:
                break
            fits = None
            efivars.delete("Final")
    return refused, fits


def _set(efivars: Efivars, name: str, data: bytes, attributes: int = 0x7) -> int | None:
    return errno_of(lambda: efivars.write(name, data, attributes, timeout=60))


def _create(efivars: Efivars, name: str) -> int | None:
    """As :func:`_set`; a file that an earlier refusal left is not in the way."""
    return errno_of(lambda: efivars.overwrite(name, b"x", timeout=60))


def _delete_dead(efivars: Efivars) -> int | None:
    """The errno of the first deletion that failed."""
    outcomes = [errno_of(partial(efivars.delete, name)) for name in DEAD if efivars.exists(name)]
    return next((outcome for outcome in outcomes if outcome is not None), None)


def _live(efivars: Efivars) -> Mapping[str, bytes | None]:
    return {name: content_of(efivars, name) for name in LIVE}


def _others(efivars: Efivars) -> Mapping[VariableName, bytes]:
    """Every variable that is not ours."""
    return {
        name: efivars.read_raw(name.name, name.guid)
        for name in efivars.names()
        if name.guid != VENDOR_GUID
    }


def _live_bytes(efivars: Efivars) -> int:
    """Bytes of the records of all non-volatile variables that can be seen."""
    contents = [(name, efivars.read_raw(name.name, name.guid)) for name in efivars.names()]
    return sum(
        record_size(name.name, len(raw) - 4)
        for name, raw in contents
        if len(raw) > 4 and raw[0] & 1
    )


@pytest.mark.cases(216, 219)
@pytest.mark.needs("exit_boot_services_told")
@pytest.mark.cost(store_bytes=BOOT_OPTIONS, rpmb_writes=6000)
def test_a_store_that_was_used_up_is_as_good_as_new_after_a_reclaim(
    request: pytest.FixtureRequest,
) -> None:
    """First of all: without it there would be no room for the others."""
    assert _reclaim(request) is None


SURVIVORS = {name: ATTRIBUTES + data for name, data in LIVE.items()}


class TestFull:
    @figures
    @pytest.mark.cases(216)
    def test_the_last_record_that_fits_is_taken_and_fills_it_to_the_byte(self, full: Full) -> None:
        assert full.last is None
        assert full.free_when_full == 0

    @pytest.mark.cases(216, 235)
    def test_one_byte_more_is_no_space(self, full: Full) -> None:
        assert full.one_too_many == recorded(errno.ENOSPC, "fill2-015[0]", "fill2-019[0]")

    @pytest.mark.cases(218)
    def test_nor_is_there_for_the_smallest_variable(self, full: Full) -> None:
        assert full.smallest == recorded(errno.ENOSPC, "fill2-025[0]", "fill-012[0]")

    def test_what_was_refused_has_no_value(self, full: Full) -> None:
        assert full.refused_file in (None, b"")

    def test_an_overwrite_of_the_same_size_is_refused(self, full: Full) -> None:
        assert full.overwrite == recorded(errno.ENOSPC, "fill2-026[0]")

    def test_even_one_that_shrinks_is(self, full: Full) -> None:
        assert full.shrink == recorded(errno.ENOSPC, "fill2-027[0]")

    @pytest.mark.cases(208)
    def test_an_append_of_one_byte_is(self, full: Full) -> None:
        assert full.append == recorded(errno.ENOSPC, "fill2-028[0]")

    def test_wrong_attributes_are_still_what_is_wrong_first(self, full: Full) -> None:
        assert full.volatile == recorded(errno.EINVAL, "fill2-029[0]")

    @pytest.mark.cases(201)
    def test_an_identical_write_needs_no_room(self, full: Full) -> None:
        assert full.identical is None

    def test_every_value_is_read_as_before_also_the_refused_ones(self, full: Full) -> None:
        assert full.read == SURVIVORS

    def test_the_listing_goes_on(self, full: Full) -> None:
        assert full.listed

    def test_deleting_goes_on(self, full: Full) -> None:
        assert (full.delete or 0) == recorded(0, "fill2-030[0]")

    @pytest.mark.cases(187, 218)
    def test_deleting_gives_no_room(self, full: Full) -> None:
        assert full.create_after_delete == recorded(errno.ENOSPC, "fill-034[0]")
        assert full.free_after_delete == 0


class TestReboot:
    @pytest.mark.cases(219)
    def test_it_alone_gives_no_room(self, full: Full) -> None:
        # log-reboot-b1-afterfull
        assert full.create_after_reboot == errno.ENOSPC
        assert full.free_after_reboot == 0

    def test_every_value_is_read_as_before(self, full: Full) -> None:
        assert full.read_after_reboot == SURVIVORS


class TestReclaim:
    @pytest.mark.cases(216, 219)
    def test_a_set_variable_before_exit_boot_services_makes_room(self, full: Full) -> None:
        assert full.failure is None

    @figures
    def test_all_room_but_that_of_living_variables(self, full: Full) -> None:
        # What is left over belongs to variables without run-time access.
        left_over = RECORDED.capacity - full.live_bytes - full.free_after_reclaim
        assert 0 <= left_over <= RECORDED.invisible

    @pytest.mark.cases(304)
    def test_every_living_value_survives_with_its_attributes(self, full: Full) -> None:
        assert full.read_after_reclaim == SURVIVORS

    def test_the_firmware_s_own_variables_survive(self, full: Full) -> None:
        assert full.others_after == full.others_before

    def test_nothing_that_was_deleted_comes_back(self, full: Full) -> None:
        assert full.dead_after_reclaim == []

    def test_writes_work_again_small_and_large(self, full: Full) -> None:
        assert full.create_after_reclaim is None
        assert full.large_after_reclaim is None


@pytest.mark.cases(188, 217)
@pytest.mark.cost(store_bytes=0, rpmb_writes=6000)
def test_before_exit_boot_services_create_and_delete_go_on_for_ever(
    board: Board, efivars: Efivars
) -> None:
    """24 KB through a store of 16: where StandaloneMM was never told ExitBootServices it reclaims
    by itself, so that it costs no space."""
    if board.capabilities.has("exit_boot_services_told"):
        raise MissingCapability(
            "this board's firmware says ExitBootServices, after which nothing is reclaimed",
            remedy="nothing: this is as it should be",
        )
    for turn in range(12):
        efivars.write("Loop", bytes([turn]) * 2000, timeout=60)
        assert efivars.read("Loop").data == bytes([turn]) * 2000
        efivars.delete("Loop")
