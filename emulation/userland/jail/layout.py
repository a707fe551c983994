"""The board's root file system as a list of steps for PID 1 (methods of ``builder.Builder``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from emulation.userland.jail.plan import BOARD_PYTHON, Bind, JailPlan, PlacedFile
from emulation.userland.jail.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_RELATIME

HIDDEN: Final = "/run/board"
"""Where the transport keeps what must exist and not be seen; /run is mounted over it at the end."""

NODES_TARGET: Final = f"{HIDDEN}/nodes"
EFIVARFS_TARGET: Final = f"{HIDDEN}/efivarfs"

_SYSTEM: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RELATIME
_TMPFS: Final = MS_NOSUID | MS_NODEV

_USR_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_HOST_NODES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_ETC: Final = (
    "alternatives", "bash.bashrc", "ca-certificates.conf", "default", "e2scrub.conf", "environment",
    "gai.conf", "host.conf", "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "libaudit.conf", "locale.alias", "locale.conf", "localtime", "login.defs", "mke2fs.conf",
    "networks", "nsswitch.conf", "os-release", "pam.conf", "pam.d", "profile", "profile.d",
    "protocols", "rpc", "security", "services", "shells", "skel", "ssl", "terminfo", "timezone",
    "xattr.conf",
)  # fmt: skip
"""What programs of the host want of /etc and what says nothing about the host's users."""

_DIRECTORIES: Final = (
    ("/etc", 0o755), ("/home", 0o755), ("/media", 0o755), ("/mnt", 0o755), ("/opt", 0o755),
    ("/root", 0o700), ("/srv", 0o755), ("/boot", 0o755), ("/var", 0o755), ("/var/cache", 0o755),
    ("/var/lib", 0o755), ("/var/log", 0o755), ("/var/spool", 0o755), ("/var/tmp", 0o1777),
)  # fmt: skip

