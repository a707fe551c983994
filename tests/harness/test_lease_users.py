"""Leases of users who do not trust each other: two real users, and containers, on one host."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.lab.lease import LeaseBroken, LeaseDesk
from tests.harness.support import people
from tests.harness.support.people import ANN, BOB, CONTAINER, Bench, needs_users
from tests.pace import HANGS, until

SECRET = "hunter2-of-the-outlet"
REASON = "demo at three"

FORGE = """
import json, os, sys
from pathlib import Path
forged = 0
for path in Path(os.environ["HIL_LEASES"]).rglob("*"):
    try:
        record = json.loads(path.read_text())
        record["pid"] = int(sys.argv[1])
        with open(path, "r+") as file:
            file.truncate()
            file.write(json.dumps(record))
        forged += 1
    except (OSError, ValueError, TypeError):
        pass
print(forged, flush=True)
"""
"""Writes another process id into every record that it can write to."""

OWN = """
import json, os, sys, threading
from pathlib import Path
from harness.boardfile import loading
from harness.lab.lease import lease_board
lease = lease_board(loading.load(Path(sys.argv[1])), purpose=sys.argv[2])
for path in Path(os.environ["HIL_LEASES"]).rglob("*"):
    try:
        record = json.loads(path.read_text())
        record.update(json.loads(sys.argv[3]))
        with open(path, "r+") as file:
            file.truncate()
            file.write(json.dumps(record))
    except (OSError, ValueError, TypeError):
        pass
