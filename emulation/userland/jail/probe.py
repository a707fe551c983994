"""Can this host run a board? Tries each step in a throw-away process and knows the remedies.

Inferring is not enough: on Ubuntu 24.04 unshare(2) succeeds and the mount afterwards fails.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emulation.userland.jail import namespaces, seccomp
from emulation.userland.jail.syscalls import (
    CLONE_NEWUSER,
    MS_PRIVATE,
    MS_REC,
    host_architecture,
    unshare,
)

_CHILD: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from emulation.userland.jail.probe import run_steps; run_steps()"
)
_TIMEOUT: Final = 20.0
_MINIMUM: Final = (5, 14)

_SYSCTLS: Final = (
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "user/max_user_namespaces",
    "user/max_mnt_namespaces",
    "user/max_pid_namespaces",
    "user/max_net_namespaces",
)


@dataclass(frozen=True)
class Step:
    """One step: ``detail`` says how it failed, ``remedy`` what to do (empty where it is done)."""

    name: str
    ok: bool
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class HostFacts:
    """What bears on a failure: sysctls by path below /proc/sys, and who and where we are."""

    sysctls: Mapping[str, str]
    root: bool
    container: bool

    @classmethod
    def gather(cls) -> HostFacts:
        """Of this host."""
        found = {}
        for name in _SYSCTLS:
            path = Path("/proc/sys", name)
            if path.is_file():
                found[name] = path.read_text().strip()
        marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
        return cls(found, os.geteuid() == 0, any(mark.exists() for mark in marks))


def check() -> list[Step]:
    """All steps up to the first that fails, which carries its remedy."""
    package_parent = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-I", "-S", "-c", _CHILD, str(package_parent)]
    try:
        result = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return [Step("probe", False, f"no answer in {_TIMEOUT} s", "report this as a bug")]
    facts = HostFacts.gather()
    steps = []
    for line in result.stdout.splitlines():
        name, number, text = json.loads(line)
        if number == 0:
            steps.append(Step(name, True))
        else:
            steps.append(Step(name, False, text, remedy(name, number, facts)))
    if result.returncode and all(step.ok for step in steps):
        detail = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        steps.append(Step("probe", False, detail, "report this as a bug"))
    return steps


def failure(steps: list[Step]) -> Step | None:
    """The step that failed, if one did."""
    return next((step for step in steps if not step.ok), None)


def remedy(name: str, number: int, facts: HostFacts) -> str:
    """What to do about step ``name`` having failed with errno ``number``."""
    if name == "kernel":
        return "run on Linux 5.14 or later, x86_64 or aarch64"
    if name == "open /dev/fuse":
        return _fuse_remedy(number, facts)
    settings = _sysctl_remedies(facts)
    if settings:
        return "; ".join(settings)
    if facts.container:
        return _container_remedy(name, facts)
    if name == "user namespace" and number in (errno.EINVAL, errno.ENOSYS):
        return "use a kernel built with CONFIG_USER_NS"
    if name == "mount FUSE" and number == errno.ENODEV:
        return "modprobe fuse (a kernel built with CONFIG_FUSE_FS)"
    if name == "mount proc":
        return (
            "something is mounted over parts of /proc, which hides it from new namespaces: "
            "unmount it, or run on the host itself"
        )
    if name == "seccomp listener":
        return "run outside of other seccomp supervisors, on a kernel with CONFIG_SECCOMP_FILTER"
    return "run it with sudo, or ask who set up this host why user namespaces are restricted"


def _sysctl_remedies(facts: HostFacts) -> list[str]:
    settings = []
    if not facts.root and facts.sysctls.get("kernel/unprivileged_userns_clone") == "0":
        settings.append("sysctl -w kernel.unprivileged_userns_clone=1")
    if not facts.root and facts.sysctls.get("kernel/apparmor_restrict_unprivileged_userns") == "1":
        settings.append(
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile "
            "with `userns,` for the Python interpreter, or sudo)"
        )
    for name, value in facts.sysctls.items():
        if name.startswith("user/max_") and value == "0":
            settings.append(f"sysctl -w {name.replace('/', '.')}=10000")
    return settings


def _container_remedy(name: str, facts: HostFacts) -> str:
    if name == "mount proc":
        return "start the container with --security-opt systempaths=unconfined"
    options = "--device /dev/fuse --security-opt apparmor=unconfined"
    if facts.root:
        options += " --cap-add SYS_ADMIN --security-opt systempaths=unconfined"
    else:
        options += " --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
    return f"start the container with {options}"


def _fuse_remedy(number: int, facts: HostFacts) -> str:
    # EACCES is the node's mode; a container that may not use the device gets EPERM or no node.
    if facts.container and number != errno.EACCES:
        return "start the container with --device /dev/fuse"
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "modprobe fuse (as root)"
    return (
        "as root: chmod 0666 /dev/fuse; to keep it: "
        """echo 'KERNEL=="fuse", MODE="0666"' > /etc/udev/rules.d/99-fuse.rules"""
    )


# --- in the throw-away process --------------------------------------------------------------------


def run_steps() -> None:
    """Do the steps and print one JSON line each: name, errno, text; stop at the first failure."""
    _step("kernel", _check_kernel)
    request_read, request_write = os.pipe()
    answer_read, answer_write = os.pipe()
    child = os.fork()
    if child:
        os.close(request_write)
        os.close(answer_read)
        if os.read(request_read, 1):
            _step("id map", lambda: _map(child))
            os.write(answer_write, b"m")
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    os.close(request_read)
    os.close(answer_write)
    _step("user namespace", lambda: unshare(CLONE_NEWUSER))
    os.write(request_write, b"u")
    if not os.read(answer_read, 1):
        os._exit(1)
    _step("other namespaces", lambda: unshare(namespaces.NAMESPACES))
    init = os.fork()
    if init:
        _, status = os.waitpid(init, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    _in_namespaces()
    os._exit(0)


def _in_namespaces() -> None:
    fuse: list[int] = []
    _step("open /dev/fuse", lambda: fuse.append(os.open("/dev/fuse", os.O_RDWR)))
    _step("become root", _become_root)
    _step("mount tmpfs", _mount_tmpfs)
    for name in ("fuse", "proc"):
        Path("/tmp", name).mkdir()
    options = f"fd={fuse[0]},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    _step("mount FUSE", lambda: namespaces.mount("fuse", "/tmp/fuse", "fuse", 0, options))
    _step("mount proc", lambda: namespaces.mount("proc", "/tmp/proc", "proc"))
    _step("seccomp listener", _install_filter)


def _check_kernel() -> None:
    host_architecture()
    words = platform.release().split("-")[0].split(".")
    if tuple(map(int, words[:2])) < _MINIMUM:
        raise OSError(errno.ENOSYS, f"Linux {platform.release()}")


def _map(child: int) -> None:
    # The last one needs nothing but the kernel.
    namespaces.write_maps(child, namespaces.choose_maps()[-1])


def _become_root() -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _mount_tmpfs() -> None:
    namespaces.mount(None, "/", None, MS_REC | MS_PRIVATE)
    namespaces.mount("tmpfs", "/tmp", "tmpfs")


def _install_filter() -> None:
    os.close(seccomp.install(seccomp.build_filter(host_architecture(), 1)))


def _step(name: str, action: Callable[[], object]) -> None:
    number, text = 0, ""
    try:
        action()
    except OSError as error:
        number, text = error.errno or errno.EIO, str(error)
    os.write(1, json.dumps([name, number, text]).encode() + b"\n")
    if number:
        os._exit(1)
