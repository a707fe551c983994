"""Runs scripts in a tree of unpacked packages, without root: user and mount namespaces.

The host lends its kernel, `unshare`, `mount` and `chroot`; every tool comes from the tree.
"""

import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
HOST_PROGRAMS = ("unshare", "mount", "chroot", "sh")


@dataclass(frozen=True)
class Room:
    """Where a script runs: ``root`` (the host's where ``None``), its ``work`` directory, and what
    is bound below the root."""

    root: Path | None
    work: Path
    binds: Mapping[str, Path]
    variables: Mapping[str, str] = field(default_factory=dict)


def run(room: Room, script: str, log: IO[bytes]) -> int:
    """Run the script with its output in the log; its exit status."""
    body = room.work / ".script"
    body.write_text(script)
    if room.root is None:
        command = ["sh", "-eu", str(body)]
        variables = {"PATH": _PATH, "OUT": str(room.binds["out"]), **room.variables}
        return _call(command, variables, room.work, log)
    variables = {"PATH": _PATH, "HOME": "/work", "LC_ALL": "C", **room.variables}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-eu", "-c"]
    return _call([*command, _enter(room.root, room)], variables, room.work, log)


def _enter(root: Path, room: Room) -> str:
    """The mounts of the room. Mount points are made in a tmpfs over the tree, so that rooms that
    share the tree do not meet."""
    base = shlex.quote(str(room.work.with_name("root")))
    lines = [f"mkdir -p {base}", f"mount -t tmpfs -o mode=755 tmpfs {base}"]
    for top in sorted(root.iterdir()):
        target = f"{base}/{shlex.quote(top.name)}"
        if top.is_symlink():
            lines.append(f"ln -s {shlex.quote(str(top.readlink()))} {target}")
        elif top.is_dir() and top.name not in ("dev", "proc", "tmp", "run"):
            lines += [f"mkdir {target}", f"mount --bind {shlex.quote(str(top))} {target}"]
    lines += [f"mkdir -p {base}/dev/shm {base}/proc {base}/tmp {base}/run {base}/work"]
    lines += [f"mount --rbind /proc {base}/proc"]
    for device in _DEVICES:
        lines += [f": > {base}/dev/{device}", f"mount --bind /dev/{device} {base}/dev/{device}"]
    lines += [f"ln -s /proc/self/fd {base}/dev/fd"]
    for name, source in {"work": room.work, **room.binds}.items():
        target = f"{base}/{shlex.quote(name)}"
        make = f"mkdir -p {target}"
        if not source.is_dir():
            make = f"mkdir -p $(dirname {target}); : > {target}"
        lines += [make, f"mount --bind {shlex.quote(str(source))} {target}"]
    lines.append(f"exec chroot {base} /bin/sh -euc 'cd /work; exec /bin/sh -eu /work/.script'")
    return "\n".join(lines)


def _call(command: list[str], variables: Mapping[str, str], work: Path, log: IO[bytes]) -> int:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(variables),
        cwd=work,
        check=False,
    )
    return done.returncode


def why_not() -> str | None:
    """Why scripts cannot run in a tree on this host; ``None`` where they can."""
    missing = [name for name in HOST_PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"the host has no {', '.join(missing)} (packages util-linux, coreutils)"
    probe = "mount -t tmpfs tmpfs /mnt 2>&1"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", probe],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    why = (done.stderr or done.stdout).strip()
    return (
        f"no user namespaces without root: {why} (Ubuntu: "
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0; containers: docs/qemu.md)"
    )


def remove(path: Path) -> None:
    """Remove a tree, directories without write permission included."""
    for directory in [path, *(p for p in path.rglob("*") if p.is_dir() and not p.is_symlink())]:
        if directory.exists():
            directory.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
