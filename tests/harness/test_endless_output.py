"""Output without end: the harness's memory stays bounded whatever a board, a server or a console
sends, and it says so. Each harness under test is a process of its own, whose peak is measured."""

from __future__ import annotations

import gzip
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.errors import HilError
from harness.links import posix
from harness.probe.probe import Probe
from harness.probe.steps import Open
from harness.shell import Result
from tests.harness.support.line import Line
from tests.harness.support.servers import Server, openssh

pytestmark = pytest.mark.fault("C5")

GIGABYTE = 1 << 30
ENOUGH_MIB = 400
"""Peak of a process that takes 64 MiB, once as it came and once as a result, and Python itself."""

SCRIPT = """
import json, sys
from pathlib import Path
from harness.errors import HilError
from harness.links.address import SerialAddress, SshAddress
{setup}
said = fault = ""
after = None
try:
    {action}
except HilError as error:
    said, fault = str(error), error.fault
{after}
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
print(json.dumps({{"said": said, "fault": fault, "after": after, "peak": peak}}))
"""


class Seen(NamedTuple):
    said: str
    fault: str
    after: str | None
    peak: int
    """MiB"""


def _harness(setup: str, action: str, after: str = "") -> Seen:
    script = SCRIPT.format(setup=setup, action=action, after=after)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return Seen(**json.loads(done.stdout))


def _ssh(server: Server) -> str:
    one = server.address
    return (
        "from harness.links.ssh import SshShell\n"
        f"shell = SshShell(SshAddress({one.host!r}, {one.port}, {one.user!r}, key=Path"
        f"({str(one.key)!r}), host_key_fingerprint={one.host_key_fingerprint!r}))"
    )


