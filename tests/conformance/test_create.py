"""Creating a variable: the file, the descriptor that made it, and what the firmware then has.

Kernel self-test: test_create, test_create_empty and test_create_read of efivarfs.sh.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.capabilities import VENDOR_GUID
from harness.expectations import recorded
from harness.instruments.efivars import NV_BS_RT, Efivars
from harness.instruments.outcomes import accepted, refused
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

HELLO = b"\7\0\0\0hello"
"""The content of a file: attributes 7, and data."""
OTHER_GUID = UUID("6f0e6f5c-2f43-4c0e-9b1f-5a4c8d7be2a2")
"""Differs from our own vendor GUID in its last digit only."""

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 5))


class TestCreated:
    @pytest.mark.cost(store_bytes=record_size("Listed", 5))
    def test_it_is_listed_once(self, efivars: Efivars) -> None:
        """First, and by a name of its own: what is not listed is not cleaned up either."""
        efivars.write("Listed", b"hello")
        assert [variable.name for variable in efivars.own()] == ["Listed"]

    @pytest.mark.cases(198, 159)
    @ONE_RECORD
    @accepted()
    def test_what_is_written_is_read(self, efivars: Efivars) -> None:
        efivars.write("V", b"hello")
        assert efivars.read_raw("V") == recorded(b"\7\0\0\0hello", "basic-004[1]")

    @ONE_RECORD
    @accepted()
    def test_write_returns_attributes_and_data(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.write(HELLO) == recorded(9, "basic-003[1]")

    @ONE_RECORD
    def test_the_writing_descriptor_shows_the_new_size(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            file.write(HELLO)
            assert file.size() == recorded(9, "basic-003[2]")

    @pytest.mark.cases(348)
    @ONE_RECORD
    def test_a_shell_can_create_it_with_printf(self, efivars: Efivars, shell: Shell) -> None:
        shell.run(f"printf '\\007\\000\\000\\000\\000' >{efivars.file('V')}").check()
        assert efivars.size("V") == 5
        assert efivars.read_raw("V") == b"\7\0\0\0\0"

    @pytest.mark.cost(store_bytes=record_size("V", 5))
    @pytest.mark.parametrize(
        ("flag", "length"),
        [
            pytest.param("O_SYNC", recorded(5, "basic-038[1]"), id="O_SYNC"),
            pytest.param("O_NONBLOCK", recorded(5, "basic-039[1]"), id="O_NONBLOCK"),
        ],
    )
    def test_a_flag_for_other_files_changes_nothing(
        self, efivars: Efivars, flag: str, length: int
    ) -> None:
        with efivars.opened("V", f"O_WRONLY|O_CREAT|{flag}") as file:
            assert file.write(b"\7\0\0\0q") == length
        assert efivars.read("V").data == b"q"

    @pytest.mark.disturbs
    @ONE_RECORD
    def test_the_firmware_lists_it_to_a_fresh_mount(self, efivars: Efivars) -> None:
        efivars.write("V", b"hello")
        efivars.unmount()
        efivars.mount()
        assert [variable.name for variable in efivars.own()] == ["V"]
        assert efivars.size("V") == 9
        assert efivars.read_raw("V") == HELLO


class TestRefused:
    @ONE_RECORD
    def test_an_exclusive_create_of_an_existing_one(self, efivars: Efivars) -> None:
        efivars.write("V", b"kept")
        with refused(recorded(errno.EEXIST, "basic-033[0]")):
            efivars.write("V", b"lost", flags="O_WRONLY|O_CREAT|O_EXCL")
        assert efivars.read("V").data == b"kept"

    @pytest.mark.cases(162)
    def test_opening_a_missing_one_for_reading(self, efivars: Efivars) -> None:
        with refused(recorded(errno.ENOENT, "basic-035[0]")):
            efivars.read("NeverWritten")

    def test_opening_a_missing_one_for_writing(self, efivars: Efivars) -> None:
        with refused(recorded(errno.ENOENT, "basic-036[0]")):
            efivars.write("NeverWritten", b"x", flags="O_WRONLY")

    def test_direct_io(self, efivars: Efivars) -> None:
        with refused(recorded(errno.EINVAL, "basic-037[0]")):
            efivars.write("V", b"x", flags="O_WRONLY|O_CREAT|O_DIRECT")

    def test_a_directory_is_no_variable(self, efivars: Efivars, probe: Probe) -> None:
        (outcome,) = probe.steps([do.Open("d", efivars.path, "O_WRONLY")])
        assert outcome.unsupported or outcome.errno == "EISDIR"


class TestIndependent:
    """Variables whose names or GUIDs differ in one place only."""

    @pytest.fixture
    def other(self, efivars: Efivars) -> Iterator[UUID]:
        yield OTHER_GUID
        if efivars.exists("V", OTHER_GUID):
            efivars.delete("V", OTHER_GUID)

    @pytest.mark.cases(199)
    @pytest.mark.foreign("V")
    @pytest.mark.consents("foreign_variables")
    @pytest.mark.cost(store_bytes=2 * record_size("V", 6))
    def test_of_the_same_name_and_two_guids(self, efivars: Efivars, other: UUID) -> None:
        efivars.write("V", b"ours")
        efivars.write("V", b"theirs", guid=other)
        assert efivars.read("V", VENDOR_GUID).data == b"ours"
        assert efivars.read("V", other).data == b"theirs"
        efivars.delete("V", other)
        assert efivars.read("V").data == b"ours"

    @pytest.mark.cases(162, 200)
    @pytest.mark.cost(store_bytes=3 * record_size("VV", 2))
    def test_of_names_that_begin_or_end_alike(self, efivars: Efivars) -> None:
        efivars.write("V", b"V")
        efivars.write("VV", b"VV")
        efivars.write("WV", b"WV")
        assert [efivars.read(name).data for name in ("V", "VV", "WV")] == [b"V", b"VV", b"WV"]
        efivars.delete("V")
        assert [variable.name for variable in efivars.own()] == ["VV", "WV"]

    @pytest.mark.cases(162)
    @pytest.mark.cost(store_bytes=record_size("VV", 1))
    def test_of_which_only_one_was_written(self, efivars: Efivars) -> None:
        efivars.write("VV", b"x")
        for name in ("V", "VVV", "Vv"):
            assert not efivars.exists(name)


class TestUncommitted:
    """A file that was created and never written; the firmware knows nothing of it."""

    def test_it_is_empty_while_it_is_open(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.size() == recorded(0, "basic-030[1]")

    @pytest.mark.cases(350)
    def test_it_reads_as_empty(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_RDWR|O_CREAT") as file:
            assert file.read(4) == b""

    @pytest.mark.cases(349)
    @pytest.mark.pain(13)
    def test_after_its_close_it_stays_or_is_gone_as_the_kernel_has_it(
        self, board: Board, efivars: Efivars, shell: Shell
    ) -> None:
        shell.run(f": >{efivars.file('V')}").check()
        if board.capabilities.has("uncommitted_files_stay"):
            assert efivars.exists("V") is recorded(True, "basic-030.exists")
            assert efivars.size("V") == recorded(0, "basic-030.st_size")
            assert efivars.read_raw("V") == recorded(b"", "basic-031[1]")
        else:
            assert not efivars.exists("V")

    @pytest.mark.pain(13)
    @pytest.mark.disturbs
    def test_a_fresh_mount_does_not_show_it(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT"):
            pass
        efivars.unmount()
        efivars.mount()
        assert efivars.own() == []

    @ONE_RECORD
    def test_it_can_still_be_written(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT"):
            efivars.overwrite("V", b"later")
        assert efivars.read("V").data == b"later"
        assert efivars.read("V").attributes == NV_BS_RT
