"""What is wrong with a board or its file ends a run before the first test: one paragraph with the
remedy, no traceback, exit status 4."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.support.servers import Server, fingerprint, free_port, make_key, openssh
from tests.pace import HANGS

ROOT = Path(__file__).parents[2]
CID = "00112233445566778899aabbccddeeff"
POWER = '[power]\ndriver = "manual"\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = openssh(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


def board_file(folder: Path, links: str, **top: str) -> Path:
    values = {"emmc_cid": CID, **top}
    path = folder / "desk.toml"
    lines = "".join(f'{key} = "{value}"\n' for key, value in values.items())
    path.write_text(lines + links + POWER)
    return path


def ssh_table(server: Server, **changes: object) -> str:
    address = server.address
    values: dict[str, object] = {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "key": str(address.key),
        "host_key_fingerprint": address.host_key_fingerprint,
        **changes,
    }
    lines = [
        f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"'
        for key, value in values.items()
    ]
    return "[ssh]\n" + "\n".join(lines) + "\n"


def pytest_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of one test that needs the board, in a project of its own."""
    (folder / "test_it.py").write_text("def test_it(board):\n    raise SystemError('was run')\n")
    command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), "-c", "/dev/null"]
    return subprocess.run(
        [*command, *arguments, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


def refusal(folder: Path, *arguments: str) -> str:
    """The one paragraph on standard error."""
    run = pytest_run(folder, *arguments)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert "was run" not in run.stdout
    paragraphs = [line for line in run.stderr.splitlines() if line.strip()]
    assert len(paragraphs) == 1, run.stderr
    assert "Next: " in paragraphs[0]
    return paragraphs[0]


def test_misspelt_board(tmp_path: Path) -> None:
    assert "did you mean 'emulated'?" in refusal(tmp_path, "--board", "emulatted")


def test_misspelt_key_in_a_board_file(tmp_path: Path) -> None:
    path = board_file(tmp_path, "[serail]\n")
    assert "desk.toml:2: unknown key 'serail', did you mean 'serial'?" in refusal(
        tmp_path, "--board", str(path)
    )


def test_one_board_twice(tmp_path: Path) -> None:
    run = pytest_run(tmp_path, "--board", "emulated", "--board", "emulated")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "are both called emulated" in run.stderr


def test_wrong_host_key(tmp_path: Path, server: Server) -> None:
    other = fingerprint(Path(f"{make_key(tmp_path / 'other')}.pub"))
    path = board_file(tmp_path, ssh_table(server, host_key_fingerprint=other))
    message = refusal(tmp_path, "--board", str(path))
    assert other in message
    assert "board desk" in message


def test_wrong_user_key(tmp_path: Path, server: Server) -> None:
    path = board_file(tmp_path, ssh_table(server, key=make_key(tmp_path / "other")))
    assert str(server.address) in refusal(tmp_path, "--board", str(path))


def test_wrong_port(tmp_path: Path, server: Server) -> None:
    port = free_port()
    path = board_file(tmp_path, ssh_table(server, port=port))
    assert f":{port}" in refusal(tmp_path, "--board", str(path))


def test_missing_serial_device(tmp_path: Path) -> None:
    links = f'[serial]\nport = "{tmp_path}/ttyUSB7"\n[timeouts]\nadapter = 0.5\n'
    path = board_file(tmp_path, links)
    assert "ttyUSB7" in refusal(tmp_path, "--board", str(path))


def test_busy_serial_device(tmp_path: Path) -> None:
    far, near = pty.openpty()
    try:
        fcntl.flock(near, fcntl.LOCK_EX)
        path = board_file(tmp_path, f'[serial]\nport = "{os.ttyname(near)}"\n')
        assert os.ttyname(near) in refusal(tmp_path, "--board", str(path))
    finally:
        os.close(far)
        os.close(near)


def test_wrong_board(tmp_path: Path, server: Server) -> None:
    path = board_file(tmp_path, ssh_table(server))
    assert re.search(f"no eMMC with the CID {CID}", refusal(tmp_path, "--board", str(path)))


def test_missing_link(tmp_path: Path, server: Server) -> None:
    path = board_file(tmp_path, ssh_table(server))
    assert "no serial link" in refusal(tmp_path, "--board", str(path), "--link", "serial")


def test_collecting_reaches_no_board(tmp_path: Path) -> None:
    path = board_file(tmp_path, f'[serial]\nport = "{tmp_path}/none"\n')
    run = pytest_run(tmp_path, "--board", str(path), "--collect-only")
    assert run.returncode == pytest.ExitCode.OK, run.stderr
