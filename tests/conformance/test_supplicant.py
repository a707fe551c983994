"""The life cycle of tee-supplicant: the driver must be unbound before it stops, and what happens
otherwise is known.

Each class has one story, told once by a fixture of the module; its tests are what must be true in
it, in any order.
"""

from __future__ import annotations

import contextlib
import errno
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.board.board import Board
from harness.errors import HilError
from harness.expectations import recorded
from harness.instruments.efivars import Efivars, VariableName, content_of
from harness.instruments.outcomes import errno_of, refused, succeeded
from harness.instruments.tee import Tee
from harness.instruments.writer import Writer
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store import listing
from harness.store.records import record_size

BLOCKED_SECONDS = 1
ATTRIBUTES = b"\7\0\0\0"
STORED = ATTRIBUTES + b"stored"

disturbing = [
    pytest.mark.needs("writable", "supplicant_service", "supplicant_routed_rpmb"),
    pytest.mark.consents("write_rpmb", "stop_supplicant", "unbind_driver"),
    pytest.mark.disturbs,
]


def _no_server(board: Board) -> tuple[int, ...]:
    """What a write without a supplicant gets. OP-TEE's error reaches StandaloneMM as one that it
    knows (FF-A numbers of OP-TEE 4.7 and EDK2 of late 2024) or as any other (stack 3)."""
    if board.capabilities.has("relocation_keeps_tail"):
        return (recorded(errno.ENOSPC, "kill2-003[1]"),)
    return (errno.ENOSPC, errno.EINVAL)


def _counter(board: Board) -> int:
    """The RPMB write counter; 0 on a board where it cannot be read."""
    return board.rpmb.counter() if board.capabilities.has("rpmb_access") else 0


def _blocked(shell: Shell, *commands: str) -> list[bool]:
    """Of each command whether it does not come back within BLOCKED_SECONDS; all run at once."""
    script = " ".join(
        f"(timeout -s KILL {BLOCKED_SECONDS} {command} >/dev/null 2>&1; echo {number} $?) &"
        for number, command in enumerate(commands)
    )
    text = shell.run_isolated(f"{script} wait", timeout=BLOCKED_SECONDS + 10).text
    statuses = dict(line.split() for line in text.splitlines() if line[:1].isdigit())
    return [statuses[str(number)] in {"124", "137"} for number in range(len(commands))]


@contextlib.contextmanager
def _supplicant_back(tee: Tee) -> Iterator[None]:
    """However the story ends, the next test has a supplicant that answers."""
    try:
        yield
    finally:
        with contextlib.suppress(HilError):
            tee.kill_supplicant("CONT")
        # Nothing is done where one serves already.
        tee.start_supplicant()
        tee.stop_as_configured()


@dataclass(frozen=True)
class Stopped:
    """What was seen while the supplicant was stopped and the driver bound, and after."""

    mount_writable: bool
    still_bound: bool
    read: bytes | None
    listing_same: bool
    listing_after_remount_same: bool
    space_same: bool
    create: int | None
    overwrite: int | None
    append: int | None
    delete: int | None
    identical: int | None
    wrong_attributes: int | None
    missing: int | None
    kept: bytes | None
    counter_moved: int
    log: list[str]
    log_at_start: list[str]
    bound_at_start: bool
    value_at_start: bytes | None
    refused_at_start: bytes | None
    create_at_start: int | None
    delete_at_start: int | None


