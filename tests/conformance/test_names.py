"""File names: NAME-GUID, any bytes in the name, the GUID in any case.

Kernel self-test: test_valid_filenames and test_invalid_filenames of efivarfs.sh.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from harness.capabilities import VENDOR_GUID
from harness.expectations import recorded
from harness.formats.efi import LINUX_RANDOM_SEED_GUID
from harness.instruments.descriptor import opened
from harness.instruments.efivars import Efivars, VariableName
from harness.instruments.outcomes import accepted, refused
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

GUID = str(VENDOR_GUID)
LONGEST = 218
"""Characters of the longest name: a file name has at most 255 bytes, and 37 are the GUID's."""

CREATE = "O_WRONLY|O_CREAT"

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 1))


class TestValid:
    @pytest.mark.cases(354)
    @pytest.mark.parametrize("name", ["abc", "dump-type0-11-1-1362436005", "1234", "-"])
    @pytest.mark.cost(store_bytes=record_size("dump-type0-11-1-1362436005", 1))
    def test_of_the_kernels_self_test(self, efivars: Efivars, name: str) -> None:
        efivars.write(name, b"n")
        assert efivars.read(name).data == b"n"
        assert efivars.own() == [VariableName(name, VENDOR_GUID)]

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("sp ace", id="space"),
            pytest.param("tab\there", id="tab"),
            pytest.param("dot.", id="dot"),
            pytest.param("..", id="dots only"),
            pytest.param("a-b-c", id="dashes"),
            pytest.param("ümlaut", id="two bytes of UTF-8"),
            pytest.param("emoji😀", id="four bytes of UTF-8"),
            pytest.param("quote\"'", id="quotes"),
            pytest.param("back\\slash", id="backslash"),
            pytest.param("\x01", id="control character"),
            pytest.param("colon:semi;", id="punctuation"),
            pytest.param(f"dummy-{GUID}", id="a GUID"),
            pytest.param("bad\udcff\udcfeutf", id="no UTF-8"),
        ],
    )
    @pytest.mark.cost(store_bytes=record_size(f"dummy-{GUID}", 1))
    def test_of_any_bytes(self, efivars: Efivars, name: str) -> None:
        efivars.write(name, b"n")
        content = recorded(
            b"\7\0\0\0n",
            "names-014.readback",
            "names-015.readback",
            "names-017.readback",
            "names-019.readback",
            "names-020.readback",
            "names-022.readback",
            "names-024.readback",
            "names-025.readback",
            "names-027.readback",
            "names-029.readback",
            "names-030.readback",
            "names-032.readback",
        )
        assert efivars.read_raw(name) == content
        assert efivars.own() == [VariableName(name, VENDOR_GUID)]

    @pytest.mark.cases(408)
    @pytest.mark.disturbs
    @pytest.mark.cost(store_bytes=record_size("üü", 1))
    def test_a_fresh_mount_shows_each_byte_as_a_character(self, efivars: Efivars) -> None:
        """The kernel makes a CHAR16 of each byte, and UTF-8 of each CHAR16 (stack 6.2)."""
        efivars.write("ü", b"n")
        efivars.unmount()
        efivars.mount()
        assert [variable.name for variable in efivars.own()] == ["\xc3\xbc"]
        assert efivars.read("\xc3\xbc").data == b"n"

    @pytest.mark.parametrize("prefix", ["a", "\xff"])
    @pytest.mark.disturbs
    @pytest.mark.cost(store_bytes=record_size("VV", 1))
    def test_a_fresh_mount_keeps_case_and_order_of_bytes(
        self, efivars: Efivars, prefix: str
    ) -> None:
        name = prefix.encode("latin-1").decode("utf-8", "surrogateescape") + "B"
        efivars.write(name, b"n")
        efivars.unmount()
        efivars.mount()
        assert [variable.name for variable in efivars.own()] == [prefix + "B"]


