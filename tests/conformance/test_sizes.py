"""Sizes of a variable, to the last byte.

Recorded: the largest data for names of 1, 2 and 9 characters (max-002 to max-004), in a full store,
where ENOSPC means that the size would do and EINVAL that it is too large.
"""

from __future__ import annotations

import errno
from shlex import quote

import pytest

from harness.expectations import recorded
from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import accepted, refused
from harness.links import posix
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

LIMIT = 8132
"""Bytes of name, with its NUL, and data of a non-volatile variable (stack 4.4)."""
LARGEST = LIMIT - 2 * len("Vx\0")
"""Data of the largest variable with a name of two characters."""


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which none may be shifted, lost or doubled unnoticed."""
    return bytes((index * 7 + index // 256 + seed) % 251 for index in range(size))


class TestTaken:
    @pytest.mark.parametrize(
        ("size", "shown"),
        [
            pytest.param(1, recorded(5, "size-002.st_size")),
            pytest.param(2, recorded(6, "size-004.st_size")),
            pytest.param(3, 7),
            pytest.param(4, 8),
            pytest.param(5, 9),
        ],
    )
    @pytest.mark.cases(198)
    @pytest.mark.cost(store_bytes=record_size("V", 5))
    @accepted()
    def test_records_of_every_alignment(self, efivars: Efivars, size: int, shown: int) -> None:
        efivars.write("V", pattern(size))
        assert efivars.read("V").data == pattern(size)
        assert efivars.size("V") == shown

    @pytest.mark.parametrize(
        ("size", "shown"),
        [
            pytest.param(256, recorded(260, "size-010.st_size")),
            pytest.param(257, recorded(261, "size-012.st_size")),
            pytest.param(1023, recorded(1027, "size-014.st_size")),
        ],
    )
    @pytest.mark.cost(store_bytes=record_size("V", 1023))
    @accepted()
    def test_records_across_half_sectors(self, efivars: Efivars, size: int, shown: int) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.write(b"\7\0\0\0" + pattern(size)) == shown
        assert efivars.read("V").data == pattern(size)
        assert efivars.size("V") == shown

    @pytest.mark.cost(store_bytes=record_size("V", 300) + 3 * record_size("V", 20))
    def test_neighbours_of_a_record_across_half_sectors_keep_their_data(
        self, efivars: Efivars
    ) -> None:
        efivars.write("A", pattern(20, 1))
        efivars.write("B", pattern(300, 2))
        efivars.write("C", pattern(20, 3))
        efivars.overwrite("A", pattern(20, 4))
        seen = [efivars.read(name).data for name in "ABC"]
        assert seen == [pattern(20, 4), pattern(300, 2), pattern(20, 3)]

    @pytest.mark.disturbs
    @pytest.mark.cost(store_bytes=record_size("V", 300))
    def test_a_fresh_mount_shows_the_same_size(self, efivars: Efivars) -> None:
        efivars.write("V", pattern(300))
        efivars.unmount()
        efivars.mount()
        assert efivars.size("V") == 304
        assert efivars.read("V").data == pattern(300)

    @pytest.mark.parametrize("data", [b"\0" * 64, b"\xff" * 64], ids=["zeros", "ones"])
    @pytest.mark.cost(store_bytes=record_size("V", 64))
    def test_data_that_looks_like_empty_flash(self, efivars: Efivars, data: bytes) -> None:
        efivars.write("V", data)
        assert efivars.read("V").data == data

    @pytest.mark.cases(212, 379)
    @pytest.mark.wear
    @pytest.mark.cost(store_bytes=record_size("Vx", LARGEST))
    @accepted()
    def test_the_largest_one_and_not_a_byte_appended(self, efivars: Efivars) -> None:
        assert recorded(8126, "max-003.outcome") == LARGEST
        efivars.write("Vx", pattern(LARGEST))
        assert efivars.size("Vx") == LARGEST + 4
        with refused(errno.EINVAL):
            efivars.append("Vx", b"+")
        assert efivars.read("Vx").data == pattern(LARGEST)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "largest"),
        [
            pytest.param("V", recorded(8128, "max-002.outcome")),
            pytest.param("Vx", recorded(8126, "max-003.outcome")),
            pytest.param("V23456789", recorded(8112, "max-004.outcome")),
            pytest.param("n" * 218, 7694),
        ],
        ids=["1 character", "2 characters", "9 characters", "218 characters"],
    )
    @pytest.mark.cases(213)
    def test_one_byte_more_than_the_largest(
        self, efivars: Efivars, name: str, largest: int
    ) -> None:
        assert largest + 2 * (len(name) + 1) == LIMIT
        with refused(errno.EINVAL):
            efivars.write(name, pattern(largest + 1))

    @pytest.mark.parametrize(
        ("size", "refusal"),
        [
            pytest.param(10180, errno.EINVAL, id="the authenticated limit"),
            pytest.param(10226, errno.EINVAL, id="the payload limit"),
            pytest.param(12048, recorded(errno.EINVAL, "size-024[0]"), id="12 KB"),
            pytest.param(16384, errno.EINVAL, id="the buffer shared with OP-TEE"),
            pytest.param(65536, recorded(errno.EINVAL, "size-049[1]"), id="64 KiB"),
        ],
    )
    @pytest.mark.cases(213, 327)
    def test_sizes_behind_further_limits(self, efivars: Efivars, size: int, refusal: int) -> None:
        with refused(refusal):
            efivars.write("V", pattern(size))

    @pytest.mark.parametrize(
        ("size", "refusal"),
        [
            pytest.param(1 << 20, recorded(errno.EINVAL, "size-050[1]"), id="1 MiB"),
            pytest.param(1 << 24, recorded(errno.ENOMEM, "size-052[1]"), id="16 MiB"),
        ],
    )
    def test_sizes_that_no_firmware_was_asked_for(
        self, efivars: Efivars, shell: Shell, size: int, refusal: int
    ) -> None:
        path = quote(efivars.file("V"))
        command = (
            f"f=$(mktemp) && {{ printf '\\007\\000\\000\\000'; head -c {size} /dev/zero; }} >$f && "
            f"dd if=$f of={path} bs={size + 4} conv=notrunc; s=$?; rm -f $f; exit $s"
        )
        written = shell.run(command, timeout=60.0)
        assert not written.ok
        assert posix.errno_in(written.stderr.partition(b"\n")[0]) == refusal

    @pytest.mark.cases(213)
    @pytest.mark.cost(store_bytes=record_size("V", 4))
    def test_an_existing_one_keeps_its_value(self, efivars: Efivars) -> None:
        efivars.write("V", b"kept")
        with refused(errno.EINVAL):
            efivars.overwrite("V", pattern(8129))
        assert efivars.read_raw("V") == b"\7\0\0\0kept"

    @pytest.mark.cases(208)
    @pytest.mark.cost(store_bytes=record_size("V", 4))
    def test_what_old_and_appended_data_come_to_counts(self, efivars: Efivars) -> None:
        efivars.write("V", b"kept")
        with refused(errno.EINVAL):
            efivars.append("V", pattern(8128))
        assert efivars.read_raw("V") == b"\7\0\0\0kept"