@pytest.fixture(scope="session")
def stopped(board: Board) -> Stopped:
    """Stop without unbind, look at everything, start."""
    tee, efivars, log = board.tee, listing.of_the_store(board), board.kernel_log
    efivars.write("Stored", b"stored")
    efivars.set_immutable("Stored", False)
    names, space, counter = efivars.names(), efivars.space(), _counter(board)
    mark = log.mark()
    with _supplicant_back(tee):
        tee.leave_driver_at_stop()
        tee.stop_supplicant()
        state = efivars.mount_state()
        still_bound = tee.is_bound()
        read = content_of(efivars, "Stored")
        listing_same = efivars.names() == names
        space_same = efivars.space() == space
        missing = errno_of(lambda: efivars.write("Missing", b""))
        wrong_attributes = errno_of(lambda: efivars.write("Wrong", b"x", attributes=0x5))
        create = errno_of(lambda: efivars.write("Lost", b"x"))
        overwrite = errno_of(lambda: efivars.write("Stored", b"x", flags="O_WRONLY"))
        append = errno_of(lambda: efivars.append("Stored", b"x"))
        delete = errno_of(lambda: efivars.unlink("Stored"))
        identical = errno_of(lambda: efivars.write("Stored", b"stored", flags="O_WRONLY"))
        kept = content_of(efivars, "Stored")
        counter_moved = _counter(board) - counter
        efivars.unmount()
        efivars.mount()
        listing_after_remount_same = efivars.names() == names
        messages = log.since(mark)
        mark = log.mark()
    refused_at_start = content_of(efivars, "Lost")
    return Stopped(
        mount_writable=state is not None and state.writable,
        still_bound=still_bound,
        read=read,
        listing_same=listing_same,
        listing_after_remount_same=listing_after_remount_same,
        space_same=space_same,
        create=create,
        overwrite=overwrite,
        append=append,
        delete=delete,
        identical=identical,
        wrong_attributes=wrong_attributes,
        missing=missing,
        kept=kept,
        counter_moved=counter_moved,
        log=messages,
        log_at_start=log.since(mark),
        bound_at_start=tee.is_bound(),
        value_at_start=content_of(efivars, "Stored"),
        refused_at_start=refused_at_start,
        create_at_start=errno_of(lambda: efivars.overwrite("Lost", b"found")),
        delete_at_start=errno_of(lambda: efivars.delete("Stored")),
    )


class TestStopped:
    pytestmark = disturbing

    @pytest.mark.cases(336)
    @pytest.mark.cost(store_bytes=record_size("Waiting", 7))
    def test_a_write_without_it_fails_and_waits_for_none(
        self, tee: Tee, efivars: Efivars, shell: Shell
    ) -> None:
        with _supplicant_back(tee):
            tee.leave_driver_at_stop()
            tee.stop_supplicant()
            writer = Writer.start(shell, efivars.file("Waiting"), ATTRIBUTES + b"waiting")
            assert writer.ended(within=10)
            assert writer.status() != 0
        assert content_of(efivars, "Waiting") in (None, b"")


@pytest.mark.cases(336)
@pytest.mark.cost(store_bytes=2 * 84, story="stopped")
class TestStoppedWhileBound:
    """p2c-008 to -023: against the rule of the series, and survivable."""

    pytestmark = disturbing

    def test_reads_go_on(self, stopped: Stopped) -> None:
        assert stopped.read == STORED

    def test_the_listing_is_the_same_also_of_a_fresh_mount(self, stopped: Stopped) -> None:
        # p2c-019
        assert stopped.listing_same
        assert stopped.listing_after_remount_same

    @pytest.mark.needs("statfs_is_live")
    def test_df_is_the_same(self, stopped: Stopped) -> None:
        # p2c-012
        assert stopped.space_same

    def test_driver_and_mount_stay_as_they_are(self, stopped: Stopped) -> None:
        # p2c-010
        assert stopped.still_bound
        assert stopped.mount_writable

    @pytest.mark.pain(15)
    @pytest.mark.cases(330)
    def test_a_new_variable_is_refused_as_if_there_were_no_space(
        self, board: Board, stopped: Stopped
    ) -> None:
        # p2c-013
        assert stopped.create in _no_server(board)

    def test_so_is_an_overwrite_and_an_append(self, board: Board, stopped: Stopped) -> None:
        # p2c-014
        assert stopped.overwrite in _no_server(board)
        assert stopped.append in _no_server(board)

    def test_a_delete_is_an_invalid_argument(self, stopped: Stopped) -> None:
        # p2c-015: unlink(2) knows no other refusal
        assert stopped.delete == errno.EINVAL

    def test_none_of_them_changed_the_value(self, stopped: Stopped) -> None:
        assert stopped.kept == STORED

    @pytest.mark.cases(340)
    def test_what_needs_no_flash_is_answered_as_ever(self, stopped: Stopped) -> None:
        # p2c-017: the attributes are looked at first
        assert stopped.wrong_attributes == errno.EINVAL
        assert stopped.missing == errno.EIO
        assert stopped.identical is None

    @pytest.mark.needs("rpmb_access")
    def test_no_refused_write_reaches_the_card(self, stopped: Stopped) -> None:
        assert stopped.counter_moved == 0

    @pytest.mark.needs("kernel_log")
    def test_the_kernel_says_nothing(self, stopped: Stopped) -> None:
        # p2c-009, -020
        assert stopped.log == []
        assert stopped.log_at_start == []

    def test_it_all_works_again_once_it_is_back_without_rebinding(self, stopped: Stopped) -> None:
        # p2c-020 to -022
        assert stopped.bound_at_start
        assert stopped.value_at_start == STORED
        assert stopped.create_at_start is None
        assert stopped.delete_at_start is None

    def test_no_refused_write_appears_afterwards(self, stopped: Stopped) -> None:
        assert stopped.refused_at_start in (None, b"")


