"""Hard ends: signals, terminals that close, a host whose disk or tables are full, boards that
restart by themselves."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import pytest

from tests.harness.support.runs import ROOT, board_file, inner_run
from tests.harness.support.watched import Watched
from tests.pace import HANGS, until

HELD = """
import pytest, threading
from harness.formats.efi import GLOBAL_VARIABLE_GUID as GLOBAL

def blocks(where):
    print("NOW", where, flush=True)
    threading.Event().wait(200)

@pytest.fixture
def slow_fixture(efivars):
    efivars.write("Own", b"x")
    blocks("in a fixture")

@pytest.fixture(scope="session")
def slow_finaliser():
    yield
    blocks("in a finaliser")

@pytest.mark.foreign("BootNext")
def test_writes(efivars, request):
    efivars.write("Own", b"x")
    efivars.overwrite("BootNext", b"\\1\\0", guid=GLOBAL)
    if "finaliser" in request.config.getoption("-k"):
        request.getfixturevalue("slow_finaliser")
    blocks("in a test")

def test_fixture(slow_fixture):
    pass

def test_swallows(efivars):
    efivars.write("Own", b"x")
    try:
        blocks("where all is caught")
    except BaseException:
        pass

def test_fails_in_its_clean_up(board):
    try:
        blocks("before a clean-up")
    finally:
        raise OSError("planted")

def test_is_not_run(board):
    print("BUT IT IS", flush=True)

@pytest.mark.power
def test_boots(board):
    print("NOW booting", flush=True)
    while True:
        board.switch.cycle()
"""
SIGNALS = [signal.SIGTERM, signal.SIGHUP]


def _board(folder: Path, name: str = "soft") -> Path:
    path = board_file(
        folder,
        'driver = "emulated"',
        f'driver = "emulated"\nstate = "{name}-flash"',
        'name = "emulated"',
        f'name = "{name}"',
    )
    return path.rename(folder / f"{name}.toml")


def _snapshot(folder: Path, name: str = "soft") -> Path:
    return folder / f"{name}-flash" / "safekeeping" / "snapshot.json"


def _pytest(folder: Path, *words: str, source: str = HELD) -> Watched:
    (folder / "test_inner.py").write_text(source)
    command = ["-m", "pytest", "-p", "harness.pytest_plugin", "-p", "no:cacheprovider", "-s"]
    command += ["--rootdir", str(folder), "-c", "/dev/null", "-rA", "test_inner.py", *words]
    return _started(folder, *command)


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HIL_LEASES": str(folder / "leases")}


def _started(folder: Path, *words: str) -> Watched:
    return Watched(folder, _environment(folder), *words)


def _given_back(folder: Path, output: str, name: str = "soft") -> None:
    kept = _snapshot(folder, name)
    assert not kept.exists(), output
    assert kept.with_name("snapshot.restored.json").exists(), output
    assert "NOT restored" not in output


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.fault("R1")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("test", "where"),
    [("test_writes", "in a test"), ("test_fixture", "in a fixture"), ("test_boots", "booting")],
)
def test_a_signal_gives_the_board_back(
    tmp_path: Path, number: signal.Signals, test: str, where: str
) -> None:
    run = _pytest(tmp_path, "--board", str(_board(tmp_path)), "-k", test)
    run.until(f"NOW {where}")
    run.process.send_signal(number)
    status = run.end()
    assert status == pytest.ExitCode.INTERRUPTED, run.output
    _given_back(tmp_path, run.output)


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    ("test", "where"),
    [("swallows", "where all is caught"), ("fails_in_its", "before a clean-up")],
)
def test_a_signal_that_something_catches_ends_the_run_all_the_same(
    tmp_path: Path, test: str, where: str
) -> None:
    run = _pytest(tmp_path, "--board", str(_board(tmp_path)), "-k", f"{test} or not_run")
    run.until(f"NOW {where}")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == pytest.ExitCode.INTERRUPTED, run.output
    assert "BUT IT IS" not in run.output
    _given_back(tmp_path, run.output)


@pytest.mark.fault("R1")
def test_a_closed_terminal_gives_the_board_back(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(HELD)
    board = _board(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        words = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "-s"]
        words += ["-p", "no:cacheprovider", "-c", "/dev/null", "--board", str(board)]
        os.execve(sys.executable, [*words, "-k", "writes", "test_inner.py"], _environment(tmp_path))
    try:
        seen = b""
        while b"NOW in a test" not in seen:
            seen += os.read(terminal, 4096)
        os.close(terminal)
        deadline = time.monotonic() + HANGS
        ended = 0
        while not ended and time.monotonic() < deadline:
            ended, _ = os.waitpid(pid, os.WNOHANG)
            Event().wait(0.05)
        assert ended, "it did not end"
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _given_back(tmp_path, seen.decode())


@pytest.mark.fault("R1")
@pytest.mark.parametrize("number", SIGNALS)
def test_every_board_of_a_run_is_given_back(tmp_path: Path, number: signal.Signals) -> None:
    boards = [f"--board={_board(tmp_path, name)}" for name in ("alpha", "beta")]
    run = _pytest(tmp_path, *boards, "-k", "writes")
    until(lambda: all(_has_written(tmp_path, name) for name in ("alpha", "beta")), 120.0)
    # As `timeout`, a CI runner or a terminal does it: to all of them.
    os.killpg(os.getpgid(run.process.pid), number)
    status = run.end()
    assert status == pytest.ExitCode.INTERRUPTED, run.output
    for name in ("alpha", "beta"):
        _given_back(tmp_path, run.output, name)


def _has_written(folder: Path, name: str) -> bool:
    return _snapshot(folder, name).exists()


@pytest.mark.fault("R1")
def test_waiting_for_a_lease_ends_at_once(tmp_path: Path) -> None:
    board = str(_board(tmp_path))
    with _holding(tmp_path, board):
        run = _pytest(tmp_path, "--board", board, "--wait-for-board", "200")
        run.until("waiting for board")
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == pytest.ExitCode.INTERRUPTED, run.output
        shown = _hil(tmp_path, "lease", "show")
        assert "waits" not in shown.stdout


@contextmanager
def _holding(folder: Path, board: str) -> Iterator[Watched]:
    holder = _started(folder, "-m", "harness", "lease", "hold", board)
    holder.until("is held")
    try:
        yield holder
    finally:
        holder.process.send_signal(signal.SIGINT)
        holder.end()


def _hil(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *words]
    return subprocess.run(
        command,
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


@pytest.mark.fault("R1")
def test_a_second_signal_ends_the_step_that_it_finds(tmp_path: Path) -> None:
    run = _pytest(tmp_path, "--board", str(_board(tmp_path)), "-k", "writes or finaliser")
    run.until("NOW in a test")
    run.process.send_signal(signal.SIGTERM)
    run.until("NOW in a finaliser")
    Event().wait(1.2)  # sooner it would be the same signal
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == pytest.ExitCode.INTERRUPTED, run.output
    assert "another SIGTERM" in run.output
    _given_back(tmp_path, run.output)


WHOLE = """
import os, signal, sys, time
from harness import interrupts

