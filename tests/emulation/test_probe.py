"""The probe of the host: it names the failing step and its remedy."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.userland.jail import probe
from emulation.userland.jail.probe import HostFacts, remedy

PLAIN = HostFacts({}, root=False, container=False)


def test_steps_of_this_host() -> None:
    steps = probe.check()
    assert steps[0].name == "kernel"
    if probe.failure(steps) is None:
        assert [step.name for step in steps][-3:] == [
            "mount FUSE",
            "mount proc",
            "seccomp listener",
        ]
    else:
        assert steps[-1].remedy


@pytest.mark.parametrize(
    ("name", "number", "facts", "words"),
    [
        ("kernel", errno.ENOSYS, PLAIN, "Linux 5.14"),
        ("open /dev/fuse", errno.EACCES, PLAIN, "chmod 0666 /dev/fuse"),
        ("open /dev/fuse", errno.ENOENT, PLAIN, "modprobe fuse"),
        ("open /dev/fuse", errno.ENOENT, HostFacts({}, False, True), "--device /dev/fuse"),
        ("open /dev/fuse", errno.EPERM, HostFacts({}, True, True), "--device /dev/fuse"),
        ("open /dev/fuse", errno.EACCES, HostFacts({}, False, True), "chmod 0666 /dev/fuse"),
        (
            "user namespace", errno.EPERM,
            HostFacts({"kernel/unprivileged_userns_clone": "0"}, False, False),
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            "mount tmpfs", errno.EACCES,
            HostFacts({"kernel/apparmor_restrict_unprivileged_userns": "1"}, False, False),
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "user namespace", errno.ENOSPC,
            HostFacts({"user/max_user_namespaces": "0"}, True, False),
            "sysctl -w user.max_user_namespaces=10000",
        ),
        ("user namespace", errno.EINVAL, PLAIN, "CONFIG_USER_NS"),
        ("mount tmpfs", errno.EPERM, HostFacts({}, True, True), "--cap-add SYS_ADMIN"),
        ("user namespace", errno.EPERM, HostFacts({}, False, True), "seccomp=unconfined"),
        ("mount proc", errno.EPERM, HostFacts({}, False, True), "systempaths=unconfined"),
        ("mount proc", errno.EPERM, PLAIN, "mounted over parts of /proc"),
        ("mount FUSE", errno.ENODEV, PLAIN, "modprobe fuse"),
        ("seccomp listener", errno.EBUSY, PLAIN, "seccomp supervisors"),
        ("uid_map", errno.EPERM, PLAIN, "sudo"),
    ],
)  # fmt: skip
def test_remedies(name: str, number: int, facts: HostFacts, words: str) -> None:
    assert words in remedy(name, number, facts)


def test_root_is_not_told_about_sysctls_for_others() -> None:
    facts = HostFacts({"kernel/unprivileged_userns_clone": "0"}, root=True, container=False)
    assert "sysctl" not in remedy("user namespace", errno.EPERM, facts)


REFUSED = """
import sys
sys.path.insert(0, sys.argv[1])
from emulation.userland.jail import probe
for step in probe.check():
    print(step.name, "ok" if step.ok else step.remedy, sep=": ")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to limit user namespaces")
def test_host_without_user_namespaces() -> None:
    # A user namespace whose own limit of nested ones is zero refuses the next.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    repository = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh",
         sys.executable, "-c", REFUSED, repository],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if "write error" in result.stderr or "cannot create" in result.stderr:
        pytest.skip("/proc/sys/user is read-only here")
    assert result.stdout.splitlines() == [
        "kernel: ok",
        "user namespace: sysctl -w user.max_user_namespaces=10000",
    ]
