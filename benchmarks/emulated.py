"""An emulated board for a benchmark, reached as any board is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.links.address import SshAddress
from harness.links.hostkeys import fingerprint

END_SECONDS = 30.0


@contextlib.contextmanager
def emulated_board(*options: str) -> Iterator[SshAddress]:
    """Start ``python -m emulation`` with ``options`` (``key=value``) and end it afterwards."""
    words = [word for option in options for word in ("-o", option)]
    emulator = subprocess.Popen(
        [sys.executable, "-m", "emulation", "--json", "--control", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert emulator.stdout is not None
    try:
        line = json.loads(emulator.stdout.readline())
        known = Path(line["known_hosts"])
        yield SshAddress(
            host=line["host"],
            port=line["port"],
            user=line["user"],
            key=Path(line["key"]),
            host_key_fingerprint=fingerprint(known.read_text("ascii").split(maxsplit=1)[1]),
            known_hosts=known,
            ssh_config=False,
        )
    finally:
        emulator.terminate()
        emulator.wait(timeout=END_SECONDS)
