"""OP-TEE's file system in the RPMB: where things lie, what a write costs, what a cut leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.faults import PowerLost
from emulation.optee.config import OpTeeConfig, Trace
from emulation.optee.pool import Pool
from emulation.optee.rpmb_fs import RpmbFileSystem
from emulation.optee.stmm_partition import STMM_UUID, STORE_FILE
from harness.formats import rpmb
from harness.formats.rpmb import OPTEE_TEST_KEY, RpmbFrame, read_request, unpack_frames
from harness.formats.rpmb_fs import FatEntry, FatFlags, PartitionHeader
from harness.formats.tee import TeeResult
from tests.emulation.optee_bench import Bench
from tests.emulation.test_optee_rpmb_client import fails

TRUTH = Path(__file__).parent.parent / "truth"
NAME = "/33D532EDE69909429CC02D72CDD998A7/4546495F56415253"
STORE = 0xC000
OK, INVALID, NO_MEMORY = 0, 0xFFFFFFFE, 0xFFFFFFFD
CONTENT = bytes(index * 7 & 0xFF for index in range(STORE))


def raw(bench: Bench, first: int, count: int = 1) -> bytes:
    """Half sectors as they lie on the card."""
    bench.card.rpmb.write_frames(read_request(first, bytes(16)), reliable=False)
    frames = unpack_frames(bench.card.rpmb.read_frames(count))
    return b"".join(frame.data for frame in frames)


def poke(bench: Bench, first: int, data: bytes) -> None:
    """Change what lies on the card behind OP-TEE's back."""
    bench.card.rpmb._image.commit(bench.counter, first, data)


def entries(bench: Bench) -> list[FatEntry]:
    table = raw(bench, 2, 8)
    found = [FatEntry.unpack(table, offset) for offset in range(0, len(table), 256)]
    return found[: next(index for index, entry in enumerate(found) if entry.last) + 1]


def filled(config: OpTeeConfig | None = None, size_mult: int = 16) -> Bench:
    """A card whose store holds CONTENT."""
    bench = Bench(config, size_mult=size_mult)
    assert bench.storage().write(0, CONTENT) == OK
    return bench


def files(bench: Bench) -> RpmbFileSystem:
    return RpmbFileSystem(bench.config, bench.rpmb, Trace(bench.log.append, 1))


@pytest.mark.cases(85, 98)
def test_format_of_a_blank_part() -> None:
    bench = Bench()
    assert bench.storage().read(0, 100) == (INVALID, b"")
    # The write that defeats a replay, the last entry, the header.
    assert bench.counter == 3
    assert PartitionHeader.unpack(raw(bench, 0)) == PartitionHeader()
    assert entries(bench) == [FatEntry(flags=FatFlags.LAST_ENTRY)]


@pytest.mark.cases(83)
def test_mount_costs_one_write_and_changes_nothing() -> None:
    bench = filled()
    before = raw(bench, 0, 16)
    again = bench.reboot()
    counter = again.counter
    assert again.storage().read(0, STORE) == (OK, CONTENT)
    assert again.counter == counter + 1
    assert raw(again, 0, 16) == before


@pytest.mark.cases(84)
def test_another_version_is_left_alone() -> None:
    bench = filled()
    poke(bench, 0, PartitionHeader(version=1).pack().ljust(256, b"\0"))
    again = bench.reboot()
    code, _data = again.storage().read(0, 1)
    assert code == 0xFFFFFFFA
    assert PartitionHeader.unpack(raw(again, 0)).version == 1
    assert bench.reboot(OpTeeConfig(release="4.1")).storage().write(0, b"x") == 0xFFFFFFFD


def test_a_build_that_resets_the_table_forgets_every_file() -> None:
    bench = filled()
    again = bench.reboot(OpTeeConfig(reset_fat=True))
    assert again.storage().read(0, 1) == (INVALID, b"")


