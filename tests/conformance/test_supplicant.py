"""The life cycle of tee-supplicant: the driver must be unbound before it stops, and what happens
otherwise is known.

Recorded rows: p2c-008 to -023 (stopped while bound), kill2 and log-kill2 to -kill4 (killed in
mid-write).
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.board import Board
from harness.errors import HilError
from harness.instruments import refused
from harness.instruments.efivars import Efivars
from harness.instruments.tee import Tee
from harness.shell import Shell

pytestmark = [
    pytest.mark.needs("writable", "supplicant_service", "supplicant_routed_rpmb"),
    pytest.mark.consents("write_rpmb", "stop_supplicant", "unbind_driver"),
    pytest.mark.disturbs,
]

BLOCKED_SECONDS = 1
SCRATCH = "/tmp/hil-writer"


@pytest.fixture(autouse=True)
def _supplicant_back(tee: Tee) -> Iterator[None]:
    yield
    if not tee.supplicant_pids():
        tee.start_supplicant()


@dataclass(frozen=True)
class Writer:
    """A process on the board that writes one variable with one write(2) and leaves its status in
    a file."""

    shell: Shell
    pid: int

    @classmethod
    def start(cls, shell: Shell, path: str, content: bytes) -> Writer:
        shell.write_file(f"{SCRATCH}.data", content)
        pid = shell.run_isolated(
            f"rm -f {SCRATCH}.status; "
            f"(cat {SCRATCH}.data > {shlex.quote(path)}; echo $? > {SCRATCH}.status) "
            f"</dev/null >/dev/null 2>&1 & echo $!"
        ).check()
        return cls(shell, int(pid.text))

    def ended(self, within: float) -> bool:
        """Whether it ended within so many seconds."""
        waiting = (
            f"i=0; while test $i -lt {int(within * 20)} && ! test -s {SCRATCH}.status; "
            f"do i=$((i + 1)); sleep 0.05; done; test -s {SCRATCH}.status"
        )
        return self.shell.run_isolated(waiting, timeout=within + 10).ok

    def status(self) -> int:
        return int(self.shell.run(f"cat {SCRATCH}.status").check().text)

    def kill(self) -> None:
        """SIGKILL to the subshell and to its child, the process in the system call."""
        self.shell.run(
            f"for p in $(sed -n 's/ .*//p' /proc/{self.pid}/task/*/children 2>/dev/null) "
            f"{self.pid}; do kill -9 $p; done 2>/dev/null; true"
        ).check()


def _reader_is_blocked(shell: Shell, path: str) -> bool:
    """Whether a read of ``path`` does not come back within BLOCKED_SECONDS."""
    read = f"timeout -s KILL {BLOCKED_SECONDS} cat {shlex.quote(path)} >/dev/null"
    return shell.run_isolated(read, timeout=BLOCKED_SECONDS + 10).status in {124, 137}


class TestStoppedAfterUnbind:
    def test_everything_works_again_after_start_and_bind(self, tee: Tee, efivars: Efivars) -> None:
        efivars.write("Before", b"before")
        tee.unbind()
        tee.stop_supplicant()
        tee.start_supplicant()
        tee.bind()
        efivars.wait_until_writable()
        assert efivars.read("Before").data == b"before"
        efivars.write("After", b"after")
        assert efivars.read("After").data == b"after"


class TestStoppedWhileBound:
    @pytest.fixture(autouse=True)
    def _stopped(self, tee: Tee, efivars: Efivars) -> None:
        efivars.write("Stored", b"stored")
        efivars.set_immutable("Stored", False)
        tee.stop_supplicant()

    def test_reads_still_work(self, efivars: Efivars) -> None:
        assert efivars.read("Stored").data == b"stored"

    def test_the_mount_stays_writable(self, efivars: Efivars) -> None:
        state = efivars.mount_state()
        assert state is not None
        assert state.writable

    def test_a_new_variable_is_refused(self, efivars: Efivars) -> None:
        # p2c-013
        with refused(errno.ENOSPC):
            efivars.write("Lost", b"x")

    def test_an_overwrite_is_refused_and_the_value_stays(self, tee: Tee, efivars: Efivars) -> None:
        # p2c-014
        with refused(errno.ENOSPC):
            efivars.write("Stored", b"x", flags="O_WRONLY")
        tee.start_supplicant()
        assert efivars.read("Stored").data == b"stored"

    def test_a_delete_is_refused(self, efivars: Efivars) -> None:
        # p2c-015
        with refused(errno.EINVAL):
            efivars.unlink("Stored")
        assert efivars.read("Stored").data == b"stored"

    def test_writes_work_again_once_it_is_back_without_rebinding(
        self, tee: Tee, efivars: Efivars
    ) -> None:
        # p2c-020 to -022
        with refused(errno.ENOSPC):
            efivars.write("Retried", b"x")
        tee.start_supplicant()
        assert tee.is_bound()
        efivars.overwrite("Retried", b"written")
        assert efivars.read("Retried").data == b"written"


class TestHung:
    """A supplicant that is connected and does not answer (SIGSTOP)."""

    @pytest.fixture(autouse=True)
    def _resumed(self, tee: Tee) -> Iterator[None]:
        yield
        if tee.supplicant_pids():
            tee.kill_supplicant("CONT")

    def test_a_writer_sleeps_and_ends_well_once_it_answers(
        self, tee: Tee, efivars: Efivars, shell: Shell
    ) -> None:
        tee.kill_supplicant("STOP")
        writer = Writer.start(shell, efivars.file("Slept"), b"\7\0\0\0slept")
        assert not writer.ended(within=BLOCKED_SECONDS)
        tee.kill_supplicant("CONT")
        assert writer.ended(within=10)
        assert writer.status() == 0
        assert efivars.read("Slept").data == b"slept"

    def test_readers_queue_behind_the_writer_and_nothing_else_does(
        self, tee: Tee, efivars: Efivars, shell: Shell
    ) -> None:
        efivars.write("Queued", b"x")
        tee.kill_supplicant("STOP")
        writer = Writer.start(shell, efivars.file("InFront"), b"\7\0\0\0front")
        assert not writer.ended(within=BLOCKED_SECONDS)
        assert _reader_is_blocked(shell, efivars.file("Queued"))
        assert efivars.names()
        assert shell.run("dmesg | tail -n 1").ok
        tee.kill_supplicant("CONT")
        assert writer.ended(within=10)
        assert efivars.read("Queued").data == b"x"

    def test_a_fatal_signal_releases_the_writer(
        self, tee: Tee, efivars: Efivars, shell: Shell
    ) -> None:
        efivars.write("Bystander", b"x")
        tee.kill_supplicant("STOP")
        writer = Writer.start(shell, efivars.file("Killed"), b"\7\0\0\0killed")
        assert not writer.ended(within=BLOCKED_SECONDS)
        writer.kill()
        tee.kill_supplicant("CONT")
        assert not _reader_is_blocked(shell, efivars.file("Bystander"))
        efivars.write("AfterTheKill", b"works")
        assert efivars.read("AfterTheKill").data == b"works"


class TestKilled:
    def test_while_idle_it_is_as_if_stopped(self, tee: Tee, efivars: Efivars) -> None:
        efivars.write("Idle", b"idle")
        tee.kill_supplicant("KILL")
        assert efivars.read("Idle").data == b"idle"
        if not tee.supplicant_pids():
            with refused(errno.ENOSPC):
                efivars.write("NoServer", b"x")
            tee.start_supplicant()
        efivars.overwrite("NoServer", b"server")
        assert efivars.read("NoServer").data == b"server"

    @pytest.mark.power
    @pytest.mark.consents("power_cycle")
    def test_in_mid_write_the_writer_hangs_until_killed_and_nothing_is_half_written(
        self, board: Board
    ) -> None:
        content = b"k" * 1500
        board.efivars.write("Beside", b"beside")
        writer = Writer.start(board.shell, board.efivars.file("HalfWay"), b"\7\0\0\0" + content)
        board.tee.kill_supplicant("KILL")
        if not writer.ended(within=BLOCKED_SECONDS):
            # log-kill3, log-kill4: readers wait behind it and no new supplicant can register.
            assert _reader_is_blocked(board.shell, board.efivars.file("Beside"))
            with pytest.raises(HilError):
                board.tee.start_supplicant(timeout=2)
            writer.kill()
        if not board.tee.supplicant_pids():
            board.tee.start_supplicant()
        assert board.efivars.read("Beside").data == b"beside"
        # Killed between two RPMB writes, OP-TEE has given the RPMB up until the next boot.
        board.reboot()
        assert board.efivars.read("Beside").data == b"beside"
        if board.efivars.exists("HalfWay"):
            assert board.efivars.read("HalfWay").data == content
        board.efivars.write("AfterMidWrite", b"works")
        assert board.efivars.read("AfterMidWrite").data == b"works"