print("holds", flush=True)
threading.Event().wait()
"""
"""Holds the board and says in its own record what the third word says."""

LITTER = """
import fcntl, os, socket, struct, sys, threading
from pathlib import Path
top = Path(os.environ["HIL_LEASES"])
own = top / "stmm-hil-bob"
own.mkdir()
kind, private = sys.argv[1:]
open_files = []
def litter(path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(private)
    elif kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        os.chdir(path.parent)
        listening.bind(path.name)
        open_files.append(listening)
    else:
        contents = {
            "private": b"{}", "bytes": bytes(range(256)), "list": b"[1, {}]",
            "types": b'{"user": 7, "pid": "x", "board": [], "purpose": {}, "since": "now",'
                     b' "things": 5, "token": null, "host": 1, "proof": 2}',
            "times": b'{"user": "u", "pid": 1, "board": "b", "purpose": "p", "since": 1e300,'
                     b' "things": [], "token": "t"}',
            "nested": b"[" * 30000, "long": b'"' + b"x" * 1000000 + b'"',
        }
        file = open(path, "wb")
        file.write(contents[kind])
        file.flush()
        if kind == "private":
            path.chmod(0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        open_files.append(file)
names = ["x.lock", "stmm-hil-odd", "00000000000000000001-0123456789abcdef"]
names += [f"{names[-1]}.{state}" for state in ("wait", "held")]
for folder in (top, top / "queue", own):
    if folder.is_dir():
        for name in names:
            litter(folder / name)
print("littered", flush=True)
threading.Event().wait()
"""
"""Puts things of one kind where leases and waiting users are."""

MARK = """
import json, os, sys
from pathlib import Path
top = Path(os.environ["HIL_LEASES"])
own = top / "stmm-hil-bob"
own.mkdir()
kind, private = sys.argv[1:]
marked = 0
for path in [*top.rglob("*")]:
    names = [path.name.partition(".")[0]]
    try:
        names.append(json.loads(path.read_text())["token"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    for folder in (top, own):
        for name in names:
            mark = folder / f"{name}.broken"
            try:
                if kind == "fifo":
                    os.mkfifo(mark)
                elif kind == "link":
                    mark.symlink_to(private)
                elif kind == "directory":
                    mark.mkdir()
                elif kind == "bytes":
                    mark.write_bytes(b"\\xff\\xfe\\x1b[2J\\n")
                marked += 1
            except OSError:
                pass
print(marked, flush=True)
"""
"""Breaks every lease with a mark that is not what it should be."""


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield from people.bench()


@pytest.fixture
def private(bench: Bench) -> Path:
    path = bench.folder / "private"
    path.write_text("a private key\n")
    path.chmod(0o600)
    os.chown(path, ANN, ANN)
    return path


@pytest.fixture
def bystander(bench: Bench) -> subprocess.Popen[str]:
    """A process of Ann's that has nothing to do with leases."""
    return bench.program(ANN, "import threading; print(1, flush=True); threading.Event().wait()")


def _deaf(bench: Bench, uid: int) -> subprocess.Popen[str]:
    """A holder that does not react."""
    held = bench.hold(uid)
    held.send_signal(signal.SIGSTOP)
    return held


# --- who holds is what the kernel says ------------------------------------------------------------


@needs_users
@pytest.mark.long
@pytest.mark.fault("L1")
def test_only_the_process_that_has_the_lock_is_ended(
    bench: Bench, bystander: subprocess.Popen[str]
) -> None:
    held = _deaf(bench, ANN)
    bench.program(BOB, FORGE, str(bystander.pid))
    taken = bench.hil(ANN, "lease", "break", bench.board)
    assert bystander.poll() is None
    assert taken.returncode == 0, taken.stderr
    assert held.wait(HANGS) == -signal.SIGKILL


@needs_users
@pytest.mark.long
@pytest.mark.fault("L1")
def test_root_does_not_believe_a_holder_who_names_anothers_process(
    bench: Bench, bystander: subprocess.Popen[str]
) -> None:
    bob = bench.program(BOB, OWN, bench.board, "mine", json.dumps({"pid": bystander.pid}))
    shown = bench.hil(0, "lease", "show").stdout
    assert f"process {bystander.pid}" not in shown
    bob.send_signal(signal.SIGSTOP)
    assert bench.hil(0, "lease", "break", bench.board).returncode == 0
    assert bystander.poll() is None
    assert bob.wait(HANGS) == -signal.SIGKILL


PASS_ON = """
import os, socket, sys, threading
from pathlib import Path
from harness.boardfile import loading
from harness.lab.lease import lease_board
lease = lease_board(loading.load(Path(sys.argv[1])), purpose="mine")
end = socket.socket(socket.AF_UNIX)
end.connect(sys.argv[2])
for number in os.listdir("/proc/self/fd"):
    try:
        if os.environ["HIL_LEASES"] in os.readlink(f"/proc/self/fd/{number}"):
            socket.send_fds(end, [b"x"], [int(number)])
    except OSError:
        pass
end.shutdown(socket.SHUT_WR)
print("passed", flush=True)
threading.Event().wait()
"""
TAKE = """
import socket, sys, threading
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print("listens", flush=True)
end, _ = listening.accept()
kept = []
while (got := socket.recv_fds(end, 1, 10))[0]:
    kept += got[1]
print(len(kept), flush=True)
threading.Event().wait()
"""


@needs_users
@pytest.mark.long
@pytest.mark.fault("L1")
def test_who_was_handed_anothers_lock_is_not_ended_for_it(bench: Bench) -> None:
    socket = bench.leases / "bus"
    bystander = bench.program(ANN, TAKE, socket)
    socket.chmod(0o777)
    bob = bench.program(BOB, PASS_ON, bench.board, socket)
    assert bystander.stdout is not None
    assert int(bystander.stdout.readline()) > 0
    bob.send_signal(signal.SIGSTOP)
    refused = bench.hil(0, "lease", "break", bench.board)
    assert bystander.poll() is None
    assert bob.wait(HANGS) == -signal.SIGKILL
    assert refused.returncode == 1
    assert "not ours to end" in refused.stderr


@needs_users
@pytest.mark.long
@pytest.mark.fault("L1")
def test_another_user_is_asked_and_never_ended(bench: Bench) -> None:
    held = bench.hold(ANN)
    taken = bench.hil(BOB, "lease", "break", "--reason", REASON, bench.board)
    assert taken.returncode == 0, taken.stderr
    _, told = held.communicate(timeout=HANGS)
    assert f"broken: by uid {BOB}: {REASON}" in told
    deaf = _deaf(bench, ANN)
    refused = bench.hil(BOB, "lease", "break", bench.board)
    assert deaf.poll() is None
    assert (refused.returncode, f"only uid {ANN} or root" in refused.stderr) == (1, True)


# --- files of other users -------------------------------------------------------------------------

KINDS = ["fifo", "directory", "link", "socket", "private", "bytes", "list", "types", "times"]


@needs_users
@pytest.mark.fault("L2", "L8")
@pytest.mark.parametrize("kind", [*KINDS, "nested", "long"])
def test_what_another_user_leaves_is_passed_over_and_told_once(
    bench: Bench, private: Path, kind: str
) -> None:
    (bench.leases / "queue").mkdir()
    (bench.leases / "queue").chmod(0o1777)
    bench.program(BOB, LITTER, kind, private)
    held = bench.hold(ANN)
    for words in (["show"], ["show", "--json"], ["show", bench.board]):
        shown = bench.hil(ANN, "lease", *words)
        assert shown.returncode == 0
        assert f"process {held.pid}" in shown.stdout or f'"pid": {held.pid}' in shown.stdout
        assert shown.stderr.count("passed over") == 1, shown.stderr
        assert f"of uid {BOB}" in shown.stderr
    assert bench.hil(BOB, "lease", "hold", bench.board, "true").returncode == 1
    assert bench.hil(ANN, "lease", "break", bench.board).returncode == 0
    assert bench.hil(ANN, "lease", "hold", bench.board, "true").returncode == 0


@needs_users
@pytest.mark.fault("L3", "L5")
@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "bytes"])
def test_a_mark_that_is_none_hinders_nobody(bench: Bench, private: Path, kind: str) -> None:
    held = bench.hold(ANN)
    marker = bench.program(BOB, MARK, kind, private)
    marker.wait(HANGS)
    if kind != "bytes":
        # Bytes are a reason, too, if a strange one.
        taken = bench.hil(ANN, "lease", "break", "--reason", REASON, bench.board)
        assert taken.returncode == 0, taken.stderr
    _, told = held.communicate(timeout=HANGS)
    assert held.returncode == 1
    assert "private key" not in told
    assert "\x1b" not in told
    assert (REASON if kind != "bytes" else f"by uid {BOB}: ") in told


@needs_users
@pytest.mark.fault("L3")
def test_a_fifo_as_mark_does_not_keep_the_holder_from_ending(bench: Bench, private: Path) -> None:
    held = bench.hold(ANN)
    bench.program(BOB, MARK, "fifo", private).wait(HANGS)
    threading.Event().wait(1)  # the holder has looked
    held.send_signal(signal.SIGINT)
    assert held.wait(20) == 130


_WATCHED = """
import sys, threading
from harness.boardfile import loading
from harness.lab.lease import LeaseBroken, LeaseDesk, leased

def fails(*_):
    raise RuntimeError("the directory is gone")

try:
    with leased(loading.load(loading.find(sys.argv[1])), purpose="x"):
        LeaseDesk.breaker = fails
        threading.Event().wait(10)
except LeaseBroken as broken:
    print(broken)
"""


@pytest.mark.fault("L3")
def test_a_watcher_that_dies_ends_the_run(tmp_path: Path) -> None:
    """In a process of its own: it is interrupted."""
    bench = Bench(tmp_path, tmp_path)
    bench.describe()
    run = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(bench.board)],
        env={
            **os.environ,
            "HIL_LEASES": str(tmp_path / "leases"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert "the directory is gone" in run.stdout, run.stderr


@pytest.mark.fault("L3", "L7")
def test_a_lease_whose_file_was_removed_is_over(tmp_path: Path) -> None:
    with LeaseDesk(tmp_path).acquire(["a"], board="b", purpose="p", timeout=0) as lease:
        for path in tmp_path.rglob("*"):
            if path.is_file():
                path.unlink()
        with pytest.raises(LeaseBroken):
            lease.check()


# --- what others see ------------------------------------------------------------------------------


@needs_users
@pytest.mark.fault("L4")
def test_no_option_of_a_power_driver_is_shown(bench: Bench) -> None:
    bench.describe(on=f"pdu -p {SECRET} on")
    bench.hold(ANN)
    for path in bench.leases.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET not in path.read_text()
    assert SECRET not in bench.hil(BOB, "lease", "show", "--json").stdout
    refused = bench.hil(BOB, "lease", "hold", bench.board, "true")
    assert SECRET not in refused.stdout + refused.stderr


@needs_users
@pytest.mark.fault("L6")
def test_nothing_that_another_user_can_read_lets_him_in(bench: Bench) -> None:
    bench.hold(ANN)
    reader = (
        "import os, re; from pathlib import Path\n"
        "for path in Path(os.environ['HIL_LEASES']).rglob('*'):\n"
        "    print(path.name)\n"
        "    try: print(path.read_text())\n"
        "    except OSError: pass\n"
    )
    seen = bench.run(BOB, "-c", reader).stdout
    words = {word for word in seen.replace(":", '"').replace(".", '"').split('"') if len(word) > 8}
    for word in [*words, *(f"{ANN}:{word}" for word in words)]:
        if " " not in word and "\n" not in word:
            tried = bench.hil(BOB, "lease", "hold", bench.board, "true", HIL_LEASE_TOKEN=word)
            assert tried.returncode == 1, word


@needs_users
@pytest.mark.fault("L6")
def test_a_forged_lease_is_not_the_one_that_a_process_was_started_under(bench: Bench) -> None:
    """Bob publishes the proof of Ann's token as his own; what Ann starts is not under his."""
    ann = bench.hold(ANN)
    assert ann.stdout is not None
    token = ann.stdout.readline().rpartition("=")[2].strip()
    other = bench.folder / "other.toml"
    other.write_text(bench.board.read_text().replace("10.0.0.9", "10.0.0.8").replace("pdu", "b"))
    records = [path for path in bench.leases.rglob("*") if path.is_file()]
    proofs = [json.loads(path.read_text() or "{}") for path in records]
    (own,) = [{key: it[key] for key in ("proof", "token") if key in it} for it in proofs if it]
    bench.program(BOB, OWN, other, "mine", json.dumps(own))
    inner = bench.hil(ANN, "lease", "hold", bench.board, "true", HIL_LEASE_TOKEN=token)
    assert inner.returncode == 0, inner.stderr
    assert bench.hil(ANN, "lease", "hold", other, "true", HIL_LEASE_TOKEN=token).returncode == 1


@needs_users
@pytest.mark.fault("L9")
def test_what_others_say_reaches_no_terminal(bench: Bench) -> None:
    said = dict.fromkeys(("user", "host", "board", "purpose"), "x\x1b[2J\nroot says\x9b\u202e")
    bench.program(BOB, OWN, bench.board, "a\x1b]0;b\x07\nfake", json.dumps(said))
    outputs = [bench.hil(ANN, "lease", "show"), bench.hil(ANN, "lease", "show", "--json")]
    outputs.append(bench.hil(ANN, "lease", "hold", bench.board, "true"))
    for output in outputs:
        text = output.stdout + output.stderr
        assert "says" in text or "fake" in text
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
        assert "\nroot says" not in text
        assert "\nfake" not in text


@needs_users
@pytest.mark.fault("L9")
def test_a_reason_reaches_no_terminal_as_it_is(bench: Bench) -> None:
    held = bench.hold(ANN)
    reason = "now\x1b[2J\nroot: type your password" + "!" * 5000
    bench.hil(BOB, "lease", "break", "--reason", reason, bench.board)
    _, told = held.communicate(timeout=HANGS)
    assert "now\\x1b[2J\\nroot: type" in told
    assert len(told) < 2000


# --- the directory --------------------------------------------------------------------------------

REMOVE = """
import os, shutil
from pathlib import Path
for path in Path(os.environ["HIL_LEASES"]).rglob("*"):
    try:
        path.unlink()
    except OSError:
        try:
            path.rename(path.with_name(path.name + "x"))
        except OSError:
            pass
print("removed", flush=True)
"""


@needs_users
@pytest.mark.fault("L7")
@pytest.mark.parametrize("maker", [0, BOB])
def test_who_was_there_first_cannot_remove_anothers_lease(bench: Bench, maker: int) -> None:
    """The directory is root's, or one that its first user made: then it is refused."""
    if maker:
        bench.leases = bench.folder / "made"
        bench.leases.mkdir()
        os.chown(bench.leases, maker, maker)
        bench.leases.chmod(0o1777)
    assert bench.hil(BOB, "lease", "hold", bench.board, "true").returncode == 0
    held = bench.start(ANN, "-m", "harness", "lease", "hold", bench.board)
    assert held.stdout is not None
    if not held.stdout.readline():
        _, told = held.communicate(timeout=HANGS)
        assert maker
        assert f"it belongs to uid {BOB}, who could remove others' leases" in told
        assert "install -d -m 1777" in told
        return
    bench.program(BOB, REMOVE)
    bob = bench.hil(BOB, "lease", "hold", bench.board, "true")
    assert (bob.returncode, held.poll()) == (1, None), "two holders"


@pytest.mark.fault("L7")
@pytest.mark.parametrize(
    ("mode", "told"),
    [(0o777, "written by others and is not sticky"), (0o772, "not sticky"), (0o1777, "")],
)
def test_a_directory_in_which_others_can_remove_is_refused(
    tmp_path: Path, mode: int, told: str
) -> None:
    for directory in (tmp_path / "a", tmp_path / "a" / "leases"):
        directory.mkdir()
    (tmp_path / "a").chmod(mode)
    for directory in (tmp_path / "a", tmp_path / "a" / "leases"):
        desk = LeaseDesk(directory)
        if told:
            with pytest.raises(HostError, match=told):
                desk.acquire(["x"], board="b", purpose="p", timeout=0)
        else:
            desk.acquire(["x"], board="b", purpose="p", timeout=0).release()


@needs_users
@pytest.mark.fault("L7")
def test_a_directory_that_is_roots_alone_is_refused(bench: Bench) -> None:
    bench.leases.chmod(0o755)
    refused = bench.hil(ANN, "lease", "hold", bench.board, "true")
    assert refused.returncode == 1
    assert "only its owner can keep leases there" in refused.stderr


@pytest.mark.fault("L7")
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.lab import lease_directory

    here = lease_directory._file_system(tmp_path.stat().st_dev)
    assert here
    monkeypatch.setattr(lease_directory, "_NETWORK", re.compile(here))
    with pytest.raises(HostError, match=f"a file system of type {here}"):
        LeaseDesk(tmp_path).acquire(["x"], board="b", purpose="p", timeout=0)


USER = """
import json, os, random, sys, threading, time
from pathlib import Path
from harness.boardfile import loading
from harness.lab.lease import BoardHeld, lease_board
board, journal, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
file = loading.load(board)
journal = os.open(journal, os.O_WRONLY | os.O_APPEND)
who = os.urandom(4).hex()
print("ready", flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end:
    try:
        with lease_board(file, purpose="stress", timeout=1):
            os.write(journal, f"{who} in\\n".encode())
            threading.Event().wait(random.uniform(0, 0.03))
            os.write(journal, f"{who} out\\n".encode())
    except BoardHeld:
        pass
    threading.Event().wait(random.uniform(0, 0.02))
"""
ELSEWHERE = "mount -t tmpfs -o mode=1777 none {leases}"
UNPRIVILEGED = ["unshare", "-Urmpn", "--kill-child", "--mount-proc"]


@needs_users
@pytest.mark.long
@pytest.mark.fault("L7")
@pytest.mark.parametrize("shared", [True, False], ids=["shared directory", "each its own"])
def test_two_containers_and_two_users_on_one_adapter(bench: Bench, shared: bool) -> None:
    """Never two holders, and everybody has a turn; without a shared directory, by the lock on the
    adapter's node."""
    board, adapter = pty.openpty()
    tty.setraw(adapter)
    node = Path(os.ttyname(adapter))
    node.chmod(0o666)
    bench.describe(serial=str(node))
    journal = bench.folder / "journal"
    journal.touch()
    journal.chmod(0o666)
    seconds = os.environ.get("HIL_LEASE_SECONDS", "4")
    before = ":" if shared else ELSEWHERE.format(leases=bench.leases)
    words = ("-c", USER, bench.board, journal, seconds)
    users = [bench.start(0, *words, container=CONTAINER, before=before) for _ in range(2)]
    users += [bench.start(uid, *words) for uid in (ANN, BOB)]
    try:
        for user in users:
            _, errors = user.communicate(timeout=HANGS + float(seconds))
            assert user.returncode == 0, errors
    finally:
        os.close(board)
        os.close(adapter)
    inside = ""
    turns: dict[str, int] = {}
    for line in journal.read_text().splitlines():
        who, what = line.split()
        assert inside == ("" if what == "in" else who), "two holders"
        inside = who if what == "in" else ""
        turns[who] = turns.get(who, 0) + (what == "in")
    print(f"{seconds} s: {sorted(turns.values())} leases")
    assert len(turns) == len(users)
    assert min(turns.values()) > 2


@needs_users
@pytest.mark.fault("L7")
def test_a_container_of_an_ordinary_user_shares_the_leases(bench: Bench) -> None:
    held = bench.hold(ANN)
    inside = (
        "import subprocess, sys; sys.exit(subprocess.run([*sys.argv[1].split(), sys.executable,"
        " '-m', 'harness', 'lease', 'hold', sys.argv[2], 'true']).returncode)"
    )
    words = ("-c", inside, " ".join(UNPRIVILEGED), bench.board)
    refused = bench.run(BOB, *words)
    if "unshare" in refused.stderr:
        pytest.skip(refused.stderr)
    assert refused.returncode == 1, refused.stderr
    assert "a process not seen from here" in refused.stderr
    held.send_signal(signal.SIGINT)
    held.wait(HANGS)
    assert bench.run(BOB, *words).returncode == 0


@needs_users
@pytest.mark.fault("L7")
def test_an_adapter_locked_by_a_container_names_no_process_of_ours(bench: Bench) -> None:
    board, adapter = pty.openpty()
    tty.setraw(adapter)
    bench.describe(serial=os.ttyname(adapter))
    before = ELSEWHERE.format(leases=bench.leases)
    words = ("-m", "harness", "lease", "hold", bench.board)
    held = bench.start(0, *words, container=CONTAINER, before=before)
    assert held.stdout is not None
    assert "is held" in held.stdout.readline()
    refused = bench.hil(0, "lease", "hold", bench.board, "true")
    os.close(board)
    os.close(adapter)
    assert refused.returncode == 1
    assert "has locked the serial adapter; its leases are kept elsewhere" in refused.stderr


@needs_users
@pytest.mark.long
def test_who_is_stopped_in_front_loses_the_turn(bench: Bench) -> None:
    held = bench.hold(ANN)
    waiting = bench.start(BOB, "-m", "harness", "lease", "hold", "--wait", "200", bench.board)
    until(lambda: "waits 1" in bench.hil(ANN, "lease", "show").stdout, HANGS)
    waiting.send_signal(signal.SIGSTOP)
    held.send_signal(signal.SIGINT)
    held.wait(HANGS)
    assert bench.hil(ANN, "lease", "hold", bench.board, "true").returncode == 1
    late = bench.hil(ANN, "lease", "hold", "--wait", "50", bench.board, "true")
    assert late.returncode == 0, late.stderr