class TestLength:
    @pytest.mark.parametrize(
        ("length", "written"),
        [
            pytest.param(2, recorded(5, "names-002[1]")),
            pytest.param(100, recorded(5, "names-004[1]")),
            pytest.param(218, recorded(5, "names-009[1]")),
        ],
    )
    @pytest.mark.cost(store_bytes=record_size("n" * LONGEST, 1))
    @accepted()
    def test_up_to_the_longest(self, efivars: Efivars, length: int, written: int) -> None:
        with efivars.opened("n" * length, "O_WRONLY|O_CREAT") as file:
            assert file.write(b"\7\0\0\0n") == written
        assert efivars.read("n" * length).data == b"n"

    @pytest.mark.parametrize(
        ("length", "refusal"),
        [
            pytest.param(219, recorded(errno.ENAMETOOLONG, "names-010[0]")),
            pytest.param(255, recorded(errno.ENAMETOOLONG, "names-012[0]")),
        ],
    )
    def test_longer_ones_are_refused(self, efivars: Efivars, length: int, refusal: int) -> None:
        with refused(refusal):
            efivars.write("n" * length, b"n")

    @pytest.mark.cost(store_bytes=record_size("n" * LONGEST, 1))
    def test_the_longest_differ_in_their_last_character(self, efivars: Efivars) -> None:
        name = "n" * (LONGEST - 1)
        efivars.write(f"{name}1", b"1")
        with refused(errno.ENOENT):
            efivars.read(f"{name}2")

    @pytest.mark.cases(215)
    @pytest.mark.disturbs
    @pytest.mark.cost(store_bytes=record_size("n" * LONGEST, 1) + record_size("V", 1))
    def test_a_fresh_mount_lists_the_longest_and_what_comes_behind_it(
        self, efivars: Efivars
    ) -> None:
        efivars.write("n" * LONGEST, b"n")
        efivars.write("V", b"n")
        efivars.unmount()
        efivars.mount()
        assert [variable.name for variable in efivars.own()] == ["V", "n" * LONGEST]


class TestInvalid:
    @pytest.mark.parametrize(
        "file_name",
        [
            pytest.param("-1234-1234-1234-123456789abc", marks=pytest.mark.cases(355)),
            pytest.param("foo", marks=pytest.mark.cases(356)),
            pytest.param("foo-bar", marks=pytest.mark.cases(357)),
            pytest.param("-foo-", marks=pytest.mark.cases(358)),
            pytest.param("foo-barbazba-foob-foob-foob-foobarbazfoo", marks=pytest.mark.cases(359)),
            pytest.param("foo-------------------------------------", marks=pytest.mark.cases(360)),
            pytest.param("-12345678-1234-1234-1234-123456789abc", marks=pytest.mark.cases(361)),
            pytest.param("a-12345678=1234-1234-1234-123456789abc", marks=pytest.mark.cases(362)),
            pytest.param("a-12345678-1234=1234-1234-123456789abc", marks=pytest.mark.cases(363)),
            pytest.param("a-12345678-1234-1234=1234-123456789abc", marks=pytest.mark.cases(364)),
            pytest.param("a-12345678-1234-1234-1234=123456789abc", marks=pytest.mark.cases(365)),
            pytest.param("1112345678-1234-1234-1234-123456789abc", marks=pytest.mark.cases(366)),
        ],
    )
    def test_of_the_kernels_self_test(self, efivars: Efivars, probe: Probe, file_name: str) -> None:
        with refused(errno.EINVAL), opened(probe, f"{efivars.path}/{file_name}", CREATE):
            pass

    @pytest.mark.parametrize(
        ("file_name", "refusal"),
        [
            pytest.param(f"Long-{GUID}d", recorded(errno.EINVAL, "names-039[0]"), id="long GUID"),
            pytest.param(
                f"-{GUID}",
                recorded(errno.EINVAL, "names-040[0]"),
                id="no name",
                marks=pytest.mark.cases(190, 158),
            ),
            pytest.param(
                f"Bad-{GUID[:7]}g{GUID[8:]}",
                recorded(errno.EINVAL, "names-044[0]"),
                id="no hexadecimal digit",
            ),
            pytest.param(
                f"NoDash-{GUID[:8]}x{GUID[9:]}",
                recorded(errno.EINVAL, "names-045[0]"),
                id="no dash in the GUID",
            ),
            pytest.param(
                f"Under_{GUID}",
                recorded(errno.EINVAL, "names-047[0]"),
                id="no dash before the GUID",
            ),
            pytest.param(
                f"Brace-{{{GUID}}}", recorded(errno.EINVAL, "names-050[0]"), id="GUID in braces"
            ),
        ],
    )
    def test_of_nearly_a_guid(
        self, efivars: Efivars, probe: Probe, file_name: str, refusal: int
    ) -> None:
        with refused(refusal), opened(probe, f"{efivars.path}/{file_name}", CREATE):
            pass

    def test_a_slash_leads_into_no_directory(self, efivars: Efivars, probe: Probe) -> None:
        with refused(errno.ENOENT), opened(probe, f"{efivars.path}/a/b-{GUID}", CREATE):
            pass

    @pytest.mark.cases(405, 406)
    @pytest.mark.foreign("V")
    @pytest.mark.consents("foreign_variables")
    def test_the_random_seed_is_not_for_user_space(self, efivars: Efivars) -> None:
        with refused(errno.EPERM):
            efivars.write("V", b"n", guid=LINUX_RANDOM_SEED_GUID)
        assert not [name for name in efivars.names() if name.guid == LINUX_RANDOM_SEED_GUID]


