"""The store to the byte: what each write takes, that nothing at run time gives it back, and that
``df`` says so where the firmware advertises QueryVariableInfo.

A record is 60 bytes of header, the name in CHAR16 with its NUL, the data, and what is missing to a
multiple of four (stack 4.13). After ExitBootServices no record is ever taken out; before it,
QueryVariableInfo does not count the dead ones.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from harness.board.board import Board
from harness.formats import variable_store as layout
from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import refused
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store.gauge import SpaceGauge
from harness.store.records import record_size

MARKS = 2 * SpaceGauge.MARK_BYTES


def takes(store_bytes: int) -> pytest.MarkDecorator:
    """What a measured action takes, with the gauge's two marks."""
    return pytest.mark.cost(store_bytes=store_bytes + MARKS)


@pytest.fixture
def gauge(board: Board) -> SpaceGauge:
    return SpaceGauge(board)


class TestFigures:
    @pytest.mark.cases(346, 347)
    @pytest.mark.pain(14)
    def test_they_are_there_exactly_where_query_variable_info_is_advertised(
        self, board: Board, efivars: Efivars
    ) -> None:
        # p2c-012: without it df is zero although StandaloneMM could answer
        space = efivars.space()
        assert (space.total > 0) == board.capabilities.has("query_variable_info")
        assert 0 <= space.free <= space.total
        assert space.available == space.free

    @pytest.mark.cases(345)
    def test_the_file_system_type_is_efivarfs(self, shell: Shell, efivars: Efivars) -> None:
        assert shell.run(f"stat -f -c %t {efivars.path}").text in {"de5e81e4", "0xde5e81e4"}

    @pytest.mark.cases(347)
    def test_the_unit_is_a_byte_and_there_are_no_inodes(
        self, probe: Probe, efivars: Efivars
    ) -> None:
        (found,) = probe.steps([do.StatFs(efivars.path)])
        assert found.field("bsize") == 1
        assert (found.field("files"), found.field("ffree")) == (0, 0)
        assert found.field("namelen") == 255

    @pytest.mark.cases(175)
    @pytest.mark.needs("query_variable_info")
    def test_the_total_is_the_store_without_its_headers(self, efivars: Efivars) -> None:
        # fill2-001: 16284 of 16384
        total = efivars.space().total
        assert (total + layout.FIRST_VARIABLE_OFFSET) % layout.BLOCK_SIZE == 0

    @pytest.mark.needs("second_user")
    def test_another_user_sees_the_same(self, shell: Shell, efivars: Efivars) -> None:
        command = f"stat -f -c '%S %b %f %a' {efivars.path}"
        as_nobody = shell.run_isolated(
            f"su -s /bin/sh nobody -c {command!r} </dev/null 2>/dev/null || "
            f"setpriv --reuid=65534 --clear-groups sh -c {command!r}"
        )
        assert as_nobody.check().text == shell.run(command).check().text

    @pytest.mark.needs("writable", "driver_bound", "query_variable_info")
    @pytest.mark.consents("write_rpmb", "unbind_driver")
    @pytest.mark.disturbs
    @takes(0)
    def test_they_are_the_same_after_the_driver_was_bound_anew(
        self, board: Board, gauge: SpaceGauge
    ) -> None:
        def rebind() -> None:
            board.tee.unbind()
            board.tee.bind()
            board.efivars.wait_until_writable()

        assert gauge.taken_by(rebind) == 0