interrupts.install()
try:
    with interrupts.ending():
        os.kill(os.getpid(), signal.SIGTERM)  # giving back has begun: nothing happens
        time.sleep(interrupts._SAME_SECONDS)
        try:
            with interrupts.whole():
                os.kill(os.getpid(), signal.SIGHUP)
                print("the variable was written", flush=True)
            print("not reached", flush=True)
        except interrupts.Interrupted as again:
            print("then", again, flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # one is let pass: results are written
        time.sleep(interrupts._SAME_SECONDS)
        os.kill(os.getpid(), number)
    print("not reached", flush=True)
except KeyboardInterrupt as end:
    print("at last", end, flush=True)
"""


@pytest.mark.fault("R1")
def test_what_must_be_whole_is_finished_first(tmp_path: Path) -> None:
    run = _started(tmp_path, "-c", WHOLE)
    assert run.end() == 0, run.output
    assert run.output.splitlines() == [
        "the variable was written",
        "then SIGHUP",
        "at last SIGINT",
    ]


@pytest.mark.fault("R1")
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGINT])
def test_commands_end_in_order(tmp_path: Path, number: signal.Signals) -> None:
    run = _started(
        tmp_path, "-m", "harness", "run", str(_board(tmp_path)), "echo NOW >&2; exec sleep 200"
    )
    console = tmp_path / "soft-flash" / "manager.sock"
    until(console.exists, 60.0)
    Event().wait(1.0)
    run.process.send_signal(number)
    assert run.end() == 128 + number, run.output
    # The supervisor has ended in order: it took its sockets and keys along.
    assert not console.exists()
    assert "held" not in _hil(tmp_path, "lease", "show").stdout.replace("nobody holds", "")


@pytest.mark.fault("R1")
def test_a_lease_is_held_until_its_command_has_ended(tmp_path: Path) -> None:
    board = str(_board(tmp_path))
    script = "trap 'sleep 2; echo GAVE-BACK; exit 3' TERM; echo NOW; while :; do sleep .1; done"
    run = _started(tmp_path, "-m", "harness", "lease", "hold", board, "sh", "-c", script)
    run.until("NOW")
    run.process.send_signal(signal.SIGTERM)
    Event().wait(0.3)
    assert "held" in _hil(tmp_path, "lease", "show").stdout.replace("nobody holds", "")
    assert run.end() == 3, run.output
    assert "GAVE-BACK" in run.output


# --- what this host lacks -----------------------------------------------------------------------

WRITES = """
def test_writes(efivars):
    efivars.write("Own", b"x")
"""


def _limited(folder: Path, before: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A run whose command stands behind ``before``."""
    (folder / "test_inner.py").write_text(WRITES)
    command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin"]
    command += ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder)]
    command += ["--board", str(folder / "soft.toml"), "test_inner.py"]
    return subprocess.run(
        [*before, *command],
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


def _refused_by_host(run: subprocess.CompletedProcess[str], why: str) -> None:
    said = run.stdout + run.stderr
    assert run.returncode == pytest.ExitCode.USAGE_ERROR, said
    assert why in said.lower()
    assert "Fault: host" in said
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said


@pytest.mark.fault("R2")
@pytest.mark.parametrize(
    ("options", "why"),
    [("size=8k", "the disk is full"), ("ro", "read-only"), ("size=8k,nr_inodes=2", "disk is full")],
    ids=["full", "read-only", "no-inodes"],
)
def test_a_full_disk_is_told_before_the_first_write(tmp_path: Path, options: str, why: str) -> None:
    _board(tmp_path)
    kept = tmp_path / "soft-flash" / "safekeeping"
    kept.mkdir(parents=True, mode=0o700)
    (tmp_path / "soft-flash").chmod(0o700)
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", *user, "--mount", "--propagation", "private", "sh", "-c"]
    mount = f"mount -t tmpfs -o {options} none '{kept}'"
    if subprocess.run([*unshare, mount], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    # What the console said is no state: it is kept as far as there is room.
    look = f"find '{kept}' -name console -prune -o -type f -print >'{tmp_path}/left'"
    run = _limited(tmp_path, [*unshare, f'{mount} && "$@"; s=$?; {look}; exit $s', "sh"])
    _refused_by_host(run, why)
    assert (tmp_path / "left").read_text() == ""


@pytest.mark.fault("R2")
def test_a_limit_of_file_sizes_leaves_no_stray_file(tmp_path: Path) -> None:
    """The disk fills up between the look and the snapshot."""
    from harness.errors import of_host
    from harness.safekeeping import snapshot

    script = f"""
import resource, sys
from pathlib import Path
from harness.safekeeping.snapshot import Snapshot, keep
from harness.safekeeping.variables import Stored
from harness.instruments.efivars import VariableName
from uuid import UUID
name = VariableName("Own", UUID(int=1))
kept = Snapshot("b", "c", "i", "t", (), True, {{name: Stored(name, bytes(40000))}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
keep(kept, Path({str(tmp_path)!r}))
"""
    run = _started(tmp_path, "-c", script)
    assert run.end() == 1
    assert "HostExhausted" in run.output, run.output
    assert list(tmp_path.iterdir()) == []
    assert snapshot.pending(tmp_path) is None
    assert of_host(ValueError()) is None


@pytest.mark.fault("R4")
@pytest.mark.parametrize("descriptors", [16, 24, 40, 56])
def test_few_descriptors_are_the_hosts_fault(tmp_path: Path, descriptors: int) -> None:
    _board(tmp_path)
    limit = f'ulimit -n {descriptors} && exec "$@"'
    _refused_by_host(_limited(tmp_path, ["sh", "-c", limit, "sh"]), "")
    assert not _snapshot(tmp_path).exists()


@pytest.mark.fault("R4")
def test_few_processes_are_the_hosts_fault(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("a user id that nobody else uses takes root: its processes are counted")
    _board(tmp_path)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/") and "pytest-" in str(path):
            path.chmod(0o711)
    nobody = 54321
    shutil.chown(tmp_path, nobody, nobody)
    shutil.chown(tmp_path / "soft.toml", nobody, nobody)
    user = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    # This interpreter may be where only root looks.
    reads = "+dac_override,+dac_read_search"
    user += [f"--inh-caps={reads}", f"--ambient-caps={reads}"]
    env = ["env", f"HOME={tmp_path}"]
    for processes in (2, 4, 8):
        prlimit = ["prlimit", f"--nproc={processes}"]
        _refused_by_host(_limited(tmp_path, [*prlimit, *user, *env]), "")


EXHAUSTS = """
import os

def test_runs_out_of_descriptors(board):
    held = []
    board.relink()
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        board.shell.run("true")
    finally:
        for descriptor in held:
            os.close(descriptor)

def test_goes_on(board, efivars):
    efivars.write("Own", b"x")
"""


@pytest.mark.fault("R4")
def test_running_out_in_a_test_is_not_blamed_on_the_board(tmp_path: Path) -> None:
    run = inner_run(tmp_path, EXHAUSTS, board_file(tmp_path))
    blamed = run.output.partition("whose it looks like")[2]
    assert "lab: test_inner.py::test_runs_out_of_descriptors" in blamed, run.output
    assert "ulimit -n" in run.outcomes["test_runs_out_of_descriptors"][1]
    assert run.outcomes["test_goes_on"][0] == "passed"
    # Nobody restarted a board for it.
    assert "reboot" not in run.output
    assert "power cycle" not in run.output


# --- a board that restarts by itself ------------------------------------------------------------

RESTARTS = """
import pytest
from harness.formats.efi import GLOBAL_VARIABLE_GUID as GLOBAL

RESET = "setsid sh -c 'sleep .3; reboot -f' </dev/null >/dev/null 2>&1 &"

@pytest.mark.foreign("BootNext")
def test_is_cut_off(efivars, shell):
    efivars.write("Leftover", b"x")
    efivars.overwrite("BootNext", b"\\1\\0", guid=GLOBAL)
    shell.run(RESET)
    shell.run("sleep 60", timeout=60)

def test_finds_nothing(efivars):
    assert not efivars.exists("Leftover")
    assert not efivars.exists("BootNext", GLOBAL)
    efivars.write("Leftover", b"y")

def test_looks_too_late(board, efivars, shell):
    efivars.write("Leftover", b"x")
    boot = board.links.boot_id
    shell.run(RESET)
    board.links.wait_for_boot(boot, 60)

def test_finds_nothing_either(efivars):
    efivars.write("Leftover", b"y")

def test_misses_what_it_mounted(efivars, shell):
    shell.run("mkdir -p /tmp/here && mount -t tmpfs none /tmp/here && echo x >/tmp/here/file")
    before = shell.run("cat /proc/sys/kernel/random/boot_id").text
    shell.run(RESET)
    for _ in range(200):
        try:
            if shell.run("cat /proc/sys/kernel/random/boot_id").text != before:
                break
        except Exception:
            pass
    assert shell.run("cat /tmp/here/file").text == "x"

def test_goes_on(efivars):
    efivars.write("Leftover", b"y")

@pytest.mark.power
def test_restarts_it_itself(board, power):
    power.cycle()

def test_is_after_that(efivars):
    efivars.write("Leftover", b"y")
"""


@pytest.mark.fault("R3")
def test_a_restart_is_blamed_and_the_next_test_starts_afresh(tmp_path: Path) -> None:
    run = inner_run(tmp_path, RESTARTS, board_file(tmp_path))
    outcomes = {name: verdict for name, (verdict, _) in run.outcomes.items()}
    assert outcomes == {
        "test_is_cut_off": "failure",
        "test_finds_nothing": "passed",
        "test_looks_too_late": "passed",
        "test_finds_nothing_either": "passed",
        "test_misses_what_it_mounted": "failure",
        "test_goes_on": "passed",
        "test_restarts_it_itself": "passed",
        "test_is_after_that": "passed",
    }, run.output
    blamed = run.output.partition("whose it looks like")[2]
    assert "firmware:" not in blamed
    assert "lab: test_inner.py::test_is_cut_off" in blamed
    assert "lab: test_inner.py::test_misses_what_it_mounted" in blamed
    assert "test_is_cut_off: the board restarted by itself" in " ".join(run.output.split())
