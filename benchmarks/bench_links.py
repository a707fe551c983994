"""What a command costs on each lane, beside OpenSSH with ControlMaster: same server (the emulated
board), same run.

Needs ``ssh``. Exit status 1 if a command on the
persistent lane costs more than a twentieth of ``ssh`` with ControlMaster.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.emulated import emulated_board
from benchmarks.figures import figure
from harness.links.address import SshAddress
from harness.links.ssh import SshShell

REQUIRED_RATIO = 20
TURNS = 6
PERSISTENT = "persistent lane"
CONTROL_MASTER = "ssh with ControlMaster"


def times_ms(action: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each of ``rounds`` calls, after one that does not count."""
    action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1000)
    return times


def control_master(address: SshAddress, folder: Path) -> Callable[[], object]:
    """``ssh`` over a kept connection, as its users set it up."""
    options = [
        "ControlMaster=auto",
        f"ControlPath={folder}/mux",
        "ControlPersist=60",
        f"UserKnownHostsFile={address.known_hosts}",
        "LogLevel=ERROR",
    ]
    argv = ["ssh", "-F", "none", "-i", str(address.key), "-p", str(address.port)]
    argv += [word for option in options for word in ("-o", option)]
    argv += [f"{address.user}@{address.host}", "true"]
    return lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def ssh_costs(address: SshAddress, folder: Path) -> dict[str, float]:
    """Milliseconds a command on the emulated board, each way to the same server."""
    shell = SshShell(address)
    shell.write_file("/tmp/small", bytes(64))
    ways: dict[str, tuple[Callable[[], object], int]] = {
        PERSISTENT: (lambda: shell.run("true"), 100),
        "file of 64 bytes (SFTP)": (lambda: shell.read_file("/tmp/small"), 20),
        "isolated lane": (lambda: shell.run_isolated("true"), 5),
        CONTROL_MASTER: (control_master(address, folder), 10),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    try:
        # In turn, so that a machine that gets slower does so for all of them.
        for _ in range(TURNS):
            for way, (action, rounds) in ways.items():
                times[way] += times_ms(action, rounds)
    finally:
        shell.close()
    return {way: statistics.median(taken) for way, taken in times.items()}


def main() -> int:
    """Print the table and the ratio."""
    with tempfile.TemporaryDirectory() as name, emulated_board() as address:
        costs = ssh_costs(address, Path(name))
    lane = costs[PERSISTENT]
    print(f"{'way':28}{'ms a command':>14}{'x persistent lane':>20}")
    for way, cost in costs.items():
        print(f"{way:28}{cost:14.3f}{cost / lane:20.1f}")
        if way != CONTROL_MASTER:
            figure(f"links: {way}", cost)
            figure(f"links: {way} / ControlMaster", cost / costs[CONTROL_MASTER], "x")
    ratio = costs[CONTROL_MASTER] / lane
    print(f"ratio ControlMaster / persistent lane {ratio:.1f}   (required {REQUIRED_RATIO})")
    return 0 if ratio >= REQUIRED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
