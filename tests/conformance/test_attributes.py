"""Attributes of a variable: which combinations the firmware takes, and with which errno it refuses
the others.

The errno tells which check came first: stack 4.6, in that order. After ExitBootServices only a
non-volatile variable of boot and run time can be created.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.expectations import recorded
from harness.formats.efi import Attributes
from harness.instruments.efivars import NV_BS_RT, Efivars
from harness.instruments.outcomes import refused
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 4))
CUSTOM_MODE_GUID = UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
KNOWN_BITS = 0x7F
"""EFI_VARIABLE_MASK (K6 include/linux/efi.h); efivarfs refuses every other bit by itself."""


def refuses(
    *attributes: tuple[int, ...], cases: tuple[int, ...] = ()
) -> Callable[[object, Efivars, int, int], None]:
    """A test that attributes are refused: each with its errno, and cases of its own."""

    @pytest.mark.cases(*cases)
    @pytest.mark.parametrize(
        ("attributes", "refusal"),
        [
            pytest.param(value, refusal, marks=pytest.mark.cases(*own), id=hex(value))
            for value, refusal, *own in attributes
        ],
    )
    def test(_: object, efivars: Efivars, attributes: int, refusal: int) -> None:
        with refused(refusal):
            efivars.write("V", b"DATA", attributes)

    return test


class TestCreate:
    """With four bytes of data that are no signature."""

    test_run_time_without_boot_time_is_invalid = refuses(
        (0x01, recorded(errno.EINVAL, "attr-002[1]", "attr-nofwebs-002[1]")),
        (0x04, recorded(errno.EINVAL, "attr-005[1]"), 191),
        (0x05, recorded(errno.EINVAL, "attr-nofwebs-006[1]"), 192),
        (0x45, recorded(errno.EINVAL, "attr-070[1]", "attr-nofwebs-070[1]")),
        cases=(193,),
    )
    test_there_is_no_room_for_hardware_error_records = refuses(
        (0x08, recorded(errno.EINVAL, "attr-009[1]")),
        (0x0B, recorded(errno.EINVAL, "attr-012[1]", "attr-nofwebs-012[1]")),
        (0x0F, recorded(errno.EINVAL, "attr-nofwebs-016[1]")),
        (0x4F, recorded(errno.EINVAL, "attr-080[1]", "attr-nofwebs-080[1]")),
        cases=(197,),
    )
    test_counter_based_authentication_is_gone = refuses(
        (0x10, recorded(errno.EINVAL, "attr-017[1]")),
        (0x13, recorded(errno.EINVAL, "attr-020[1]", "attr-nofwebs-020[1]")),
        (0x17, recorded(errno.EINVAL, "attr-024[1]", "attr-nofwebs-024[1]")),
        (0x53, recorded(errno.EINVAL, "attr-084[1]", "attr-nofwebs-084[1]")),
        cases=(195,),
    )
    test_two_kinds_of_authentication_contradict_each_other = refuses(
        (0x33, recorded(errno.EINVAL, "attr-052[1]", "attr-nofwebs-052[1]")),
        (0x37, recorded(errno.EINVAL, "attr-nofwebs-056[1]")),
        (0x77, recorded(errno.EINVAL, "attr-120[1]", "attr-nofwebs-120[1]")),
        cases=(196,),
    )
    test_an_authenticated_one_without_a_signature_is_a_security_violation = refuses(
        (0x21, recorded(errno.EACCES, "attr-034[1]", "attr-nofwebs-034[1]")),
        (0x23, recorded(errno.EACCES, "attr-nofwebs-036[1]")),
        (0x26, recorded(errno.EACCES, "attr-039[1]")),
        (0x27, recorded(errno.EACCES, "attr-040[1]", "attr-nofwebs-040[1]")),
        (0x2F, recorded(errno.EACCES, "attr-nofwebs-048[1]")),
        (0x60, recorded(errno.EACCES, "attr-097[1]")),
        (0x67, recorded(errno.EACCES, "attr-104[1]", "attr-nofwebs-104[1]")),
        cases=(237,),
    )
    test_the_combination_is_judged_before_the_signature = refuses(
        (0x24, recorded(errno.EINVAL, "attr-037[1]")),
        (0x25, recorded(errno.EINVAL, "attr-nofwebs-038[1]")),
        (0x65, recorded(errno.EINVAL, "attr-102[1]", "attr-nofwebs-102[1]")),
    )
    test_unknown_bits_are_refused = refuses(
        (0x80, recorded(errno.EINVAL, "attr-129[1]")),
        (0x87, recorded(errno.EINVAL, "attr-130[1]", "attr-nofwebs-130[1]"), 194, 375),
        (0x107, recorded(errno.EINVAL, "attr-132[1]", "attr-nofwebs-132[1]")),
        (0xFFFFFFFF, recorded(errno.EINVAL, "attr-134[1]", "attr-nofwebs-134[1]")),
    )
    test_without_boot_and_run_time_there_is_nothing_to_delete = refuses(
        (0x40, recorded(errno.EIO, "attr-065[1]")),
        (0x41, recorded(errno.EIO, "attr-nofwebs-066[1]")),
        (0x00, errno.EIO),
    )

    @ONE_RECORD
    @pytest.mark.cases(220)
    def test_one_of_boot_time_only_after_exit_boot_services(
        self, board: Board, efivars: Efivars
    ) -> None:
        if board.capabilities.has("exit_boot_services_told"):
            with refused(recorded(errno.EINVAL, "attr-004[1]", "vol-003[1]")):
                efivars.write("V", b"DATA", 3)
        else:
            efivars.write("V", b"DATA", 3)
            content = recorded(b"\3\0\0\0DATA", "attr-nofwebs-004[3]")
            assert efivars.read_raw("V") == content

    @ONE_RECORD
    @pytest.mark.cases(220)
    def test_appending_to_none_of_boot_time_only(self, board: Board, efivars: Efivars) -> None:
        if board.capabilities.has("exit_boot_services_told"):
            with refused(errno.EINVAL):
                efivars.write("V", b"DATA", 0x43)
        else:
            efivars.write("V", b"DATA", 0x43)
            content = recorded(b"\3\0\0\0DATA", "attr-nofwebs-068[3]")
            assert efivars.read_raw("V") == content

    @pytest.mark.cases(214, 220)
    def test_a_volatile_one_after_exit_boot_services(self, board: Board, efivars: Efivars) -> None:
        if board.capabilities.has("exit_boot_services_told"):
            with refused(recorded(errno.EINVAL, "attr-007[1]", "vol-001[1]")):
                efivars.write("V", b"DATA", 6)
        else:
            efivars.write("V", b"DATA", 6)
            assert efivars.read_raw("V") == b"\6\0\0\0DATA"

    @pytest.mark.needs("exit_boot_services_told")
    @pytest.mark.cases(220)
    def test_a_volatile_one_of_boot_time_only(self, efivars: Efivars) -> None:
        with refused(recorded(errno.EINVAL, "vol-004[1]")):
            efivars.write("V", b"DATA", 2)

    @ONE_RECORD
    @pytest.mark.parametrize(
        ("attributes", "length"),
        [
            pytest.param(7, recorded(8, "attr-nofwebs-008[1]"), marks=pytest.mark.cases(198)),
            pytest.param(
                0x47,
                recorded(8, "attr-072[1]", "attr-nofwebs-072[1]"),
                marks=pytest.mark.cases(205),
            ),
        ],
        ids=hex,
    )
    def test_a_non_volatile_one_of_boot_and_run_time_is_stored_with_attributes_7(
        self, efivars: Efivars, attributes: int, length: int
    ) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.write(attributes.to_bytes(4, "little") + b"DATA") == length
        content = recorded(b"\7\0\0\0DATA", "attr-072[3]", "attr-nofwebs-008[3]")
        assert efivars.read_raw("V") == content

    @pytest.mark.needs("python3")
    @pytest.mark.cost(store_bytes=8 * record_size("V", 4))
    @pytest.mark.cases(191, 192, 193, 195, 196, 197, 220)
    def test_of_all_combinations_only_these_create_one(
        self, board: Board, efivars: Efivars, probe: Probe
    ) -> None:
        """Every value of the seven known bits, each on a missing variable."""
        created = {
            attributes
            for attributes in range(KNOWN_BITS + 1)
            if _creates(efivars, probe, attributes)
        }
        expected = {0x07, 0x47}
        if not board.capabilities.has("exit_boot_services_told"):
            expected |= {0x02, 0x03, 0x06, 0x42, 0x43, 0x46}
        assert created == expected


class TestRefusedCreate:
    def test_leaves_no_data(self, board: Board, efivars: Efivars) -> None:
        with refused(errno.EINVAL):
            efivars.write("V", b"DATA", Attributes.RUNTIME_ACCESS)
        if board.capabilities.has("uncommitted_files_stay"):
            assert efivars.exists("V") is recorded(True, "attr-005.file_left")
            assert efivars.size("V") == recorded(0, "attr-005.st_size")
            assert efivars.read_raw("V") == recorded(b"", "attr-005[3]")
            efivars.delete("V")
        assert not efivars.exists("V")

    @ONE_RECORD
    def test_does_not_stand_in_the_way_of_a_good_one(self, efivars: Efivars) -> None:
        with refused(errno.EACCES):
            efivars.write("V", b"DATA", 0x27)
        efivars.overwrite("V", b"DATA")
        assert efivars.read_raw("V") == b"\7\0\0\0DATA"


class TestOverwrite:
    @ONE_RECORD
    @pytest.mark.parametrize(
        ("attributes", "refusal"),
        [
            pytest.param(3, recorded(errno.EINVAL, "basic-020[1]"), marks=pytest.mark.cases(203)),
            pytest.param(6, recorded(errno.EINVAL, "basic-019[1]"), marks=pytest.mark.cases(203)),
            pytest.param(2, errno.EINVAL),
            pytest.param(0x27, errno.EACCES),
            pytest.param(0x17, errno.EINVAL),
            pytest.param(0x40, errno.EINVAL),
            pytest.param(0x43, errno.EINVAL),
        ],
        ids=hex,
    )
    def test_other_attributes_are_refused_and_the_value_stays(
        self, efivars: Efivars, attributes: int, refusal: int
    ) -> None:
        efivars.write("V", b"kept")
        with refused(refusal):
            efivars.overwrite("V", b"lost", attributes)
        assert efivars.read_raw("V") == b"\7\0\0\0kept"
        assert efivars.size("V") == 8

    @ONE_RECORD
    @pytest.mark.cases(203)
    def test_other_attributes_are_refused_for_the_same_data(self, efivars: Efivars) -> None:
        efivars.write("V", b"same")
        with refused(errno.EINVAL):
            efivars.overwrite("V", b"same", Attributes.NON_VOLATILE | Attributes.BOOTSERVICE_ACCESS)
        assert efivars.read("V").attributes == NV_BS_RT

    @ONE_RECORD
    @pytest.mark.cases(210)
    def test_no_attributes_delete_whatever_the_data(self, efivars: Efivars) -> None:
        """Neither boot nor run time is how UEFI spells a deletion (stack 4.6)."""
        efivars.write("V", b"gone")
        efivars.overwrite("V", b"DATA", 0)
        assert not efivars.exists("V")

    @pytest.mark.cost(store_bytes=record_size("V", 4) + record_size("V", 5))
    @pytest.mark.cases(204)
    def test_append_is_never_among_the_attributes_read(self, efivars: Efivars) -> None:
        efivars.write("V", b"DATA")
        efivars.append("V", b"+")
        assert efivars.read("V").attributes == NV_BS_RT


@pytest.mark.needs("exit_boot_services_told")
@pytest.mark.foreign("CustomMode")
@pytest.mark.consents("foreign_variables")
@pytest.mark.disturbs
@pytest.mark.cases(222, 165)
@pytest.mark.parametrize("attributes", [3, 7], ids=hex)
def test_a_variable_of_boot_time_only_is_hidden_and_write_protected(
    efivars: Efivars, attributes: int
) -> None:
    """CustomMode is made by the firmware at every start (stack 4.7)."""
    assert not efivars.exists("CustomMode", CUSTOM_MODE_GUID)
    try:
        with efivars.opened("CustomMode", "O_RDWR|O_CREAT", CUSTOM_MODE_GUID) as file:
            with refused(errno.EROFS):
                file.write(attributes.to_bytes(4, "little") + b"\0")
            assert file.read(5) == b""
    finally:
        # The empty file cannot be unlinked: that is a SetVariable, too.
        efivars.unmount()
        efivars.mount()


def _creates(efivars: Efivars, probe: Probe, attributes: int) -> bool:
    """Whether a write with these attributes creates a variable; it is deleted again."""
    path = efivars.file("V")
    _, written, content, _, _, _ = probe.steps(
        [
            do.Open("v", path, "O_RDWR|O_CREAT"),
            do.Write("v", attributes.to_bytes(4, "little") + b"DATA"),
            do.Pread("v", 100, 0),
            do.SetFlags("v", 0),
            do.Unlink(path),
            do.Close("v"),
        ]
    )
    assert written.ok == bool(content.data), (hex(attributes), written, content)
    return written.ok
