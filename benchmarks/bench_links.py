"""What a command costs on each lane, beside OpenSSH with ControlMaster: same server, same run.

Run ``python -m benchmarks.bench_links`` (needs sshd and ssh). Exit status 1 if a command on the
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

from harness.links.address import Login, SerialAddress
from harness.links.serial import SerialShell
from harness.links.ssh import SshShell
from tests.harness.support.line import Line, Weather
from tests.harness.support.servers import Server, openssh

REQUIRED_RATIO = 20


def median_ms(action: Callable[[], object], rounds: int) -> float:
    action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def control_master(server: Server, folder: Path) -> Callable[[], object]:
    address = server.address
    options = [
        "ControlMaster=auto",
        f"ControlPath={folder}/mux",
        "ControlPersist=60",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ]
    argv = ["ssh", "-F", "none", "-i", str(address.key), "-p", str(address.port)]
    argv += [word for option in options for word in ("-o", option)]
    argv += [f"{address.user}@{address.host}", "true"]
    return lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def ssh_costs(folder: Path) -> dict[str, float]:
    server = openssh(folder)
    server.start()
    shell = SshShell(server.address)
    small = folder / "small"
    small.write_bytes(bytes(64))
    try:
        return {
            "persistent lane": median_ms(lambda: shell.run("true"), 500),
            "SFTP read of 64 bytes": median_ms(lambda: shell.read_file(str(small)), 100),
            "isolated lane": median_ms(lambda: shell.run_isolated("true"), 20),
            "ssh with ControlMaster": median_ms(control_master(server, folder), 30),
            "persistent lane again": median_ms(lambda: shell.run("true"), 500),
        }
    finally:
        shell.close()
        server.stop()


def serial_costs(baud: int) -> tuple[float, float]:
    """Milliseconds a command, and the wire time of its own bytes at ``baud``."""
    line = Line(["dash", "-i"], environment={"PS1": "# "})
    shell = SerialShell.open(SerialAddress(line.device, baud=baud, login=Login("root")))
    try:
        shell.run("true")
        line.weather = Weather(baud=baud)
        before = line.sent + line.received
        rounds = 50
        cost = median_ms(lambda: shell.run("true"), rounds)
        characters = (line.sent + line.received - before) / (rounds + 1)
        return cost, characters * 10 / baud * 1000
    finally:
        shell.close()
        line.close()


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        costs = ssh_costs(Path(name))
    lane = max(costs["persistent lane"], costs["persistent lane again"])
    print(f"{'way':28}{'ms a command':>14}{'x persistent lane':>20}")
    for way, cost in costs.items():
        print(f"{way:28}{cost:14.3f}{cost / lane:20.1f}")
    cost, wire = serial_costs(115200)
    print(f"{'serial at 115200 baud':28}{cost:14.3f}   wire time of its bytes {wire:.3f} ms")
    ratio = costs["ssh with ControlMaster"] / lane
    print(f"ssh with ControlMaster / persistent lane = {ratio:.0f} (required {REQUIRED_RATIO})")
    return 0 if ratio >= REQUIRED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
