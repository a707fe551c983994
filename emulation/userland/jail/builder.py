"""Builds the board's root file system, from a list of steps, in the namespaces it is to stand in.

The list is made by :mod:`emulation.userland.jail.layout`.
"""

# No pathlib, which would add to the time of every power-on.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH108, PTH112, PTH119, PTH120, PTH123, PTH211

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from emulation.userland.jail import namespaces, wire
from emulation.userland.jail.namespaces import bind, mount, umount
from emulation.userland.jail.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    prctl,
    raw,
)

_PROC_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC


class StepFailed(Exception):
    """A step of building the namespaces failed."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.step = step
        self.error = error


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Name what an ``OSError`` inside the block was about."""
    try:
        yield
    except OSError as error:
        raise StepFailed(name, error) from error


class Roots(NamedTuple):
    """Descriptors of roots of file systems, whatever the board mounts over them: /proc, devpts,
    the hidden efivarfs, or -1, and the device nodes."""

    proc: int
    pts: int
    efivarfs: int
    nodes: int


class Builder:
    """Builds the root file system; steps are tuples (name, arguments...), methods here."""

    def __init__(self, control: socket.socket, plan: dict[str, Any]) -> None:
        self._control = control
        self._plan = plan
        self._covers = 0
        self._hidden = -1
        self._nodes = -1

    def build(self) -> Roots:
        """Returns what PID 1 keeps of it."""
        plan = self._plan
        sources, fuse = [], []
        for number, (path, _) in enumerate(plan["sources"]):
            with step(f"open {path}"):
                sources.append(os.open(f"/tmp/{number}", os.O_PATH | os.O_CLOEXEC))
        for _ in range(plan["fuse_mounts"]):
            with step("open /dev/fuse"):
                fuse.append(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        self._sources, self._fuse = sources, fuse
        with step("become root of the board"):
            become_root()
            # From here on nobody of the board may look into PID 1: its memory belongs to the
            # host's user namespace, where root of the board is nobody.
            prctl(PR_SET_DUMPABLE, 0)
        with step("mount tmpfs"):
            mount(None, "/", None, MS_REC | MS_PRIVATE)
            mount("tmpfs", "/tmp", "tmpfs", 0, f"mode=755,{plan['tmpfs']}")
            os.chdir("/tmp")
        with step("mount proc"):
            os.mkdir("proc")
            mount("proc", "proc", "proc", _PROC_FLAGS)
            proc = namespaces.clone("proc")
        with step("pivot_root"):
            os.mkdir(".old")
            raw("pivot_root", b".", b".old")
            os.chdir("/")
        for name, *arguments in plan["steps"]:
            with step(f"{name} {arguments[-1] if name == 'bind_source' else arguments[0]}"):
                getattr(self, name)(*arguments)
        with step("leave the host's root"):
            umount("/.old", MNT_DETACH)
            os.rmdir("/.old")
        for fd in (*sources, *fuse):
            os.close(fd)
        with step("sethostname"):
            socket.sethostname(plan["hostname"])
        _raise_loopback()
        _hide_arguments("/sbin/init")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        return Roots(proc, namespaces.clone("/dev/pts"), self._hidden, self._nodes)

    def directory(self, path: str, mode: int) -> None:
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)

    def symlink(self, path: str, target: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(target, path)

    def file(self, path: str, content: bytes, mode: int) -> None:
        """An ordinary file, or one bound over a name that cannot be written."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if path.startswith(("/proc/", "/sys/", "/usr/")) or os.path.ismount(path):
            self._covers += 1
            cover = f"/run/board/cover{self._covers}"
            self.file(cover, content, mode)
            mount(cover, path, None, MS_BIND)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(fd, mode)
        os.write(fd, content)
        os.close(fd)

    def tmpfs(self, path: str, options: str, flags: int) -> None:
        os.makedirs(path, exist_ok=True)
        mount("tmpfs", path, "tmpfs", flags, options)

    def devpts(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        flags = MS_NOSUID | MS_NOEXEC
        try:
            mount("devpts", path, "devpts", flags, "newinstance,ptmxmode=0666,mode=620,gid=5")
        except OSError:  # group tty has no id in this namespace
            mount("devpts", path, "devpts", flags, "newinstance,ptmxmode=0666,mode=600")

    def bind_source(self, index: int, path: str) -> None:
        source = f"/proc/self/fd/{self._sources[index]}"
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        elif not os.path.lexists(path):
            self.file(path, b"", 0o644)
        mount(source, path, None, MS_BIND | MS_REC)

    def bind_path(self, source: str, path: str, flags: int) -> None:
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        elif not os.path.lexists(path):
            self.file(path, b"", 0o644)
        bind(source, path, flags)

    def fuse(self, index: int, path: str, flags: int) -> None:
        os.makedirs(path, exist_ok=True)
        fd = self._fuse[index]
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        mount("fuse", path, "fuse", flags, options)
        # Not before: a descriptor without a mount gives EPERM.
        wire.send(self._control, ("fuse", index), (fd,))

    def hide_efivarfs(self, path: str, read_only: bool) -> None:
        """Keep the root of efivarfs, so that the superblock outlives the board's mounts."""
        self._hidden = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if read_only:
            namespaces.set_superblock_read_only(self._hidden, True)

    def keep_nodes(self, path: str) -> None:
        """Keep the root of the device nodes, where the contents of block devices are."""
        self._nodes = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def read_only(self, path: str) -> None:
        bind(path, path, namespaces.mount_flags(path) | MS_RDONLY)


def become_root() -> None:
    """Root of this user namespace, whoever started it on the host."""
    with contextlib.suppress(PermissionError):  # denied with a map of a single id
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl(PR_SET_DUMPABLE, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def _raise_loopback() -> None:
    """``ip link set lo up``; a board without a network is still a board."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        _, flags = struct.unpack("16sh22x", request)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _hide_arguments(title: str) -> None:
    """Show ``title`` instead of the host's command line and environment in ps."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # arg_start, arg_end, env_start, env_end are fields 48-51 of proc(5), 45-48 behind the name.
    for start, end, text in (
        (int(fields[45]), int(fields[46]), title),
        (int(fields[47]), int(fields[48]), ""),
    ):
        size = end - start
        if size > 0:
            ctypes.memmove(start, text.encode()[: size - 1].ljust(size, b"\0"), size)
    prctl(PR_SET_NAME, os.path.basename(title).encode())
