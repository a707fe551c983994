"""``hil check`` on machines that are no such board: this host's own sshd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.check.walk import STEPS
from tests.harness.support.servers import Server, need, openssh
from tests.pace import HANGS

CID = "15010038474e4433520155aabbccdd00"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = openssh(tmp_path)
    yield server
    server.stop()


def check(server: Server, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    server.start()
    end = server.address
    file = folder / "stranger.toml"
    file.write_text(
        f'emmc_cid = "{CID}"\n[power]\ndriver = "manual"\n'
        f'[ssh]\nhost = "{end.host}"\nport = {end.port}\nuser = "{end.user}"\n'
        f'key = "{end.key}"\nhost_key_fingerprint = "{end.host_key_fingerprint}"\n'
    )
    return subprocess.run(
        [sys.executable, "-m", "harness", "check", *words, str(file)],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        env={**os.environ, "HIL_LEASES": str(folder / "leases")},
    )


def needs_a_host_without_emmc() -> None:
    if list(Path("/sys/class/mmc_host").glob("mmc*/mmc*/cid")):
        pytest.skip("this host has an eMMC or an SD card")


def test_a_computer_is_told_from_a_board_in_one_line(server: Server, tmp_path: Path) -> None:
    """Whoever logs in, root or not."""
    needs_a_host_without_emmc()
    done = check(server, tmp_path)
    assert done.returncode == 1, done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert len(failed) == 1, done.stdout
    machine = f"Linux {os.uname().release} {os.uname().machine}"
    assert re.match(rf"fail +identity +no such board: {re.escape(machine)}, .*no eMMC", failed[0])
    left_out = [line for line in done.stdout.splitlines() if line.startswith("not looked at")]
    assert len(left_out) == 2, done.stdout
    below = [step.name for step in STEPS[[step.name for step in STEPS].index("identity") + 1 :]]
    assert left_out[1].endswith(f"because identity failed ({', '.join(below)})")


def test_for_machines_every_step_is_there(server: Server, tmp_path: Path) -> None:
    needs_a_host_without_emmc()
    answer = json.loads(check(server, tmp_path, "--json").stdout)
    assert answer["first_failure"] == "identity"
    assert [step["step"] for step in answer["steps"]] == [step.name for step in STEPS]
    assert answer["steps"][-1]["found"] == "because identity failed"


@pytest.mark.parametrize("forced", ["echo This account is not available", "true", "false"])
def test_a_login_that_runs_something_else_is_the_cause(
    server: Server, tmp_path: Path, forced: str
) -> None:
    with (tmp_path / "sshd_config").open("a", encoding="ascii") as file:
        file.write(f"ForceCommand {forced}\n")
    done = check(server, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert len(failed) == 1, done.stdout
    assert re.match(r"fail +(ssh|login) ", failed[0]), done.stdout
    assert "stranger: stops at" in done.stdout


def test_a_container_says_so() -> None:
    from harness.check.target import MACHINE, NO_EMMC

    unshare = need("unshare", "util-linux")
    alone = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    path = f"PATH={os.environ['PATH']}"
    done = subprocess.run(
        [unshare, *alone, "env", "-i", path, "container=lxc", "sh", "-c", f"{MACHINE}; echo end"],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert "in a container (lxc)" in done.stdout.splitlines()
    here = subprocess.run(["sh", "-c", MACHINE], capture_output=True, text=True, check=True).stdout
    assert "in a container (lxc)" not in here
    assert (NO_EMMC in here) is not bool(list(Path("/sys/class/mmc_host").glob("mmc*/mmc*/cid")))