@pytest.mark.needs("writable", "query_variable_info")
@pytest.mark.consents("write_rpmb")
class TestARecord:
    @pytest.mark.cases(186)
    @pytest.mark.parametrize(
        ("name", "size"),
        [
            pytest.param(name, size, marks=takes(record_size(name, size)))
            for name, size in [
                ("A", 1),  # 65: three bytes of padding
                ("A", 4),  # 68: none
                ("A", 5),  # one more: four
                ("AB", 2),  # the name's length shifts the padding
                ("AB", 3),
                ("A-rather-long-name-of-40-characters-here", 17),
                ("A", 1024),
            ]
        ],
    )
    def test_a_new_variable_takes_header_name_data_and_padding(
        self, efivars: Efivars, gauge: SpaceGauge, name: str, size: int
    ) -> None:
        record = (60 + 2 * (len(name) + 1) + size + 3) // 4 * 4
        assert gauge.taken_by(lambda: efivars.write(name, bytes(size))) == record

    def _change(
        self, board: Board, gauge: SpaceGauge, old: bytes, new: bytes, change: Callable[[], object]
    ) -> None:
        """``change`` makes ``new`` of ``old``: a whole new record, and the old one stays."""
        board.efivars.write("Changed", old)
        expected = record_size("Changed", len(new)) if new else 0
        if not board.capabilities.has("exit_boot_services_told"):
            expected -= record_size("Changed", len(old))
        assert gauge.taken_by(change) == expected

    @takes(2 * 96)
    def test_an_overwrite_takes_a_whole_record_again(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        old, new = b"o" * 20, b"n" * 20
        self._change(board, gauge, old, new, lambda: efivars.overwrite("Changed", new))

    @takes(140 + 80)
    def test_a_shrinking_overwrite_takes_what_its_own_record_needs(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        old, new = b"o" * 64, b"n"
        self._change(board, gauge, old, new, lambda: efivars.overwrite("Changed", new))

    @takes(140 + 144)
    def test_an_append_takes_the_record_of_the_sum(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        old = b"o" * 64
        self._change(board, gauge, old, old + b"more", lambda: efivars.append("Changed", b"more"))

    @pytest.mark.cases(187, 188)
    @takes(140)
    def test_a_delete_gives_nothing_back_at_run_time(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        self._change(board, gauge, b"o" * 64, b"", lambda: efivars.delete("Changed"))

    @pytest.mark.cases(187, 188)
    @takes(140)
    def test_nor_does_a_delete_by_an_empty_write(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        self._change(board, gauge, b"o" * 64, b"", lambda: efivars.overwrite("Changed", b""))

    @pytest.mark.cases(218)
    @takes(4 * 80)
    def test_create_and_delete_in_turn_use_the_store_up(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        def turns() -> None:
            for turn in range(4):
                efivars.write("Turn", bytes([turn]))
                efivars.delete("Turn")

        told = board.capabilities.has("exit_boot_services_told")
        assert gauge.taken_by(turns) == (4 * record_size("Turn", 1) if told else 0)


@pytest.mark.needs("writable", "query_variable_info")
@pytest.mark.consents("write_rpmb")
class TestWhatTakesNothing:
    @pytest.mark.cases(201)
    @takes(76)
    def test_an_identical_overwrite(self, efivars: Efivars, gauge: SpaceGauge) -> None:
        efivars.write("Same", b"same")
        assert gauge.taken_by(lambda: efivars.overwrite("Same", b"same")) == 0

    @takes(84)
    def test_reading_and_the_immutable_flag(self, efivars: Efivars, gauge: SpaceGauge) -> None:
        efivars.write("LookedAt", b"x")

        def look() -> None:
            efivars.read("LookedAt")
            efivars.set_immutable("LookedAt", False)
            efivars.set_immutable("LookedAt", True)

        assert gauge.taken_by(look) == 0

    @pytest.mark.parametrize(
        ("attributes", "size"),
        [
            pytest.param(0x5, 4, id="RT without BS"),
            pytest.param(0x87, 4, id="unknown attribute"),
            pytest.param(0x17, 4, id="deprecated authentication"),
            pytest.param(0x7, 8192, id="larger than a variable may be"),
        ],
    )
    @takes(0)
    def test_a_refused_write(
        self, efivars: Efivars, gauge: SpaceGauge, attributes: int, size: int
    ) -> None:
        def attempt() -> None:
            with refused(errno.EINVAL):
                efivars.write("Refused", bytes(size), attributes=attributes)

        assert gauge.taken_by(attempt) == 0

    @pytest.mark.cases(203)
    @takes(84)
    def test_a_refused_overwrite(self, efivars: Efivars, gauge: SpaceGauge) -> None:
        efivars.write("Stays", b"stays")

        def attempt() -> None:
            with refused(errno.EINVAL):
                efivars.overwrite("Stays", b"other", attributes=0x3)

        assert gauge.taken_by(attempt) == 0
        assert efivars.read("Stays").data == b"stays"

    @pytest.mark.disturbs
    @takes(0)
    def test_a_remount(self, efivars: Efivars, gauge: SpaceGauge) -> None:
        def remount() -> None:
            efivars.remount("ro")
            efivars.remount("rw")

        assert gauge.taken_by(remount) == 0

    @pytest.mark.disturbs
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    @takes(0)
    def test_a_write_while_the_driver_is_unbound(
        self, board: Board, efivars: Efivars, gauge: SpaceGauge
    ) -> None:
        def attempt() -> None:
            board.tee.unbind()
            with refused(errno.EROFS):
                efivars.write("Unbound", b"x")
            board.tee.bind()
            board.efivars.wait_until_writable()

        assert gauge.taken_by(attempt) == 0


@pytest.mark.needs("writable", "query_variable_info")
@pytest.mark.consents("write_rpmb", "power_cycle")
@pytest.mark.power
@pytest.mark.pain(6)
@pytest.mark.cases(219, 310)
@takes(328)
def test_a_reboot_alone_gives_nothing_back(
    board: Board, efivars: Efivars, gauge: SpaceGauge
) -> None:
    """truth README: reclaim comes with a SetVariable before ExitBootServices that does not fit.
    OP-TEE before 4.10 leaves zeros behind the store's end, and StandaloneMM reclaims at its start
    (stack 2.4, case 310)."""
    # Longer than a half sector, so that OP-TEE must move the file.
    efivars.write("Given", bytes(256))
    efivars.delete("Given")
    taken = gauge.taken_by(board.reboot)
    told = board.capabilities.has("exit_boot_services_told")
    if told and not board.capabilities.has("relocation_keeps_tail"):
        assert taken <= 0
    else:
        assert taken == 0
