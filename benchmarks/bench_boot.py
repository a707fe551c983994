"""From process start to the first SSH command on the emulated board.

Peer in the same run: the shortest time in which this Python can import what the board's two ends
need (paramiko here, asyncssh there) and start a process; the printed ratio is to that.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness.links.address import SshAddress
from harness.links.ssh import SshShell

ROUNDS = 5
BOOT_SECONDS = 30.0


def first_command() -> tuple[float, float]:
    """Seconds from starting the emulator to (its line of JSON, the first command's result)."""
    started = time.monotonic()
    emulator = subprocess.Popen(
        [sys.executable, "-m", "emulation", "--json", "--control"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert emulator.stdout is not None
    try:
        line = json.loads(emulator.stdout.readline())
        ready = time.monotonic() - started
        address = SshAddress(
            host=line["host"],
            port=line["port"],
            user=line["user"],
            key=Path(line["key"]),
            known_hosts=Path(line["known_hosts"]),
        )
        shell = SshShell(address)
        shell.run("true", timeout=BOOT_SECONDS).check()
        done = time.monotonic() - started
        shell.close()
    finally:
        emulator.terminate()
        emulator.wait(timeout=BOOT_SECONDS)
    return ready, done


def imports() -> float:
    """Seconds for a fresh Python to import asyncssh: nothing can answer SSH sooner."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncssh"], check=True)
    return time.monotonic() - started


def main() -> None:
    """Print the medians and the ratio."""
    first_command()
    rounds = [(*first_command(), imports()) for _ in range(ROUNDS)]
    ready, done, limit = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"emulated board answers SSH after       {ready * 1000:7.0f} ms")
    print(f"first command answered after           {done * 1000:7.0f} ms   (aim: under 1000)")
    print(f"limit: python + import asyncssh        {limit * 1000:7.0f} ms")
    print(f"ratio first command / limit            {done / limit:7.2f}")


if __name__ == "__main__":
    main()
