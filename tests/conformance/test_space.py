"""``df`` shows the store where the firmware advertises QueryVariableInfo at run time; space
shrinks with every variable and does not rise with a delete.

Recorded rows: basic-001, fill2, size; p2a-018 for a firmware that does not advertise it.
"""

from __future__ import annotations

import pytest

from harness.board import Board
from harness.instruments.efivars import Efivars
from harness.shell import Shell

HEADER_BYTES = 60
"""Header of a variable in the store (EDK2 VariableFormat.h, authenticated format)."""


def _record_bytes(name: str, data: bytes) -> int:
    """What a variable takes in the store: header, CHAR16 name with NUL, data, 4-byte aligned."""
    return (HEADER_BYTES + 2 * (len(name) + 1) + len(data) + 3) // 4 * 4


def test_df_has_figures_exactly_where_query_variable_info_is_advertised(
    board: Board, efivars: Efivars
) -> None:
    space = efivars.space()
    if board.capabilities.has("query_variable_info"):
        assert 0 < space.free <= space.total
        assert space.available == space.free
    else:
        assert (space.total, space.free, space.available) == (0, 0, 0)


def test_the_file_system_type_is_efivarfs(shell: Shell, efivars: Efivars) -> None:
    assert shell.run(f"stat -f -c %t {efivars.path}").text in {"de5e81e4", "0xde5e81e4"}


@pytest.mark.needs("writable", "query_variable_info")
@pytest.mark.consents("write_rpmb")
class TestFreeSpace:
    @pytest.mark.parametrize("size", [1, 100])
    def test_a_new_variable_takes_its_record(self, efivars: Efivars, size: int) -> None:
        data = bytes(size)
        before = efivars.space().free
        efivars.write("Taking", data)
        assert before - efivars.space().free == _record_bytes("Taking", data)

    def test_an_overwrite_takes_a_second_record(self, efivars: Efivars) -> None:
        efivars.write("Twice", b"first")
        before = efivars.space().free
        efivars.overwrite("Twice", b"other")
        assert before - efivars.space().free == _record_bytes("Twice", b"other")

    def test_an_identical_overwrite_takes_nothing(self, efivars: Efivars) -> None:
        efivars.write("Same", b"same")
        before = efivars.space().free
        efivars.overwrite("Same", b"same")
        assert efivars.space().free == before

    def test_a_delete_gives_nothing_back(self, efivars: Efivars) -> None:
        efivars.write("Deleted", bytes(64))
        before = efivars.space().free
        efivars.delete("Deleted")
        assert efivars.space().free == before

    def test_a_refused_write_takes_nothing(self, efivars: Efivars) -> None:
        before = efivars.space().free
        with pytest.raises(OSError, match="EINVAL"):
            efivars.write("Refused", b"DATA", attributes=0x3)
        assert efivars.space().free == before
