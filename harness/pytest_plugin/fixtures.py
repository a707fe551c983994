"""Fixtures: the board and its instruments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.capabilities import Consent
from harness.pytest_plugin.bench import BENCH

if TYPE_CHECKING:
    from harness.board import Board, PowerSwitch
    from harness.instruments.efivars import Efivars
    from harness.instruments.kernel_log import KernelLog
    from harness.instruments.rpmb import Rpmb
    from harness.instruments.tee import Tee
    from harness.links.console import Console
    from harness.probe import Probe
    from harness.shell import Shell


@pytest.fixture(scope="session")
def hil_board(request: pytest.FixtureRequest) -> Board:
    """What makes a test one that runs on the board; a test module may have a fixture ``board`` of
    its own that does not ask for this one."""
    return request.config.stash[BENCH].board()


@pytest.fixture(scope="session")
def board(hil_board: Board) -> Board:
    """The board of this run, powered, checked and ready (harness.board.Board)."""
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
    return board.console


@pytest.fixture
def power(board: Board) -> PowerSwitch:
    """The power switch; skips without the consent ``power_cycle``."""
    from harness.board import PowerSwitch

    board.require_consent(Consent.POWER_CYCLE)
    return PowerSwitch(board)


@pytest.fixture
def kernel_log(board: Board) -> KernelLog:
    """The kernel log; bad lines fail a test without it, too."""
    return board.kernel_log
