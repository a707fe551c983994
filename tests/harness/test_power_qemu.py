"""The power driver ``qemu`` with a real QEMU and a Debian kernel: console, SSH, power."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from harness.errors import ConfigurationError, HostError
from harness.links.address import SshAddress
from harness.links.console import Console
from harness.links.hostkeys import fingerprint
from harness.links.ssh import SshShell
from harness.power.driver import PowerState
from harness.power.qemu import QemuPower, QemuPowerOptions
from tests.harness.support.arm64_image import Arm64Image, image
from tests.pace import until

pytestmark = pytest.mark.slow

_APPEND = "console=ttyAMA0 quiet"
_BOOT_SECONDS = 120.0
_PROMPT = r"^/[\w/.]* # ?"


@pytest.fixture(scope="module")
def images() -> Arm64Image:
    return image()


def _power(images: Arm64Image, **changes: Any) -> QemuPower:
    options: dict[str, Any] = {
        "kernel": images.kernel,
        "initrd": images.initrd,
        "append": _APPEND,
        "memory_mib": 256,
    } | changes
    return QemuPower(QemuPowerOptions(**options), board="virt")


@pytest.fixture(scope="module")
def power(images: Arm64Image) -> Iterator[QemuPower]:
    power = _power(images)
    power.on(10)
    yield power
    power.close()


@pytest.fixture(scope="module")
def console(power: QemuPower) -> Iterator[Console]:
    address = power.endpoints().serial
    assert address is not None
    console = Console(address)
    console.wait_for(_PROMPT, timeout=_BOOT_SECONDS, since=0)
    yield console
    console.close()


def _type(console: Console, command: str, answer: str) -> str:
    """Type a line, and wait for ``answer`` (regular expression) behind its echo."""
    mark = console.mark()
    console.write(command.encode() + b"\n")
    return console.wait_for(answer, timeout=60, since=mark)


def test_the_console_leads_to_an_arm64_shell(console: Console) -> None:
    assert _type(console, "uname -m", "^aarch64") == "aarch64"


def test_ssh_reaches_the_guest(power: QemuPower, console: Console, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = tmp_path / "key"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    private.chmod(0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    for at in range(0, len(public), 24):
        redirection = ">>" if at else ">"
        _type(console, f"printf %s '{public[at : at + 24]}' {redirection}/root/.ssh/k", _PROMPT)
    _type(console, "cd /root/.ssh; echo >>k; mv k authorized_keys; chmod 600 authorized_keys", "# ")
    host_key = "/etc/dropbear/dropbear_ed25519_host_key"
    _type(console, f"dropbearkey -t ed25519 -f {host_key} >/dev/null 2>&1; echo made", "^made")
    shown = _type(console, f"dropbearkey -y -f {host_key} | grep ^ssh", r"^ssh-ed25519 \S+")
    assert power.ssh_port is not None
    address = SshAddress(
        "127.0.0.1", power.ssh_port, key=private, host_key_fingerprint=fingerprint(shown)
    )
    shell = SshShell(address)
    try:
        shell.reconnect(deadline=120)
        assert shell.run("cat /proc/sys/kernel/hostname", timeout=60).text == "arm64"
        assert shell.run("exit 3", timeout=60).status == 3
    finally:
        shell.close()


def test_a_guest_that_switches_itself_off_is_off(images: Arm64Image) -> None:
    power = _power(images, append=f"{_APPEND} rdinit=/bin/busybox -- poweroff -f")
    try:
        power.on(10)
        assert power.state() is PowerState.ON
        deadline = time.monotonic() + _BOOT_SECONDS
        while power.state() is PowerState.ON and time.monotonic() < deadline:
            threading.Event().wait(0.1)
        assert power.state() is PowerState.OFF
    finally:
        power.close()


def test_off_ends_it_and_on_starts_it_at_the_same_address(images: Arm64Image) -> None:
    power = _power(images)
    try:
        power.on(10)
        before = power.endpoints()
        power.off(10)
        assert power.state() is PowerState.OFF
        power.on(10)
        assert power.state() is PowerState.ON
        assert power.endpoints() == before
    finally:
        power.close()


def test_what_qemu_says_is_in_the_error(images: Arm64Image) -> None:
    power = _power(images, cpu="no-such-cpu")
    with pytest.raises(HostError, match="no-such-cpu"):
        power.on(10)


def test_a_missing_image_is_named(images: Arm64Image, tmp_path: Path) -> None:
    power = _power(images, disks=(tmp_path / "root.qcow2",))
    with pytest.raises(ConfigurationError, match=r"root\.qcow2"):
        power.on(10)


def test_a_missing_program_names_the_package(images: Arm64Image) -> None:
    with pytest.raises(HostError, match="qemu-system-arm"):
        _power(images, program="no-such-qemu").on(10)


def test_rpmb_is_there_or_its_absence_is_named(images: Arm64Image, tmp_path: Path) -> None:
    flash = tmp_path / "emmc.img"
    with flash.open("wb") as file:
        file.truncate(64 << 20)
    power = _power(images, emmc=flash)
    try:
        if power._has_rpmb():
            power.on(10)
            assert power.state() is PowerState.ON
        else:
            with pytest.raises(HostError, match=r"QEMU \S+ has no eMMC with an RPMB partition"):
                power.on(10)
    finally:
        power.close()


_OWNER = """
import sys, threading
from pathlib import Path
from harness.power.qemu import QemuPower, QemuPowerOptions
power = QemuPower(QemuPowerOptions(kernel=Path(sys.argv[1]), memory_mib=128), board="virt")
power.on(10)
print(power._process.pid, flush=True)
threading.Event().wait(60)
"""


def test_it_ends_with_the_harness(images: Arm64Image) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(images.kernel)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
    until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
