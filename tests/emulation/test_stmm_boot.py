"""Start of StandaloneMM: first boot byte by byte, and what a failing flash leaves."""

from __future__ import annotations

import struct

import pytest

from emulation.stmm.config import StmmConfig
from harness.formats.efi import (
    CERT_DB_GUID,
    CUSTOM_MODE_GUID,
    GLOBAL_VARIABLE_GUID,
    VENDOR_KEYS_NV_GUID,
    EfiStatus,
    encode_name,
)
from harness.formats.mm import Message, VariableFunction
from harness.formats.variable_store import VOLUME_SIZE, VariableHeader
from tests.emulation.stmm_client import CuttableStorage, Partition, rpmb_writes

GOLDEN_HEADERS = bytes.fromhex(
    "000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f50"
    "00c00000000000005f465648360e00004800fc29000000020c0000000010000000000000"
    "00000000"
    "782cf3aa7b949a43a1802e144ec37792b83f00005afe000000000000"
)
GOLDEN_WORKING_HEADER = bytes.fromhex(
    "2b29589e687c7d49a0ce6500fd9f1b957e0a4fccfeffffffe03f000000000000"
)


@pytest.mark.cases(298, 301)
def test_first_boot_image() -> None:
    image = bytes(Partition().storage.content)
    assert len(image) == VOLUME_SIZE
    assert image[:100] == GOLDEN_HEADERS
    assert image[0x4000:0x4020] == GOLDEN_WORKING_HEADER
    assert set(image[0x4020:]) == {0xFF}
    expected = (
        (0x64, "CustomMode", CUSTOM_MODE_GUID, 3, b"\0"),
        (0xB8, "certdb", CERT_DB_GUID, 0x27, struct.pack("<I", 4)),
        (0x108, "VendorKeysNv", VENDOR_KEYS_NV_GUID, 0x23, b"\x01"),
    )
    for offset, name, guid, attributes, data in expected:
        header = VariableHeader.unpack(image, offset)
        start = offset + 60
        middle = start + header.name_size
        assert (header.state, header.attributes, header.guid) == (0x3F, attributes, guid.bytes_le)
        assert image[start:middle] == encode_name(name)
        assert image[middle : middle + header.data_size] == data
    assert set(image[0x15F:0x4000]) == {0xFF}


@pytest.mark.cases(166, 167, 175, 265)
def test_first_boot_answers() -> None:
    board = Partition()
    assert board.free() == 16032
    assert [name for name, _ in board.names()] == [
        "SetupMode",
        "SignatureSupport",
        "SecureBoot",
        "certdbv",
        "VendorKeys",
        "CustomMode",
        "certdb",
        "VendorKeysNv",
    ]
    support = board.value("SignatureSupport", GLOBAL_VARIABLE_GUID)
    assert support is not None
    assert len(support) == 96
    assert support.startswith(bytes.fromhex("12a56c8210cfc94ab187be01496631bd2616c4c14c509240"))


def test_first_boot_costs_as_many_rpmb_writes_as_recorded() -> None:
    """The recorded counter stood at 0xF2D after U-Boot's first start (truth log-p3-prep)."""
    board = Partition()
    first_boot_of_uboot = (
        ("PlatformLang", b"en-US\0"),
        ("Boot0000", bytes(104)),
        ("BootOrder", bytes(2)),
        ("Boot0001", bytes(156)),
        ("BootOrder", bytes(4)),
    )
    for name, data in first_boot_of_uboot:
        assert board.set(name, data, 7, GLOBAL_VARIABLE_GUID) == EfiStatus.SUCCESS
    # Mounting: replay guard, last FAT entry, header. The file: last FAT entry, its own entry.
    mount_and_create = 5
    assert mount_and_create + rpmb_writes(board.storage.writes) == 0xF2D
    board.exit_boot_services()
    assert board.free() == 15352


def test_second_boot_writes_nothing() -> None:
    board = Partition()
    before = len(board.storage.writes)
    board.boot()
    assert len(board.storage.writes) == before


@pytest.mark.cases(299)
def test_damaged_volume_is_formatted() -> None:
    board = Partition()
    assert board.set("Lost", b"x") == EfiStatus.SUCCESS
    board.storage.content[0x28] ^= 1
    board.boot()
    assert bytes(board.storage.content[:100]) == GOLDEN_HEADERS
    assert board.value("Lost") is None


def unanswered(board: Partition) -> bool:
    """Whether the variable service is not there: a message comes back as it went."""
    message = Message(VariableFunction.GET_PAYLOAD_SIZE, bytes(8), 0x1234).pack()
    board.buffer[: len(message)] = message
    assert board.mm.communicate(board.buffer, len(message)) == 0
    return bytes(board.buffer[: len(message)]) == message


def test_store_header_not_healthy_leaves_no_service() -> None:
    board = Partition()
    board.storage.content[72 + 20] = 0
    board.boot()
    assert unanswered(board)


def test_unwritable_flash_leaves_no_service() -> None:
    storage = CuttableStorage()
    storage.failure = 0xFFFFFFFE
    assert unanswered(Partition(storage))


def test_flash_failing_after_the_workspace_leaves_a_service_without_authentication() -> None:
    """Recorded as "broken half-initialised state" (truth log-file-variant3), healed by a reboot."""

    class FailsLate(CuttableStorage):
        def write(self, offset: int, data: bytes) -> int:
            if len(self.writes) == 21:
                self.failure = 0xFFFFFFFD
            return super().write(offset, data)

    storage = FailsLate()
    board = Partition(storage)
    assert [name for name, _ in board.names()] == ["SetupMode", "SignatureSupport", "SecureBoot"]
    assert board.free() == 16284
    assert board.set("Plain", b"x") == EfiStatus.OUT_OF_RESOURCES
    assert board.set("KEK", bytes(40), 0x27, GLOBAL_VARIABLE_GUID) == EfiStatus.INVALID_PARAMETER
    healed = CuttableStorage(bytes(storage.content))
    board = Partition(healed)
    assert board.set("Plain", b"x") == EfiStatus.SUCCESS
    assert len(board.names()) == 9


def test_storage_codes_by_release() -> None:
    outcomes = {}
    for codes, bits in (("ffa", 32), ("spm", 64), ("spm", 32)):
        board = Partition(config=StmmConfig(storage_codes=codes, storage_code_bits=bits))  # type: ignore[arg-type]
        board.storage.failure = 0xFFFFFFFD
        outcomes[codes, bits] = board.set("New", b"x")
    assert outcomes == {
        ("ffa", 32): EfiStatus.OUT_OF_RESOURCES,
        ("spm", 64): EfiStatus.ACCESS_DENIED,
        ("spm", 32): EfiStatus.ACCESS_DENIED,
    }


@pytest.mark.cases(314)
def test_older_release_writes_a_variable_in_four_steps() -> None:
    board = Partition(config=StmmConfig(release=202311))
    before = len(board.storage.writes)
    assert board.set("Four", b"data") == EfiStatus.SUCCESS
    sizes = [size for _, size in board.storage.writes[before:]]
    assert sizes == [60, 1, len(encode_name("Four")) + 4, 1]
