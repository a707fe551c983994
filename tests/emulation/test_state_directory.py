"""The state directory is its owner's alone; who asks the service manager is what the kernel says;
connections without end are refused in one line."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.emulation.conftest import EmulatedBoard

Boot = Callable[..., "EmulatedBoard"]


def refusal(state: Path) -> str:
    """Why a board does not start there; fails if it does."""
    run = subprocess.run(
        [sys.executable, "-m", "emulation", "--json", "--control", "--state", str(state)],
        input="", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run
    assert "Traceback" not in run.stderr
    return run.stderr


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="state-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.fault("J4", "J5")
def test_it_is_made_for_its_owner_alone(boot: Boot, public: Path) -> None:
    os.umask(0o022)
    boot(state=public / "new" / "state")
    assert stat.S_IMODE((public / "new" / "state").stat().st_mode) == 0o700


@pytest.mark.fault("J4", "J5")
def test_an_earlier_one_is_closed(boot: Boot, public: Path) -> None:
    state = public / "state"
    (state / "rootfs").mkdir(parents=True)
    state.chmod(0o755)
    boot(state=state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_what_may_be_no_state_directory_is_left_as_it_is(public: Path) -> None:
    (public / "a-file-of-somebody").touch()
    assert "choose an empty directory" in refusal(public)
    assert stat.S_IMODE(public.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another user's folder")
def test_another_users_folder_is_refused(public: Path) -> None:
    os.chown(public, 65534, 65534)
    assert "belongs to another user" in refusal(public)


@pytest.mark.fault("J4")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be a second user of the host")
def test_another_user_of_the_host_does_not_reach_the_service_manager(
    boot: Boot, public: Path
) -> None:
    board = boot(state=public / "state")
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        's.sendall(b\'{"command": "systemctl", "arguments": ["stop", "tee-supplicant"], "uid": 0}\''
        'b"\\n"); s.recv(1000)'
    )
    run = subprocess.run(
        ["/usr/bin/python3", "-c", ask, str(public / "state" / "manager.sock")],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PermissionError" in run.stderr
    assert board.ok("systemctl is-active tee-supplicant") == "active\n"


@pytest.mark.fault("J8")
def test_connections_without_end_are_refused_in_one_line(boot: Boot, tmp_path: Path) -> None:
    board = boot(state=tmp_path / "state")
    board.ok("true")
    idle = []
    for _ in range(400):
        idle.append(socket.create_connection(("127.0.0.1", board.endpoints["port"]), 10))
    assert board.ok("echo still here") == "still here\n"
    for sock in idle:
        sock.close()
    board.disconnect()
    board.until("true")
    board.disconnect()
    board.process.terminate()
    _, errors = board.process.communicate(timeout=30)
    assert errors.count(b"SSH connections are open") >= 1
    assert len(errors.splitlines()) < 10, errors.decode()
