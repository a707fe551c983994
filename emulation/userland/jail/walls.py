"""What stands between root of the board and the host, set up before PID 1 runs (docs/safety.md).

There are two user namespaces, one in the other.  In the outer one the host's folders are mounted,
read-only where the board may only read; to the inner one, where the board lives, such flags are
locked (mount_namespaces(7)), so that its root cannot take them off.  The outer one also counts the
board's processes: however many user ids root of the board takes, together they have one limit.
"""

# No pathlib, which would add to the time of every power-on.
# ruff: noqa: PTH102, PTH112, PTH123

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Sequence
from typing import Final

from emulation.userland.jail import namespaces
from emulation.userland.jail.builder import become_root, step
from emulation.userland.jail.namespaces import mount
from emulation.userland.jail.syscalls import (
    CLONE_NEWUSER,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    MS_REMOUNT,
    raw,
    unshare,
)

STAGE: Final = "/tmp"
"""Where PID 1 finds the sources of its binds, by number."""

_KEYCTL_JOIN_SESSION_KEYRING: Final = 1


def leave_behind() -> None:
    """Let go of what the host's session lends to its processes, and be the first to go when the
    host runs out of memory."""
    with contextlib.suppress(OSError):  # a kernel without keys
        raw("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def stage(sources: Sequence[tuple[str, bool]]) -> None:
    """Mount (path, writable) of the host below :data:`STAGE`, in the outer namespace."""
    opened = []
    for path, _ in sources:
        with step(f"open {path}"):
            opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    with step("become root of the outer namespace"):
        become_root()
    with step("mount tmpfs"):
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for number, (fd, (path, writable)) in enumerate(zip(opened, sources, strict=True)):
        with step(f"bind {path}"):
            target = f"{STAGE}/{number}"
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            mount(f"/proc/self/fd/{fd}", target, None, MS_BIND | MS_REC)
            if writable:
                kept = namespaces.mount_flags(target)
                flags = MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | kept
                mount(None, target, None, flags)
            else:
                namespaces.make_read_only(target)
        os.close(fd)


def enter_inner(maps: list[list[list[int]]], limits: dict[str, int]) -> None:
    """Become the inner namespace's first process, with ``limits`` of resource.RLIMIT_* by name."""
    for name, most in limits.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(number, (most, most))
    wait, go = os.pipe()
    with step("fork"):
        writer = os.fork()
    if writer == 0:
        os.close(go)
        os.read(wait, 1)
        with contextlib.suppress(BaseException):
            for kind, part in zip(("uid_map", "gid_map"), maps, strict=True):
                with open(f"/proc/{os.getppid()}/{kind}", "w") as file:
                    file.write("\n".join(f"{inside} {inside} {n}" for inside, _, n in part))
            os._exit(0)
        os._exit(1)
    with step("unshare(user, mount, PID, network, IPC, UTS)"):
        try:
            unshare(CLONE_NEWUSER | namespaces.NAMESPACES)
        finally:
            os.close(go)
            os.close(wait)
            _, status = os.waitpid(writer, 0)
        if status:
            raise OSError(0, "the inner namespace was not given its ids")