def test_the_first_boot_does_what_the_recorded_one_did() -> None:
    """Truth log-optee-boot1-fresh: every step up to StandaloneMM's second variable."""
    rows = [json.loads(line) for line in (TRUTH / "log.jsonl").read_text().splitlines()]
    recorded = next(row for row in rows if row["id"] == "log-optee-boot1-fresh.log")["output"]
    bench = Bench(OpTeeConfig(log_level=3))
    storage = bench.storage()
    storage.read(0, STORE)
    storage.write(0, b"\xff" * STORE)
    storage.write(0, bytes(100))
    for offset, size in ((100, 200), (101, 300), (102, 300)):
        storage.write(offset, bytes(size))

    step = re.compile(r"(Read|Write) \d+ block|Need to|Updating|RPMB (read|write|INIT)|Trying")

    def steps(lines: list[str]) -> list[str]:
        kept = [re.sub(r"^D/TC:\? 0 \w+(:\d+)? ", "", line) for line in lines]
        return [line for line in kept if step.match(line)]

    expected, seen = steps(recorded.splitlines()), steps(bench.log)
    assert len(seen) > 100
    assert seen == expected[: len(seen)]


@pytest.mark.parametrize(
    ("size_mult", "first", "second"),
    [(1, 0x13F00, 0x7F00), (2, 0x33F00, 0x27F00), (16, 7999 * 256, 7807 * 256)],
)
@pytest.mark.cases(86, 87, 88)
def test_the_two_places_of_the_store(size_mult: int, first: int, second: int) -> None:
    bench = filled(size_mult=size_mult)
    assert [(entry.name, entry.start_address, entry.data_size) for entry in entries(bench)] == [
        (NAME, first, STORE),
        ("", 0, 0),
    ]
    storage = bench.loaded[-1].storage
    for place in (second, first, second):
        assert storage.write(255, b"xy") == OK
        assert entries(bench)[0].start_address == place


@pytest.mark.cases(89, 90, 91)
@pytest.mark.pain(3)
def test_what_a_write_costs() -> None:
    bench = filled()
    # Guard, last entry, header; last entry, own entry; data, own entry.
    assert bench.counter == 3 + 2 + 192 + 1
    storage = bench.loaded[-1].storage

    def cost(offset: int, size: int) -> int:
        before = bench.counter
        assert storage.write(offset, b"!" * size) == OK
        return bench.counter - before

    assert cost(0, 0) == 0
    assert cost(5, 1) == 1
    assert cost(0, 100) == 1
    assert cost(256, 256) == 1
    assert cost(255, 2) == 193
    assert cost(0, 4096) == 193
    assert storage.read(0, 10) == (OK, b"!" * 10)


@pytest.mark.cases(89)
def test_in_place_writes_leave_table_and_neighbours() -> None:
    bench = filled()
    table, start = entries(bench), entries(bench)[0].start_address // 256
    around = raw(bench, start, 192)
    assert bench.loaded[-1].storage.write(3 * 256 + 17, b"?") == OK
    assert entries(bench) == table
    after = raw(bench, start, 192)
    changed = [n for n in range(192) if around[n * 256 :][:256] != after[n * 256 :][:256]]
    assert changed == [3]


@pytest.mark.parametrize("release", ["4.10", "4.1"])
@pytest.mark.cases(94)
@pytest.mark.pain(6)
def test_what_lies_behind_a_relocating_write(release: str) -> None:
    """OP-TEE 4.1 to 4.9 lose it, chunk by chunk (stack 2.4)."""
    bench = filled(OpTeeConfig(release="4.1" if release == "4.1" else "4.10"))
    storage = bench.loaded[-1].storage
    assert storage.write(0x1100, b"!" * 0x200) == OK
    expected = CONTENT[:0x1100] + b"!" * 0x200 + CONTENT[0x1300:]
    if release == "4.1":
        expected = expected[:0x2000] + bytes(STORE - 0x2000)
    assert storage.read(0, STORE) == (OK, expected)
    assert storage.write(0, b"?" * 0x400) == OK
    if release == "4.1":
        assert storage.read(0, 0x800) == (OK, b"?" * 0x400 + bytes(0x400))
    else:
        assert storage.read(0, STORE) == (OK, b"?" * 0x400 + expected[0x400:])