@pytest.fixture(scope="module", params=["with SFTP", "without SFTP"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = openssh(tmp_path_factory.mktemp("sshd"), sftp=request.param == "with SFTP")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    "action",
    [
        "shell.run('head -c 1G /dev/zero', timeout=60)",
        "shell.run('head -c 1G /dev/zero >&2', timeout=60)",
        "shell.run_isolated('yes', timeout=60)",
        "shell.read_file('FILE', timeout=60)",
    ],
    ids=["output", "errors", "isolated", "file"],
)
def test_over_ssh(server: Server, tmp_path: Path, action: str) -> None:
    sparse = tmp_path / "gigabyte"
    with sparse.open("wb") as file:
        file.truncate(GIGABYTE)
    seen = _harness(
        _ssh(server),
        action.replace("FILE", str(sparse)),
        after="after = shell.run('echo still here').text",
    )
    assert seen.peak < ENOUGH_MIB
    assert "64 MiB" in seen.said
    assert seen.fault == "test"
    assert seen.after == "still here"


def test_what_prints_without_end_is_ended(server: Server) -> None:
    """It is not left behind on the board once the next command has run."""
    seen = _harness(
        _ssh(server),
        "shell.run('yes 4f1c9 ', timeout=60)",
        after="after = shell.run('pgrep -fc \"^yes 4f1c[9]\"').text",
    )
    assert "64 MiB" in seen.said
    assert seen.after == "0"


def test_a_start_up_file_that_prints_without_end(tmp_path: Path) -> None:
    chatty = tmp_path / "chatty"
    chatty.write_text("#!/bin/sh\nexec yes\n")
    chatty.chmod(0o755)
    server = openssh(tmp_path)
    server.start()
    try:
        seen = _harness(
            _ssh(server).replace(", host_key", f", shell={str(chatty)!r}, host_key"),
            "shell.run('true', timeout=20)",
        )
    finally:
        server.stop()
    assert seen.said
    assert seen.peak < ENOUGH_MIB


def test_over_serial() -> None:
    """It comes packed: what it unpacks to counts."""
    line = Line(["dash", "-i"])
    try:
        seen = _harness(
            "from harness.links.serial import SerialShell\n"
            f"shell = SerialShell.open(SerialAddress({line.device!r}))",
            "shell.run('yes | head -c 80M', timeout=60)",
            after="after = shell.run('echo still here').text",
        )
    finally:
        line.close()
    assert seen.peak < ENOUGH_MIB
    assert "64 MiB" in seen.said
    assert seen.after == "still here"


def test_a_gigabyte_packed_in_a_megabyte(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(GIGABYTE >> 24):
            file.write(bytes(1 << 24))
    data = bomb.read_bytes()
    seen = _harness(
        "from harness.links.agent import Announced\n"
        f"blob = Path({str(bomb)!r}).read_bytes()\n"
        f"announced = Announced(0, {len(data)}, 0, {posix.cksum(data)}, packed=True)",
        "announced.outcome(blob)",
    )
    assert seen.peak < ENOUGH_MIB
    assert "64 MiB" in seen.said


@contextmanager
def _peer(first: bytes, then: bytes) -> Iterator[int]:
    """A port that greets with ``first`` and then sends ``then`` for ever."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
                peer.sendall(first)
                while True:
                    peer.sendall(then)
            except OSError:
                if listener.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "first",
    [b"", b"SSH-2.0-x\r\n" + struct.pack(">I", (1 << 31) - 4)],
    ids=["greeting", "packet"],
)
def test_a_server_before_it_was_trusted(first: bytes) -> None:
    with _peer(first, bytes(1 << 16)) as port:
        begun = time.monotonic()
        seen = _harness(
            "from harness.links.ssh import SshShell\n"
            f"shell = SshShell(SshAddress('127.0.0.1', {port}, host_key_fingerprint='SHA256:x'))",
            "shell.run('true', timeout=10)",
        )
    assert seen.said
    assert seen.peak < 200
    assert time.monotonic() - begun < 20


@contextmanager
def _babbler(first: bytes, then: bytes) -> Iterator[str]:
    """The device of a console that says ``first`` and then ``then`` for ever."""
    master, slave = os.openpty()
    tty.setraw(slave)
    device = os.ttyname(slave)
    over = threading.Event()

    def speak() -> None:
        os.set_blocking(master, False)
        said = first
        while not over.is_set():
            if select.select([], [master], [], 0.1)[1]:
                said = said[os.write(master, said) :] or then

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        yield device
    finally:
        over.set()
        speaker.join()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    "babble", [b"\x06" * 65536, b"\x1e" * 65536, b"x" * 65536, b"ab\r\n" * 16384]
)
def test_a_console_that_babbles(babble: bytes, tmp_path: Path) -> None:
    """Acknowledgements, frames that begin and never end, one endless line, lines."""
    with _babbler(b"\r\nboard login: ", babble) as device:
        seen = _harness(
            "from harness.links.serial import SerialShell\n"
            f"address = SerialAddress({device!r}, capture=Path({str(tmp_path / 'logs')!r}))\n"
            "shell = SerialShell.open(address)",
            "shell.run('true', timeout=3)",
        )
    assert seen.said
    assert seen.peak < 200
    assert sum(log.stat().st_size for log in (tmp_path / "logs").iterdir()) <= 17 << 20


class _LyingShell:
    """A board on which the probe seems to start, and then says ``answer`` to every batch."""

    least_timeout = 0.0
    name = "ssh nowhere"

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def run(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        said = self.answer
        if "mkfifo" in command:
            said = b"/run/probe"
        elif "echo $!" in command:
            said = b"4242"
        return Result(command, 0, said, b"", 0.0)

    def write_file(self, *of: object, **also: object) -> None:
        pass


@pytest.mark.parametrize(
    "answer",
    [b" " * (17 << 20), b"[" * 100_000, b"[]", b"[1]", b'[{"data": "xy"}]', b"\xff\xfe", b"{}"],
    ids=["long", "nested", "short", "number", "hex", "bytes", "object"],
)
@pytest.mark.parametrize("backend", ["python3", "sh"])
def test_a_probe_that_lies(answer: bytes, backend: str) -> None:
    probe = Probe(_LyingShell(answer), backend=backend)  # type: ignore[arg-type]
    with pytest.raises(HilError) as caught:
        probe.steps([Open("f", "/x")])
    assert len(str(caught.value)) < 1000