class TestCase:
    @pytest.mark.cases(162, 373)
    @pytest.mark.cost(store_bytes=2 * record_size("Case", 5))
    def test_names_differ_by_case(self, efivars: Efivars) -> None:
        efivars.write("Case", b"upper")
        with refused(recorded(errno.ENOENT, "names-052[0]")):
            efivars.read("case")
        efivars.write("case", b"lower")
        assert efivars.read("Case").data == b"upper"
        assert efivars.read("case").data == b"lower"

    @pytest.mark.cases(371)
    @ONE_RECORD
    @accepted()
    def test_a_guid_in_capitals_finds_the_file(self, efivars: Efivars, probe: Probe) -> None:
        efivars.write("V", b"n")
        with opened(probe, f"{efivars.path}/V-{GUID.upper()}") as file:
            assert file.read(9) == b"\7\0\0\0n"

    @pytest.mark.cases(372)
    @ONE_RECORD
    def test_a_guid_in_capitals_is_no_second_file(self, efivars: Efivars, probe: Probe) -> None:
        efivars.write("V", b"n")
        path = f"{efivars.path}/V-{GUID.upper()}"
        with refused(errno.EEXIST), opened(probe, path, f"{CREATE}|O_EXCL"):
            pass
        assert len(efivars.own()) == 1

    @ONE_RECORD
    def test_a_file_created_with_capitals_is_listed_so(
        self, efivars: Efivars, probe: Probe, in_capitals: str
    ) -> None:
        with opened(probe, in_capitals, CREATE) as file:
            assert file.write(b"\7\0\0\0g") == recorded(5, "names-042[1]")
        (listed,) = (name for name in _listing(efivars, probe) if name.startswith(b"Up-"))
        assert listed == f"Up-{GUID.upper()}".encode()

    @pytest.mark.disturbs
    @ONE_RECORD
    def test_a_fresh_mount_lists_the_guid_in_small_letters(
        self, efivars: Efivars, probe: Probe, in_capitals: str
    ) -> None:
        with opened(probe, in_capitals, CREATE) as file:
            file.write(b"\7\0\0\0g")
        efivars.unmount()
        efivars.mount()
        assert f"Up-{GUID}".encode() in _listing(efivars, probe)

    @pytest.fixture
    def in_capitals(self, efivars: Efivars) -> Iterator[str]:
        """The path of a file whose GUID has capitals; gone afterwards, however it is found."""
        yield f"{efivars.path}/Up-{GUID.upper()}"
        if efivars.exists("Up"):
            efivars.delete("Up")


def _listing(efivars: Efivars, probe: Probe) -> tuple[bytes, ...]:
    """File names as they are."""
    (outcome,) = probe.steps([do.ListDir(efivars.path)])
    return outcome.names
