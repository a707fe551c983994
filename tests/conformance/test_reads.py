"""Reading: each read(2) asks the firmware, at the descriptor's own offset."""

from __future__ import annotations

import errno
from shlex import quote

import pytest

from harness.expectations import recorded
from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import accepted, refused
from harness.instruments.rpmb import Rpmb
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

HELLO = b"\7\0\0\0hello"

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 5))
TWO_RECORDS = pytest.mark.cost(store_bytes=2 * record_size("V", 8))


@pytest.fixture
def hello(efivars: Efivars) -> Efivars:
    """The variables, with V = "hello" among them."""
    efivars.write("V", b"hello")
    return efivars


@ONE_RECORD
class TestOffset:
    @pytest.mark.cases(381)
    @accepted()
    def test_the_whole_file_and_then_its_end(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            assert file.read(4096) == recorded(b"\7\0\0\0hello", "basic-004[1]")
            assert file.read(4096) == recorded(b"", "basic-004[2]")
            assert file.size() == recorded(9, "basic-004[3]")

    @pytest.mark.cases(380)
    def test_small_reads_continue_where_the_last_one_ended(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            assert file.read(1) == recorded(b"\7", "basic-005[1]")
            assert file.read(3) == recorded(b"\0\0\0", "basic-005[2]")
            assert file.read(2) == recorded(b"he", "basic-005[3]")
            assert file.read(100) == recorded(b"llo", "basic-005[4]")
            assert file.read(1) == recorded(b"", "basic-005[5]")

    @pytest.mark.cases(380)
    def test_byte_by_byte_gives_every_byte_once(self, hello: Efivars, probe: Probe) -> None:
        outcomes = probe.steps(
            [
                do.Open("v", hello.file("V")),
                *[do.Read("v", 1) for _ in range(len(HELLO) + 1)],
                do.Close("v"),
            ]
        )
        assert [outcome.data for outcome in outcomes[1:-1]] == [
            *[bytes([byte]) for byte in HELLO],
            b"",
        ]

    @pytest.mark.parametrize(
        ("offset", "whence", "refusal"),
        [
            pytest.param(4, 0, recorded(errno.ESPIPE, "basic-006[1]"), id="from the start"),
            pytest.param(0, 2, recorded(errno.ESPIPE, "basic-006[3]"), id="to the end"),
            pytest.param(100, 0, recorded(errno.ESPIPE, "basic-006[5]"), id="behind the end"),
        ],
    )
    def test_seeking_is_refused(
        self, hello: Efivars, offset: int, whence: int, refusal: int
    ) -> None:
        with hello.opened("V") as file:
            with refused(refusal):
                file.seek(offset, whence)
            assert file.read(10) == recorded(b"\7\0\0\0hello", "basic-006[2]")

    def test_pread_reads_at_its_offset_and_moves_none(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            assert file.pread(3, 5) == recorded(b"ell", "basic-006[7]")
            assert file.pread(9, 4) == b"hello"
            assert file.read(4) == HELLO[:4]

    @pytest.mark.cases(381)
    @pytest.mark.parametrize("offset", [9, 10, 1000])
    def test_pread_at_or_behind_the_end_gives_nothing(self, hello: Efivars, offset: int) -> None:
        with hello.opened("V") as file:
            assert file.pread(1, offset) == b""

    def test_two_descriptors_have_offsets_of_their_own(self, hello: Efivars) -> None:
        with hello.opened("V") as one, hello.opened("V") as two:
            assert one.read(6) == HELLO[:6]
            assert two.read(4) == HELLO[:4]
            assert one.read(3) == HELLO[6:]


class TestAfterAChange:
    @TWO_RECORDS
    def test_a_descriptor_opened_before_reads_the_new_value(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            hello.overwrite("V", b"changed")
            assert file.read(100) == b"\7\0\0\0changed"

    @TWO_RECORDS
    def test_a_descriptor_opened_before_shows_the_new_size(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            hello.overwrite("V", b"changed")
            assert file.size() == 11
        assert hello.size("V") == 11

    @TWO_RECORDS
    def test_a_half_read_descriptor_goes_on_in_the_new_value(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            assert file.read(6) == b"\7\0\0\0he"
            hello.overwrite("V", b"HELLO!")
            assert file.read(100) == b"LLO!"

    @TWO_RECORDS
    def test_a_descriptor_behind_the_end_of_a_shrunk_one_reads_nothing(
        self, hello: Efivars
    ) -> None:
        with hello.opened("V") as file:
            assert file.read(8) == b"\7\0\0\0hell"
            hello.overwrite("V", b"hi")
            assert file.read(100) == b""

    @pytest.mark.cases(353)
    @ONE_RECORD
    def test_after_unlink_an_open_descriptor_reads_nothing(self, hello: Efivars) -> None:
        with hello.opened("V") as file:
            assert file.read(4) == HELLO[:4]
            hello.delete("V")
            assert file.read(4) == b""

    @TWO_RECORDS
    def test_a_descriptor_of_a_deleted_one_reads_the_new_one_of_its_name(
        self, hello: Efivars
    ) -> None:
        """The inode knows name and GUID, not which record it once was."""
        with hello.opened("V") as file:
            hello.delete("V")
            hello.write("V", b"reborn")
            assert file.pread(100, 0) == b"\7\0\0\0reborn"


class TestHarmless:
    @pytest.mark.needs("rpmb_access")
    @ONE_RECORD
    def test_reading_writes_nothing_to_the_flash(self, hello: Efivars, rpmb: Rpmb) -> None:
        before = rpmb.counter()
        for _ in range(3):
            hello.read("V")
            hello.size("V")
            hello.names()
        assert rpmb.counter() == before

    @ONE_RECORD
    def test_reading_through_a_descriptor_for_writing_is_refused(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            file.write(HELLO)
            with refused(recorded(errno.EBADF, "basic-010[4]")):
                file.read(3)

    @ONE_RECORD
    def test_tools_that_read_files_read_it_whole(self, hello: Efivars, shell: Shell) -> None:
        path = quote(hello.file("V"))
        assert shell.run(f"cat {path}").check().stdout == HELLO
        assert shell.run(f"dd if={path} bs=2 2>/dev/null").check().stdout == HELLO
        assert shell.run(f"head -c 4 {path}").check().stdout == HELLO[:4]

    def test_the_directory_cannot_be_read_as_a_file(self, efivars: Efivars, probe: Probe) -> None:
        _, content, _ = probe.steps([do.Open("d", efivars.path), do.Read("d", 1), do.Close("d")])
        assert content.unsupported or content.errno == "EISDIR"
