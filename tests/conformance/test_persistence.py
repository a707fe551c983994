"""Variables live in RPMB and outlive reboot and power.

Recorded rows: p2c-001, -006 (reboot). The power cut catches pain 21: an RPMB kept in the
supplicant's memory would lose them.
"""

from __future__ import annotations

import pytest

from harness.board import Board, PowerSwitch
from harness.instruments.efivars import Efivars

pytestmark = [
    pytest.mark.needs("writable"),
    pytest.mark.consents("write_rpmb", "power_cycle"),
    pytest.mark.power,
]


def test_over_a_reboot(board: Board, efivars: Efivars) -> None:
    efivars.write("OverReboot", b"kept by the flash")
    efivars.write("DeletedBeforeReboot", b"x")
    efivars.delete("DeletedBeforeReboot")
    board.reboot()
    assert board.efivars.read("OverReboot").data == b"kept by the flash"
    assert not board.efivars.exists("DeletedBeforeReboot")


def test_over_a_power_cut(board: Board, efivars: Efivars, power: PowerSwitch) -> None:
    efivars.write("OverPowerCut", b"before")
    efivars.overwrite("OverPowerCut", b"after")
    power.cycle()
    assert board.efivars.read("OverPowerCut").data == b"after"


def test_several_power_cuts(board: Board, power: PowerSwitch) -> None:
    for round_ in range(3):
        board.efivars.write(f"Round{round_}", bytes([round_]) * 40)
        power.cycle()
        kept = {name.name for name in board.efivars.own()}
        assert {f"Round{earlier}" for earlier in range(round_ + 1)} <= kept


def test_what_is_volatile_cannot_be_made_at_run_time_and_does_not_appear_later(
    board: Board, efivars: Efivars
) -> None:
    # vol-001: attributes BS|RT without NV
    with pytest.raises(OSError, match="EINVAL"):
        efivars.write("Volatile", b"lost with the power", attributes=0x6)
    board.reboot()
    assert not board.efivars.exists("Volatile")


def test_the_immutable_flag_is_back_after_a_reboot(board: Board, efivars: Efivars) -> None:
    efivars.write("FlagCleared", b"x")
    efivars.set_immutable("FlagCleared", False)
    board.reboot()
    assert board.efivars.is_immutable("FlagCleared")
