"""Leases: real processes that lock, wait, are killed and are died_holding."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.lab.lease import BoardHeld, Lease, LeaseBroken, LeaseDesk, Status
from harness.links.address import SerialAddress
from harness.links.console import Console
from tests.pace import until

_HOLD = """
import sys, threading
from pathlib import Path
from harness.lab.lease import LeaseDesk
desk = LeaseDesk(Path(sys.argv[1]))
lease = desk.acquire(sys.argv[2].split(","), board="desk3", purpose="test", timeout=10)
gone = threading.Event()
if "deaf" not in sys.argv:
    lease.watch(lambda broken: (print(broken.what, flush=True), gone.set()))
print("held", flush=True)
try:
    gone.wait(30)
except KeyboardInterrupt:
    if "deaf" in sys.argv:
        threading.Event().wait(30)
"""


@pytest.fixture
def desk(tmp_path: Path) -> LeaseDesk:
    return LeaseDesk(tmp_path / "leases")


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def _holder(
    processes: list[subprocess.Popen[str]], directory: Path, things: str, *words: str
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory), things, *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _acquire(desk: LeaseDesk, *things: str, timeout: float = 0) -> Lease:
    return desk.acquire(things, board="mine", purpose="pytest", timeout=timeout)


def test_a_second_user_is_told_who_holds_the_board(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = _holder(processes, tmp_path / "leases", "outlet 4")
    with pytest.raises(BoardHeld) as held:
        _acquire(desk, "outlet 4")
    assert f"process {process.pid}, test) as board desk3 since" in str(held.value)
    assert "hil lease break mine" in str(held.value)


def test_what_is_locked_are_the_things_and_not_the_board_file(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    _holder(processes, tmp_path / "leases", "usb 1-2,outlet 4")
    with pytest.raises(BoardHeld):
        _acquire(desk, "outlet 4", "usb 9-9")
    with _acquire(desk, "outlet 5"):
        pass


def test_one_of_two_things_held_leaves_the_other_free(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    _holder(processes, tmp_path / "leases", "b")
    with pytest.raises(BoardHeld):
        _acquire(desk, "a", "b")
    with _acquire(desk, "a"):
        pass


def test_a_lease_dies_with_its_process(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = _holder(processes, tmp_path / "leases", "a")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with _acquire(desk, "a"):
        pass
    assert desk.all() == Status((), ())


def test_a_child_of_the_holder_does_not_keep_the_lease(desk: LeaseDesk) -> None:
    with _acquire(desk, "a"):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with _acquire(desk, "a"):
            pass
    finally:
        child.kill()
        child.wait()


def test_it_can_be_waited_for_and_first_come_is_first_served(desk: LeaseDesk) -> None:
    order: list[str] = []
    queued: list[Status] = []

    def user(name: str) -> None:
        with desk.acquire("a", board=name, purpose="t", timeout=20, waiting=queued.append):
            order.append(name)

    first = _acquire(desk, "a")
    threads = []
    for name in ("one", "two", "three"):
        threads.append(threading.Thread(target=user, args=(name,)))
        threads[-1].start()
        until(lambda: len(desk.status(["a"]).queue) == len(threads))
    assert [waiting.board for waiting in desk.status(["a"]).queue] == ["one", "two", "three"]
    assert {status.holders[0].board for status in queued} == {"mine"}
    first.release()
    for thread in threads:
        thread.join(20)
    assert order == ["one", "two", "three"]


def test_a_dead_ticket_holds_up_nobody(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    lease = _acquire(desk, "a")
    waiter = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path / "leases"), "a"])
    until(lambda: len(desk.status(["a"]).queue) == 1)
    waiter.kill()
    waiter.wait()
    assert desk.status(["a"]).queue == ()
    lease.release()
    _acquire(desk, "a").release()


def test_waiting_ends_at_its_timeout(desk: LeaseDesk) -> None:
    with _acquire(desk, "a"):
        started = time.monotonic()
        with pytest.raises(BoardHeld, match=r"waited 0\.3 s"):
            _acquire(desk, "a", timeout=0.3)
        assert time.monotonic() - started < 5


def test_broken_on_purpose_the_victim_is_told_by_whom_and_why(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    victim = _holder(processes, tmp_path / "leases", "a")
    (asked,) = desk.break_lease(["a"], reason="it is on fire", timeout=10)
    assert asked.pid == victim.pid
    output, _ = victim.communicate(timeout=10)
    assert "the lease was broken: by " in output
    assert output.rstrip().endswith("it is on fire")
    _acquire(desk, "a").release()
    assert not list((tmp_path / "leases").glob("*.broken"))


def test_a_victim_that_does_not_react_is_ended(
    desk: LeaseDesk, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    victim = _holder(processes, tmp_path / "leases", "a", "deaf")
    desk.break_lease(["a"], reason="now", timeout=3)
    assert victim.wait(10) == -signal.SIGKILL
    _acquire(desk, "a").release()


def test_a_broken_lease_says_so_at_every_check(desk: LeaseDesk) -> None:
    lease = _acquire(desk, "a")
    lease.check()
    desk._tell(lease.holder, "by root: maintenance")
    with pytest.raises(LeaseBroken, match="by root: maintenance"):
        lease.check()
    lease.release()


def test_a_directory_that_cannot_be_used_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="HIL_LEASES"):
        _acquire(LeaseDesk(tmp_path / "file" / "leases"), "a")


@pytest.mark.fault("L7")
def test_the_adapter_is_locked_and_its_console_can_be_opened(tmp_path: Path) -> None:
    board, adapter = pty.openpty()
    node = os.ttyname(adapter)
    with LeaseDesk(tmp_path / "a").acquire(
        ["serial a"], board="b", purpose="p", timeout=0, nodes={"serial a": node}
    ):
        assert not termios.tcgetattr(adapter)[3] & termios.ECHO  # the board must not hear itself
        Console(SerialAddress(node)).close()
        with pytest.raises(BoardHeld, match="leases are kept elsewhere"):
            LeaseDesk(tmp_path / "b").acquire(
                ["serial a"], board="b", purpose="p", timeout=0, nodes={"serial a": node}
            )
    with LeaseDesk(tmp_path / "b").acquire(
        ["serial a"], board="b", purpose="p", timeout=0, nodes={"serial a": node}
    ):
        pass
    os.close(board)
    os.close(adapter)


@pytest.mark.fault("L7")
def test_an_adapter_that_another_has_for_itself_is_held(desk: LeaseDesk) -> None:
    board, adapter = pty.openpty()
    node = os.ttyname(adapter)
    fcntl.ioctl(adapter, termios.TIOCEXCL)
    with pytest.raises(BoardHeld):
        desk.acquire(["serial a"], board="b", purpose="p", timeout=0, nodes={"serial a": node})
    os.close(board)
    os.close(adapter)


@pytest.mark.fault("L7")
def test_no_number_of_files_hides_a_holder(
    tmp_path: Path, desk: LeaseDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.lab.lease_directory._MOST_FOLDERS", 40)
    (tmp_path / "leases").mkdir()
    for number in range(100):
        (tmp_path / "leases" / f"{number}").touch()
    with _acquire(desk, "a"):
        for number in range(100):
            (tmp_path / "leases" / f"x{number}").touch()
        with pytest.raises(BoardHeld):
            _acquire(desk, "a")
        for number in range(40):
            (tmp_path / "leases" / f"stmm-hil-{number}").touch()
        with pytest.raises(HostError, match="is full"):
            _acquire(desk, "a")


def test_an_adapter_that_was_unplugged_is_not_kept_open(desk: LeaseDesk) -> None:
    """Or it would come back under another name."""
    board, adapter = pty.openpty()
    node = os.ttyname(adapter)
    os.close(adapter)

    def opened() -> bool:
        return any(
            os.path.realpath(one).startswith(node) for one in Path("/proc/self/fd").iterdir()
        )

    with desk.acquire(
        ["serial a"], board="b", purpose="p", timeout=0, nodes={"serial a": node}
    ) as lease:
        lease.watch(lambda broken: None, every=0.01)
        assert opened()
        os.close(board)
        until(lambda: not opened())
        lease.check()


_USER = """
import json, os, random, sys, threading, time
from pathlib import Path
from harness.lab.lease import LeaseDesk
directory, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
random.seed(seed)
end = time.monotonic() + seconds
desk = LeaseDesk(directory / "leases")
journal = os.open(directory / "journal", os.O_WRONLY | os.O_APPEND)
while time.monotonic() < end:
    board = random.choice("abc")
    things = [f"serial {board}", f"outlet {board}"]
    with desk.acquire(things, board=board, purpose="stress", timeout=120) as lease:
        who = [os.getpid(), lease.token, board]
        os.write(journal, (json.dumps([*who, "in"]) + "\\n").encode())
        threading.Event().wait(random.uniform(0, 0.05))
        os.write(journal, (json.dumps([*who, "out"]) + "\\n").encode())
