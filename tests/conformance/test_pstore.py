"""The non-blocking path: efi-pstore must not sleep, the driver would have to, so it refuses.

set_variable_nonblocking of the series answers EFI_UNSUPPORTED (K6 tee_stmm_efi.c). A crash leaves
no record and, above all, nothing hangs and nothing stored is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.capabilities import LINUX_EFI_CRASH_GUID
from harness.errors import LinkError
from harness.instruments.efivars import Efivars, VariableName, content_of
from harness.instruments.kernel_log import KernelLog
from harness.instruments.outcomes import errno_of
from harness.shell import Shell
from harness.store import listing
from harness.store.records import RECORDED

CRASH_GUID = UUID(LINUX_EFI_CRASH_GUID)
REGISTERED = "pstore: Registered efi_pstore as persistent store backend"
_DISABLED = "/sys/module/efi_pstore/parameters/pstore_disable"
# Debian's kernel disables it until asked. Not as the module's parameter at loading: Linux 6.12 then
# registers it twice, and frees the buffer of the first.
LOAD = (
    "{ test -d /sys/module/efi_pstore || modprobe efi_pstore; } && "
    f"{{ ! grep -qs Y {_DISABLED} || echo N >{_DISABLED}; }}"
)

pytestmark = [pytest.mark.needs("driver_bound", "writable", "efi_pstore")]


@dataclass(frozen=True)
class Crash:
    """A board before and after a panic with efi-pstore loaded."""

    names: list[VariableName]
    names_after: list[VariableName]
    pstore: str
    free_same: bool
    counter_moved: int | None
    kept: bytes | None
    written_after: int | None


@pytest.fixture(scope="session")
def crash(board: Board) -> Crash:
    """Panic by SysRq, switch on again, look."""
    # It registers only with efivars that can be written, so after the driver.
    board.shell.run(LOAD).check()
    efivars = listing.of_the_store(board)
    efivars.write("OverPanic", b"kept")
    names, space = efivars.names(), efivars.space()
    counter = board.rpmb.counter() if board.capabilities.has("rpmb_access") else None
    with contextlib.suppress(LinkError):
        board.shell.run_isolated("echo c > /proc/sysrq-trigger", timeout=3)
    board.switch.cycle()
    efivars = listing.of_the_store(board)
    moved = None if counter is None else board.rpmb.counter() - counter
    return Crash(
        names=names,
        names_after=efivars.names(),
        pstore=board.shell.run("ls -A /sys/fs/pstore").text,
        free_same=efivars.space() == space,
        counter_moved=moved,
        kept=content_of(efivars, "OverPanic"),
        written_after=errno_of(lambda: efivars.write("AfterPanic", b"x")),
    )


@pytest.mark.cases(331)
@pytest.mark.needs("sysrq")
@pytest.mark.consents("write_rpmb", "crash_kernel", "power_cycle")
@pytest.mark.destructive
@pytest.mark.power
@pytest.mark.cost(store_bytes=2 * 88, story="crash")
class TestPanic:
    def test_it_leaves_no_record(self, crash: Crash) -> None:
        assert [name for name in crash.names_after if name.guid == CRASH_GUID] == []
        assert crash.pstore == ""

    def test_it_loses_and_adds_no_variable(self, crash: Crash) -> None:
        assert crash.names_after == crash.names
        assert crash.kept == b"\7\0\0\0kept"

    # Without that each boot reclaims.
    @pytest.mark.needs("rpmb_access", "relocation_keeps_tail")
    def test_it_writes_nothing_to_the_card(self, crash: Crash) -> None:
        # A boot costs the replay guard's write and nothing like a record's.
        assert crash.counter_moved is not None
        assert 1 <= crash.counter_moved < RECORDED.relocation

    @pytest.mark.needs("query_variable_info", "relocation_keeps_tail", "statfs_is_live")
    def test_it_takes_no_space(self, crash: Crash) -> None:
        assert crash.free_same

    def test_the_board_comes_back_and_writes(self, crash: Crash) -> None:
        assert crash.written_after is None


class TestBackend:
    @pytest.fixture(autouse=True)
    def _as_before(self, shell: Shell) -> Iterator[None]:
        was_loaded = shell.run("test -d /sys/module/efi_pstore").ok
        was_disabled = shell.run(f"grep -qs Y {_DISABLED}").ok
        yield
        shell.run("modprobe -r efi_pstore; true")
        if was_loaded:
            shell.run("modprobe efi_pstore" if was_disabled else LOAD).check()

    @pytest.fixture
    def unloaded(self, shell: Shell) -> None:
        """As if never loaded; skips where it is part of the kernel."""
        if not shell.run("test ! -d /sys/module/efi_pstore || modprobe -r efi_pstore").ok:
            pytest.skip("efi_pstore cannot be unloaded on this board")

    @pytest.mark.usefixtures("unloaded")
    @pytest.mark.needs("kernel_log")
    def test_it_registers_with_variables_that_can_be_written(
        self, shell: Shell, kernel_log: KernelLog
    ) -> None:
        mark = kernel_log.mark()
        shell.run(LOAD).check()
        assert [line.split("] ", 1)[-1] for line in kernel_log.since(mark)] == [REGISTERED]

    @pytest.mark.usefixtures("unloaded")
    @pytest.mark.needs("kernel_log")
    @pytest.mark.consents("unbind_driver")
    @pytest.mark.disturbs
    def test_it_does_not_register_without_the_driver(
        self, board: Board, shell: Shell, kernel_log: KernelLog
    ) -> None:
        board.tee.unbind()
        mark = kernel_log.mark()
        shell.run(f"{LOAD}; modprobe -r efi_pstore; true").check()
        assert REGISTERED not in "\n".join(kernel_log.since(mark))

    @pytest.mark.consents("write_rpmb", "unbind_driver")
    @pytest.mark.disturbs
    @pytest.mark.cost(store_bytes=88)
    def test_the_driver_can_go_and_come_under_it(
        self, board: Board, shell: Shell, efivars: Efivars
    ) -> None:
        shell.run(LOAD).check()
        board.tee.unbind()
        board.tee.bind()
        efivars.wait_until_writable()
        efivars.write("UnderPstore", b"x")
        assert efivars.read("UnderPstore").data == b"x"

    def test_it_shows_no_record(self, shell: Shell, efivars: Efivars) -> None:
        shell.run(LOAD).check()
        assert shell.run("ls -A /sys/fs/pstore").text == ""
        assert [name for name in efivars.names() if name.guid == CRASH_GUID] == []
