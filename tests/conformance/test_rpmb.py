"""What a SetVariable costs in RPMB writes, to the write; who may write the RPMB; who it is.

The store's file is written in half sectors of 256 bytes. A change within one is one write; a
record that crosses into the next makes OP-TEE copy the whole file, 192 writes more (stack 2.4).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from harness.board.board import Board
from harness.expectations import recorded
from harness.formats import rpmb as wire
from harness.formats.rpmb import OPTEE_TEST_KEY as TEST_KEY
from harness.formats.rpmb import RpmbResult
from harness.instruments.efivars import Efivars, content_of
from harness.instruments.outcomes import errno_of, refused
from harness.instruments.rpmb import Rpmb, RpmbRefused
from harness.shell import Shell
from harness.store import listing
from harness.store.gauge import SpaceGauge
from harness.store.records import RECORDED, data_for, record_size

pytestmark = [pytest.mark.needs("rpmb_access")]

writes = pytest.mark.needs("writable")
consents = pytest.mark.consents("write_rpmb")
NAME = "Fit"
MARKS = 9 * SpaceGauge.MARK_BYTES
SMALLEST = record_size(NAME, 1)


def _steps(board: Board, writes: int) -> tuple[int, ...]:
    """What a new record may cost. With OP-TEE 4.10 goes a StandaloneMM that writes record and state
    byte; before EDK2 2024.02 it was header, state, name and data, state: two more."""
    if board.capabilities.has("relocation_keeps_tail"):
        return (writes,)
    return (writes, writes + 2)


@pytest.fixture
def gauge(board: Board) -> SpaceGauge:
    return SpaceGauge(board)


def _spent(rpmb: Rpmb, action: Callable[[], object]) -> int:
    """RPMB writes of ``action``."""
    before = rpmb.counter()
    action()
    return rpmb.counter() - before


def _data(record: int, byte: bytes = b"d") -> bytes:
    """Data that makes the record of :data:`NAME` so many bytes."""
    return byte * data_for(NAME, record)


@writes
@consents
class TestWhatCostsNothing:
    """The counter is what wears out the part, so nothing may move it without need."""

    @pytest.mark.cases(49)
    def test_reading_the_counter(self, rpmb: Rpmb) -> None:
        assert rpmb.counter() == rpmb.counter()

    @pytest.mark.cost(store_bytes=76)
    def test_reading_listing_and_df(self, efivars: Efivars, rpmb: Rpmb) -> None:
        efivars.write("Read", b"x")

        def look() -> None:
            efivars.read("Read")
            efivars.names()
            efivars.space()

        assert _spent(rpmb, look) == 0

    @pytest.mark.cases(201)
    @pytest.mark.cost(store_bytes=84)
    def test_an_identical_write(self, efivars: Efivars, rpmb: Rpmb) -> None:
        efivars.write("Identical", b"same")
        spent = _spent(rpmb, lambda: efivars.overwrite("Identical", b"same"))
        assert spent == recorded(0, "basic-021.rpmb_writes")

    @pytest.mark.parametrize(
        ("attributes", "size"),
        [
            pytest.param(0x03, 4, id="NV without RT"),
            pytest.param(0x06, 4, id="volatile"),
            pytest.param(0x87, 4, id="unknown attribute"),
            pytest.param(0x07, 9000, id="larger than a variable may be"),
        ],
    )
    def test_a_refused_write(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, attributes: int, size: int
    ) -> None:
        if attributes in (0x03, 0x06):
            board.capabilities.require("exit_boot_services_told")

        def attempt() -> None:
            with refused(errno.EINVAL):
                efivars.write("Refused", bytes(size), attributes=attributes)

        assert _spent(rpmb, attempt) == 0

    @pytest.mark.cases(211)
    def test_the_deletion_of_what_is_not_there(self, efivars: Efivars, rpmb: Rpmb) -> None:
        def attempt() -> None:
            with refused(errno.EIO):
                efivars.write("Missing", b"")

        assert _spent(rpmb, attempt) == 0

    @pytest.mark.disturbs
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    def test_unbind_bind_and_remount(self, board: Board, rpmb: Rpmb) -> None:
        def rebind() -> None:
            board.tee.unbind()
            board.tee.bind()
            board.efivars.remount("ro")
            board.efivars.remount("rw")

        assert _spent(rpmb, rebind) == 0


@writes
@consents
@pytest.mark.needs("query_variable_info", "exit_boot_services_told")
class TestWhatAWriteCosts:
    @pytest.mark.cases(89, 314)
    @pytest.mark.cost(store_bytes=MARKS + 256)
    def test_a_record_that_ends_with_its_half_sector_is_two(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, gauge: SpaceGauge
    ) -> None:
        _, left = gauge.free_in_half_sector(SMALLEST)
        spent = _spent(rpmb, lambda: efivars.write(NAME, _data(left)))
        assert spent in _steps(
            board, recorded(2, "size-002.rpmb_writes", "special-010.rpmb_writes")
        )

    @pytest.mark.pain(3)
    @pytest.mark.cases(90)
    @pytest.mark.cost(store_bytes=MARKS + 260)
    def test_four_bytes_more_make_the_whole_file_move(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, gauge: SpaceGauge
    ) -> None:
        _, left = gauge.free_in_half_sector(SMALLEST)
        spent = _spent(rpmb, lambda: efivars.write(NAME, _data(left + 4)))
        assert spent in _steps(
            board, recorded(194, "special-016.rpmb_writes", "special-024.rpmb_writes")
        )

    @pytest.mark.cases(315)
    @pytest.mark.cost(store_bytes=MARKS + 72 + 256)
    def test_an_overwrite_marks_the_old_record_twice(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, gauge: SpaceGauge
    ) -> None:
        efivars.write(NAME, b"1")
        _, left = gauge.free_in_half_sector(SMALLEST)
        efivars.set_immutable(NAME, False)
        spent = _spent(rpmb, lambda: efivars.write(NAME, _data(left)))
        assert spent in _steps(board, recorded(4, "special-012.rpmb_writes"))

    @pytest.mark.pain(3)
    @pytest.mark.cost(store_bytes=MARKS + 72 + 260)
    def test_an_overwrite_that_crosses_moves_the_file_once(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, gauge: SpaceGauge
    ) -> None:
        efivars.write(NAME, b"1")
        _, left = gauge.free_in_half_sector(SMALLEST)
        spent = _spent(rpmb, lambda: efivars.overwrite(NAME, _data(left + 4)))
        assert spent in _steps(
            board, recorded(196, "special-009.rpmb_writes", "special-013.rpmb_writes")
        )

    @pytest.mark.cases(204)
    @pytest.mark.cost(store_bytes=MARKS + 72 + 76)
    def test_an_append_costs_as_an_overwrite(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, gauge: SpaceGauge
    ) -> None:
        efivars.write(NAME, b"1234")
        gauge.free_in_half_sector(record_size(NAME, 8))
        spent = _spent(rpmb, lambda: efivars.append(NAME, b"5678"))
        assert spent in _steps(board, 4)

    @pytest.mark.wear
    @pytest.mark.cost(store_bytes=2 * 72 + 4096 + 600, rpmb_writes=800)
    def test_a_record_over_two_blocks_of_flash_is_cut_between_them(
        self, board: Board, efivars: Efivars, rpmb: Rpmb, gauge: SpaceGauge
    ) -> None:
        free = gauge.free()
        to_block_end = -RECORDED.position(free) % RECORDED.block
        record = max(to_block_end, SMALLEST) + RECORDED.half_sector + 44
        expected = RECORDED.rpmb_writes(free, record)
        assert expected in (195, 387)
        spent = _spent(rpmb, lambda: efivars.write(NAME, _data(record)))
        assert spent in _steps(board, expected)


@writes
@consents
class TestDelete:
    @pytest.mark.cost(store_bytes=72)
    def test_a_delete_costs_one_wherever_it_lies(self, efivars: Efivars, rpmb: Rpmb) -> None:
        efivars.write(NAME, b"x")
        efivars.set_immutable(NAME, False)
        assert _spent(rpmb, lambda: efivars.unlink(NAME)) == recorded(
            1, "size-005.rpmb_writes", "size-007.rpmb_writes", "size-019.rpmb_writes"
        )

    @pytest.mark.cases(209)
    @pytest.mark.cost(store_bytes=72)
    def test_a_delete_by_an_empty_write_costs_the_same(self, efivars: Efivars, rpmb: Rpmb) -> None:
        efivars.write(NAME, b"x")
        assert _spent(rpmb, lambda: efivars.overwrite(NAME, b"")) == 1
        assert not efivars.exists(NAME)


@writes
@consents
@pytest.mark.cost(store_bytes=72)
def test_a_create_is_two_or_moves_the_file(board: Board, efivars: Efivars, rpmb: Rpmb) -> None:
    """Wherever the record lies, also where df shows no figures: one or two pieces, each in place
    or with the file, and the state byte."""
    spent = _spent(rpmb, lambda: efivars.write(NAME, b"x"))
    assert spent in {cost for base in (2, 3, 194, 195, 387) for cost in _steps(board, base)}


@writes
@pytest.mark.consents("power_cycle")
@pytest.mark.power
@pytest.mark.cases(34, 83, 428)
def test_a_boot_costs_the_replay_guard_and_no_file(board: Board) -> None:
    before = board.rpmb.counter()
    board.switch.cycle()
    spent = board.rpmb.counter() - before
    assert spent >= 1
    # Every variable was written before, and an identical write is none. An OP-TEE that loses the
    # store's tail makes StandaloneMM reclaim at its start.
    assert spent < RECORDED.relocation or not board.capabilities.has("relocation_keeps_tail")


class TestIdentity:
    def test_the_part_is_the_board_file_s(self, board: Board, rpmb: Rpmb) -> None:
        # The last byte holds a CRC that some host controllers do not pass on.
        assert rpmb.identity().cid[:30] == board.file.emmc_cid[:30]

    @pytest.mark.cases(54)
    @pytest.mark.needs("mmc_utils")
    def test_sysfs_and_the_card_s_register_agree(self, rpmb: Rpmb, shell: Shell) -> None:
        card = rpmb.device.removesuffix("rpmb")
        text = shell.run(f"mmc extcsd read {card}").check().text
        identity = rpmb.identity()
        assert _register(text, "RPMB_SIZE_MULT") * 128 * 1024 == identity.rpmb_bytes
        assert _register(text, "REL_WR_SEC_C") == identity.reliable_write_sectors

    @pytest.mark.cases(16)
    def test_the_last_half_sector_can_be_read(self, rpmb: Rpmb) -> None:
        last = rpmb.identity().rpmb_bytes // wire.DATA_SIZE - 1
        assert len(rpmb.read_block(last)) == wire.DATA_SIZE


def _register(extcsd: str, name: str) -> int:
    found = re.search(rf"{name}[]:]*:? *(0x[0-9a-fA-F]+)", extcsd)
    assert found is not None, f"`mmc extcsd read` shows no {name}"
    return int(found[1], 16)


class TestTheNode:
    """The RPMB node takes frames by ioctl and nothing else (K6 drivers/mmc/core/block.c)."""

    @pytest.mark.needs("python3")
    @pytest.mark.parametrize(
        ("commands", "blocks", "pointer", "expected"),
        [
            pytest.param(0, 1, True, 0, id="no command", marks=pytest.mark.cases(39)),
            pytest.param(256, 1, True, errno.EINVAL, id="too many", marks=pytest.mark.cases(40)),
            pytest.param(
                1, 1025, True, errno.EOVERFLOW, id="too long", marks=pytest.mark.cases(41)
            ),
            pytest.param(1, 1, False, errno.EFAULT, id="nowhere", marks=pytest.mark.cases(42, 43)),
        ],
    )
    def test_a_bad_list_of_commands_is_refused_before_the_card_sees_it(
        self,
        rpmb: Rpmb,
        shell: Shell,
        commands: int,
        blocks: int,
        pointer: bool,
        expected: int,
    ) -> None:
        call = f"python3 - {rpmb.device} {commands} {blocks} {int(pointer)}"
        result = shell.run(call, stdin=_BAD_IOCTL)
        assert int(result.check().text) == expected

    @pytest.mark.cases(38)
    @pytest.mark.needs("python3")
    def test_it_is_no_block_device(self, rpmb: Rpmb, shell: Shell) -> None:
        result = shell.run(f"python3 - {rpmb.device}", stdin=_BLOCK_SIZE)
        assert int(result.check().text) == errno.EINVAL


# MMC_IOC_MULTI_CMD with a command that the kernel must refuse: prints the errno, 0 for success.
_BAD_IOCTL = b"""
import ctypes, fcntl, os, struct, sys
node, commands, blocks, pointer = sys.argv[1], *map(int, sys.argv[2:])
data = ctypes.create_string_buffer(512 * blocks)
command = struct.pack("=iiII4IIIIIIIIIQ", 0, 0, 18, 0, 0, 0, 0, 0, 0x35, 512, blocks,
    0, 0, 0, 0, 0, ctypes.addressof(data) if pointer else 8)
