"""Runs of pytest that are ended at a random moment, in every way in which a run ends: what can be
restored is listed from the snapshot before that, and is to be back by digest; nothing is to be left
on this machine.

``python -m tests.harness.support.killed_runs [--kills N] [--others N] [--jobs N] [--seed N]``
prints docs/results/killed-runs.md.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Event
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.capabilities import EFIVARS_PATH
from harness.formats.efi import GLOBAL_VARIABLE_GUID, Attributes
from harness.instruments.efivars import NV_BS_RT, VariableName
from harness.instruments.guard import ANY
from harness.safekeeping.variables import Stored, nature
from tests.pace import until

ROOT = Path(__file__).parents[3]
FOREIGN = UUID("3b9f4a52-1d60-4a7e-8f0e-0c9d2e7a6b15")
SEED = 20250717
ALL = ("test_killed.py",)
QUICK = ("test_killed.py::test_own[0]", "test_killed.py::test_somebodys")
"""Tests of a short run."""
_RUN_SECONDS = 240.0
_POLL_SECONDS = 0.01
_RESTORE_SECONDS = 120.0
_TWICE_SECONDS = 1.5
"""From the first ^C to the second: what comes sooner is the same one."""
_PIDFD_GETFD = 438
_PR_SET_CHILD_SUBREAPER = 36

TESTS = f"""
import uuid
import pytest
from harness.formats.efi import GLOBAL_VARIABLE_GUID as GLOBAL

FOREIGN = uuid.UUID("{FOREIGN}")
BOOT_ENTRY = bytes.fromhex("01000000040058000000") + b"\\x7f\\xff\\x04\\x00"

def writes_and_deletes(efivars, name):
    efivars.write(name, b"first")
    efivars.overwrite(name, b"second" * 20)
    efivars.append(name, b"third")
    efivars.delete(name)
    efivars.overwrite("Own", b"changed by " + name.encode())

@pytest.mark.cost(store_bytes=600)
@pytest.mark.parametrize("number", range(3))
def test_own(efivars, number):
    writes_and_deletes(efivars, f"Temporary{{number}}")

@pytest.mark.cost(store_bytes=260)
@pytest.mark.foreign("BootNext", "BootOrder", "Boot00A?")
@pytest.mark.parametrize("number", range(3))
def test_boot_entries(efivars, number):
    efivars.overwrite("BootNext", bytes([number, 0]), guid=GLOBAL)
    efivars.write(f"Boot00A{{number}}", BOOT_ENTRY, guid=GLOBAL)
    efivars.overwrite("BootOrder", bytes([0xA0 + number, 0, 0, 0]), guid=GLOBAL)
    efivars.delete("BootNext", GLOBAL)

@pytest.mark.cost(store_bytes=120)
@pytest.mark.foreign("Foreign")
def test_somebodys(efivars):
    efivars.delete("Foreign", FOREIGN)
    efivars.write("Foreign", b"other data, and more of it", guid=FOREIGN)

@pytest.mark.power
@pytest.mark.cost(store_bytes=700)
@pytest.mark.foreign("BootOrder", "Foreign")
def test_over_a_power_cut(efivars, power):
    efivars.overwrite("BootOrder", b"\\1\\0", guid=GLOBAL)
    efivars.delete("Foreign", FOREIGN)
    writes_and_deletes(efivars, "Cut")
    power.cycle()
    assert efivars.read("BootOrder", GLOBAL).data == b"\\1\\0"

@pytest.mark.disturbs
@pytest.mark.cost(store_bytes=700)
@pytest.mark.foreign("BootNext")
def test_over_a_restart_of_the_supplicant(efivars, tee):
    efivars.overwrite("BootNext", b"\\1\\0", guid=GLOBAL)
    tee.unbind()
    tee.restart_supplicant()
    tee.bind()
    writes_and_deletes(efivars, "Restarted")
