"""What a command costs over a serial line at 115200 baud, and logging in on an idle prompt, beside
labgrid's ShellDriver on the same line in the same run.

The limit is the wire: ten bits a character that the command itself needs. Exit status 1 if `true`
takes more than 1.5 times that. Judged is the lower quartile, as another load of this host only
adds; the median is printed, too. Needs labgrid (`pip install stmm-hil[bench]`).
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.figures import figure
from harness.links.address import Login, SerialAddress
from harness.links.serial import SerialShell
from tests.harness.support.line import Line, Weather

BAUD = 115200
ROUNDS = 60
REQUIRED_RATIO = 1.5
COMMANDS = ("true", "echo hello", "cat /proc/sys/kernel/random/boot_id", "uname -a; id; df /")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one command: milliseconds (lower quartile, median), and those that its characters
    are on the wire."""

    quartile: float
    median: float
    characters: float

    @property
    def wire(self) -> float:
        return self.characters * 10 / BAUD * 1000

    @property
    def ratio(self) -> float:
        return self.quartile / self.wire


@contextmanager
def board() -> Iterator[Line]:
    """A login prompt and dash behind a line at its baud rate."""
    line = Line(["dash", "-i"], environment={"PS1": "# "})
    line.weather = Weather(baud=BAUD)
    try:
        yield line
    finally:
        line.close()


def measured(line: Line, run: Callable[[str], object], command: str) -> Cost:
    """The cost of ``command``, after it was run twice: what is learned counts."""
    run(command)
    run(command)
    before = line.sent + line.received
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(command)
        times.append((time.perf_counter() - start) * 1000)
    characters = (line.sent + line.received - before) / ROUNDS
    return Cost(statistics.quantiles(times)[0], statistics.median(times), characters)


def ours() -> tuple[float, dict[str, Cost]]:
    """Seconds to the first command from an idle prompt, and the cost of each command."""
    with board() as line:
        shell = SerialShell.open(SerialAddress(line.device, baud=BAUD, login=Login("root")))
        shell.console.wait_for("login: $", timeout=10, since=0)
        start = time.perf_counter()
        shell.run("true")
        login = time.perf_counter() - start
        costs = {command: measured(line, shell.run, command) for command in COMMANDS}
        shell.close()
    return login, costs


def labgrids() -> tuple[float, dict[str, Cost]] | None:
    """The same by labgrid; None where it is not installed."""
    try:
        from labgrid import Target
        from labgrid.driver import SerialDriver, ShellDriver
        from labgrid.resource import RawSerialPort
    except ImportError:
        return None
    logging.getLogger().setLevel(logging.ERROR)
    with board() as line:
        target = Target("bench")
        RawSerialPort(target, name=None, port=line.device, speed=BAUD)
        serial = SerialDriver(target, name=None)
        shell = ShellDriver(
            target, name=None, prompt="# ", login_prompt=" login: ", username="root"
        )
        target.activate(serial)
        start = time.perf_counter()
        target.activate(shell)
        shell.run("true")
        login = time.perf_counter() - start
        costs = {command: measured(line, shell.run, command) for command in COMMANDS}
        target.deactivate(shell)
    return login, costs


def main() -> int:
    """Print the table and the ratios."""
    login, costs = ours()
    peer = labgrids()
    heads = f"{'ms':>8}{'median':>8}{'bytes':>7}{'wire':>8}{'x wire':>8}{'x us':>7}"
    print(f"{'at 115200 baud':38}{heads}")
    figure("serial: from a login prompt to a command", login * 1000)
    for command, cost in costs.items():
        figure(f"serial: {command}", cost.quartile)
        rows = [("", cost)] if peer is None else [("", cost), ("  labgrid", peer[1][command])]
        for name, one in rows:
            print(
                f"{name or command:38}{one.quartile:8.2f}{one.median:8.2f}{one.characters:7.0f}"
                f"{one.wire:8.2f}{one.ratio:8.2f}{one.quartile / cost.quartile:7.1f}"
            )
    beside = "labgrid is not installed" if peer is None else f"labgrid {peer[0]:.2f} s"
    print(f"from an idle login prompt to the first command: {login:.2f} s ({beside})")
    ratio = costs["true"].ratio
    print(f"ratio true / wire time of its bytes {ratio:.2f}   (required {REQUIRED_RATIO})")
    return 0 if ratio <= REQUIRED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