@dataclass(frozen=True)
class Order:
    """What happened when the driver was unbound and bound while nobody served."""

    unbind: int | None
    read_only: bool
    create_unbound: int | None
    bind: int | None
    writable: bool
    read: bytes | None
    create: int | None
    bound_at_start: bool
    create_at_start: int | None
    value: bytes | None


@pytest.fixture(scope="session")
def order(board: Board) -> Order:
    """Stop, unbind, bind, start."""
    tee, efivars = board.tee, board.efivars
    efivars.write("Order", b"before")
    with _supplicant_back(tee):
        tee.leave_driver_at_stop()
        tee.stop_supplicant()
        unbind = errno_of(tee.unbind)
        state = efivars.mount_state()
        create_unbound = errno_of(lambda: efivars.write("Unbound", b"x"))
        bind = errno_of(tee.bind)
        bound_state = efivars.mount_state()
        read = content_of(efivars, "Order")
        create = errno_of(lambda: efivars.write("Bound", b"x"))
    return Order(
        unbind=unbind,
        read_only=state is not None and state.superblock_read_only,
        create_unbound=create_unbound,
        bind=bind,
        writable=bound_state is not None and bound_state.writable,
        read=read,
        create=create,
        bound_at_start=tee.is_bound(),
        create_at_start=errno_of(lambda: efivars.overwrite("Bound", b"bound")),
        value=content_of(efivars, "Order"),
    )


@pytest.mark.cost(store_bytes=2 * 84, story="order")
class TestBoundAnewWhileStopped:
    pytestmark = disturbing

    def test_unbind_works_and_makes_it_read_only(self, order: Order) -> None:
        assert order.unbind is None
        assert order.read_only
        assert order.create_unbound == errno.EROFS

    @pytest.mark.cases(316)
    def test_bind_works_and_reads_do(self, order: Order) -> None:
        # stack 11: StandaloneMM runs already and needs no flash to be asked
        assert order.bind is None
        assert order.writable
        assert order.read == ATTRIBUTES + b"before"

    def test_a_write_is_refused_until_the_supplicant_is_back(
        self, board: Board, order: Order
    ) -> None:
        assert order.create in _no_server(board)
        assert order.bound_at_start
        assert order.create_at_start is None
        assert order.value == ATTRIBUTES + b"before"


