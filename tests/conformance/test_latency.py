"""How long variables take, as measurements with a unit; the limits are the board file's.

A small change is two or four RPMB writes, one that crosses a half sector 194 and more: latency has
two humps (lat-002 to -006, lat-rpmbk-007). Both are measured, each with the writes that it took.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from harness.board.board import Board
from harness.instruments.efivars import Efivars
from harness.pytest_plugin.fixtures import Measure
from harness.store.gauge import SpaceGauge
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

RUNS = 5
NAME = "Lat"


def _ms(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return (time.monotonic() - started) * 1000


def _median_ms(action: Callable[[], object], runs: int = RUNS) -> float:
    return statistics.median(_ms(action) for _ in range(runs))


@pytest.fixture
def gauge(board: Board) -> SpaceGauge:
    return SpaceGauge(board)


@pytest.mark.cost(store_bytes=72)
def test_get_variable(efivars: Efivars, measurement: Measure) -> None:
    # lat-002: 3 to 5 ms on the recorded board, whose processor is software
    efivars.write(NAME, b"x")
    measurement("get_variable", _median_ms(lambda: efivars.read(NAME)), "ms")


@pytest.mark.needs("query_variable_info", "exit_boot_services_told")
@pytest.mark.cost(store_bytes=9 * SpaceGauge.MARK_BYTES + 88)
def test_set_variable_in_place(efivars: Efivars, gauge: SpaceGauge, measurement: Measure) -> None:
    _, left = gauge.free_in_half_sector(88)
    assert left >= record_size(NAME, 20)
    measurement("set_variable", _ms(lambda: efivars.write(NAME, b"s" * 20)), "ms")


@pytest.mark.pain(3, 16)
@pytest.mark.needs("query_variable_info")
@pytest.mark.cost(store_bytes=72 + 330)
def test_set_variable_that_moves_the_file(
    efivars: Efivars, gauge: SpaceGauge, measurement: Measure
) -> None:
    gauge.free()
    # No half sector has room for it.
    moved = _ms(lambda: efivars.write(NAME, bytes(256), timeout=120))
    measurement("set_variable_relocating", moved, "ms")


@pytest.mark.cost(store_bytes=3 * 72 + 330)
def test_the_longest_of_some_writes(efivars: Efivars, measurement: Measure) -> None:
    """The budget of a caller who does not know where its record will lie."""
    longest = max(
        _ms(lambda: efivars.write("Lat1", b"x", timeout=120)),
        _ms(lambda: efivars.overwrite("Lat1", b"y", timeout=120)),
        _ms(lambda: efivars.write("Lat2", bytes(256), timeout=120)),
    )
    measurement("set_variable_longest", longest, "ms")


@pytest.mark.cases(201)
@pytest.mark.cost(store_bytes=72)
def test_an_identical_write(efivars: Efivars, measurement: Measure) -> None:
    efivars.write(NAME, b"x")
    efivars.set_immutable(NAME, False)
    measurement("set_variable_identical", _median_ms(lambda: efivars.write(NAME, b"x")), "ms")


@pytest.mark.cost(store_bytes=72)
def test_delete(efivars: Efivars, measurement: Measure) -> None:
    # lat-002: one RPMB write, half of a small SetVariable
    efivars.write(NAME, b"x")
    efivars.set_immutable(NAME, False)
    measurement("delete_variable", _ms(lambda: efivars.unlink(NAME)), "ms")


def test_listing(efivars: Efivars, measurement: Measure) -> None:
    # lat-008: the directory is a snapshot, the firmware is not asked
    measurement("list_variables", _median_ms(efivars.names), "ms")


@pytest.mark.disturbs
def test_mount(efivars: Efivars, measurement: Measure) -> None:
    """lat-009: a mount asks the firmware for every name and size."""
    efivars.unmount()
    measurement("mount", _ms(efivars.mount), "ms")


def test_statfs(efivars: Efivars, measurement: Measure) -> None:
    # lat-011
    measurement("statfs", _median_ms(efivars.space), "ms")


@pytest.mark.needs("driver_bound")
@pytest.mark.consents("unbind_driver")
@pytest.mark.disturbs
@pytest.mark.pain(1)
def test_from_bind_to_writable(board: Board, efivars: Efivars, measurement: Measure) -> None:
    # truth README: 0.1 to 0.4 s from the supplicant's start
    board.tee.unbind()

    def bind() -> None:
        board.tee.bind()
        efivars.wait_until_writable()

    measurement("bind_to_writable", _ms(bind), "ms")


@pytest.mark.power
@pytest.mark.consents("power_cycle")
def test_boot_until_writable(board: Board, measurement: Measure) -> None:
    """From switching on to a variable that could be written."""
    board.switch.off()
    measurement("boot_to_writable", round(_ms(board.switch.on) / 1000, 3), "s")
