"""Runs of pytest that are killed at a random moment, each followed by ``hil restore``.

``python -m tests.harness.support.killed_runs [COUNT] [SEED]`` prints the table of
docs/results/killed-runs.md.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from uuid import UUID

from harness.board.board import Board
from harness.boardfile import loading
from harness.capabilities import EFIVARS_PATH
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.instruments.efivars import NV_BS_RT
from harness.instruments.guard import ANY
from tests.pace import until

ROOT = Path(__file__).parents[3]
FOREIGN = UUID("3b9f4a52-1d60-4a7e-8f0e-0c9d2e7a6b15")
SEED = 20250717
_RUN_SECONDS = 120.0
_POLL_SECONDS = 0.01
_RESTORE_SECONDS = 120.0

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


@dataclass(frozen=True, slots=True)
class Killed:
    """One run: seconds from its snapshot to the kill, the test that ran then (or what else), what
    ``hil restore`` said and whether all was back."""

    after: float
    during: str
    said: str
    restored: bool


class KilledRuns:
    """One emulated board whose flash outlives its runs, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.board_file = folder / "keeping.toml"
        self.snapshot = folder / "flash" / "safekeeping" / "snapshot.json"
        text = (ROOT / "boards" / "emulated.toml").read_text()
        text = text.replace('driver = "emulated"', 'driver = "emulated"\nstate = "flash"')
        self.board_file.write_text(text)
        (folder / "test_killed.py").write_text(TESTS)
        with self.board() as board:
            board.efivars.write("Own", b"of an earlier time", NV_BS_RT)
            board.efivars.write("Foreign", b"somebody's", NV_BS_RT, FOREIGN)
            board.efivars.write("BootNext", b"\0\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
        self.before = self.digests()

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
            command = f"cd {EFIVARS_PATH} && sha256sum *"
            lines = board.shell.run(command).check().text.splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """pytest on the tests, in a session of its own."""
        command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "-vv"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(self._folder), "-c", "/dev/null"]
        command += ["--board", str(self.board_file), "test_killed.py", *arguments]
        return subprocess.Popen(
            command,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``hil restore`` on the board."""
        return subprocess.run(
            [sys.executable, "-m", "harness", "restore", str(self.board_file), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_RESTORE_SECONDS,
            check=False,
        )

    def duration(self) -> float:
        """Seconds from the snapshot to the end of a run which nobody kills."""
        run = self.start()
        begun = self._wait_for_snapshot(run)
        output, _ = run.communicate(timeout=_RUN_SECONDS)
        assert run.returncode == 0, output
        return time.monotonic() - begun

    def kill(self, after: float) -> Killed:
        """One run that is killed so many seconds after its snapshot, and what is left of it."""
        run = self.start()
        self._wait_for_snapshot(run)
        try:
            output, _ = run.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            output = self.end(run)
        restored = self.restore("--yes")
        said = (restored.stdout + restored.stderr).strip().splitlines()[-1]
        same = self.digests() == self.before
        return Killed(after, _during(output), said, restored.returncode == 0 and same)

    def end(self, run: subprocess.Popen[str]) -> str:
        """Kill a run, and wait until its board has noticed; the rest of what it printed."""
        os.killpg(run.pid, signal.SIGKILL)
        output, _ = run.communicate()
        until(self._is_free, _RUN_SECONDS)
        return output

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


def moments(count: int, duration: float, seed: int) -> list[float]:
    """``count`` moments spread over ``duration`` seconds: one in each of as many parts."""
    chosen = random.Random(seed)
    part = duration / count
    return [part * (number + chosen.random()) for number in range(count)]


def _during(output: str) -> str:
    """What pytest was at when it was killed, from what it had printed."""
    shown = [line for line in output.splitlines() if "::" in line]
    if not shown:
        return "before the first test"
    if " seconds" in output or " passed in " in output:
        return "after the end"
    test = shown[-1].partition("::")[2].partition(" ")[0]
    # The outcome of a test is printed before its clean-up.
    return f"{test}, {'its clean-up' if 'PASSED' in shown[-1] else 'itself'}"


def main() -> int:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else SEED
    with tempfile.TemporaryDirectory(prefix="hil-killed-") as folder:
        runs = KilledRuns(Path(folder))
        duration = runs.duration()
        print(f"From snapshot to end a run takes {duration:.1f} s; seed {seed}.\n")
        print("| killed after, s | during | `hil restore` | all back |")
        print("|---|---|---|---|")
        results = []
        for moment in moments(count, duration, seed):
            killed = runs.kill(moment)
            results.append(killed)
            yes = {True: "yes", False: "**no**"}
            print(
                f"| {killed.after:.1f} | {killed.during} | {killed.said} "
                f"| {yes[killed.restored]} |",
                flush=True,
            )
    restored = sum(killed.restored for killed in results)
    print(f"\nKILLED RUNS restored {restored} of {count}")
    return 0 if restored == count else 1


if __name__ == "__main__":
    sys.exit(main())