class TestInGoodOrder:
    pytestmark = disturbing

    @pytest.mark.cases(338)
    @pytest.mark.cost(store_bytes=2 * 84)
    def test_unbind_stop_start_bind_is_as_if_nothing_had_been(
        self, tee: Tee, efivars: Efivars
    ) -> None:
        efivars.write("Before", b"before")
        tee.unbind()
        tee.stop_supplicant()
        tee.start_supplicant()
        tee.bind()
        efivars.wait_until_writable()
        assert efivars.read("Before").data == b"before"
        efivars.write("After", b"after")
        assert efivars.read("After").data == b"after"

    @pytest.mark.pain(21)
    @pytest.mark.cases(70)
    @pytest.mark.cost(store_bytes=4 * 84)
    def test_restarts_lose_nothing_and_leave_nothing_behind(
        self, tee: Tee, efivars: Efivars
    ) -> None:
        """An RPMB kept in the supplicant's memory would refuse every write from the first on."""
        efivars.write("Kept", b"kept")
        tee.leave_driver_at_stop()
        for turn in range(2):
            tee.restart_supplicant()
            efivars.write(f"Turn{turn}", bytes([turn]))
            assert len(tee.supplicant_pids()) == 1
        assert efivars.read("Kept").data == b"kept"
        assert [efivars.read(f"Turn{turn}").data for turn in range(2)] == [b"\0", b"\1"]

    @pytest.mark.pain(7)
    @pytest.mark.cases(427)
    @pytest.mark.power
    @pytest.mark.consents("power_cycle")
    @pytest.mark.cost(store_bytes=2 * 92)
    def test_a_reboot_with_the_supplicant_gone_already_ends_well(
        self, board: Board, tee: Tee, efivars: Efivars
    ) -> None:
        efivars.write("OverShutdown", b"kept")
        tee.stop_supplicant()
        board.reboot()
        assert listing.of_the_store(board).read("OverShutdown").data == b"kept"
        board.efivars.write("Booted", b"works")
        assert board.efivars.read("Booted").data == b"works"


class TestSecond:
    """One supplicant serves a TEE device (K6 drivers/tee/optee/core.c)."""

    pytestmark = disturbing

    def test_the_device_is_busy_for_another(self, tee: Tee, probe: Probe) -> None:
        assert tee.supplicant_pids()
        (opened,) = probe.steps([do.Open("t", "/dev/teepriv0", "O_RDWR")])
        with refused(errno.EBUSY):
            succeeded(opened)

    @pytest.mark.cost(store_bytes=84)
    def test_another_process_gives_up_and_the_first_goes_on(
        self, tee: Tee, efivars: Efivars, shell: Shell
    ) -> None:
        (first,) = tee.supplicant_pids()
        words = shell.run(f"tr '\\0' '\\n' </proc/{first}/cmdline").check().text.splitlines()
        second = shell.run_isolated(f"timeout -s KILL 5 {shlex.join(words)} </dev/null")
        assert second.status not in {0, 124, 137}
        assert tee.supplicant_pids() == [first]
        efivars.write("Served", b"x")
        assert efivars.read("Served").data == b"x"


@dataclass(frozen=True)
class Hung:
    """What was seen while the supplicant was connected and did not answer (SIGSTOP)."""

    writer_waited: bool
    reader_blocked: bool
    listing: list[VariableName]
    log_readable: bool
    stat_blocked: bool
    counter_blocked: bool
    writer_status: int | None
    written: bytes | None
    bystander: bytes | None
    second_waited: bool
    second_gone: bool
    bystander_after_kill: bytes | None
    killed: bytes | None
    after: bytes | None


