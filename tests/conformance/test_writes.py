"""One write(2) is one SetVariable: whole, at no offset, with the attributes first.

The eight cases of the kernel's self-test know little of this; the rows basic-008 to basic-028 do.
"""

from __future__ import annotations

import contextlib
import errno
from shlex import quote

import pytest

from harness.board.board import Board
from harness.expectations import recorded
from harness.formats.efi import Attributes
from harness.instruments.descriptor import Descriptor
from harness.instruments.efivars import NV_BS_RT, Efivars
from harness.instruments.outcomes import accepted, refused
from harness.instruments.rpmb import Rpmb
from harness.links import posix
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

SEVEN = NV_BS_RT.to_bytes(4, "little")
APPENDING = (NV_BS_RT | Attributes.APPEND_WRITE).to_bytes(4, "little")

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 8))
TWO_RECORDS = pytest.mark.cost(store_bytes=2 * record_size("V", 8))


class TestOverwrite:
    @pytest.mark.cases(202)
    @pytest.mark.cost(store_bytes=record_size("V", 5) + record_size("V", 15))
    @accepted()
    def test_a_longer_value_replaces_the_old_one(self, efivars: Efivars) -> None:
        efivars.write("V", b"hello")
        with _writable(efivars) as file:
            length = file.write(SEVEN + b"longer data now")
            assert length == recorded(19, "basic-008[1]")
            assert file.size() == recorded(19, "basic-008[2]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0longer data now", "basic-008.after")

    @pytest.mark.cases(202)
    @TWO_RECORDS
    def test_a_shorter_value_leaves_nothing_of_the_old_one(self, efivars: Efivars) -> None:
        efivars.write("V", b"hello")
        with _writable(efivars) as file:
            assert file.write(SEVEN + b"x") == recorded(5, "basic-009[1]")
            assert file.size() == recorded(5, "basic-009[2]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0x", "basic-009.after")

    @pytest.mark.cases(202)
    @pytest.mark.parametrize("data", [b"Xold-old", b"old-Xold", b"old-oldX"])
    @TWO_RECORDS
    def test_a_value_that_differs_in_one_byte_is_stored(
        self, efivars: Efivars, data: bytes
    ) -> None:
        efivars.write("V", b"old-old-")
        efivars.overwrite("V", data)
        assert efivars.read("V").data == data

    @pytest.mark.cases(201)
    @ONE_RECORD
    def test_the_same_value_again_is_accepted(self, efivars: Efivars) -> None:
        efivars.write("V", b"same")
        efivars.set_immutable("V", False)
        with efivars.opened("V", "O_RDWR") as file:
            assert file.write(SEVEN + b"same") == recorded(8, "basic-021[1]")
            assert file.read(99) == recorded(b"\7\0\0\0same", "basic-021[2]")

    @pytest.mark.needs("rpmb_access")
    @pytest.mark.cases(201)
    @ONE_RECORD
    def test_the_same_value_again_writes_nothing_to_the_flash(
        self, efivars: Efivars, rpmb: Rpmb
    ) -> None:
        efivars.write("V", b"same")
        efivars.set_immutable("V", False)
        before = rpmb.counter()
        efivars.write("V", b"same", flags="O_WRONLY")
        assert rpmb.counter() - before == recorded(0, "basic-021.rpmb_writes")

    @TWO_RECORDS
    def test_each_write_of_a_descriptor_is_a_whole_variable(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.write(SEVEN + b"x") == recorded(5, "basic-010[1]")
            assert file.write(SEVEN + b"yy") == recorded(6, "basic-010[2]")
            assert file.size() == recorded(6, "basic-010[3]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0yy", "basic-010.after")

    @TWO_RECORDS
    def test_o_append_alone_replaces(self, efivars: Efivars) -> None:
        efivars.write("V", b"old")
        with _writable(efivars, "O_WRONLY|O_APPEND") as file:
            assert file.write(SEVEN + b"ap") == recorded(6, "basic-013[1]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0ap", "basic-013.after")

    @pytest.mark.cost(store_bytes=4 * record_size("V", 4))
    def test_neighbours_keep_their_values(self, efivars: Efivars) -> None:
        for name in ("A", "B", "C"):
            efivars.write(name, name.encode() * 4)
        efivars.overwrite("B", b"new!")
        assert [efivars.read(name).data for name in "ABC"] == [b"AAAA", b"new!", b"CCCC"]

    @pytest.mark.cost(store_bytes=record_size("V", 1) * 11)
    def test_the_last_of_many_stands(self, efivars: Efivars) -> None:
        efivars.write("V", b"-")
        with _writable(efivars) as file:
            for digit in b"0123456789":
                file.write(SEVEN + bytes([digit]))
        assert efivars.read("V").data == b"9"
        assert [variable.name for variable in efivars.own()] == ["V"]


class TestAppend:
    """SetVariable with APPEND_WRITE (0x40), whatever the descriptor's flags say."""

    @pytest.mark.cases(204, 379)
    @TWO_RECORDS
    @accepted()
    def test_data_is_added_and_the_attributes_stay(self, efivars: Efivars) -> None:
        efivars.write("V", b"ap")
        with _writable(efivars) as file:
            assert file.write(APPENDING + b"++") == recorded(6, "basic-014[1]")
            assert file.size() == recorded(8, "basic-014[2]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0ap++", "basic-014.after")

    @TWO_RECORDS
    def test_o_append_does_not_append_twice(self, efivars: Efivars) -> None:
        efivars.write("V", b"ap++")
        with _writable(efivars, "O_WRONLY|O_APPEND") as file:
            assert file.write(APPENDING + b"!!") == recorded(6, "basic-015[1]")
            assert file.size() == recorded(10, "basic-015[2]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0ap++!!", "basic-015.after")

    @pytest.mark.cost(store_bytes=3 * record_size("V", 3))
    def test_each_append_adds_to_the_last(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            for data in (b"1", b"2", b"3"):
                file.write(APPENDING + data)
        assert efivars.read("V").data == b"123"

    @pytest.mark.cases(207)
    @TWO_RECORDS
    @accepted()
    def test_nothing_appended_changes_nothing(self, efivars: Efivars) -> None:
        efivars.write("V", b"ap++!!")
        with _writable(efivars) as file:
            assert file.write(APPENDING) == recorded(4, "basic-016[1]")
            assert file.size() == recorded(10, "basic-016[2]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0ap++!!", "basic-016.after")

    @pytest.mark.cases(205)
    @ONE_RECORD
    def test_appending_to_a_missing_variable_creates_it(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.write(APPENDING + b"first") == recorded(9, "basic-017[1]")
            assert file.size() == recorded(9, "basic-017[2]")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0first", "basic-017.after")

    @pytest.mark.cases(206)
    def test_appending_nothing_to_a_missing_variable_creates_none(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.write(APPENDING) == recorded(4, "basic-018[1]")
            assert file.size() == recorded(0, "basic-018[2]")
        with refused(recorded(errno.ENOENT, "basic-018.st_size", "basic-018.after")):
            efivars.size("V")


class TestRefused:
    @pytest.mark.parametrize(
        ("size", "refusal"),
        [
            pytest.param(0, recorded(errno.EINVAL, "basic-022[1]")),
            pytest.param(1, recorded(errno.EINVAL, "basic-023[1]")),
            pytest.param(2, recorded(errno.EINVAL, "basic-024[1]")),
            pytest.param(3, recorded(errno.EINVAL, "basic-025[1]")),
        ],
    )
    @pytest.mark.cases(374)
    @ONE_RECORD
    def test_fewer_bytes_than_the_attributes(
        self, efivars: Efivars, size: int, refusal: int
    ) -> None:
        efivars.write("V", b"kept")
        with _writable(efivars) as file, refused(refusal):
            file.write(SEVEN[:size])
        assert efivars.read("V").data == b"kept"

    @ONE_RECORD
    def test_text_without_attributes(self, efivars: Efivars) -> None:
        efivars.write("V", b"same")
        with _writable(efivars) as file, refused(recorded(errno.EINVAL, "basic-026[1]")):
            file.write(b"no attributes here")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0same", "basic-026.after")

    @ONE_RECORD
    def test_what_a_refused_write_said_is_not_shown(self, efivars: Efivars) -> None:
        efivars.write("V", b"kept")
        with _writable(efivars) as file:
            with refused(errno.EINVAL):
                file.write(b"\6\0\0\0longer than before")
            assert file.size() == 8
        assert efivars.size("V") == 8

    @TWO_RECORDS
    def test_the_descriptor_can_be_used_again(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            with refused(errno.EINVAL):
                file.write(b"\4\0\0\0refused")
            assert file.write(SEVEN + b"taken") == 9
        assert efivars.read("V").data == b"taken"

    @ONE_RECORD
    def test_writing_through_a_descriptor_for_reading(self, efivars: Efivars) -> None:
        efivars.write("V", b"kept")
        efivars.set_immutable("V", False)
        with efivars.opened("V") as file, refused(errno.EBADF):
            file.write(SEVEN + b"lost")
        assert efivars.read("V").data == b"kept"

    @pytest.mark.cases(376, 211)
    def test_only_attributes_to_a_missing_variable(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            with refused(recorded(errno.EIO, "basic-028[1]")):
                file.write(SEVEN)
            assert file.size() == recorded(0, "basic-028[2]")

    def test_the_first_write_leaves_an_empty_file_or_none_as_the_kernel_has_it(
        self, board: Board, efivars: Efivars
    ) -> None:
        with refused(errno.EIO):
            efivars.write("V", b"")
        if board.capabilities.has("uncommitted_files_stay"):
            assert efivars.exists("V") is recorded(True, "basic-028.exists")
            assert efivars.size("V") == recorded(0, "basic-028.st_size")
        else:
            assert not efivars.exists("V")


class TestInPieces:
    """Attributes and data not in one write(2), or not at the start: how tools get it wrong."""

    @pytest.mark.cases(377)
    @ONE_RECORD
    def test_attributes_then_data_deletes_and_takes_the_data_for_attributes(
        self, efivars: Efivars
    ) -> None:
        efivars.write("V", b"lost")
        with _writable(efivars) as file:
            assert file.write(SEVEN) == 4
            with refused(errno.EINVAL, errno.EIO):
                file.write(b"DATA")
        assert not efivars.exists("V")

    @pytest.mark.cases(377)
    def test_attributes_then_data_creates_nothing(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_RDWR|O_CREAT") as file:
            with refused(errno.EIO):
                file.write(SEVEN)
            with refused(errno.EINVAL):
                file.write(b"DATA")
            assert file.read(8) == b""

    @pytest.mark.cases(377)
    @ONE_RECORD
    def test_writev_writes_each_part_by_itself(self, efivars: Efivars) -> None:
        """efivarfs has write and no write_iter, so writev(2) is a loop of writes (K6
        fs/read_write.c, do_loop_readv_writev): the attributes alone delete."""
        efivars.write("V", b"lost")
        with _writable(efivars) as file:
            assert file.writev(SEVEN, b"DATA") == 4
        assert not efivars.exists("V")

    @ONE_RECORD
    def test_writev_of_one_part_is_one_write(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.writev(SEVEN + b"DATA") == 8
        assert efivars.read("V").data == b"DATA"

    @pytest.mark.cases(377)
    @ONE_RECORD
    def test_dd_byte_by_byte_changes_nothing(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"kept")
        efivars.set_immutable("V", False)
        path = quote(efivars.file("V"))
        copied = shell.run(f"printf '\\007\\000\\000\\000x' | dd bs=1 conv=notrunc of={path}")
        assert not copied.ok
        assert "Invalid argument" in copied.error_text
        assert efivars.read("V").data == b"kept"

    @TWO_RECORDS
    def test_dd_in_one_block_writes_it(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"old")
        efivars.set_immutable("V", False)
        path = quote(efivars.file("V"))
        shell.run(f"printf '\\007\\000\\000\\000new' | dd bs=7 conv=notrunc of={path}").check()
        assert efivars.read("V").data == b"new"

    @ONE_RECORD
    def test_fsync_is_invalid_and_not_needed(self, efivars: Efivars, shell: Shell) -> None:
        """efivarfs has no fsync (K6 fs/efivarfs/file.c); the write(2) was a SetVariable already."""
        path = quote(efivars.file("V"))
        command = f"printf '\\007\\000\\000\\000x' | dd bs=5 conv=notrunc,fsync of={path}"
        assert posix.errno_in(shell.run(command).stderr) == errno.EINVAL
        assert efivars.read("V").data == b"x"

    @pytest.mark.cases(378)
    @TWO_RECORDS
    def test_pwrite_ignores_its_offset(self, efivars: Efivars) -> None:
        efivars.write("V", b"old")
        with _writable(efivars) as file:
            assert file.pwrite(SEVEN + b"whole", 100) == 9
            assert file.size() == 9
        assert efivars.read_raw("V") == b"\7\0\0\0whole"


def _writable(
    efivars: Efivars, flags: str = "O_WRONLY"
) -> contextlib.AbstractContextManager[Descriptor]:
    """The existing variable V, opened for writing after its immutable flag was cleared."""
    efivars.set_immutable("V", False)
    return efivars.opened("V", flags)
