"""Create, read, overwrite, append, delete: one write(2) is one SetVariable.

Recorded rows: basic-003 to basic-040, attr, vol.
"""

from __future__ import annotations

import errno

import pytest

from harness.formats.efi import Attributes
from harness.instruments import refused
from harness.instruments.efivars import NV_BS_RT, Efivars
from harness.probe import Probe
from harness.probe import steps as do

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]


class TestCreate:
    @pytest.mark.parametrize("size", [1, 4, 255, 1024])
    def test_what_is_written_is_read(self, efivars: Efivars, size: int) -> None:
        data = bytes(index % 251 for index in range(size))
        efivars.write("Created", data)
        variable = efivars.read("Created")
        assert variable.data == data
        assert variable.attributes == NV_BS_RT

    def test_the_size_shown_is_the_data_and_four(self, efivars: Efivars) -> None:
        efivars.write("Sized", b"hello")
        assert efivars.size("Sized") == 9

    def test_it_is_listed(self, efivars: Efivars) -> None:
        efivars.write("InTheListing", b"x")
        assert "InTheListing" in [variable.name for variable in efivars.own()]

    def test_an_exclusive_create_of_an_existing_one_is_refused(self, efivars: Efivars) -> None:
        efivars.write("Exists", b"x")
        with refused(errno.EEXIST):
            efivars.write("Exists", b"y", flags="O_WRONLY|O_CREAT|O_EXCL")

    def test_a_missing_one_cannot_be_opened(self, efivars: Efivars) -> None:
        with refused(errno.ENOENT):
            efivars.read("NeverWritten")

    def test_names_differ_by_case(self, efivars: Efivars) -> None:
        efivars.write("Case", b"upper")
        efivars.write("case", b"lower")
        assert efivars.read("Case").data == b"upper"
        assert efivars.read("case").data == b"lower"

    @pytest.mark.parametrize("attributes", [0x1, 0x3, 0x4, 0x6])
    def test_only_non_volatile_runtime_variables_can_be_created(
        self, efivars: Efivars, attributes: int
    ) -> None:
        # attr-002 to -007, vol-001: after ExitBootServices nothing else can be created.
        with refused(errno.EINVAL):
            efivars.write("Attributes", b"DATA", attributes)
        assert efivars.read_raw("Attributes") == b""

    @pytest.mark.parametrize("attributes", [0x80, 0x107, 0xFFFFFFFF])
    def test_unknown_attribute_bits_are_refused(self, efivars: Efivars, attributes: int) -> None:
        with refused(errno.EINVAL):
            efivars.write("Unknown", b"DATA", attributes)