@pytest.fixture(scope="session")
def hung(board: Board) -> Hung:
    """Hang it under a writer that is patient, then under one that is killed."""
    tee, efivars, shell = board.tee, board.efivars, board.shell
    efivars.write("Queued", b"x")
    queued, in_front = efivars.file("Queued"), efivars.file("InFront")
    counter = "true"
    if board.capabilities.has("mmc_utils") and board.capabilities.has("rpmb_access"):
        counter = f"mmc rpmb read-counter {board.rpmb.device}"
    with _supplicant_back(tee):
        tee.kill_supplicant("STOP")
        writer = Writer.start(shell, in_front, ATTRIBUTES + b"front")
        waited = not writer.ended(within=BLOCKED_SECONDS)
        reader_blocked, stat_blocked, counter_blocked = _blocked(
            shell, f"cat {queued}", f"stat {queued}", counter
        )
        listing, log_readable = efivars.names(), shell.run("dmesg | tail -n 1").ok
        tee.kill_supplicant("CONT")
        status = writer.status() if writer.ended(within=10) else None
        written, bystander = content_of(efivars, "InFront"), content_of(efivars, "Queued")
        tee.kill_supplicant("STOP")
        second = Writer.start(shell, efivars.file("Killed"), ATTRIBUTES + b"killed")
        second_waited = not second.ended(within=BLOCKED_SECONDS)
        second_gone = second.kill()
    after_kill = content_of(efivars, "Queued")
    killed = content_of(efivars, "Killed")
    errno_of(lambda: efivars.write("AfterTheKill", b"works"))
    return Hung(
        writer_waited=waited,
        reader_blocked=reader_blocked,
        listing=listing,
        log_readable=log_readable,
        stat_blocked=stat_blocked,
        counter_blocked=counter_blocked,
        writer_status=status,
        written=written,
        bystander=bystander,
        second_waited=second_waited,
        second_gone=second_gone,
        bystander_after_kill=after_kill,
        killed=killed,
        after=content_of(efivars, "AfterTheKill"),
    )


@pytest.mark.cases(339)
@pytest.mark.cost(store_bytes=4 * 100, story="hung")
class TestHung:
    pytestmark = disturbing

    def test_a_writer_sleeps_and_ends_well_once_it_answers(self, hung: Hung) -> None:
        assert hung.writer_waited
        assert hung.writer_status == 0
        assert hung.written == ATTRIBUTES + b"front"

    def test_readers_queue_behind_the_writer(self, hung: Hung) -> None:
        # log-kill3
        assert hung.reader_blocked
        assert hung.bystander == ATTRIBUTES + b"x"

    def test_nothing_else_on_the_board_waits(self, hung: Hung) -> None:
        # log-kill3: ls and the counter are answered
        assert hung.listing
        assert hung.log_readable
        assert not hung.stat_blocked
        assert not hung.counter_blocked

    def test_a_fatal_signal_releases_a_writer(self, hung: Hung) -> None:
        # log-kill2-recover
        assert hung.second_waited
        assert hung.second_gone

    def test_after_it_all_others_go_on(self, hung: Hung) -> None:
        assert hung.bystander_after_kill == ATTRIBUTES + b"x"
        assert hung.after == ATTRIBUTES + b"works"

    def test_the_killed_write_is_whole_or_not_at_all(self, hung: Hung) -> None:
        assert hung.killed in (None, b"", ATTRIBUTES + b"killed")


class TestKilledWhileHung:
    pytestmark = disturbing

    @pytest.mark.cases(339)
    @pytest.mark.cost(store_bytes=record_size("Waiting", 7))
    def test_the_write_that_waits_fails_and_the_next_one_does_not_do_it(
        self, tee: Tee, efivars: Efivars, shell: Shell
    ) -> None:
        """Requests end with the descriptor (K6 drivers/tee/optee/supp.c:optee_supp_release)."""
        with _supplicant_back(tee):
            tee.kill_supplicant("STOP")
            writer = Writer.start(shell, efivars.file("Waiting"), ATTRIBUTES + b"waiting")
            assert not writer.ended(within=BLOCKED_SECONDS)
            tee.kill_supplicant("KILL")
            assert writer.ended(within=10)
            assert writer.status() != 0
        assert content_of(efivars, "Waiting") in (None, b"")


@dataclass(frozen=True)
class MidWrite:
    """What was seen after kill -9 of the supplicant under a writer."""

    waited: bool
    reader_blocked: bool
    newcomer_served: bool
    writer_gone: bool
    bystander: bytes | None
    bystander_after_boot: bytes | None
    half: bytes | None
    after: bytes | None


MID_WRITE = b"k" * 1500


