"""Who else has a serial device open: readers are told, a pty's other end and parents are not."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.links.device import others_with

_EMULATOR = (
    "import os, signal; master, slave = os.openpty(); print(os.ttyname(slave), flush=True);"
    "signal.pause()"
)
_ASK = "import sys; from harness.links.device import others_with; print(others_with(sys.argv[1]))"


@contextlib.contextmanager
def _grandchild(command: str) -> Iterator[str]:
    """The first line of what runs as no child of this process."""
    shell = subprocess.Popen(
        ["sh", "-c", f"{command} & wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert shell.stdout
        yield shell.stdout.readline().strip()
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


@pytest.fixture
def device() -> Iterator[str]:
    """A pty whose emulator keeps both ends open."""
    with _grandchild(shlex.join([sys.executable, "-c", _EMULATOR])) as name:
        yield name


def test_the_other_end_of_a_pty_is_no_reader(device: str) -> None:
    assert others_with(device) == []


def test_a_reader_is_told(device: str) -> None:
    with _grandchild(f"sh -c 'echo $$; exec sleep 60' <{device}") as pid:
        assert f"(pid {pid})" in " ".join(others_with(device))
    assert others_with(device) == []


def test_whoever_holds_the_lease_for_us_is_no_reader(device: str) -> None:
    held = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        told = subprocess.run(
            [sys.executable, "-c", _ASK, device], capture_output=True, text=True, timeout=60
        )
    finally:
        os.close(held)
    assert told.stdout == "[]\n", told.stderr