"""


def test_twenty_users_fight_over_three_boards(tmp_path: Path) -> None:
    """Never two holders, never a dead lease, though every now and then one is killed.

    HIL_LEASE_SECONDS makes it as long as wanted (nightly: 60).
    """
    seconds = float(os.environ.get("HIL_LEASE_SECONDS", "4"))
    (tmp_path / "journal").touch()
    seeds = iter(range(10_000))

    end = time.monotonic() + seconds

    def start() -> subprocess.Popen[bytes]:
        left = str(max(end - time.monotonic(), 0))
        arguments = [str(tmp_path), str(next(seeds)), left]
        return subprocess.Popen([sys.executable, "-c", _USER, *arguments])

    users = [start() for _ in range(20)]
    dice = random.Random(7)
    killed = set()
    try:
        while time.monotonic() < end:
            threading.Event().wait(0.3)
            victim = dice.randrange(len(users))
            users[victim].kill()
            users[victim].wait(10)
            killed.add(users[victim].pid)
            users[victim] = start()
        endings = [user.wait(60) for user in users]
    finally:
        for user in users:
            user.kill()
            user.wait()
    assert endings == [0] * 20
    inside: dict[str, tuple[int, str]] = {}
    turns = dict.fromkeys("abc", 0)
    died_holding = 0
    for line in (tmp_path / "journal").read_text().splitlines():
        pid, token, board, what = json.loads(line)
        if what == "out":
            assert inside.pop(board) == (pid, token)
            continue
        # Only one who was killed can have failed to leave.
        assert board not in inside or inside[board][0] in killed
        died_holding += board in inside
        inside[board] = (pid, token)
        turns[board] += 1
    print(
        f"{seconds:g} s: {sum(turns.values())} leases ({turns}), {len(killed)} users killed, "
        f"{died_holding} of them while they held a board"
    )
    assert killed
    assert min(turns.values()) > 5
    assert LeaseDesk(tmp_path / "leases").all() == Status((), ())