try:
    argument = bytearray(struct.pack("=Q", commands) + command * max(commands, 1))
    fcntl.ioctl(os.open(node, os.O_RDWR), 0xC008B301, argument)
    print(0)
except OSError as error:
    print(error.errno)
"""
_BLOCK_SIZE = b"""
import fcntl, os, sys
try:
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), 0x1260, bytearray(8))
    print(0)
except OSError as error:
    print(error.errno)
"""


@writes
@consents
@pytest.mark.pain(8)
@pytest.mark.cases(33)
@pytest.mark.needs("mmc_utils")
@pytest.mark.cost(store_bytes=8 * 76)
def test_another_user_of_the_card_disturbs_no_write(
    efivars: Efivars, rpmb: Rpmb, shell: Shell
) -> None:
    """Requests of two hosts must not mix: the result register belongs to the last one."""
    log = "/tmp/hil-readers"
    one = f"mmc rpmb read-counter {rpmb.device} || echo failed"
    shell.run_isolated(
        f"rm -f {log}* && (while ! test -e {log}.end; do {one}; done >{log} 2>&1; "
        f"touch {log}.done) </dev/null >/dev/null 2>&1 &"
    ).check()
    try:
        for index in range(8):
            efivars.write(f"Both{index}", bytes([index]))
    finally:
        waiting = f"i=0; touch {log}.end; while test $i -lt 100 && ! test -e {log}.done; "
        shell.run(f"{waiting} do i=$((i + 1)); sleep 0.05; done")
    lines = shell.run(f"cat {log}").check().text.splitlines()
    counters = [int(line.removeprefix("Counter value: "), 16) for line in lines]
    assert counters == sorted(counters)
    assert [efivars.read(f"Both{index}").data for index in range(8)] == [
        bytes([index]) for index in range(8)
    ]


@pytest.mark.cases(50)
@pytest.mark.needs("mmc_utils")
def test_an_answer_under_another_key_is_no_answer(rpmb: Rpmb, shell: Shell) -> None:
    result = shell.run(
        "d=$(mktemp -d); head -c 32 /dev/zero >$d/key; "
        f"mmc rpmb read-block {rpmb.device} 0 1 $d/data $d/key; s=$?; rm -rf $d; exit $s"
    )
    assert result.status == 1
    assert "MAC" in result.text + result.error_text


@writes
@consents
@pytest.mark.destructive
@pytest.mark.consents("foreign_rpmb_write")
@pytest.mark.pain(9)
class TestWrongKey:
    WRONG_KEY = bytes(range(32))

    @pytest.mark.cases(12, 52)
    @pytest.mark.cost(store_bytes=96)
    def test_a_write_is_refused_and_changes_nothing(self, efivars: Efivars, rpmb: Rpmb) -> None:
        before = rpmb.counter()
        with pytest.raises(RpmbRefused) as refusal:
            rpmb.write_block(0, bytes(256), self.WRONG_KEY)
        assert refusal.value.result == RpmbResult.AUTHENTICATION_FAILURE
        assert rpmb.counter() == before
        efivars.write("AfterWrongKey", b"works")
        assert efivars.read("AfterWrongKey").data == b"works"

    @pytest.mark.cases(53)
    @pytest.mark.needs("mmc_utils")
    def test_a_short_block_is_refused_by_the_tool(self, rpmb: Rpmb, shell: Shell) -> None:
        before = rpmb.counter()
        result = shell.run(
            "d=$(mktemp -d); head -c 255 /dev/zero >$d/data; head -c 32 /dev/zero >$d/key; "
            f"mmc rpmb write-block {rpmb.device} 0 $d/data $d/key; s=$?; rm -rf $d; exit $s"
        )
        assert result.status == 1
        assert rpmb.counter() == before


@dataclass(frozen=True)
class Foreign:
    """What happened when somebody with the right key wrote the RPMB beside OP-TEE."""

    accepted: int
    counter_moved: int
    replayed: int
    moved_by_replay: int
    ahead: int
    moved_by_ahead: int
    other_key: int
    kept: bool
    set_after: int | None
    delete_after: int | None
    read_after: bytes | None
    moved_by_refused: int
    again_after_bind: int | None
    after_reboot: bytes | None
    old_after_reboot: bytes | None


@pytest.fixture(scope="session")
def foreign(board: Board) -> Foreign:
    """One boot for all tests: a foreign write lasts until the next."""
    rpmb, efivars = board.rpmb, board.efivars
    efivars.write("Own", b"own")
    # The file system never uses the last half sector.
    last = rpmb.identity().rpmb_bytes // wire.DATA_SIZE - 1
    content = rpmb.read_block(last, key=TEST_KEY)
    start = rpmb.counter()

    def send(counter: int, key: bytes = TEST_KEY) -> int:
        request = wire.write_request(key, counter, last, content)
        return rpmb.exchange(request, 1, reliable=True)[0].result

    other_key = send(start, bytes(32))
    accepted, after = send(start), rpmb.counter()
    replayed, after_replay = send(start), rpmb.counter()
    ahead, after_ahead = send(after_replay + 1), rpmb.counter()
    kept = rpmb.read_block(last, key=TEST_KEY) == content
    set_after = errno_of(lambda: efivars.write("Stale", b"x"))
    efivars.set_immutable("Own", False)
    delete_after = errno_of(lambda: efivars.unlink("Own"))
    read_after = content_of(efivars, "Own")
    refused_writes = rpmb.counter() - after_ahead
    board.tee.unbind()
    board.tee.bind()
    again = errno_of(lambda: efivars.write("Rebound", b"x"))
    board.reboot()
    efivars = listing.of_the_store(board)
    errno_of(lambda: efivars.write("Fresh", b"fresh"))
    return Foreign(
        accepted=accepted,
        counter_moved=after - start,
        replayed=replayed,
        moved_by_replay=after_replay - after,
        ahead=ahead,
        moved_by_ahead=after_ahead - after_replay,
        other_key=other_key,
        kept=kept,
        set_after=set_after,
        delete_after=delete_after,
        read_after=read_after,
        moved_by_refused=refused_writes,
        again_after_bind=again,
        after_reboot=content_of(efivars, "Fresh"),
        old_after_reboot=content_of(efivars, "Own"),
    )


@pytest.mark.destructive
@pytest.mark.power
@pytest.mark.needs("writable", "driver_bound", "rpmb_test_key", "python3")
@pytest.mark.consents("write_rpmb", "foreign_rpmb_write", "unbind_driver", "power_cycle")
@pytest.mark.disturbs
@pytest.mark.cost(store_bytes=3 * 80, story="foreign")
class TestForeignWrite:
    """With OP-TEE's public test key the suite can be the attacker, and the replayed."""

    @pytest.mark.cases(11, 51)
    def test_the_right_key_and_counter_are_accepted_and_counted(self, foreign: Foreign) -> None:
        assert foreign.accepted == RpmbResult.OK
        assert foreign.counter_moved == 1

    @pytest.mark.cases(14)
    def test_the_same_frame_again_is_refused(self, foreign: Foreign) -> None:
        assert foreign.replayed == RpmbResult.COUNTER_FAILURE
        assert foreign.moved_by_replay == 0

    @pytest.mark.cases(15)
    def test_a_counter_ahead_is_refused(self, foreign: Foreign) -> None:
        assert foreign.ahead == RpmbResult.COUNTER_FAILURE
        assert foreign.moved_by_ahead == 0

    @pytest.mark.cases(12)
    def test_another_key_is_refused_before_the_counter_is_looked_at(self, foreign: Foreign) -> None:
        assert foreign.other_key == RpmbResult.AUTHENTICATION_FAILURE
        assert foreign.kept

    @pytest.mark.cases(13)
    def test_op_tee_s_counter_is_stale_and_a_write_is_refused(self, foreign: Foreign) -> None:
        assert foreign.set_after == recorded(errno.EINVAL, "rpmb-011[1]")

    @pytest.mark.cases(81)
    def test_so_is_a_delete_and_the_variable_stays(self, foreign: Foreign) -> None:
        assert foreign.delete_after == errno.EINVAL
        assert foreign.read_after == b"\7\0\0\0own"

    def test_the_refused_writes_do_not_move_the_counter(self, foreign: Foreign) -> None:
        assert foreign.moved_by_refused == 0

    def test_binding_the_driver_anew_does_not_help(self, foreign: Foreign) -> None:
        assert foreign.again_after_bind == errno.EINVAL

    def test_a_boot_does_and_nothing_was_lost(self, foreign: Foreign) -> None:
        assert foreign.after_reboot == b"\7\0\0\0fresh"
        assert foreign.old_after_reboot == b"\7\0\0\0own"