@pytest.mark.cases(95, 97)
def test_a_write_behind_the_end_leaves_a_hole_of_zeros() -> None:
    storage = Bench().storage()
    assert storage.write(0, b"start") == OK
    assert storage.write(5000, b"end") == OK
    assert storage.read(0, 5003) == (OK, b"start" + bytes(4995) + b"end")
    assert storage.read(0, 5004)[0] == INVALID
    assert storage.read(6000, 1)[0] == INVALID


@pytest.mark.parametrize("position", [4097, 5000, 8191, 8192, 12289])
def test_chunks_in_front_of_a_long_write_keep_their_bytes(position: int) -> None:
    """The written range begins behind a chunk by less than its own length.

    A chunk that took such bytes would be too long; later chunks hide that in the content, so it
    shows in what the write costs.
    """
    bench = filled()
    storage = bench.loaded[-1].storage
    data = b"!" * 20000
    before = bench.counter
    assert storage.write(position, data) == OK
    assert bench.counter - before == 193
    expected = CONTENT[:position] + data + CONTENT[position + len(data) :]
    assert storage.read(0, STORE) == (OK, expected)


@pytest.mark.cases(96)
def test_no_room_for_the_second_copy() -> None:
    bench = Bench(size_mult=1)
    storage = bench.storage()
    assert storage.write(0, b"x" * 0x10000) == OK
    counter = bench.counter
    assert storage.write(0, b"y" * 0x300) == INVALID
    assert bench.counter == counter
    assert storage.read(0, 3) == (OK, b"xxx")


@pytest.mark.cases(102)
def test_equal_plain_text_is_not_equal_on_the_card() -> None:
    bench = Bench()
    assert bench.storage().write(0, bytes(512)) == OK
    start = entries(bench)[0].start_address // 256
    first, second = raw(bench, start), raw(bench, start + 1)
    assert bytes(256) not in (first, second)
    assert first != second


@pytest.mark.cases(103)
def test_an_old_block_put_back_by_hand_is_not_noticed() -> None:
    """Encryption hides content and place; only the device's counter protects against replay."""
    bench = filled()
    start = entries(bench)[0].start_address // 256
    old = raw(bench, start + 3)
    storage = bench.loaded[-1].storage
    assert storage.write(3 * 256, b"new" + bytes(253)) == OK
    poke(bench, start + 3, old)
    assert storage.read(3 * 256, 256) == (OK, CONTENT[3 * 256 : 4 * 256])
    poke(bench, start + 4, old)
    code, garbage = storage.read(4 * 256, 256)
    assert code == OK
    assert garbage not in (CONTENT[3 * 256 : 4 * 256], CONTENT[4 * 256 : 5 * 256])


@pytest.mark.cases(101)
def test_an_entry_without_a_key_is_refused() -> None:
    bench = filled()
    entry = entries(bench)[0]
    poke(bench, 2, FatEntry(entry.start_address, entry.data_size, entry.flags, name=NAME).pack())
    assert bench.loaded[-1].storage.read(0, 1)[0] == INVALID


@pytest.mark.cases(100)
def test_overlapping_files_run_the_pool_out_of_memory() -> None:
    bench = filled()
    twin = entries(bench)[0]
    second = FatEntry(twin.start_address, 256, FatFlags.ACTIVE, fek=twin.fek, name="/other")
    poke(bench, 3, second.pack() + FatEntry(flags=FatFlags.LAST_ENTRY).pack())
    storage = bench.loaded[-1].storage
    assert storage.read(0, 3) == (OK, CONTENT[:3])
    assert storage.write(0, b"x") == NO_MEMORY


@pytest.mark.cases(99)
def test_files_share_the_table() -> None:
    bench = filled()
    many = files(bench)
    owner = UUID(int=7)
    for number in range(20):
        handle = many.create(f"/{number}", owner)
        many.write(handle, 0, f"file {number}".encode())
    assert many.read(many.open("/13", owner), 0, 99) == b"file 13"
    fails(TeeResult.ITEM_NOT_FOUND, lambda: many.open("/20", owner))
    assert many.read(many.create("/4", owner), 5, 99) == b"4"
    # A deleted file's entry is the first that is used again.
    poke(bench, 2 + 3, FatEntry().pack())
    many.create("/new", owner)
    assert entries_of(bench, 30)[3].name == "/new"
    assert many.read(many.open(STORE_FILE, STMM_UUID), 0, STORE) == CONTENT
    first = FatEntry(0, 0, FatFlags.ACTIVE, fek=b"1" * 16, name="/twin")
    poke(bench, 2 + 21, first.pack() + FatEntry(flags=FatFlags.LAST_ENTRY).pack())
    assert many.open("/twin", owner).address == 512 + 21 * 256


