"""The RPMB write counter moves with a SetVariable and with nothing else.

Recorded rows: basic-021 (identical data: 0), size-002 (create: 2), special-012 (overwrite: 4),
size-005 (delete: 1).
"""

from __future__ import annotations

import errno

import pytest

from harness.board import Board
from harness.formats.rpmb import RpmbResult
from harness.instruments import refused
from harness.instruments.efivars import Efivars
from harness.instruments.rpmb import Rpmb, RpmbRefused

pytestmark = [
    pytest.mark.needs("writable", "rpmb_access"),
    pytest.mark.consents("write_rpmb"),
]

# A record that crosses a 256-byte boundary makes OP-TEE copy the whole 192-block file: truth
# README, contract 2.4.
RELOCATION_WRITES = 192


def test_a_read_costs_none(efivars: Efivars, rpmb: Rpmb) -> None:
    efivars.write("ReadOnce", b"x")
    before = rpmb.counter()
    efivars.read("ReadOnce")
    efivars.names()
    efivars.space()
    assert rpmb.counter() == before


def test_reading_the_counter_costs_none(rpmb: Rpmb) -> None:
    assert rpmb.counter() == rpmb.counter()


def test_an_identical_write_costs_none(efivars: Efivars, rpmb: Rpmb) -> None:
    efivars.write("Identical", b"same")
    before = rpmb.counter()
    efivars.overwrite("Identical", b"same")
    assert rpmb.counter() == before


def test_a_refused_write_costs_none(efivars: Efivars, rpmb: Rpmb) -> None:
    before = rpmb.counter()
    with refused(errno.EINVAL):
        efivars.write("NotMade", b"DATA", attributes=0x6)
    assert rpmb.counter() == before


def test_a_create_moves_the_counter(efivars: Efivars, rpmb: Rpmb) -> None:
    before = rpmb.counter()
    efivars.write("Counted", b"x")
    cost = rpmb.counter() - before
    # The record, its state byte; either may cross a block.
    assert cost in (2, *range(RELOCATION_WRITES + 1, 2 * RELOCATION_WRITES + 5))


def test_an_overwrite_costs_more_than_a_create(efivars: Efivars, rpmb: Rpmb) -> None:
    efivars.write("Overwritten", b"1")
    before = rpmb.counter()
    efivars.overwrite("Overwritten", b"2")
    cost = rpmb.counter() - before
    assert cost in (4, *range(RELOCATION_WRITES + 3, 2 * RELOCATION_WRITES + 7))


def test_a_delete_costs_one(efivars: Efivars, rpmb: Rpmb) -> None:
    efivars.write("DeletedOnce", b"x")
    before = rpmb.counter()
    efivars.delete("DeletedOnce")
    assert rpmb.counter() - before == 1


def test_the_device_is_the_board_file_s(board: Board, rpmb: Rpmb) -> None:
    identity = rpmb.identity()
    assert identity.cid[:30] == board.file.emmc_cid[:30]
    assert identity.rpmb_bytes > 0
    assert identity.reliable_write_sectors >= 1


@pytest.mark.power
@pytest.mark.consents("power_cycle")
def test_the_counter_outlives_power_and_never_falls(board: Board, efivars: Efivars) -> None:
    efivars.write("CounterKept", b"x")
    before = board.rpmb.counter()
    board.power_cycle()
    assert board.rpmb.counter() >= before


@pytest.mark.power
@pytest.mark.destructive
@pytest.mark.consents("foreign_rpmb_write", "power_cycle")
class TestWrongKey:
    WRONG_KEY = bytes(range(32))

    def test_a_write_is_refused_and_changes_nothing(self, efivars: Efivars, rpmb: Rpmb) -> None:
        before = rpmb.counter()
        with pytest.raises(RpmbRefused) as refusal:
            rpmb.write_block(0, bytes(256), self.WRONG_KEY)
        assert refusal.value.result == RpmbResult.AUTHENTICATION_FAILURE
        assert rpmb.counter() == before
        efivars.write("AfterWrongKey", b"still works")
        assert efivars.read("AfterWrongKey").data == b"still works"
