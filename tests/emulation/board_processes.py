"""A jail with file systems in memory, and a way to run commands in it."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emulation.linux.devices import DeviceNode
from emulation.linux.efivarfs import EFIVARFS_MAGIC
from emulation.linux.kernel import Task
from emulation.linux.sysfs import SYSFS_MAGIC
from emulation.userland.jail.jail import Jail
from emulation.userland.jail.plan import (
    FuseMount,
    JailPlan,
    OpenHook,
    PlacedFile,
    Uname,
)
from emulation.userland.jail.spawner import Program
from tests.emulation.memory_filesystem import MemoryFilesystem

EFIVARS = "/sys/firmware/efi/efivars"
BOOT = "Boot0000-8be4df61-93ca-11d2-aa0d-00e098032b8c"
NEW = "T-12345678-1234-1234-1234-123456789abc"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

PASSWD = b"root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000::/tmp:/bin/sh\n"
SHADOW = b"root:*:1::::::\ntester:*:1::::::\n"


@dataclass
class Handlers:
    """Implements ``SyscallHandlers`` with a log of one line and a superblock flag."""

    efivarfs: MemoryFilesystem
    log: bytes = b"<6>[    0.000001] tee_stmm_efi: hello\n"
    writable: bool = True
    registered: bool = True
    events: list[str] = field(default_factory=list)
    rebooted: threading.Event = field(default_factory=threading.Event)

    def uname(self) -> Uname:
        return Uname("Linux", "6.12.107-stmm", "#1 SMP PREEMPT", "aarch64")

    def syslog(self, task: Task, action: int, size: int) -> int | bytes:
        if action in (3, 4):  # SYSLOG_ACTION_READ_ALL, _READ_CLEAR
            text, self.log = self.log, self.log if action == 3 else b""
            return text[:size]
        if action == 5:  # SYSLOG_ACTION_CLEAR
            self.log = b""
            return 0
        return len(self.log)

    def load_module(self, task: Task, path: str, parameters: str) -> None:
        self.events.append(f"load {path} {parameters}")

    def unload_module(self, task: Task, name: str) -> None:
        self.events.append(f"unload {name}")

    def reboot(self, task: Task, command: int) -> None:
        self.events.append(f"reboot {command:#x}")
        self.rebooted.set()

    def mount_efivarfs(self, task: Task, first: bool, options: str) -> bool:
        if not self.registered:
            raise OSError(errno.EOPNOTSUPP, "no efivars")
        self.events.append("new superblock" if first else "another mount")
        return self.efivarfs.read_only

    def shown_options(self, kind: str) -> str:
        return ""

    def write_efivarfs(self, task: Task, ino: int, data: bytes) -> int:
        if len(data) < 4:
            raise OSError(errno.EINVAL, "shorter than the attributes")
        self.events.append(f"write {len(data)} to {ino}")
        return len(data)

    def unmounted_efivarfs(self) -> None:
        self.events.append("superblock gone")

    def remount_efivarfs(self, task: Task, read_only: bool, options: str) -> None:
        if not read_only and not self.writable:
            raise OSError(errno.EINVAL, "SetVariable is not supported")
        self.efivarfs.read_only = read_only


@dataclass(frozen=True)
class Output:
    """What a command said: ``status`` as the shell has it, ``out`` is stdout and stderr."""

    status: int
    out: str


class Board:
    """A jail, its models, and commands in it."""

    def __init__(
        self,
        *,
        nodes: Sequence[DeviceNode] = (),
        hooks: Mapping[str, OpenHook] | None = None,
        read_only: bool = False,
        efivarfs: MemoryFilesystem | None = None,
    ) -> None:
        self.efivarfs = efivarfs or MemoryFilesystem()
        self.efivarfs.read_only = read_only
        self.efivarfs.add(BOOT.encode(), b"\7\0\0\0hello")
        self.sysfs = MemoryFilesystem(immutable=False)
        self.sysfs.add(b"firmware/efi/efivars", mode=stat.S_IFDIR | 0o755)
        self.sysfs.add(b"class/tee/tee0/revision", b"4.10\n")
        self.sysfs.add(b"bus/tee/devices/tee0", link=b"../../../class/tee/tee0")
        self.handlers = Handlers(self.efivarfs)
        plan = JailPlan(
            "stmm-board",
            (
                FuseMount("/sys", self.sysfs, "sysfs", SYSFS_MAGIC),
                FuseMount(EFIVARS, self.efivarfs, "efivarfs", EFIVARFS_MAGIC),
            ),
            nodes=tuple(nodes),
            files=(
                PlacedFile("/etc/passwd", PASSWD),
                PlacedFile("/etc/shadow", SHADOW, 0o600),
                PlacedFile("/etc/group", b"root:x:0:\ntester:x:1000:\n"),
                PlacedFile("/proc/sys/kernel/random/boot_id", b"a-boot-id\n"),
                PlacedFile("/usr/bin/systemctl", b"#!/bin/sh\necho shim $*\n", 0o755),
                PlacedFile("/run/board.txt", b"on run\n"),
            ),
            open_hooks=hooks or {},
            efivarfs_read_only=read_only,
        )
        self.died = threading.Event()
        self.jail = Jail.start(plan, self.handlers, on_death=self.died.set)

    def begin(self, command: str, *, uid: int = 0) -> Running:
        """Start ``command`` in a shell."""
        return Running(self.jail, command, uid)

    def run(self, command: str, *, uid: int = 0, timeout: float = 20.0) -> Output:
        """Run ``command`` in a shell to its end."""
        return self.begin(command, uid=uid).wait(timeout)

    def text(self, command: str, *, uid: int = 0) -> str:
        """Output of a command that must succeed, without the last newline."""
        result = self.run(command, uid=uid)
        assert result.status == 0, result
        return result.out.rstrip("\n")


class Running:
    """A command on its way."""

    def __init__(self, jail: Jail, command: str, uid: int) -> None:
        self._status: list[int] = []
        self._done = threading.Event()
        self._read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            env = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
            program = Program(["/bin/sh", "-c", command], env, uid=uid, gid=uid)
            self.pid = jail.spawn(program, (null, write, write), self._exited)
        finally:
            os.close(write)
            os.close(null)

    def _exited(self, status: int) -> None:
        self._status.append(status)
        self._done.set()

    def running(self, seconds: float) -> bool:
        """Whether it still runs after ``seconds``."""
        return not self._done.wait(seconds)

    def wait(self, timeout: float = 20.0) -> Output:
        """Its end; AssertionError after ``timeout`` seconds."""
        assert self._done.wait(timeout), f"still running: process {self.pid}"
        chunks = []
        while chunk := os.read(self._read, 1 << 16):
            chunks.append(chunk)
        os.close(self._read)
        code = os.waitstatus_to_exitcode(self._status[0])
        return Output(code if code >= 0 else 128 - code, b"".join(chunks).decode(errors="replace"))