def entries_of(bench: Bench, count: int) -> list[FatEntry]:
    table = raw(bench, 2, count)
    return [FatEntry.unpack(table, offset) for offset in range(0, len(table), 256)]


@pytest.mark.cases(92, 93)
def test_a_cut_at_any_request_leaves_the_old_or_the_new_file() -> None:
    new = CONTENT[:100] + b"new" * 100 + CONTENT[400:]
    outcomes = []
    for point, passage in [("rpmb.write", n) for n in (1, 2, 60, 192, 193)] + [
        ("rpmb.written", n) for n in (1, 192, 193)
    ]:
        bench = filled()
        bench.faults.arm(f"{point}:{passage}=power-cut")
        with pytest.raises(PowerLost):
            bench.loaded[-1].storage.write(100, b"new" * 100)
        code, data = bench.reboot().storage().read(0, STORE)
        assert code == OK
        assert data in (CONTENT, new)
        outcomes.append(data == new)
    assert outcomes == [False] * 7 + [True]


def test_a_cut_while_formatting_is_healed_by_the_next_boot() -> None:
    for passage in range(1, 8):
        bench = Bench()
        bench.faults.arm(f"rpmb.write:{passage}=power-cut")
        with pytest.raises(PowerLost):
            bench.storage().write(0, b"content")
        storage = bench.reboot().storage()
        assert storage.write(0, b"again") == OK
        assert storage.read(0, 5) == (OK, b"again")


def test_the_pool_takes_from_the_top() -> None:
    pool = Pool(20 * 256)
    assert pool.allocate(3 * 256) == 17 * 256
    assert pool.reserve(10 * 256, 300)
    assert not pool.reserve(11 * 256 + 255, 1)
    assert not pool.reserve(19 * 256, 512)
    assert pool.allocate(5 * 256) == 12 * 256
    assert pool.allocate(6 * 256) == 4 * 256
    assert pool.allocate(5 * 256) is None
    assert pool.allocate(1) == 3 * 256


writes = st.tuples(
    st.integers(0, 9000), st.binary(min_size=1, max_size=300), st.sampled_from([1, 3, 20, 60])
)


@settings(max_examples=25, deadline=None)
@given(st.lists(writes, max_size=8), st.booleans())
def test_a_file_is_what_was_written(steps: list[tuple[int, bytes, int]], reboots: bool) -> None:
    bench = Bench()
    content = bytearray()
    for offset, data, times in steps:
        data = data * times
        assert bench.storage().write(offset, data) == OK
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
        if reboots:
            bench = bench.reboot()
    if content:
        assert bench.storage().read(0, len(content)) == (OK, bytes(content))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=2048), st.integers(0, 20), st.binary(max_size=700))
def test_a_hostile_card_never_crashes_the_secure_world(
    table: bytes, first: int, patch: bytes
) -> None:
    bench = filled()
    poke(bench, 2, table.ljust(-(-len(table) // 256) * 256, b"\0"))
    poke(bench, first, patch.ljust(-(-len(patch) // 256) * 256, b"\0"))
    storage = bench.reboot().storage()
    code, data = storage.read(0, 64)
    assert code == OK or data == b""
    assert storage.write(1, b"x" * 300) & 0xFFFFFFFF in (0, INVALID, NO_MEMORY, 0xFFFFFFFA)


def test_the_test_key_is_the_published_one() -> None:
    bench = filled()
    frame = RpmbFrame(kind=2).pack()
    bench.card.rpmb.write_frames(frame, reliable=False)
    answer = RpmbFrame.unpack(bench.card.rpmb.read_frames(1))
    assert answer.mac == rpmb.mac(OPTEE_TEST_KEY, answer.pack())