class TestOverwrite:
    @pytest.mark.parametrize("data", [b"longer than before", b"s", b"equal"])
    def test_the_new_value_replaces_the_old(self, efivars: Efivars, data: bytes) -> None:
        efivars.write("Replaced", b"first")
        efivars.overwrite("Replaced", data)
        assert efivars.read("Replaced").data == data
        assert efivars.size("Replaced") == len(data) + 4

    def test_other_attributes_are_refused_and_the_value_stays(self, efivars: Efivars) -> None:
        efivars.write("Attributed", b"kept")
        with refused(errno.EINVAL):
            efivars.overwrite("Attributed", b"lost", Attributes.BOOTSERVICE_ACCESS)
        assert efivars.read("Attributed").data == b"kept"

    def test_each_write_is_a_whole_variable(self, efivars: Efivars, probe: Probe) -> None:
        # basic-010: the file position means nothing.
        path = efivars.file("TwoWrites")
        attributes = NV_BS_RT.to_bytes(4, "little")
        outcomes = probe.steps(
            [
                do.Open("v", path, "O_WRONLY|O_CREAT"),
                do.Write("v", attributes + b"first"),
                do.Write("v", attributes + b"2nd"),
                do.Close("v"),
            ]
        )
        assert [outcome.value for outcome in outcomes[1:3]] == [9, 7]
        assert efivars.read("TwoWrites").data == b"2nd"

    @pytest.mark.parametrize("size", [0, 1, 2, 3])
    def test_fewer_bytes_than_the_attributes_are_refused(
        self, efivars: Efivars, probe: Probe, size: int
    ) -> None:
        efivars.write("Short", b"kept")
        efivars.set_immutable("Short", False)
        outcomes = probe.steps(
            [
                do.Open("v", efivars.file("Short"), "O_WRONLY"),
                do.Write("v", NV_BS_RT.to_bytes(4, "little")[:size]),
                do.Close("v"),
            ]
        )
        assert outcomes[1].unsupported or outcomes[1].errno == "EINVAL"
        assert efivars.read("Short").data == b"kept"

    def test_a_write_without_attribute_bytes_is_refused(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        # basic-026: ASCII text read as attributes has unknown bits.
        efivars.write("Text", b"kept")
        efivars.set_immutable("Text", False)
        outcomes = probe.steps(
            [
                do.Open("v", efivars.file("Text"), "O_WRONLY"),
                do.Write("v", b"no attributes here"),
                do.Close("v"),
            ]
        )
        assert outcomes[1].errno == "EINVAL"
        assert efivars.read("Text").data == b"kept"


class TestRead:
    def test_small_reads_continue_where_the_last_one_ended(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        # basic-005
        efivars.write("Stepwise", b"hello")
        outcomes = probe.steps(
            [
                do.Open("v", efivars.file("Stepwise")),
                do.Read("v", 1),
                do.Read("v", 3),
                do.Read("v", 2),
                do.Read("v", 100),
                do.Read("v", 1),
                do.Close("v"),
            ]
        )
        seen = [outcome.data for outcome in outcomes[1:6] if outcome.unsupported is None]
        assert seen == [b"\x07", b"\0\0\0", b"he", b"llo", b""][: len(seen)]

    def test_a_file_created_and_never_written_reads_as_empty(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        # basic-030, -031
        path = efivars.file("Uncommitted")
        probe.steps([do.Open("v", path, "O_WRONLY|O_CREAT"), do.Close("v")])
        if efivars.exists("Uncommitted"):
            assert efivars.read_raw("Uncommitted") == b""


class TestAppend:
    def test_data_is_added_and_the_attributes_stay(self, efivars: Efivars) -> None:
        # basic-014
        efivars.write("Appended", b"ap")
        efivars.append("Appended", b"++")
        variable = efivars.read("Appended")
        assert variable.data == b"ap++"
        assert variable.attributes == NV_BS_RT
        assert efivars.size("Appended") == 8

    def test_nothing_appended_changes_nothing(self, efivars: Efivars) -> None:
        # basic-016
        efivars.write("AppendedNothing", b"same")
        efivars.append("AppendedNothing", b"")
        assert efivars.read("AppendedNothing").data == b"same"

    def test_appending_to_a_missing_variable_creates_it(self, efivars: Efivars) -> None:
        # basic-017
        efivars.append("AppendedFirst", b"first")
        assert efivars.read("AppendedFirst").data == b"first"
        assert efivars.read("AppendedFirst").attributes == NV_BS_RT

    def test_appending_nothing_to_a_missing_variable_creates_none(self, efivars: Efivars) -> None:
        # basic-018
        efivars.append("AppendedNone", b"")
        assert not efivars.exists("AppendedNone")

    def test_o_append_alone_replaces(self, efivars: Efivars) -> None:
        # basic-013: only the EFI attribute appends.
        efivars.write("Opened", b"old")
        efivars.set_immutable("Opened", False)
        efivars.write("Opened", b"new", flags="O_WRONLY|O_APPEND")
        assert efivars.read("Opened").data == b"new"


class TestDelete:
    def test_unlink_removes_it(self, efivars: Efivars) -> None:
        efivars.write("Unlinked", b"x")
        efivars.delete("Unlinked")
        assert not efivars.exists("Unlinked")

    def test_a_write_of_only_attributes_removes_it(self, efivars: Efivars) -> None:
        # basic-027
        efivars.write("Emptied", b"x")
        efivars.overwrite("Emptied", b"")
        assert not efivars.exists("Emptied")

    def test_deleting_what_was_never_stored_is_an_input_output_error(
        self, efivars: Efivars
    ) -> None:
        # basic-028: NOT_FOUND from the firmware is EIO for a write.
        with refused(errno.EIO):
            efivars.write("NothingThere", b"")

    def test_it_can_be_created_again(self, efivars: Efivars) -> None:
        efivars.write("Again", b"first")
        efivars.delete("Again")
        efivars.write("Again", b"second")
        assert efivars.read("Again").data == b"second"

    @pytest.mark.disturbs
    def test_it_does_not_come_back_with_a_fresh_mount(self, efivars: Efivars) -> None:
        efivars.write("Gone", b"x")
        efivars.delete("Gone")
        efivars.unmount()
        efivars.mount()
        assert not efivars.exists("Gone")


class TestImmutable:
    def test_a_new_variable_is_immutable(self, efivars: Efivars) -> None:
        efivars.write("Immutable", b"x")
        assert efivars.is_immutable("Immutable")

    def test_it_cannot_be_opened_for_writing(self, efivars: Efivars) -> None:
        # basic-007
        efivars.write("NotOpened", b"x")
        with refused(errno.EPERM):
            efivars.write("NotOpened", b"y", flags="O_WRONLY")
        assert efivars.read("NotOpened").data == b"x"

    def test_it_cannot_be_unlinked(self, efivars: Efivars) -> None:
        # basic-034
        efivars.write("NotUnlinked", b"x")
        with refused(errno.EPERM):
            efivars.unlink("NotUnlinked")
        assert efivars.read("NotUnlinked").data == b"x"

    def test_it_can_be_written_once_the_flag_is_cleared(self, efivars: Efivars) -> None:
        efivars.write("Cleared", b"x")
        efivars.set_immutable("Cleared", False)
        efivars.write("Cleared", b"y", flags="O_WRONLY")
        assert efivars.read("Cleared").data == b"y"

    def test_the_flag_can_be_set_again(self, efivars: Efivars) -> None:
        efivars.write("SetAgain", b"x")
        efivars.set_immutable("SetAgain", False)
        efivars.set_immutable("SetAgain", True)
        assert efivars.is_immutable("SetAgain")
        with refused(errno.EPERM):
            efivars.unlink("SetAgain")


class TestNames:
    @pytest.mark.parametrize(
        "file_name",
        [
            "foo",
            "foo-bar",
            "-foo-",
            "-1234-1234-1234-123456789abc",
            "a-12345678=1234-1234-1234-123456789abc",
            "1112345678-1234-1234-1234-123456789abc",
            "foo-barbazba-foob-foob-foob-foobarbazfoo",
        ],
    )
    def test_a_file_name_without_a_guid_is_refused(
        self, efivars: Efivars, probe: Probe, file_name: str
    ) -> None:
        # cases 355 to 366
        (outcome,) = probe.steps([do.Open("v", f"{efivars.path}/{file_name}", "O_WRONLY|O_CREAT")])
        assert outcome.errno == "EINVAL"

    @pytest.mark.parametrize("name", ["abc", "dump-type0-11-1-1362436005", "1234", "-"])
    def test_any_characters_may_be_before_the_guid(self, efivars: Efivars, name: str) -> None:
        # case 354
        efivars.write(name, b"x")
        assert efivars.read(name).data == b"x"
