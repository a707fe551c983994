"""From process start to the first SSH command on the emulated board.

The limit in the same run: a fresh Python that imports asyncssh; nothing written with it can answer
sooner.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.emulated import emulated_board
from benchmarks.figures import figure
from harness.links.ssh import SshShell

ROUNDS = 5


def first_command() -> tuple[float, float]:
    """Seconds from starting the emulator to (its line of JSON, the first command's result)."""
    started = time.monotonic()
    with emulated_board() as address:
        ready = time.monotonic() - started
        shell = SshShell(address)
        shell.run("true").check()
        done = time.monotonic() - started
        shell.close()
    return ready, done


def imports() -> float:
    """Seconds for a fresh Python to import asyncssh."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncssh"], check=True)
    return time.monotonic() - started


def main() -> int:
    """Print the medians and the ratio."""
    first_command()
    rounds = [(*first_command(), imports()) for _ in range(ROUNDS)]
    ready, done, limit = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"emulated board answers SSH after       {ready * 1000:7.0f} ms")
    print(f"first command answered after           {done * 1000:7.0f} ms   (aim: under 1000)")
    print(f"limit: python + import asyncssh        {limit * 1000:7.0f} ms")
    print(f"ratio first command / limit            {done / limit:7.2f}")
    figure("boot: SSH answers", ready * 1000)
    figure("boot: first command", done * 1000)
    figure("boot: first command / import asyncssh", done / limit, "x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