_ACCOUNTS: Final = (
    PlacedFile("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"
              b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
    PlacedFile("/etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    PlacedFile("/etc/hosts", b"127.0.0.1 localhost\n"),
    PlacedFile("/etc/fstab", b""),
)  # fmt: skip

Step = tuple[Any, ...]


def plan_message(plan: JailPlan) -> dict[str, Any]:
    """What PID 1 needs to know of ``plan``: plain values only."""
    layout = _Layout(plan)
    return {
        "limits": plan.limits.rlimits(),
        "tmpfs": plan.limits.tmpfs_options,
        "hostname": plan.hostname,
        "sources": layout.sources,
        "steps": layout.steps,
        "fuse_mounts": len(plan.filesystems) + 1,
    }


class _Layout:
    def __init__(self, plan: JailPlan) -> None:
        self.sources: list[tuple[str, bool]] = []
        self.steps: list[Step] = [("directory", HIDDEN, 0o700)]
        if plan.host_programs:
            self._host_programs()
        self._size = plan.limits.tmpfs_options
        self._devices()
        self._etc()
        self.steps += [("directory", *pair) for pair in _DIRECTORIES]
        self.steps.append(("tmpfs", "/tmp", f"mode=1777,{self._size}", _TMPFS))
        self._filesystems(plan)
        self._proc()
        if plan.board_python:
            self._python(plan.host_programs)
        for bind in plan.binds:
            if not _late(bind.target):
                self._bind(bind)
        self.steps += [("directory", path, 0o755) for path in plan.directories if not _late(path)]
        self._files(file for file in plan.files if not _late(file.path))
        self.steps += [("symlink", *pair) for pair in plan.symlinks.items() if not _late(pair[0])]
        self.steps.append(("tmpfs", "/run", f"mode=755,{self._size}", _TMPFS))
        self.steps.append(("directory", "/run/lock", 0o1777))
        self.steps += [("directory", path, 0o755) for path in plan.directories if _late(path)]
        for bind in plan.binds:
            if _late(bind.target):
                self._bind(bind)
        self._files(file for file in plan.files if _late(file.path))
        self.steps += [("symlink", *pair) for pair in plan.symlinks.items() if _late(pair[0])]

    def _bind(self, bind: Bind) -> None:
        self.steps.append(("bind_source", len(self.sources), bind.target))
        self.sources.append((os.fspath(bind.source), bind.writable))

    def _files(self, files: Iterable[PlacedFile]) -> None:
        self.steps += [("file", file.path, file.content, file.mode) for file in files]

    def _host_programs(self) -> None:
        self._bind(Bind(Path("/usr"), "/usr"))
        for name in _USR_LINKS:
            path = Path("/", name)
            if path.is_symlink():
                self.steps.append(("symlink", str(path), os.fspath(path.readlink())))
            elif path.is_dir():
                self._bind(Bind(path, str(path)))

    def _devices(self) -> None:
        self.steps.append(("tmpfs", "/dev", "mode=755,size=64k,nr_inodes=1k", MS_NOSUID))
        for name in _HOST_NODES:
            self._bind(Bind(Path("/dev", name), f"/dev/{name}"))
        self.steps.append(("devpts", "/dev/pts"))
        self.steps.append(("tmpfs", "/dev/shm", f"mode=1777,{self._size}", _TMPFS))
        for name, target in (
            ("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
        ):  # fmt: skip
            self.steps.append(("symlink", f"/dev/{name}", target))

    def _etc(self) -> None:
        for name in _ETC:
            path = Path("/etc", name)
            if path.is_symlink():
                self.steps.append(("symlink", str(path), os.fspath(path.readlink())))
            elif path.is_dir():
                self._bind(Bind(path, str(path)))
            elif path.is_file() and os.access(path, os.R_OK):
                self._files([PlacedFile(str(path), path.read_bytes())])
        self._files(_ACCOUNTS)
        self.steps.append(("symlink", "/etc/mtab", "../proc/self/mounts"))

    def _filesystems(self, plan: JailPlan) -> None:
        self.steps.append(("fuse", 0, NODES_TARGET, _SYSTEM))
        self.steps.append(("keep_nodes", NODES_TARGET))
        for index, node in enumerate(plan.nodes):
            self.steps.append(
                ("bind_path", f"{NODES_TARGET}/{index}", node.path, MS_NOSUID | MS_NOEXEC)
            )
        for index, mount in enumerate(plan.filesystems, 1):
            if mount.type == "efivarfs":
                self.steps.append(("fuse", index, EFIVARFS_TARGET, _SYSTEM))
                self.steps.append(("hide_efivarfs", EFIVARFS_TARGET, plan.efivarfs_read_only))
                if plan.efivarfs_at_boot:
                    read_only = MS_RDONLY if plan.efivarfs_mount_read_only else 0
                    flags = _SYSTEM | read_only
                    self.steps.append(("bind_path", EFIVARFS_TARGET, mount.target, flags))
            else:
                self.steps.append(("fuse", index, mount.target, _SYSTEM))

    def _proc(self) -> None:
        self.steps.append(("read_only", "/proc/sys"))
        if Path("/proc/sysrq-trigger").exists():
            self.steps.append(("file", "/proc/sysrq-trigger", b"", 0o200))

    def _python(self, host_programs: bool) -> None:
        prefix = Path(sys.base_prefix)
        in_usr = prefix == Path("/usr") or Path("/usr") in prefix.parents
        if in_usr and host_programs:
            self.steps.append(("symlink", BOARD_PYTHON, os.fspath(prefix)))
        elif prefix == Path("/usr"):
            # The board has /usr/lib and none of /usr/bin.
            interpreter = Path(sys.executable).resolve()
            self._bind(Bind(interpreter, f"{BOARD_PYTHON}/bin/python3"))
            self.steps.append(("symlink", f"{BOARD_PYTHON}/lib", "/usr/lib"))
        else:
            self._bind(Bind(prefix, BOARD_PYTHON))


def _late(path: str) -> bool:
    """Below /run, which is mounted last."""
    return path.startswith("/run/")
