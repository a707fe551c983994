"""The kernel's side of system calls that FUSE does not carry, answered from the machine's model.

Source of the syslog numbers: K6 include/linux/syslog.h; of /dev/kmsg: Documentation/ABI/testing/
dev-kmsg.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Final

from emulation.linux.kernel import KERN_DEBUG, LOG_BUFFER_BYTES, Kernel, LogRecord, Task
from emulation.machine import Machine
from emulation.userland.jail.plan import Uname, WriteSink

MACHINE: Final = "aarch64"

RESTART: Final = 0x01234567
POWER_OFF: Final = 0x4321FEDC
HALT: Final = 0xCDEF0123
"""Commands of reboot(2), K6 include/uapi/linux/reboot.h."""

_ENDINGS: Final = {RESTART: "reboot", POWER_OFF: "poweroff", HALT: "halt"}

"""Facility of lines that user space writes into the kernel log."""


class KernelHandlers:
    """Answers of one power-on; ``end`` is told how a reboot(2) ends the system."""

    def __init__(self, machine: Machine, end: Callable[[str], None]) -> None:
        self._machine = machine
        self._kernel: Kernel = machine.running.kernel
        self._end = end

    def uname(self) -> Uname:
        """uname(2)."""
        return Uname("Linux", self._machine.release, self._machine.version, MACHINE)

    def syslog(self, task: Task, action: int, size: int) -> int | bytes:
        """syslog(2)."""
        log = self._kernel.log
        if action in (3, 4):
            text = b"".join(_syslog_line(record) for record in log.records())
            if action == 4:
                log.clear()
            return text[-size:] if size else b""
        if action == 5:
            log.clear()
        elif action == 8:
            if not 1 <= size <= 8:
                raise OSError(errno.EINVAL, "console level")
            self._kernel.console_loglevel = size
        elif action == 10:
            return LOG_BUFFER_BYTES
        elif action not in (0, 1, 6, 7, 9):
            raise OSError(errno.EINVAL, "unknown action")
        return 0

    def load_module(self, task: Task, path: str, parameters: str) -> None:
        """finit_module(2)."""
        self._machine.running.modules.modprobe(
            PurePosixPath(path).name.partition(".")[0], task=task
        )

    def unload_module(self, task: Task, name: str) -> None:
        """delete_module(2)."""
        self._machine.running.modules.rmmod(name, task=task)

    def reboot(self, task: Task, command: int) -> None:
        """reboot(2): no orderly shutdown, the machine stops here."""
        if command not in _ENDINGS:
            raise OSError(errno.EINVAL, "unknown command")
        self._end(_ENDINGS[command])

    def mount_efivarfs(self, task: Task, first: bool, options: str) -> bool:
        """mount(2) of type efivarfs; whether the superblock is read-only."""
        read_only, rest = _split_read_only(options)
        self._machine.running.efivarfs.mount(rest, read_only=read_only, task=task)
        return self._machine.running.efivarfs.read_only

    def shown_options(self, kind: str) -> str:
        """What a file system of the board says of itself in /proc/mounts, after ro or rw."""
        return self._machine.running.efivarfs.options.shown() if kind == "efivarfs" else ""

    def write_efivarfs(self, task: Task, ino: int, data: bytes) -> int:
        """A write(2) that FUSE would not carry, or not in one piece."""
        return self._machine.running.efivarfs.write_inode(task, ino, data)

    def unmounted_efivarfs(self) -> None:
        """The superblock is gone."""
        self._machine.running.efivarfs.unmount()

    def remount_efivarfs(self, task: Task, read_only: bool, options: str) -> None:
        """mount(2) with MS_REMOUNT."""
        self._machine.running.efivarfs.reconfigure(read_only=read_only)


class KmsgReader:
    """One open /dev/kmsg: records from the last clear on, and lines written back into the log."""

    def __init__(self, kernel: Kernel, poke: Callable[[], None]) -> None:
        self._kernel = kernel
        self._poke = poke
        self._next = kernel.log.cleared
        kernel.log.listen(self._news)

    def next_message(self) -> bytes | None:
        """The next record in the format of dev-kmsg."""
        for record in self._kernel.log.records(self._next):
            self._next = record.sequence + 1
            microseconds = int(record.seconds * 1_000_000)
            return f"{record.level},{record.sequence},{microseconds},-;{record.text}\n".encode()
        return None

    def written(self, data: bytes) -> None:
        """``<N>text``, or text at the default level."""
        log_from_user_space(self._kernel, data)

    def closed(self) -> None:
        """Stop listening."""
        self._kernel.log.unlisten(self._news)

    def _news(self, record: LogRecord) -> None:
        self._poke()


def log_from_user_space(kernel: Kernel, data: bytes) -> None:
    """What a write(2) to /dev/kmsg does."""
    text = data.decode("utf-8", "backslashreplace").rstrip("\n")
    level = 4
    if text.startswith("<") and ">" in text[:6] and text[1 : text.index(">")].isdecimal():
        priority, _, text = text[1:].partition(">")
        level = int(priority) & KERN_DEBUG
    kernel.printk(text, level)


class SysRq:
    """/proc/sysrq-trigger."""

    def __init__(self, machine: Machine, end: Callable[[str], None]) -> None:
        self._machine = machine
        self._end = end

    def sink(self, task: Task, flags: int) -> WriteSink:
        """Open hook of the file."""
        if not task.capable:
            raise OSError(errno.EACCES, "sysrq-trigger")
        return WriteSink(self._received)

    def _received(self, data: bytes) -> None:
        key = data[:1].decode("ascii", "replace")
        if key == "b":
            self._machine.running.kernel.printk("sysrq: Resetting", 6)
            self._end("reset")
        elif key == "o":
            self._machine.running.kernel.printk("sysrq: Power Off", 6)
            self._end("poweroff")
        elif key == "s":
            self._machine.running.kernel.printk("sysrq: Emergency Sync", 6)
        elif key == "c":
            self._machine.running.kernel.printk("sysrq: Trigger a crash", 6)
            self._end("crash")
        else:
            self._machine.running.kernel.printk(
                "sysrq: HELP : reboot(b) crash(c) poweroff(o) sync(s)", 6
            )


def _syslog_line(record: LogRecord) -> bytes:
    return f"<{record.level}>{record}\n".encode()


def _split_read_only(options: str) -> tuple[bool, str]:
    words = [word for word in options.split(",") if word]
    rest = ",".join(word for word in words if word not in ("ro", "rw"))
    return "ro" in words, rest
