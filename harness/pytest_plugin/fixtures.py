"""Fixtures: the board and its instruments."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import pytest

from harness.consents import Consent
from harness.pytest_plugin.bench import BENCH
from harness.pytest_plugin.blame import BLAME, Whose
from harness.pytest_plugin.budget import BUDGET
from harness.pytest_plugin.report import MEASUREMENT, REPORT, key_of

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.board.boot import PowerSwitch
    from harness.instruments.efivars import Efivars
    from harness.instruments.kernel_log import KernelLog
    from harness.instruments.rpmb import Rpmb
    from harness.instruments.tee import Tee
    from harness.links.console import Console
    from harness.probe.probe import Probe
    from harness.shell import Shell
    from harness.store.space import StoreSpace


@pytest.fixture(scope="session")
def hil_board(
    request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]
) -> Board:
    """What makes a test one that runs on the board; a test module may have a fixture ``board`` of
    its own that does not ask for this one."""
    board = request.config.stash[BENCH].board()
    request.config.stash[REPORT].record_board(record_testsuite_property)
    return board


@pytest.fixture(scope="session")
def board(hil_board: Board) -> Board:
    """The board of this run, powered, checked and ready (harness.board.board.Board)."""
    return hil_board


@pytest.fixture
def shell(board: Board) -> Shell:
    """The chosen link: commands and files."""
    return board.shell


@pytest.fixture
def probe(board: Board) -> Probe:
    """Raw system calls on the board."""
    return board.probe


@pytest.fixture
def efivars(board: Board) -> Efivars:
    """The variables."""
    return board.efivars


@pytest.fixture
def rpmb(board: Board) -> Rpmb:
    """The RPMB partition."""
    return board.rpmb


@pytest.fixture
def tee(board: Board) -> Tee:
    """Supplicant, TEE devices, driver."""
    return board.tee


@pytest.fixture
def console(board: Board) -> Console:
    """The serial console; skips on a board without one."""
    return board.links.console


@pytest.fixture
def power(board: Board) -> PowerSwitch:
    """The power switch; skips without the consent ``power_cycle``."""
    board.require_consent(Consent.POWER_CYCLE)
    return board.switch


@pytest.fixture
def kernel_log(board: Board) -> KernelLog:
    """The kernel log; bad lines fail a test without it, too."""
    return board.kernel_log


@pytest.fixture
def store(board: Board, request: pytest.FixtureRequest) -> StoreSpace:
    """The space of the variable store: what is free, and winning it back."""
    return request.config.stash[BUDGET].space


class Measure(Protocol):
    """What the fixture ``measurement`` is."""

    def __call__(self, name: str, value: float, unit: str) -> None:
        """Record a value; fail the test where ``[limits]`` of the board file has a smaller one."""


@pytest.fixture
def measurement(request: pytest.FixtureRequest, hil_board: Board) -> Measure:
    """Records a measured value with its unit. ``[limits]`` of the board file may bound it: its
    key is the name, ``_`` and the unit, for example ``set_variable_ms = 900``."""
    item = request.node
    path = request.config.stash[BENCH].path

    def measure(name: str, value: float, unit: str) -> None:
        key = key_of(name, unit)
        item.user_properties.append((f"{MEASUREMENT}{key}", float(value)))
        limit = hil_board.file.limits.get(key)
        if limit is not None and value > limit:
            item.stash[BLAME] = Whose.FIRMWARE
            pytest.fail(
                f"{name} is {value:g} {unit}; {path} allows limits.{key} = {limit:g}",
                pytrace=False,
            )

    return measure
