"""The card's registers and commands."""

from __future__ import annotations

import errno

import pytest

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.emmc.rpmb import SILICON
from harness.formats import rpmb
from harness.formats.mmc import RELIABLE_WRITE
from harness.formats.rpmb import RpmbFrame

KEY = b"k" * 32


def card(size_mult: int = 16, *, rel_wr_sec_c: int = 1, enhanced_rpmb: bool = False) -> EmmcCard:
    return EmmcCard(
        RpmbImage.in_memory(size_mult), rel_wr_sec_c=rel_wr_sec_c, enhanced_rpmb=enhanced_rpmb
    )


def test_registers_of_the_recorded_board() -> None:
    """Truth rpmb-015 and log-optee-boot1-fresh."""
    registers = card().ext_csd
    assert len(registers) == 512
    assert (registers[192], registers[222], registers[168]) == (5, 1, 0x10)
    assert (registers[166], registers[179] & 7, registers[191]) == (4, 0, 0)
    assert card().cid.hex() == "aa015851454d55212101deadbeef2900"


def test_registers_follow_the_options() -> None:
    registers = card(size_mult=4, rel_wr_sec_c=8, enhanced_rpmb=True).ext_csd
    assert (registers[168], registers[222], registers[166] & 0x10) == (4, 8, 0x10)


@pytest.mark.cases(54)
def test_ext_csd_and_status_are_read_by_command() -> None:
    one = card()
    assert one.execute(8, 0, 512, 1, 0, b"", rpmb_selected=False) == (one.ext_csd, (0x900, 0, 0, 0))
    assert one.execute(13, 0, 0, 0, 0, b"", rpmb_selected=False) == (b"", (0x900, 0, 0, 0))


def test_switch_writes_the_modes_segment_only() -> None:
    one = card()

    def switch(access: int, index: int, value: int) -> int:
        argument = access << 24 | index << 16 | value << 8
        return one.execute(6, argument, 0, 0, 0, b"", rpmb_selected=False)[1][0]

    assert switch(3, 179, 0x0B) == 0x900
    assert switch(1, 179, 0x40) == 0x900
    assert switch(2, 179, 0x08) == 0x900
    assert one.ext_csd[179] == 0x43
    assert switch(3, 222, 9) == 0x980
    assert one.ext_csd[222] == 1
    one.power_cycle()
    assert one.ext_csd[179] == 0


@pytest.mark.cases(44)
def test_the_reliable_bit_reaches_the_rpmb() -> None:
    one = EmmcCard(RpmbImage.in_memory(), profile=SILICON)
    request = rpmb.key_request(KEY)

    def program(flag: int) -> int:
        one.execute(25, 0, 512, 1, flag, request, rpmb_selected=True)
        one.execute(25, 0, 512, 1, 1, rpmb.result_request(), rpmb_selected=True)
        raw, response = one.execute(18, 0, 512, 1, 0, b"", rpmb_selected=True)
        assert response == (0x900, 0, 0, 0)
        return RpmbFrame.unpack(raw).result

    assert program(1) == 1
    assert program(1 | RELIABLE_WRITE) == 0


def test_what_the_card_does_not_know_times_out() -> None:
    with pytest.raises(OSError, match="CMD18") as caught:
        card().execute(18, 0, 512, 1, 0, b"", rpmb_selected=False)
    assert caught.value.errno == errno.ETIMEDOUT


def test_wrong_block_lengths_are_an_error_in_the_status() -> None:
    data, response = card().execute(18, 0, 256, 2, 0, b"", rpmb_selected=True)
    assert (data, response[0]) == (bytes(512), 0x900 | 1 << 29)