"""


class End(StrEnum):
    """What ends a run, or its board or link under it."""

    KILL = "KILL"
    TERM = "TERM"
    HUP = "HUP"
    INT = "INT"
    TWICE = "INT, INT"
    POWER = "power lost"
    LINK = "link dead"


_GIVES_BACK = {End.TERM, End.HUP, End.INT, End.POWER, End.LINK}
"""After which the run itself gives the board back."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One run: what ended it how many seconds after its snapshot, during which test; how many of
    how many restorable variables of the snapshot are back by digest, once ``by`` had been at
    work; what else is wrong, and what was left on this machine."""

    how: End
    after: float
    during: str
    back: int
    restorable: int
    by: str
    wrong: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.back == self.restorable and not self.wrong


class EndedRuns:
    """One emulated board whose flash outlives its runs, in ``folder``, where leases and temporary
    files of the runs are, too."""

    def __init__(self, folder: Path, tests: Sequence[str] = ALL) -> None:
        """``tests`` are the arguments with which pytest chooses them."""
        self._folder = folder
        self._tests = tests
        self.board_file = folder / "keeping.toml"
        self.snapshot = folder / "flash" / "safekeeping" / "snapshot.json"
        self._temporary = folder / "tmp"
        self._temporary.mkdir(exist_ok=True)
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self._temporary),
            "HIL_LEASES": str(folder / "leases"),
        }
        text = (ROOT / "boards" / "emulated.toml").read_text()
        text = text.replace('driver = "emulated"', 'driver = "emulated"\nstate = "flash"')
        self.board_file.write_text(text)
        (folder / "test_killed.py").write_text(TESTS)
        with self.board() as board:
            board.efivars.write("Own", b"of an earlier time", NV_BS_RT)
            board.efivars.write("Foreign", b"somebody's", NV_BS_RT, FOREIGN)
            board.efivars.write("BootNext", b"\0\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
            self.before = _digests(board)

    @contextmanager
    def board(self) -> Iterator[Board]:
        """The board, switched on for a while."""
        with Board(loading.load(self.board_file)) as board:
            board.check_right_board()
            board.wait_until_ready()
            board.foreign_writes.allow(ANY)
            yield board

    def digests(self) -> dict[str, str]:
        """Name and SHA-256 of every variable, by the board's own tools."""
        with self.board() as board:
            return _digests(board)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """pytest on the tests, in a session of its own."""
        command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "-vv"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(self._folder), "-c", "/dev/null"]
        command += ["--board", str(self.board_file), *self._tests, *arguments]
        return subprocess.Popen(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``hil restore`` on the board."""
        return self._hil("restore", str(self.board_file), *arguments)

    def _hil(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "harness", *words],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_RESTORE_SECONDS,
            check=False,
        )

    def duration(self) -> float:
        """Seconds from the snapshot to the end of a run which nobody ends."""
        run = self.start()
        begun = self._wait_for_snapshot(run)
        output, _ = run.communicate(timeout=_RUN_SECONDS)
        assert run.returncode == 0, output
        return time.monotonic() - begun

    def end(self, how: End, after: float) -> Ended:
        """One run that is ended so many seconds after its snapshot, and what is left of it."""
        machine = _Machine(self._folder)
        with machine.adopting_orphans():
            run = self.start()
            self._wait_for_snapshot(run)
            Event().wait(after)
            restorable, before = self._restorable(), _printed(run)
            over = not self.snapshot.exists() or "[100%]" in before
            _bring_about(how, run)
            output, _ = run.communicate(timeout=_RUN_SECONDS)
            output = before + output
            wrong = list(self._judge(how, run.returncode, output, over))
            by = "the run"
            if self.snapshot.exists() or how is End.KILL:
                until(self._is_free, _RUN_SECONDS)
                restored = self.restore("--yes")
                by = "hil restore"
                if restored.returncode:
                    wrong.append(f"hil restore: {restored.stdout}{restored.stderr}")
            wrong += machine.left()
        wrong += self._held()
        now = self.digests()
        back = sum(now.get(name) == digest for name, digest in restorable.items())
        if now != self.before:
            changed = sorted(n for n in {*now, *self.before} if now.get(n) != self.before.get(n))
            wrong.append(f"not as before the first run: {', '.join(changed)}")
        return Ended(how, after, _during(before), back, len(restorable), by, tuple(wrong))

    def kill(self, run: subprocess.Popen[str]) -> str:
        """Kill a run, and wait until its board has noticed; the rest of what it printed."""
        os.killpg(run.pid, signal.SIGKILL)
        output, _ = run.communicate()
        until(self._is_free, _RUN_SECONDS)
        return output

    def _restorable(self) -> dict[str, str]:
        """Name and SHA-256 of what the snapshot has and somebody can write; of a run that has
        already given all back, what it had."""
        path = self.snapshot
        if not path.exists():
            path = path.with_name("snapshot.restored.json")
        found: dict[str, str] = {}
        for one in json.loads(path.read_bytes())["variables"]:
            if "data" not in one:
                continue
            name = VariableName(one["name"], UUID(one["guid"]))
            content = Attributes(one["attributes"]).to_bytes(4, "little")
            content += bytes.fromhex(one["data"])
            if nature(Stored(name, content)) is None:
                found[str(name)] = hashlib.sha256(content).hexdigest()
        return found

    def _judge(self, how: End, status: int, output: str, over: bool) -> Iterator[str]:
        """What a run that ended so must not do, or must say; ``over`` if all its tests had
        been run: then it only gave the board back."""
        pending = self.snapshot.exists()
        if how in _GIVES_BACK and pending:
            yield f"the run did not give the board back:\n{output[-2000:]}"
        if how is End.TWICE and pending and "waits for: hil restore" not in output:
            yield f"nobody said that something waits:\n{output[-2000:]}"
        if how in {End.TERM, End.HUP, End.INT, End.TWICE}:
            after_its_end = " passed" in output and -status in {0, _SIGNALS[how]}
            if status != pytest.ExitCode.INTERRUPTED and not (over and after_its_end):
                yield f"exit status {status}:\n{output[-2000:]}"
        if "\nTraceback" in output or "INTERNALERROR" in output:
            yield f"a traceback:\n{output[-4000:]}"

    def _held(self) -> Iterator[str]:
        shown = self._hil("lease", "show").stdout
        if "held" in shown.replace("nobody holds", ""):
            yield f"still leased: {shown}"

    def _is_free(self) -> bool:
        with (self._folder / "flash" / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def _wait_for_snapshot(self, run: subprocess.Popen[str]) -> float:
        """When the run had taken its snapshot: before that it has touched nothing."""
        deadline = time.monotonic() + _RUN_SECONDS
        while not self.snapshot.exists():
            assert run.poll() is None, run.communicate()[0]
            assert time.monotonic() < deadline
            Event().wait(_POLL_SECONDS)
        return time.monotonic()


_SIGNALS = {
    End.TERM: signal.SIGTERM,
    End.HUP: signal.SIGHUP,
    End.INT: signal.SIGINT,
    End.TWICE: signal.SIGINT,
}


def _digests(board: Board) -> dict[str, str]:
    command = f"cd {EFIVARS_PATH} && sha256sum *"
    lines = board.shell.run(command).check().text.splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


# --- the ends -----------------------------------------------------------------------------------


def _bring_about(how: End, run: subprocess.Popen[str]) -> None:
    match how:
        case End.KILL:
            os.killpg(run.pid, signal.SIGKILL)
        case End.POWER:
            # The supervisor is the board's power: nothing of the board outlives it.
            for pid in _children(run.pid):
                if b"emulation" in _read(f"/proc/{pid}/cmdline"):
                    os.kill(pid, signal.SIGKILL)
        case End.LINK:
            for descriptor in _fetched_sockets(run.pid):
                with socket.socket(fileno=descriptor) as link, suppress(OSError):
                    if link.family == socket.AF_INET:
                        link.shutdown(socket.SHUT_RDWR)
        case _:
            run.send_signal(_SIGNALS[how])
            if how is End.TWICE:
                with suppress(subprocess.TimeoutExpired):
                    run.wait(_TWICE_SECONDS)
                run.send_signal(_SIGNALS[how])


def _fetched_sockets(pid: int) -> Iterator[int]:
    """Descriptors of our own for every socket of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for name in _listed(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if str(Path(f"/proc/{pid}/fd/{name}").readlink()).startswith("socket:"):
                    own = libc.syscall(_PIDFD_GETFD, process, int(name), 0)
                    if own < 0 and _is_alive(pid):
                        raise OSError(ctypes.get_errno(), "pidfd_getfd")
                    if own >= 0:
                        yield own
    finally:
        os.close(process)


def _is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return b"State:\tZ" not in _read(f"/proc/{pid}/status") and Path(f"/proc/{pid}").exists()


# --- what is left -------------------------------------------------------------------------------


class _Machine:
    """Processes, mounts, sockets and files of this machine before a run: ``left`` is what came
    with it and has not gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = set(_descendants(os.getpid()))
        self._mounts = _mounts()
        self._files = self._listing()

    @contextmanager
    def adopting_orphans(self) -> Iterator[None]:
        """Whoever loses its parent meanwhile becomes our child, and is found."""
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            yield
        finally:
            prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def left(self) -> Iterator[str]:
        """In words, once the board has had its time to end."""
        with suppress(AssertionError):
            until(lambda: not self._new_processes(), 10.0)
        for pid in self._new_processes():
            yield f"process {pid} {_read(f'/proc/{pid}/cmdline')!r} is left"
        yield from (f"mount {mount} is left" for mount in _mounts() - self._mounts)
        yield from (f"{path} is left" for path in sorted(self._listing() - self._files))

    def _new_processes(self) -> set[int]:
        new = set(_descendants(os.getpid())) - self._processes
        for pid in new:
            if not _is_alive(pid):
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return {pid for pid in new if _is_alive(pid)}

    def _listing(self) -> set[str]:
        """Files of the board's and the runs' folders; logs, ledger and the last snapshot are to
        stay."""
        kept = ("/console", "/snapshot.restored", "/wear", "/leases", "/rootfs/", "/__pycache__")
        return {
            str(path.relative_to(self._folder))
            for path in self._folder.rglob("*")
            if not any(part in str(path) for part in kept)
        }


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4] for line in lines}


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _children(pid: int) -> list[int]:
    words = [_read(f"/proc/{pid}/task/{task}/children") for task in _listed(f"/proc/{pid}/task")]
    return [int(word) for word in b" ".join(words).split()]


def _listed(path: str) -> list[str]:
    try:
        return [one.name for one in Path(path).iterdir()]
    except OSError:
        return []


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


# --- the table ----------------------------------------------------------------------------------


def moments(count: int, duration: float, seed: int | str) -> list[float]:
    """``count`` moments spread over ``duration`` seconds: one in each of as many parts."""
    chosen = random.Random(seed)
    part = duration / count
    return [part * (number + chosen.random()) for number in range(count)]


def _printed(run: subprocess.Popen[str]) -> str:
    """What a run has printed until now, which has not been read yet."""
    assert run.stdout is not None
    descriptor, text = run.stdout.fileno(), b""
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            text += part
    os.set_blocking(descriptor, True)
    return text.decode()


def _during(output: str) -> str:
    """What pytest was at, from what it had printed."""
    shown = [line for line in output.splitlines() if line.startswith("test_killed.py::")]
    if not shown:
        return "before the first test"
    if "given back ====" in output:
        return "after the end"
    test = shown[-1].partition("::")[2].partition(" ")[0]
    # The outcome of a test is printed before its clean-up.
    return f"{test}, {'its clean-up' if 'PASSED' in shown[-1] else 'itself'}"


def _worked_off(plan: Sequence[tuple[End, float]]) -> tuple[float, list[Ended]]:
    """One process's share of the ends, on a board of its own; moments are parts of a run."""
    folder = Path(tempfile.mkdtemp(prefix="hil-ended-"))
    try:
        runs = EndedRuns(folder)
        duration = runs.duration()
        found = []
        for how, moment in plan:
            found.append(runs.end(how, moment * duration))
            print(found[-1], file=sys.stderr, flush=True)
        return duration, found
    finally:
        shutil.rmtree(folder)


def planned(kills: int, others: int, seed: int) -> list[tuple[End, float]]:
    """The ends in a random order, each with its moment as a part of the run."""
    plan = [
        (how, moment)
        for how in End
        for moment in moments(kills if how is End.KILL else others, 1.0, f"{seed} {how}")
    ]
    random.Random(seed).shuffle(plan)
    return plan


def _page(results: Sequence[Ended], durations: Sequence[float], options: str) -> Iterator[str]:
    today = datetime.datetime.now(datetime.UTC).date()
    took = " and ".join(f"{duration:.1f}" for duration in sorted(durations))
    yield f"# Ended runs, {today:%-d %B %Y}\n"
    yield f"`python -m tests.harness.support.killed_runs {options}` printed this page.\n"
    yield (
        "A run of tests that write, overwrite, append to and delete variables of the suite,\n"
        "BootNext, BootOrder, Boot#### and somebody's variable, over a power cut and a restart of\n"
        "the supplicant, is ended at moments spread over it by chance (the seed is an option).\n"
        "*power lost*: the emulated board's supervisor is killed; *link dead*: the run's TCP\n"
        "connections are shut down under it; both runs go on. The second ^C of *INT, INT* is\n"
        f"{_TWICE_SECONDS} s after the first. What can be restored is listed from the snapshot\n"
        "before the end; afterwards (and after `hil restore --yes` where the run could not give\n"
        "the board back: after KILL always) the board's own tools say the SHA-256 of each. No\n"
        "process, mount, lock, socket or file may be left, and every variable of the board is as\n"
        "before the first run. All runs of a process use one flash.\n"
    )
    yield f"From its snapshot to its end a run that nobody ends takes {took} s here.\n"
    yield "| ended by | runs | all back, nothing left | by the run itself | by `hil restore` |"
    yield "|---|---|---|---|---|"
    for how in End:
        mine = [one for one in results if one.how is how]
        by = Counter(one.by for one in mine)
        good = sum(one.good for one in mine)
        yield f"| {how} | {len(mine)} | {good} | {by['the run']} | {by['hil restore']} |"
    good = sum(one.good for one in results)
    yield f"\nENDED RUNS {good} of {len(results)} good\n"
    yield "| ended by | after, s | during | back | by | wrong |"
    yield "|---|---|---|---|---|---|"
    for one in sorted(results, key=lambda one: (list(End).index(one.how), one.after)):
        wrong = "; ".join(one.wrong).replace("\n", " ").replace("|", "\\|")[:160] or "nothing"
        back = f"{one.back} of {one.restorable}"
        yield f"| {one.how} | {one.after:.1f} | {one.during} | {back} | {one.by} | {wrong} |"


def main() -> int:
    """Print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args()
    # A shell that starts this in the background has it, and the runs, ignore ^C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = planned(chosen.kills, chosen.others, chosen.seed)
    durations, results = [], []
    with ProcessPoolExecutor(chosen.jobs) as pool:
        shares = [plan[number :: chosen.jobs] for number in range(chosen.jobs)]
        for done in as_completed([pool.submit(_worked_off, share) for share in shares if share]):
            duration, found = done.result()
            durations.append(duration)
            results += found
    print("\n".join(_page(results, durations, " ".join(sys.argv[1:]))))
    return 0 if all(one.good for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
