"""Deleting a variable: unlink(2), or a write of nothing but attributes.

Kernel self-test: test_delete, test_zero_size_delete, test_open_unlink and test_multiple_* of
efivarfs.sh.
"""

from __future__ import annotations

import errno
from shlex import quote

import pytest

from harness.board.board import Board
from harness.expectations import recorded
from harness.instruments.efivars import NV_BS_RT, Efivars
from harness.instruments.outcomes import accepted, refused
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

SEVEN = NV_BS_RT.to_bytes(4, "little")

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 5))
TWO_RECORDS = pytest.mark.cost(store_bytes=2 * record_size("V", 6))


class TestUnlink:
    @pytest.mark.cases(385, 351)
    @ONE_RECORD
    @accepted()
    def test_removes_file_and_variable(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.delete("V")
        assert efivars.own() == []
        with refused(errno.ENOENT):
            efivars.read("V")

    @pytest.mark.needs("chattr")
    @pytest.mark.cases(351)
    @ONE_RECORD
    def test_chattr_and_rm_do_it(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"x")
        path = quote(efivars.file("V"))
        shell.run(f"chattr -i {path} && rm {path}").check()
        assert not efivars.exists("V")

    def test_of_a_missing_one_is_refused(self, efivars: Efivars) -> None:
        with refused(errno.ENOENT):
            efivars.unlink("V")

    @ONE_RECORD
    def test_a_second_time_is_refused(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.delete("V")
        with refused(errno.ENOENT):
            efivars.unlink("V")

    @pytest.mark.cases(401)
    @accepted()
    def test_of_a_file_that_was_never_written_succeeds(self, efivars: Efivars) -> None:
        """The firmware answers NOT_FOUND: what was asked for is so already (basic-029)."""
        with efivars.opened("V", "O_WRONLY|O_CREAT"):
            efivars.delete("V")
            assert efivars.exists("V") is recorded(False, "basic-032.exists")

    @pytest.mark.cost(store_bytes=3 * record_size("V", 1))
    def test_leaves_the_others(self, efivars: Efivars) -> None:
        for name in "ABC":
            efivars.write(name, name.encode())
        efivars.delete("B")
        assert [efivars.read(variable.name).data for variable in efivars.own()] == [b"A", b"C"]

    @TWO_RECORDS
    def test_it_can_be_created_again(self, efivars: Efivars) -> None:
        efivars.write("V", b"first")
        efivars.delete("V")
        efivars.write("V", b"second")
        assert efivars.read("V").data == b"second"

    @pytest.mark.disturbs
    @TWO_RECORDS
    def test_a_fresh_mount_shows_neither_it_nor_its_former_values(self, efivars: Efivars) -> None:
        efivars.write("V", b"first")
        efivars.overwrite("V", b"second")
        efivars.delete("V")
        efivars.unmount()
        efivars.mount()
        assert efivars.own() == []

    @pytest.mark.cases(353)
    @ONE_RECORD
    def test_of_an_open_file_removes_it_at_once(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        with efivars.opened("V"):
            efivars.delete("V")
            assert not efivars.exists("V")
        assert not efivars.exists("V")


class TestWriteOfNothing:
    @pytest.mark.cases(209, 352)
    @ONE_RECORD
    def test_removes_file_and_variable(self, efivars: Efivars) -> None:
        efivars.write("V", b"same")
        efivars.set_immutable("V", False)
        with efivars.opened("V", "O_WRONLY") as file:
            assert file.write(SEVEN) == recorded(4, "basic-027[1]")
        assert efivars.exists("V") is recorded(False, "basic-027.exists")

    @pytest.mark.cases(352)
    @ONE_RECORD
    def test_printf_in_a_shell_does_it(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        shell.run(f"printf '\\007\\000\\000\\000' >{quote(efivars.file('V'))}").check()
        assert not efivars.exists("V")

    @pytest.mark.cases(210)
    @ONE_RECORD
    def test_without_attributes_removes_it_too(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.overwrite("V", b"", 0)
        assert not efivars.exists("V")

    @pytest.mark.parametrize(
        ("attributes", "refusal"),
        [
            pytest.param(3, errno.EINVAL),
            pytest.param(6, errno.EINVAL),
            pytest.param(0x27, errno.EACCES),
            pytest.param(0x87, errno.EINVAL),
        ],
        ids=hex,
    )
    @ONE_RECORD
    def test_with_other_attributes_removes_nothing(
        self, efivars: Efivars, attributes: int, refusal: int
    ) -> None:
        efivars.write("V", b"kept")
        with refused(refusal):
            efivars.overwrite("V", b"", attributes)
        assert efivars.read_raw("V") == b"\7\0\0\0kept"

    @pytest.mark.cases(211)
    @ONE_RECORD
    def test_a_second_time_is_an_input_output_error(self, efivars: Efivars) -> None:
        """The firmware's NOT_FOUND, which as ENOENT would look like a missing file."""
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        with efivars.opened("V", "O_WRONLY") as file:
            file.write(SEVEN)
            with refused(errno.EIO):
                file.write(SEVEN)

    @TWO_RECORDS
    def test_it_can_be_created_again(self, efivars: Efivars) -> None:
        efivars.write("V", b"first")
        efivars.overwrite("V", b"")
        efivars.write("V", b"second")
        assert efivars.read("V").data == b"second"

    @pytest.mark.disturbs
    @ONE_RECORD
    def test_a_fresh_mount_does_not_show_it(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.overwrite("V", b"")
        efivars.unmount()
        efivars.mount()
        assert efivars.own() == []


class TestWriteOfNothingWhileOpen:
    """Linux 6 removes the file at once, Linux 7 at the last close, when it is still empty; both
    are the doing of what lets uncommitted files stay or go."""

    @pytest.mark.cases(368, 370)
    @ONE_RECORD
    def test_the_file_goes_at_once_or_at_the_last_close(
        self, board: Board, efivars: Efivars
    ) -> None:
        at_once = board.capabilities.has("uncommitted_files_stay")
        efivars.write("V", b"x")
        with efivars.opened("V"):
            efivars.overwrite("V", b"")
            assert efivars.exists("V") is not at_once
        assert not efivars.exists("V")

    @ONE_RECORD
    def test_the_other_descriptor_reads_nothing(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        with efivars.opened("V") as file:
            efivars.overwrite("V", b"")
            assert file.read(9) == b""

    @ONE_RECORD
    def test_the_size_shown_stays_or_becomes_zero(self, board: Board, efivars: Efivars) -> None:
        efivars.write("V", b"same")
        efivars.set_immutable("V", False)
        with efivars.opened("V", "O_WRONLY") as file:
            file.write(SEVEN)
            if board.capabilities.has("uncommitted_files_stay"):
                assert file.size() == recorded(8, "basic-027[2]")
            else:
                assert file.size() == 0

    @TWO_RECORDS
    @pytest.mark.disturbs
    def test_a_further_write_creates_the_variable_again(
        self, board: Board, efivars: Efivars
    ) -> None:
        efivars.write("V", b"same")
        efivars.set_immutable("V", False)
        with efivars.opened("V", "O_WRONLY") as file:
            file.write(SEVEN)
            assert file.write(SEVEN + b"again") == recorded(9, "basic-027[4]")
        if board.capabilities.has("uncommitted_files_stay"):
            # The file had its name taken away; only a fresh mount shows the variable.
            assert efivars.exists("V") is recorded(False, "basic-027.exists")
            efivars.unmount()
            efivars.mount()
        assert efivars.read("V").data == b"again"

    @pytest.mark.cases(369)
    @ONE_RECORD
    def test_two_creating_descriptors_see_one_file(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as writer:
            with efivars.opened("V") as reader:
                assert reader.size() == 0
                writer.write(SEVEN + b"hello")
                assert reader.size() == 9
                assert reader.read(99) == SEVEN + b"hello"
            assert efivars.exists("V")
        assert efivars.size("V") == 9

    @pytest.mark.cases(349, 369)
    def test_a_file_never_written_is_there_for_all_until_the_last_close(
        self, board: Board, efivars: Efivars
    ) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT"):
            with efivars.opened("V"):
                pass
            assert efivars.exists("V")
        assert efivars.exists("V") is board.capabilities.has("uncommitted_files_stay")
