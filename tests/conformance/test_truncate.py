"""Truncation: it never reaches the firmware. Linux 6 changes the size that is shown, Linux 7
nothing.

Kernel self-test: test_no_set_size of efivarfs.sh.
"""

from __future__ import annotations

import errno
from shlex import quote

import pytest

from harness.board.board import Board
from harness.expectations import recorded
from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import refused, succeeded
from harness.instruments.rpmb import Rpmb
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

TR = b"\7\0\0\0tr"

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 10))
TWO_RECORDS = pytest.mark.cost(store_bytes=2 * record_size("V", 10))


@pytest.fixture
def variable(efivars: Efivars) -> Efivars:
    """The variables, with V = "tr" among them, not immutable."""
    efivars.write("V", b"tr")
    efivars.set_immutable("V", False)
    return efivars


@TWO_RECORDS
def test_o_trunc_and_a_write_are_a_plain_write(efivars: Efivars) -> None:
    efivars.write("V", b"longer before")
    efivars.set_immutable("V", False)
    with efivars.opened("V", "O_WRONLY|O_TRUNC") as file:
        assert file.write(TR) == recorded(6, "basic-011[1]")
    assert efivars.read_raw("V") == recorded(b"\7\0\0\0tr", "basic-011.after")
    assert efivars.size("V") == 6


@pytest.mark.cases(367)
@ONE_RECORD
def test_o_trunc_alone_leaves_the_data(board: Board, variable: Efivars) -> None:
    with variable.opened("V", "O_WRONLY|O_TRUNC"):
        pass
    assert variable.read_raw("V") == recorded(b"\7\0\0\0tr", "basic-012.after")
    if board.capabilities.has("truncate_changes_size"):
        assert variable.size("V") == recorded(0, "basic-012.st_size")
    else:
        assert variable.size("V") == 6


@pytest.mark.cases(367)
@ONE_RECORD
def test_a_shell_redirection_leaves_the_data(board: Board, variable: Efivars, shell: Shell) -> None:
    shell.run(f": >{quote(variable.file('V'))}").check()
    assert variable.read_raw("V") == TR
    assert variable.size("V") == (0 if board.capabilities.has("truncate_changes_size") else 6)


@pytest.mark.cases(404)
@pytest.mark.parametrize("size", [0, 4, 5, 100])
@ONE_RECORD
def test_ftruncate_changes_at_most_the_size_shown(
    board: Board, variable: Efivars, size: int
) -> None:
    with variable.opened("V", "O_RDWR") as file:
        file.truncate(size)
        assert file.size() == (size if board.capabilities.has("truncate_changes_size") else 6)
        assert file.read(200) == TR


@pytest.mark.cases(404)
@pytest.mark.parametrize("size", [0, 100])
@ONE_RECORD
def test_truncate_changes_at_most_the_size_shown(
    board: Board, variable: Efivars, probe: Probe, size: int
) -> None:
    (outcome,) = probe.steps([do.Truncate(variable.file("V"), size)])
    succeeded(outcome)
    shown = size if board.capabilities.has("truncate_changes_size") else 6
    assert variable.size("V") == shown
    assert variable.read_raw("V") == TR


@pytest.mark.cases(367)
@TWO_RECORDS
def test_the_next_write_shows_the_true_size_again(variable: Efivars) -> None:
    with variable.opened("V", "O_WRONLY|O_TRUNC"):
        pass
    variable.write("V", b"written", flags="O_WRONLY")
    assert variable.size("V") == 11


@pytest.mark.disturbs
@ONE_RECORD
def test_a_fresh_mount_shows_the_true_size_again(variable: Efivars) -> None:
    with variable.opened("V", "O_WRONLY|O_TRUNC"):
        pass
    variable.unmount()
    variable.mount()
    assert variable.size("V") == 6
    assert variable.read_raw("V") == TR


@pytest.mark.needs("rpmb_access")
@pytest.mark.cases(404)
@ONE_RECORD
def test_nothing_is_written_to_the_flash(variable: Efivars, rpmb: Rpmb) -> None:
    before = rpmb.counter()
    with variable.opened("V", "O_RDWR|O_TRUNC") as file:
        file.truncate(3)
    assert rpmb.counter() == before


@pytest.mark.parametrize(
    ("size", "refusal"),
    [
        pytest.param(0, recorded(errno.EPERM, "basic-040[0]")),
        pytest.param(4, recorded(errno.EPERM, "basic-040[1]")),
        pytest.param(100, recorded(errno.EPERM, "basic-040[2]")),
    ],
)
@ONE_RECORD
def test_an_immutable_file_keeps_its_size(
    efivars: Efivars, probe: Probe, size: int, refusal: int
) -> None:
    efivars.write("V", b"0123456789")
    (outcome,) = probe.steps([do.Truncate(efivars.file("V"), size)])
    with refused(refusal):
        succeeded(outcome)
    assert efivars.size("V") == recorded(14, "basic-040.st_size")
    assert efivars.read_raw("V") == recorded(b"\7\0\0\x000123456789", "basic-040.after")


@ONE_RECORD
def test_an_immutable_file_is_not_opened_for_truncation(efivars: Efivars) -> None:
    efivars.write("V", b"kept")
    with refused(errno.EPERM), efivars.opened("V", "O_WRONLY|O_TRUNC"):
        pass
    assert efivars.size("V") == 8


def test_a_descriptor_that_created_the_file_may_truncate_it(board: Board, efivars: Efivars) -> None:
    """The new file is immutable at once; its creator's descriptor is not asked."""
    with efivars.opened("V", "O_RDWR|O_CREAT") as file:
        file.truncate(7)
        assert file.size() == (7 if board.capabilities.has("truncate_changes_size") else 0)
        assert file.read(9) == b""