@pytest.fixture(scope="session")
def mid_write(board: Board) -> MidWrite:
    """Kill it as soon as a long write has begun; boot."""
    tee, efivars, shell = board.tee, board.efivars, board.shell
    efivars.write("Beside", b"beside")
    with _supplicant_back(tee):
        writer = Writer.start(shell, efivars.file("HalfWay"), ATTRIBUTES + MID_WRITE)
        tee.kill_supplicant("KILL")
        waited = not writer.ended(within=BLOCKED_SECONDS)
        (reader_blocked,) = _blocked(shell, f"cat {efivars.file('Beside')}") if waited else (False,)
        newcomer_served = False
        if waited:
            with contextlib.suppress(HilError):
                tee.start_supplicant(timeout=1)
                newcomer_served = True
        writer_gone = writer.kill()
    bystander = content_of(efivars, "Beside")
    # Killed between two RPMB writes, OP-TEE may have given the RPMB up until the next boot.
    board.reboot()
    efivars = listing.of_the_store(board)
    errno_of(lambda: efivars.write("AfterMidWrite", b"works"))
    return MidWrite(
        waited=waited,
        reader_blocked=reader_blocked,
        newcomer_served=newcomer_served,
        writer_gone=writer_gone,
        bystander=bystander,
        bystander_after_boot=content_of(efivars, "Beside"),
        half=content_of(efivars, "HalfWay"),
        after=content_of(efivars, "AfterMidWrite"),
    )


@pytest.mark.power
@pytest.mark.consents("power_cycle")
@pytest.mark.cost(store_bytes=record_size("HalfWay", 1500) + 200, story="mid write")
class TestKilledInMidWrite:
    pytestmark = disturbing

    def test_a_writer_that_hangs_holds_up_readers_and_newcomers(self, mid_write: MidWrite) -> None:
        # log-kill3, log-kill4
        assert mid_write.reader_blocked == mid_write.waited
        assert not mid_write.newcomer_served

    def test_it_can_be_killed(self, mid_write: MidWrite) -> None:
        # log-kill2-recover
        assert mid_write.writer_gone

    def test_other_variables_are_untouched(self, mid_write: MidWrite) -> None:
        assert mid_write.bystander == ATTRIBUTES + b"beside"
        assert mid_write.bystander_after_boot == ATTRIBUTES + b"beside"

    @pytest.mark.cases(92, 93)
    def test_the_value_is_whole_or_not_at_all(self, mid_write: MidWrite) -> None:
        assert mid_write.half in (None, b"", ATTRIBUTES + MID_WRITE)

    def test_after_a_boot_writes_work(self, mid_write: MidWrite) -> None:
        assert mid_write.after == ATTRIBUTES + b"works"


class TestKilledWhileIdle:
    pytestmark = disturbing

    @pytest.mark.cost(store_bytes=3 * 84)
    def test_it_is_as_if_stopped(self, board: Board, tee: Tee, efivars: Efivars) -> None:
        efivars.write("Idle", b"idle")
        tee.kill_supplicant("KILL")
        assert efivars.read("Idle").data == b"idle"
        # A service manager may have started another at once.
        if not tee.supplicant_pids():
            assert errno_of(lambda: efivars.write("NoServer", b"x")) in _no_server(board)
            tee.start_supplicant()
        efivars.overwrite("NoServer", b"server")
        assert efivars.read("NoServer").data == b"server"


class TestKernelRouted:
    @pytest.mark.needs("writable", "kernel_routed_rpmb")
    @pytest.mark.consents("write_rpmb", "stop_supplicant")
    @pytest.mark.disturbs
    @pytest.mark.cost(store_bytes=84)
    def test_writes_need_no_supplicant(self, tee: Tee, efivars: Efivars) -> None:
        if tee.supplicant_pids():
            tee.stop_supplicant()
        if not tee.is_bound():
            # The service unbinds the driver when it stops.
            tee.bind()
            efivars.wait_until_writable()
        efivars.write("Alone", b"alone")
        assert efivars.read("Alone").data == b"alone"
