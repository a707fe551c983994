"""SetVariable, quota, reclaim and query against the record and the specification."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from uuid import UUID

import pytest

from emulation.stmm.config import StmmConfig
from harness.formats.efi import (
    GLOBAL_VARIABLE_GUID,
    MEMORY_OVERWRITE_CONTROL_GUID,
    MEMORY_OVERWRITE_LOCK_GUID,
    EfiStatus,
    encode_name,
)
from harness.formats.mm import GetNextVariableName
from harness.formats.mm import VariableFunction as Fn
from harness.formats.variable_store import VariableHeader
from tests.emulation.stmm_client import VENDOR, Partition, rpmb_writes

TRUTH = Path(__file__).parents[1] / "truth"
ERRNO = {
    EfiStatus.INVALID_PARAMETER: errno.EINVAL,
    EfiStatus.UNSUPPORTED: errno.EINVAL,
    EfiStatus.ACCESS_DENIED: errno.EINVAL,
    EfiStatus.OUT_OF_RESOURCES: errno.ENOSPC,
    EfiStatus.WRITE_PROTECTED: errno.EROFS,
    EfiStatus.SECURITY_VIOLATION: errno.EACCES,
    EfiStatus.NOT_FOUND: errno.EIO,
}
"""What a write to efivarfs makes of a status (stack 5.5 and 6.5)."""


def recorded_attributes(group: str) -> list[tuple[int, str]]:
    """(attributes, outcome of the write) of every row that reached the firmware."""
    rows = []
    for line in (TRUTH / f"{group}.jsonl").read_text().splitlines():
        row = json.loads(line)
        match = re.match(r"create with attributes 0x([0-9a-f]+), 4 data bytes", row["desc"])
        if match and int(match[1], 16) < 0x80:
            rows.append((int(match[1], 16), str(row["outcome"][1])))
    return rows


@pytest.mark.parametrize(("group", "at_runtime"), [("attr", True), ("attr-nofwebs", False)])
@pytest.mark.cases(191, 192, 193, 195, 196, 197)
def test_attributes_as_recorded(group: str, at_runtime: bool) -> None:
    board = Partition()
    if at_runtime:
        board.exit_boot_services()
    rows = recorded_attributes(group)
    assert len(rows) > 40
    for attributes, outcome in rows:
        status = board.set("A", b"DATA", attributes)
        if status == EfiStatus.SUCCESS:
            answer = "8"
            assert board.set("A", b"", attributes & ~0x40) == EfiStatus.SUCCESS
        else:
            answer = f"-{errno.errorcode[ERRNO[status]]}"
        assert answer == outcome, hex(attributes)


@pytest.mark.cases(201, 206, 207, 314, 315)
def test_costs_in_storage_writes() -> None:
    board = Partition()
    assert board.writes_of("Cost", b"one") == 2
    assert board.writes_of("Cost", b"one") == 0
    assert board.writes_of("Cost", b"two") == 4
    assert board.writes_of("Cost", b"+", 0x47) == 4
    assert board.writes_of("Cost", b"", 0x47) == 4
    assert board.writes_of("Cost", b"") == 1
    assert board.writes_of("Nothing", b"", 0x47) == 0
    assert board.writes_of("Volatile", b"x", 6) == 0


def test_record_across_a_flash_block_is_written_in_two_pieces() -> None:
    """Recorded as 387 RPMB writes (truth authB-002): twice a relocation, and the state byte."""
    board = Partition()
    assert board.set("Filler", bytes(3400)) == EfiStatus.SUCCESS
    before = len(board.storage.writes)
    assert board.set("Crossing", bytes(819)) == EfiStatus.SUCCESS
    written = board.storage.writes[before:]
    assert len(written) == 3
    assert rpmb_writes(written) == 387


@pytest.mark.cases(208, 212, 213)
def test_largest_sizes() -> None:
    """Recorded in group max: 8128, 8126 and 8112 bytes for names of 1, 2 and 9 characters."""
    for length, largest in ((1, 8128), (2, 8126), (9, 8112)):
        board = Partition()
        name = "n" * length
        assert board.set(name, bytes(largest + 1)) == EfiStatus.INVALID_PARAMETER
        assert board.set(name, bytes(largest)) == EfiStatus.SUCCESS
        assert board.set(name, b"x", 0x47) == EfiStatus.INVALID_PARAMETER


@pytest.mark.cases(218)
def test_fill_at_runtime_as_recorded() -> None:
    """Group fill2: what fits, and that a full store refuses even to shrink a variable."""
    board = Partition()
    # 1256 bytes, as in the record: 14776 bytes were free then.
    assert board.set("Rest", bytes(16032 - 14776 - 60 - 10)) == EfiStatus.SUCCESS
    board.exit_boot_services()
    assert board.free() == 14776
    for number in range(13):
        assert board.set(f"F{number:03}", bytes([number]) * 1000) == EfiStatus.SUCCESS
    assert board.free() == 840
    steps = ((1000, 840), (900, 840), (500, 268), (200, 268), (100, 96), (50, 96), (20, 4), (10, 4))
    for size, free in steps:
        fits = size in (500, 100, 20)
        expected = EfiStatus.SUCCESS if fits else EfiStatus.OUT_OF_RESOURCES
        assert board.set(f"Fx{size}", bytes(size)) == expected, size
        assert board.free() == free
    assert board.set("F001", b"shrunk") == EfiStatus.OUT_OF_RESOURCES
    assert board.value("F001") == b"\1" * 1000
    assert board.set("F001", b"+", 0x47) == EfiStatus.OUT_OF_RESOURCES
    assert board.set("F000", b"") == EfiStatus.SUCCESS
    assert board.free() == 4


@pytest.mark.cases(218, 219)
def test_reboot_does_not_reclaim_but_the_next_write_does() -> None:
    board = Partition()
    board.exit_boot_services()
    while board.set("Churn", bytes(1000)) == EfiStatus.SUCCESS:
        assert board.set("Churn", b"") == EfiStatus.SUCCESS
    board.boot()
    free = board.free()
    assert free == 16032
    image = bytes(board.storage.content)
    before = len(board.storage.writes)
    assert board.set("After", bytes(2000)) == EfiStatus.SUCCESS
    written = board.storage.writes[before:]
    assert sum(size >= 4096 for _, size in written) == 15
    assert sum(size < 4096 for _, size in written) == 6
    assert image != bytes(board.storage.content)
    assert board.value("After") == bytes(2000)
    board.boot()
    assert board.value("After") == bytes(2000)


@pytest.mark.cases(151)
def test_ready_to_boot_reclaims_once_when_little_is_left() -> None:
    board = Partition()
    for _ in range(8):
        assert board.set("Churn", bytes(1500)) == EfiStatus.SUCCESS
        assert board.set("Churn", b"") == EfiStatus.SUCCESS
    before = len(board.storage.writes)
    assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
    assert len(board.storage.writes) - before > 20
    before = len(board.storage.writes)
    assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
    assert len(board.storage.writes) == before


@pytest.mark.cases(216)
def test_over_quota_update_keeps_the_old_value_over_a_reboot() -> None:
    board = Partition()
    for name in ("One", "Two"):
        assert board.set(name, name.encode() * 2000) == EfiStatus.SUCCESS
    assert board.set("Two", bytes(8000)) == EfiStatus.SUCCESS
    assert board.set("One", bytes(8100)) == EfiStatus.OUT_OF_RESOURCES
    assert board.value("One") == b"One" * 2000
    board.boot()
    assert board.value("One") == b"One" * 2000


@pytest.mark.cases(217)
def test_many_reclaims_fill_the_write_queue() -> None:
    """The FTW queue holds 204 writes; then its working space is reclaimed too."""
    board = Partition()
    for number in range(2200):
        assert board.set("Churn", bytes([number & 0xFF]) * 1400) == EfiStatus.SUCCESS
        if number % 500 == 499:
            board.boot()
    assert board.value("Churn") == bytes([2199 & 0xFF]) * 1400


@pytest.mark.cases(214, 224)
def test_volatile_store_is_reclaimed() -> None:
    board = Partition()
    for number in range(40):
        assert board.set("Volatile", bytes([number]) * 1000, 6) == EfiStatus.SUCCESS
    assert board.value("Volatile") == bytes([39]) * 1000
    assert board.set("Big1", bytes(8000), 6) == EfiStatus.SUCCESS
    assert board.set("Big2", bytes(8000), 6) == EfiStatus.OUT_OF_RESOURCES
    board.boot()
    assert board.value("Volatile") is None


@pytest.mark.cases(165, 173, 211, 221, 222, 226)
def test_rules_at_runtime() -> None:
    board = Partition()
    assert board.set("BootOnly", b"x", 3) == EfiStatus.SUCCESS
    assert board.set("Volatile", b"x", 6) == EfiStatus.SUCCESS
    board.exit_boot_services()
    assert board.value("BootOnly") is None
    assert board.value("Volatile") == b"x"
    assert board.set("BootOnly", b"y", 3) == EfiStatus.WRITE_PROTECTED
    assert board.set("Volatile", b"y", 6) == EfiStatus.WRITE_PROTECTED
    assert board.set("Volatile", b"", 6) == EfiStatus.WRITE_PROTECTED
    assert board.set("Absent", b"") == EfiStatus.NOT_FOUND
    assert board.set("PlatformLangCodes", b"en", 6) == EfiStatus.WRITE_PROTECTED
    assert [name for name, _ in board.names()][-2:] == ["Volatile", "certdb"]


@pytest.mark.cases(203, 210)
def test_attributes_must_match_the_stored_ones() -> None:
    board = Partition()
    assert board.set("Fixed", b"x", 7) == EfiStatus.SUCCESS
    for attributes in (3, 6, 2):
        assert board.set("Fixed", b"y", attributes) == EfiStatus.INVALID_PARAMETER
    assert board.set("Fixed", b"y", 0) == EfiStatus.SUCCESS
    assert board.value("Fixed") is None


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        (0, EfiStatus.INVALID_PARAMETER),
        (0x10, EfiStatus.UNSUPPORTED),
        (0x80, EfiStatus.UNSUPPORTED),
        (1, EfiStatus.INVALID_PARAMETER),
        (4, EfiStatus.INVALID_PARAMETER),
        (5, EfiStatus.INVALID_PARAMETER),
        (0x0F, EfiStatus.UNSUPPORTED),
        (0x13, EfiStatus.UNSUPPORTED),
        (0x0A, EfiStatus.INVALID_PARAMETER),
        (0x0B, EfiStatus.UNSUPPORTED),
        (2, EfiStatus.SUCCESS),
        (7, EfiStatus.SUCCESS),
        (0x27, EfiStatus.SUCCESS),
    ],
)
@pytest.mark.cases(178, 179, 180, 181, 182, 183)
def test_query_checks(attributes: int, status: EfiStatus) -> None:
    assert Partition().query(attributes)[0] == status


@pytest.mark.cases(175, 176, 177, 184, 189)
def test_query_values() -> None:
    board = Partition()
    info = board.query(7)[1]
    assert (info.maximum_storage, info.remaining_storage) == (16284, 16032)
    assert info.maximum_variable == 8132
    assert board.query(6)[1].maximum_variable == 8132
    assert board.query(0x27)[1].maximum_variable == 10180
    assert board.query(6)[1].maximum_storage == 16356
    assert board.set("Big", bytes(8000)) == EfiStatus.SUCCESS
    _, info = board.query(7)
    assert info.maximum_variable == info.remaining_storage - 60
    board.exit_boot_services()
    assert board.query(3)[0] == EfiStatus.INVALID_PARAMETER


@pytest.mark.cases(186, 187, 188)
@pytest.mark.parametrize("at_runtime", [False, True])
def test_room_left_follows_the_store(at_runtime: bool) -> None:
    board = Partition()
    if at_runtime:
        board.exit_boot_services()
    before = board.free()
    assert board.set("Room", bytes(100)) == EfiStatus.SUCCESS
    record = 60 + 2 * len("Room") + 2 + 100
    assert before - board.free() == (record + 3) // 4 * 4
    assert board.set("Room", b"") == EfiStatus.SUCCESS
    # Before ExitBootServices room that a reclaim would free counts as free.
    assert (board.free() == before) is not at_runtime


@pytest.mark.cases(158, 159, 160, 161, 162, 199, 200)
def test_a_variable_is_found_by_name_and_guid() -> None:
    board = Partition()
    other = UUID(int=9)
    for guid, data in ((VENDOR, b"mine"), (other, b"theirs!")):
        assert board.set("Name", data, 7, guid) == EfiStatus.SUCCESS
    assert board.set("Name+A", b"longer") == EfiStatus.SUCCESS
    status, answer = board.get("Name", capacity=4)
    assert (status, answer.attributes, answer.data) == (EfiStatus.SUCCESS, 7, b"mine")
    assert board.value("Name", other) == b"theirs!"
    for capacity in (0, 3):
        status, answer = board.get("Name", capacity=capacity)
        assert (status, answer.data_size, answer.attributes) == (EfiStatus.BUFFER_TOO_SMALL, 4, 7)
    for name, guid in (("Nam", VENDOR), ("Name-A", VENDOR), ("name", VENDOR), ("Name+A", other)):
        assert board.get(name, guid)[0] == EfiStatus.NOT_FOUND
    assert board.get("")[0] == EfiStatus.NOT_FOUND


@pytest.mark.cases(190, 194)
def test_no_name_and_unknown_attribute_bits_are_refused() -> None:
    board = Partition()
    assert board.set("", b"x") == EfiStatus.INVALID_PARAMETER
    for attributes in (0x80, 0x87, 0x100007):
        assert board.set("Bits", b"x", attributes) == EfiStatus.INVALID_PARAMETER
    assert board.value("Bits") is None


@pytest.mark.cases(174)
def test_a_walk_goes_on_while_its_entries_are_deleted() -> None:
    board = Partition()
    names = [f"Walk{number}" for number in range(6)]
    for name in names:
        assert board.set(name, b"x") == EfiStatus.SUCCESS
    seen, current = [], GetNextVariableName(UUID(int=0), "", 1024)
    while True:
        answer = board.call(Fn.GET_NEXT_VARIABLE_NAME, current.pack())
        if answer.status != EfiStatus.SUCCESS:
            break
        entry = GetNextVariableName.unpack(answer.payload)
        seen.append(entry.name)
        if entry.name in ("Walk1", "Walk3"):
            # The one just visited stays as the place to go on from; the one before goes.
            assert board.set(f"Walk{int(entry.name[-1]) - 1}", b"") == EfiStatus.SUCCESS
        current = GetNextVariableName(entry.guid, entry.name, 1024)
    assert answer.status == EfiStatus.NOT_FOUND
    assert [name for name in seen if name in names] == names
    assert [name for name, _ in board.names() if name in names] == [names[1], *names[3:]]


@pytest.mark.cases(214)
def test_largest_volatile_variable() -> None:
    board = Partition()
    largest = 8132 - 2 * len("V") - 2
    assert board.set("V", bytes(largest + 1), 6) == EfiStatus.INVALID_PARAMETER
    assert board.set("V", bytes(largest), 6) == EfiStatus.SUCCESS


@pytest.mark.cases(215)
def test_a_name_of_1024_characters_is_a_name() -> None:
    board = Partition()
    name = "n" * 1024
    assert board.set(name, b"long") == EfiStatus.SUCCESS
    assert board.get(name, capacity=100)[1].data == b"long"


@pytest.mark.cases(216)
def test_before_exit_boot_services_the_store_is_full_of_living_data_only() -> None:
    board = Partition()
    for number in range(13):
        assert board.set(f"Dead{number}", bytes(1000)) == EfiStatus.SUCCESS
        assert board.set(f"Dead{number}", b"") == EfiStatus.SUCCESS
    living = 0
    while (status := board.set(f"Live{living:02}", bytes(1000))) == EfiStatus.SUCCESS:
        living += 1
    assert status == EfiStatus.OUT_OF_RESOURCES
    record = (60 + 2 * len("Live00") + 2 + 1000 + 3) // 4 * 4
    assert living == 16032 // record
    assert all(board.value(f"Live{number:02}") == bytes(1000) for number in range(living))


@pytest.mark.cases(235)
def test_forty_names_fit_or_end_cleanly() -> None:
    """fwts uefirtvariable stores 40 variables of one size and then deletes them."""
    board = Partition()
    board.exit_boot_services()
    results = [board.set(f"Forty{number:02}", bytes(1024)) for number in range(40)]
    assert set(results) == {EfiStatus.SUCCESS, EfiStatus.OUT_OF_RESOURCES}
    stored = results.index(EfiStatus.OUT_OF_RESOURCES)
    assert results[stored:] == [EfiStatus.OUT_OF_RESOURCES] * (40 - stored)
    for number in range(40):
        value = board.value(f"Forty{number:02}")
        assert value == (bytes(1024) if number < stored else None)


@pytest.mark.cases(302)
def test_records_of_an_update_in_the_store() -> None:
    board = Partition()
    assert board.set("Var", b"odd") == EfiStatus.SUCCESS
    assert board.set("Var", b"longer") == EfiStatus.SUCCESS
    image = bytes(board.storage.content)
    old, new = 0x160, 0x160 + (60 + 8 + 3 + 3) // 4 * 4
    states = [VariableHeader.unpack(image, at).state for at in (old, new)]
    assert states == [0x3C, 0x3F]
    assert image[old + 60 + 8 : new] == b"odd\xff"
    assert image[new + 60 + 8 : new + 60 + 8 + 8] == b"longer\xff\xff"
    assert board.set("Var", b"") == EfiStatus.SUCCESS
    assert VariableHeader.unpack(bytes(board.storage.content), new).state == 0x3D


@pytest.mark.cases(311)
def test_a_name_size_of_all_ones_is_a_bare_header_that_any_name_finds() -> None:
    """No bytes of a name to compare, so none differs; behind the header the store ends."""
    board = Partition()
    for name in ("Before", "Hostile", "Behind"):
        assert board.set(name, b"x") == EfiStatus.SUCCESS
    place = bytes(board.storage.content).index(encode_name("Hostile")) - 60
    field = bytes(board.storage.content).index(
        VariableHeader.unpack(bytes(board.storage.content), place).name_size.to_bytes(4, "little"),
        place,
    )
    board.storage.content[field : field + 4] = b"\xff" * 4
    board.boot()
    assert board.value("Before") == b"x"
    for name in ("Hostile", "Behind", "Anything"):
        assert board.value(name) == b""
    assert board.value("Hostile", GLOBAL_VARIABLE_GUID) is None
    assert board.set("After", b"y") == EfiStatus.SUCCESS
    assert board.value("After") == b"y"
    assert board.value("Anything") is None


@pytest.mark.cases(312)
def test_of_two_records_of_one_name_the_first_is_found() -> None:
    board = Partition()
    for name, data in (("TwinA", b"first"), ("TwinB", b"second")):
        assert board.set(name, data) == EfiStatus.SUCCESS
    place = bytes(board.storage.content).index(encode_name("TwinB"))
    board.storage.content[place : place + 12] = encode_name("TwinA")
    board.boot()
    assert board.value("TwinA") == b"first"


@pytest.mark.cases(313)
def test_a_store_of_another_size_is_formatted() -> None:
    board = Partition()
    assert board.set("Lost", b"x") == EfiStatus.SUCCESS
    size_field = 72 + 16
    board.storage.content[size_field] ^= 0x04
    board.boot()
    assert board.value("Lost") is None
    assert board.free() == 16032


@pytest.mark.cases(225)
def test_language_variables_follow_each_other() -> None:
    board = Partition()

    def put(name: str, data: bytes, attributes: int = 7) -> None:
        status = board.set(name, data, attributes, GLOBAL_VARIABLE_GUID)
        assert status == EfiStatus.SUCCESS

    put("PlatformLang", b"xx\0")
    assert board.value("Lang", GLOBAL_VARIABLE_GUID) is None
    put("PlatformLangCodes", b"en-US;fr-FR\0", 6)
    put("PlatformLang", b"fr-FR\0")
    assert board.value("Lang", GLOBAL_VARIABLE_GUID) is None
    put("LangCodes", b"engfra\0", 6)
    assert board.value("Lang", GLOBAL_VARIABLE_GUID) == b"fra\0"
    put("PlatformLang", b"en\0")
    assert board.value("Lang", GLOBAL_VARIABLE_GUID) == b"eng\0"
    put("Lang", b"fra\0")
    assert board.value("PlatformLang", GLOBAL_VARIABLE_GUID) == b"fr-FR\0"


class TestMemoryOverwrite:
    """Stack 4.9, and deletion as EDK2 allows it without the policy engine."""

    CONTROL = ("MemoryOverwriteRequestControl", MEMORY_OVERWRITE_CONTROL_GUID)
    LOCK = ("MemoryOverwriteRequestControlLock", MEMORY_OVERWRITE_LOCK_GUID)

    @staticmethod
    def put(
        board: Partition, which: tuple[str, UUID], data: bytes, attributes: int = 7
    ) -> EfiStatus:
        return board.set(which[0], data, attributes, which[1])

    @pytest.mark.cases(227, 228, 229)
    def test_control(self) -> None:
        board = Partition()
        assert self.put(board, self.CONTROL, b"12") == EfiStatus.INVALID_PARAMETER
        assert self.put(board, self.CONTROL, b"1", 3) == EfiStatus.INVALID_PARAMETER
        assert self.put(board, self.CONTROL, b"\1") == EfiStatus.SUCCESS
        assert self.put(board, self.LOCK, b"\2") == EfiStatus.INVALID_PARAMETER
        assert self.put(board, self.LOCK, b"\1") == EfiStatus.SUCCESS
        assert self.put(board, self.CONTROL, b"\0") == EfiStatus.ACCESS_DENIED
        assert self.put(board, self.LOCK, b"\0") == EfiStatus.ACCESS_DENIED
        assert self.put(board, self.CONTROL, b"") == EfiStatus.SUCCESS

    @pytest.mark.cases(230)
    def test_key(self) -> None:
        board = Partition()
        assert self.put(board, self.LOCK, b"12345678") == EfiStatus.SUCCESS
        assert board.value(*self.LOCK) == b"\2"
        assert self.put(board, self.LOCK, b"12345678") == EfiStatus.SUCCESS
        assert board.value(*self.LOCK) == b"\0"
        assert self.put(board, self.LOCK, b"12345678") == EfiStatus.SUCCESS
        assert self.put(board, self.LOCK, b"wrong!!!") == EfiStatus.ACCESS_DENIED
        assert board.value(*self.LOCK) == b"\1"
        assert self.put(board, self.LOCK, b"12345678") == EfiStatus.ACCESS_DENIED
        board.boot()
        assert self.put(board, self.LOCK, b"\0") == EfiStatus.SUCCESS

    @pytest.mark.cases(419)
    def test_end_of_dxe_keeps_the_control_and_offers_its_lock(self) -> None:
        board = Partition()
        assert self.put(board, self.CONTROL, b"\1") == EfiStatus.SUCCESS
        assert self.put(board, self.LOCK, b"12345678") == EfiStatus.SUCCESS
        assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
        assert board.value(*self.CONTROL) == b"\1"
        # The value says open, the state is still what the key made it.
        assert board.value(*self.LOCK) == b"\0"
        assert self.put(board, self.CONTROL, b"\0") == EfiStatus.ACCESS_DENIED
        assert self.put(board, self.LOCK, b"12345678") == EfiStatus.SUCCESS
        assert self.put(board, self.CONTROL, b"\0") == EfiStatus.SUCCESS

    @pytest.mark.parametrize(
        ("policy", "later"), [(False, EfiStatus.SUCCESS), (True, EfiStatus.WRITE_PROTECTED)]
    )
    def test_end_of_dxe_without_a_control(self, policy: bool, later: EfiStatus) -> None:
        """The lock goes; that neither comes back is the policy engine's business."""
        board = Partition(config=StmmConfig(variable_policy=policy))
        assert self.put(board, self.LOCK, b"\0") == EfiStatus.SUCCESS
        assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
        assert board.value(*self.LOCK) is None
        assert self.put(board, self.CONTROL, b"\1") == later
        assert self.put(board, self.LOCK, b"\0") == later


def test_full_store_is_noted_after_end_of_dxe() -> None:
    board = Partition()
    flag = ("VarErrorFlag", UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa"))
    assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
    assert board.value(*flag) == b"\xff"
    assert board.set("Big", bytes(8000)) == EfiStatus.SUCCESS
    assert board.set("Big2", bytes(8000)) == EfiStatus.OUT_OF_RESOURCES
    assert board.value(*flag) == b"\xef"
    board.boot()
    assert board.value(*flag) == b"\xef"
    assert VENDOR not in {guid for name, guid in board.names() if name == flag[0]}
