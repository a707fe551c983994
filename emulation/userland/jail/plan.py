"""What a board's userland is made of, and who answers for the kernel: plain records and protocols.

The jail (:mod:`emulation.userland.jail.jail`) turns a :class:`JailPlan` into namespaces and sends
every system call that the model must answer to a :class:`SyscallHandlers`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from emulation.linux.devices import DeviceNode
from emulation.linux.kernel import Task
from emulation.linux.vfs import Filesystem

BOARD_PYTHON = "/opt/board/python"
"""Where the board finds a Python installation (prefix); run ``bin/python3`` below it."""


class JailError(Exception):
    """The namespaces could not be built; ``step`` names what failed, ``errno`` says how.

    :func:`emulation.userland.jail.probe.check` finds the remedy.
    """

    def __init__(self, step: str, errno: int, detail: str) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.errno = errno


@dataclass(frozen=True)
class Bind:
    """A host file or directory shown in the board at ``target``; recursive."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class PlacedFile:
    """A file of the board. On a read-only or virtual directory (/proc, /usr) it covers the name
    that is there; otherwise it is an ordinary file of the tmpfs."""

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Limits:
    """What the board may take of the host (docs/safety.md).

    ``processes`` and threads of all its users together; ``descriptors`` open in one process;
    ``memory``: MiB of private data of one process; ``tmpfs``: MiB that each of its file systems in
    memory holds; ``file``: MiB of one file."""

    processes: int = 1024
    descriptors: int = 4096
    memory: int = 2048
    tmpfs: int = 256
    file: int = 1024

    def rlimits(self) -> dict[str, int]:
        """By their names in the module resource."""
        return {
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.descriptors,
            "RLIMIT_DATA": self.memory << 20,
            "RLIMIT_FSIZE": self.file << 20,
            "RLIMIT_CORE": 0,
        }

    @property
    def tmpfs_options(self) -> str:
        """As mount(2) takes them: 4 KiB a file."""
        return f"size={self.tmpfs}m,nr_inodes={self.tmpfs * 256}"


@dataclass(frozen=True)
class FuseMount:
    """A model file system mounted at boot: ``type`` is what /proc/mounts and statfs(2) say."""

    target: str
    filesystem: Filesystem
    type: str
    magic: int


@dataclass(frozen=True)
class Uname:
    """struct new_utsname without nodename, which the UTS namespace keeps."""

    sysname: str
    release: str
    version: str
    machine: str


@dataclass(frozen=True)
class WriteSink:
    """Answer of an open hook: every write(2) on the new descriptor calls ``received`` in the jail
    thread (it must not block)."""

    received: Callable[[bytes], None]


class MessageSource(Protocol):
    """A record device (/dev/kmsg): each read(2) returns one record."""

    def next_message(self) -> bytes | None:
        """The next record, None when the reader has caught up; called in the jail thread."""

    def written(self, data: bytes) -> None:
        """A write(2) on the descriptor."""

    def closed(self) -> None:
        """The last descriptor is gone."""


OpenResult = bytes | WriteSink | MessageSource | socket.socket | None
OpenHook = Callable[[Task, int], OpenResult]
"""(caller, open flags) -> content of a read-only file, a sink, a record device, a connected socket
whose other end the hook keeps (the transport closes this one), or None for the kernel's own
answer.  Raises ``OSError``."""


class SyscallHandlers(Protocol):
    """The kernel model's answers to system calls that FUSE does not carry.

    All run in the jail thread and must not sleep, unless stated otherwise; raise ``OSError``.
    """

    def uname(self) -> Uname:
        """uname(2)."""

    def syslog(self, task: Task, action: int, size: int) -> int | bytes:
        """syslog(2): bytes are copied to the caller's buffer and their number is returned."""

    def load_module(self, task: Task, path: str, parameters: str) -> None:
        """finit_module(2) of the file ``path`` (empty for init_module); on a worker thread."""

    def unload_module(self, task: Task, name: str) -> None:
        """delete_module(2); on a worker thread."""

    def reboot(self, task: Task, command: int) -> None:
        """reboot(2) by a task with CAP_SYS_BOOT: 0x01234567 restart, 0x4321FEDC power off."""

    def mount_efivarfs(self, task: Task, first: bool, options: str) -> bool:
        """A mount(2) of type efivarfs; ``first``: no mount exists, so the superblock is new;
        ``options``: the data, with ``ro`` in front for MS_RDONLY.
        Returns whether the superblock is read-only; EOPNOTSUPP without registered efivars."""

    def shown_options(self, kind: str) -> str:
        """What a file system of type ``kind`` says of itself in /proc/mounts after ro or rw, with
        its leading comma."""

    def write_efivarfs(self, task: Task, ino: int, data: bytes) -> int:
        """A write(2) of nothing, or of more than one FUSE request carries, to the inode; at most
        :data:`emulation.linux.efivarfs.REFUSED_WRITE` bytes of it.  On a worker thread."""

    def unmounted_efivarfs(self) -> None:
        """The last mount is gone, and the superblock with it."""

    def remount_efivarfs(self, task: Task, read_only: bool, options: str) -> None:
        """mount(2) with MS_REMOUNT: efivarfs_reconfigure; EINVAL for rw while SetVariable is
        unsupported.  On success the superblock takes ``read_only``."""


@dataclass(frozen=True)
class JailPlan:
    """Everything :meth:`emulation.userland.jail.jail.Jail.start` needs to know.

    ``filesystems``: /sys and efivarfs; the one of type efivarfs is mounted on request as well.
    ``efivarfs_read_only``: SB_RDONLY of efivarfs as it is mounted at boot.
    ``open_hooks``: absolute path in the board -> hook; consulted for opens of that name, whether
    or not such a file exists.
    ``efivarfs_at_boot``: whether it is mounted then; it can be mounted later in any case.
    ``efivarfs_mount_read_only``: that mount's own flag.
    ``host_programs``: show the host's /usr with its top-level links.
    ``board_python``: show the supervisor's Python installation at :data:`BOARD_PYTHON`.
    """

    hostname: str
    filesystems: tuple[FuseMount, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    binds: tuple[Bind, ...] = ()
    files: tuple[PlacedFile, ...] = ()
    symlinks: Mapping[str, str] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    open_hooks: Mapping[str, OpenHook] = field(default_factory=dict)
    efivarfs_read_only: bool = False
    board_python: bool = True
    host_programs: bool = True
    efivarfs_at_boot: bool = True
    efivarfs_mount_read_only: bool = False
    limits: Limits = field(default_factory=Limits)
