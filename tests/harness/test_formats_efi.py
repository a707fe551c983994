"""Layouts of EFI structures: golden bytes, offsets and round trips."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.formats.authentication import (
    CERT_X509_GUID,
    Authentication2,
    SignatureList,
    descriptor_size,
    parse_signature_lists,
    signed_content,
)
from harness.formats.efi import (
    Attributes,
    EfiStatus,
    EfiTime,
    decode_name,
    encode_name,
)
from harness.formats.mm import (
    MM_VARIABLE_GUID,
    AccessVariable,
    GetNextVariableName,
    LockVariable,
    Message,
    PayloadSize,
    QueryVariableInfo,
    RuntimeCacheInfo,
    VarCheckProperty,
    VariableFunction,
)
from harness.formats.variable_store import (
    StoreHeader,
    VariableHeader,
    VolumeHeader,
    WriteHeader,
    WriteRecord,
    align,
    checksum_ok,
    working_block_header,
)

AUTH = Path(__file__).parents[1] / "truth" / "auth"
GUID = UUID("12345678-1234-1234-1234-123456789abc")
u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
texts = st.text(st.characters(min_codepoint=1, max_codepoint=0xFFFF, categories=None), max_size=20)
guids = st.uuids()


def test_status() -> None:
    assert int(EfiStatus.NOT_FOUND) == 0x8000_0000_0000_000E
    assert int(EfiStatus.SECURITY_VIOLATION) == 0x8000_0000_0000_001A
    assert EfiStatus.NOT_FOUND.is_error
    assert not EfiStatus.SUCCESS.is_error
    odd = EfiStatus(0x8000_0000_0000_0099)
    assert (odd.name, odd.is_error, int(odd)) == (
        "UNKNOWN_8000000000000099",
        True,
        0x8000_0000_0000_0099,
    )
    with pytest.raises(ValueError, match="not a valid"):
        EfiStatus(-1)


def test_attributes_keep_unknown_bits() -> None:
    assert Attributes(0x87) == 0x87
    assert Attributes(7) == (
        Attributes.NON_VOLATILE | Attributes.BOOTSERVICE_ACCESS | Attributes.RUNTIME_ACCESS
    )


@given(texts)
def test_names_round_trip(name: str) -> None:
    raw = encode_name(name)
    assert raw.endswith(b"\0\0")
    assert len(raw) == 2 * len(name) + 2
    assert decode_name(raw + b"rest") == name
    assert decode_name(raw[:-2]) == name


def test_name_details() -> None:
    assert encode_name("\xfe") == b"\xfe\0\0\0"
    assert decode_name(b"a\0b") == "a"
    assert decode_name(b"") == ""


def test_time() -> None:
    raw = bytes.fromhex("ea0701010001020000000000c4ff0000")
    time = EfiTime.unpack(raw)
    assert (time.year, time.month, time.day, time.second) == (2026, 1, 1, 2)
    assert time.timezone == -60
    assert time.pack() == raw


def test_message_layout() -> None:
    raw = Message(3, b"payload", 5).pack()
    assert raw[:16] == MM_VARIABLE_GUID.bytes_le
    assert raw[16:40] == b"".join(n.to_bytes(8, "little") for n in (16 + 7, 3, 5))
    assert raw[40:] == b"payload"
    assert Message.unpack(raw + b"stale") == Message(3, b"payload", 5)


def test_access_variable_layout() -> None:
    raw = AccessVariable(GUID, "Ab", 5, 7, b"hello").pack(slack=4)
    assert raw == (
        GUID.bytes_le
        + (5).to_bytes(8, "little")
        + (6).to_bytes(8, "little")
        + (7).to_bytes(4, "little")
        + b"A\0b\0\0\0hello"
        + bytes(4)
    )
    assert len(AccessVariable(GUID, "Ab", 100).pack()) == 36 + 6 + 100


@given(guids, texts, u32, st.binary(max_size=40))
def test_access_variable_round_trip(guid: UUID, name: str, attributes: int, data: bytes) -> None:
    access = AccessVariable(guid, name, len(data), attributes, data)
    assert AccessVariable.unpack(access.pack(slack=4)) == access
    answer = bytearray(access.pack())
    AccessVariable.pack_answer(answer, 9, 3)
    assert AccessVariable.unpack_header(answer)[1::2] == (9, 3)


@given(guids, texts, u64, u64, u64, u32)
def test_other_payloads_round_trip(
    guid: UUID, name: str, one: int, two: int, three: int, attributes: int
) -> None:
    size = len(encode_name(name))
    entry = GetNextVariableName(guid, name, size)
    assert GetNextVariableName.unpack(entry.pack()) == entry
    query = QueryVariableInfo(attributes, one, two, three)
    assert QueryVariableInfo.unpack(query.pack()) == query
    assert len(query.pack()) == 32
    assert PayloadSize.unpack(PayloadSize(one).pack()) == PayloadSize(one)
    lock = LockVariable(guid, name)
    assert LockVariable.unpack(lock.pack()) == lock
    prop = VarCheckProperty(guid, name, 1, 1, attributes, two, three)
    assert VarCheckProperty.unpack(prop.pack()) == prop
    assert prop.pack()[48:] == encode_name(name)
    info = RuntimeCacheInfo(one, two, three, True)
    assert RuntimeCacheInfo.unpack(info.pack()) == info
    assert len(info.pack()) == 32


def test_function_numbers() -> None:
    assert [f.value for f in VariableFunction] == list(range(1, 15))


def test_flash_headers_are_golden() -> None:
    volume = VolumeHeader().pack()
    assert volume.hex() == (
        "000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f50"
        "00c00000000000005f465648360e00004800fc29000000020c00000000100000"
        "0000000000000000"
    )
    assert VolumeHeader.unpack(volume).checksum == 0x29FC
    assert checksum_ok(volume)
    assert not checksum_ok(b"\1" + volume[1:])
    store = StoreHeader().pack()
    assert store.hex() == "782cf3aa7b949a43a1802e144ec37792b83f00005afe000000000000"
    assert StoreHeader.unpack(store) == StoreHeader()
    assert working_block_header().hex() == (
        "2b29589e687c7d49a0ce6500fd9f1b957e0a4fccfeffffffe03f000000000000"
    )


def test_variable_header_layout() -> None:
    header = VariableHeader(0x3F, 7, 4, 5, GUID.bytes_le, b"T" * 16, 1, 2)
    raw = header.pack()
    assert len(raw) == 60
    assert raw[:4] == b"\xaa\x55\x3f\x00"
    assert raw[16:32] == b"T" * 16
    assert raw[36:44] == b"\4\0\0\0\5\0\0\0"
    assert raw[44:] == GUID.bytes_le
    assert VariableHeader.unpack(b"x" + raw, 1) == header
    assert [align(n) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]


def test_write_queue_layout() -> None:
    header = WriteHeader(0xFE).pack()
    assert len(header) == 40
    assert header[4:20] == UUID("3aade4ec-63cc-4a48-a928-5a374dd463eb").bytes_le
    assert header[24:] == (1).to_bytes(8, "little") + bytes(8)
    assert WriteHeader.unpack(header).has(1)
    assert not WriteHeader.unpack(header).has(4)
    assert WriteHeader.unpack(header).total_size == 80
    record = WriteRecord(0xFD, 0, 0x48, 0x3FB8, -0x8000)
    raw = record.pack()
    assert len(raw) == 40
    assert raw[16:32] == (0x48).to_bytes(8, "little") + (0x3FB8).to_bytes(8, "little")
    assert WriteRecord.unpack(raw) == record


def test_recorded_update_is_taken_apart_and_put_together() -> None:
    data = (AUTH / "priv1.auth").read_bytes()
    descriptor, payload = Authentication2.split(data)
    assert descriptor.time == EfiTime(2026, 1, 1, 0, 0, 1)
    assert len(payload) == 11
    assert descriptor.pack() + payload == data


@pytest.mark.parametrize("length", [0, 39, 40, 100])
def test_cut_update_is_refused(length: int) -> None:
    data = (AUTH / "priv1.auth").read_bytes()[:length]
    assert descriptor_size(data) is None
    with pytest.raises(ValueError, match="no complete"):
        Authentication2.split(data)


def test_recorded_signature_list() -> None:
    raw = (AUTH / "PK.esl").read_bytes()
    (listing,) = parse_signature_lists(raw)
    assert listing.type == CERT_X509_GUID
    assert len(listing.entries) == 1
    assert listing.pack() == raw
    with pytest.raises(ValueError, match="one size"):
        SignatureList(CERT_X509_GUID, (b"x" * 20, b"y" * 21)).pack()


@given(st.binary(max_size=200))
def test_hostile_signature_lists_raise_value_error_only(raw: bytes) -> None:
    for prefix in (b"", (AUTH / "PK.esl").read_bytes()):
        try:
            lists = list(parse_signature_lists(prefix + raw))
        except ValueError:
            continue
        assert all(len(entry) >= 16 for listing in lists for entry in listing.entries)


def test_signed_content() -> None:
    name = encode_name("ab")[:-2]
    content = signed_content(name, b"G" * 16, 0x67, b"T" * 16, b"value")
    assert content == b"a\0b\0" + b"G" * 16 + b"\x67\0\0\0" + b"T" * 16 + b"value"
