"""Wire formats of the RPMB and of what OP-TEE keeps in it: layouts and known answers."""

from __future__ import annotations

import hmac
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.formats import rpmb, rpmb_fs
from harness.formats.rpmb import DeviceInfo, RequestHeader, RpmbFrame
from harness.formats.rpmb_fs import FatEntry, FatFlags, PartitionHeader
from harness.formats.tee import Param, ParamType, TeeResult, param_types

STMM = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")

frames = st.builds(
    RpmbFrame,
    mac=st.binary(min_size=32, max_size=32),
    data=st.binary(min_size=256, max_size=256),
    nonce=st.binary(min_size=16, max_size=16),
    write_counter=st.integers(0, 0xFFFFFFFF),
    address=st.integers(0, 0xFFFF),
    block_count=st.integers(0, 0xFFFF),
    result=st.integers(0, 0xFFFF),
    kind=st.integers(0, 0xFFFF),
)


@pytest.mark.cases(36)
def test_mac_of_the_known_frame() -> None:
    """Stack 1.1: an all-zero write request under OP-TEE's test key."""
    frame = RpmbFrame(kind=3).pack()
    assert rpmb.mac(rpmb.OPTEE_TEST_KEY, frame).hex() == (
        "76918f30cef74130c8c0478156345cb4206034010b6e23874a2912cb2d93ff1d"
    )


def test_fields_lie_where_the_standard_puts_them() -> None:
    frame = RpmbFrame(
        mac=b"M" * 32,
        data=b"D" * 256,
        nonce=b"N" * 16,
        write_counter=0x01020304,
        address=0x0506,
        block_count=0x0708,
        result=0x090A,
        kind=0x0B0C,
    ).pack()
    assert len(frame) == 512
    assert frame[:196] == bytes(196)
    assert frame[196:228] == b"M" * 32
    assert frame[228:484] == b"D" * 256
    assert frame[484:500] == b"N" * 16
    assert frame[500:] == bytes.fromhex("0102030405060708090a0b0c")


@given(frames)
def test_a_frame_survives_packing(frame: RpmbFrame) -> None:
    assert RpmbFrame.unpack(frame.pack()) == frame


@given(st.lists(frames, min_size=1, max_size=4), st.binary(min_size=32, max_size=32))
@pytest.mark.cases(10, 21)
def test_the_mac_covers_all_frames_and_no_stuff_bytes(many: list[RpmbFrame], key: bytes) -> None:
    raw = rpmb.join(many)
    covered = b"".join(frame.pack()[228:] for frame in many)
    assert rpmb.mac(key, raw) == hmac.digest(key, covered, "sha256")
    stuffed = b"\xff" * 196 + raw[196:]
    assert rpmb.mac(key, stuffed) == rpmb.mac(key, raw)
    assert rpmb.unpack_frames(rpmb.sign(key, raw))[-1].mac == rpmb.mac(key, raw)


def test_a_write_request_of_two_blocks() -> None:
    raw = rpmb.write_request(b"k" * 32, 7, 5, b"a" * 256 + b"b" * 256)
    first, second = rpmb.unpack_frames(raw)
    assert (first.address, first.block_count, first.write_counter, first.kind) == (5, 2, 7, 3)
    assert (second.address, second.block_count, second.write_counter) == (5, 2, 7)
    assert first.mac == rpmb.NO_MAC
    assert second.mac == rpmb.mac(b"k" * 32, raw)


def test_broken_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="255 bytes"):
        rpmb.write_request(b"k" * 32, 0, 0, bytes(255))
    with pytest.raises(ValueError, match="511 bytes"):
        rpmb.unpack_frames(bytes(511))
    with pytest.raises(struct.error):
        RpmbFrame.unpack(bytes(511))


@pytest.mark.cases(55)
def test_supplicant_structures() -> None:
    assert RequestHeader(1, 2, 0x0304).pack() == bytes.fromhex("010002000403")
    assert RequestHeader.unpack(bytes.fromhex("010002000403ff")) == RequestHeader(1, 2, 0x0304)
    info = DeviceInfo(bytes(range(16)), 16, 1, 0)
    assert info.pack() == bytes(range(16)) + bytes.fromhex("100100")
    assert DeviceInfo.unpack(info.pack()) == info
    assert (RequestHeader.SIZE, DeviceInfo.SIZE) == (6, 19)


def test_partition_header() -> None:
    raw = PartitionHeader().pack()
    assert raw[:16] == bytes.fromhex("424d5052 02000000 00000000 00020000")
    assert len(raw) == 128
    assert PartitionHeader.unpack(raw) == PartitionHeader()


def test_name_of_the_variable_store() -> None:
    assert rpmb_fs.file_name(STMM, b"EFI_VARS") == (
        "/33D532EDE69909429CC02D72CDD998A7/4546495F56415253"
    )


def test_table_entry() -> None:
    entry = FatEntry(0x1F3F00, 0xC000, FatFlags.ACTIVE, fek=b"F" * 16, name="/A/B")
    raw = entry.pack()
    assert raw[:16] == bytes.fromhex("003f1f00 00c00000 01000000 00000000")
    assert raw[16:32] == b"F" * 16
    assert raw[32:] == b"/A/B" + bytes(220)
    assert FatEntry.unpack(b"?" + raw, 1) == entry
    assert entry.active
    assert not entry.last


def test_tee_results_and_parameters() -> None:
    assert TeeResult(0xFFFF0004) is TeeResult.EXCESS_DATA
    assert TeeResult(0x12345678).name == "UNKNOWN_12345678"
    kinds = param_types([Param.memref_inout(bytearray(3)), Param.value_output()])
    assert kinds == (
        ParamType.MEMREF_INOUT,
        ParamType.VALUE_OUTPUT,
        ParamType.NONE,
        ParamType.NONE,
    )
