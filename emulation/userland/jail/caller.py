"""A thread of the board that waits in a system call: who it is, and what it has open."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from emulation.linux.kernel import Task
from emulation.userland.jail.beneath import READ_LIMIT
from emulation.userland.jail.mounts import MountEntry, parse_mountinfo, whole_lines
from emulation.userland.jail.namespaces import IdMaps, to_board
from emulation.userland.jail.syscalls import ProcessMemory, prompt_readlink, raw

CAP_DAC_OVERRIDE, CAP_LINUX_IMMUTABLE, CAP_SYS_MODULE = 1, 9, 16
CAP_SYS_ADMIN, CAP_SYS_BOOT = 21, 22

_PROC_STATUS: Final = re.compile(r"^(Name|Tgid|Uid|Gid|NSpid|CapEff):[ \t]*(.*)$", re.MULTILINE)
_PROC_STATUS_BYTES: Final = 8192


class Proceed(Exception):
    """The kernel's own answer is right."""


@dataclass(frozen=True)
class Caller:
    """A thread of the board that waits in a system call; ``pid`` is the host's number, ``home``
    the board's own user namespace: capabilities in another one are none to the kernel."""

    pid: int
    maps: IdMaps
    home: str = ""

    @property
    def memory(self) -> ProcessMemory:
        """Its memory."""
        return ProcessMemory(self.pid)

    def task(self) -> Task:
        """It as the model knows it."""
        fields = self._status()
        uid = to_board(self.maps.uids, int(fields["Uid"].split()[3]))
        gid = to_board(self.maps.gids, int(fields["Gid"].split()[3]))
        capable = self._effective(fields, CAP_SYS_ADMIN)
        return Task(int(fields["NSpid"].split()[-1]), uid, gid, capable, comm=fields["Name"])

    def has_capability(self, number: int) -> bool:
        """Whether the capability is effective."""
        return self._effective(self._status(), number)

    def _effective(self, fields: dict[str, str], number: int) -> bool:
        if not int(fields["CapEff"], 16) >> number & 1:
            return False
        return not self.home or self.user_namespace() == self.home

    def user_namespace(self) -> str:
        """Its user namespace, as /proc shows it; empty where that is not to be seen."""
        try:
            return prompt_readlink(f"/proc/{self.pid}/ns/user")
        except OSError:
            return ""

    def require(self, capability: int) -> None:
        """Raises ``OSError(EPERM)`` where it lacks the capability."""
        if not self.has_capability(capability):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _status(self) -> dict[str, str]:
        # Read at nearly every call of a device: only what is asked for is taken apart.
        fd = os.open(f"/proc/{self.pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, _PROC_STATUS_BYTES)
        finally:
            os.close(fd)
        return dict(_PROC_STATUS.findall(text.decode(errors="replace")))

    def descriptor(self, number: int) -> str:
        """Where descriptor ``number`` leads; EBADF."""
        try:
            return prompt_readlink(f"/proc/{self.pid}/fd/{number}")
        except PermissionError:
            with self._borrowed(number) as fd:
                return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        except OSError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def descriptor_info(self, number: int) -> dict[str, str]:
        """fdinfo: flags (octal), mnt_id, ino (Linux 5.15)."""
        try:
            with open(f"/proc/{self.pid}/fdinfo/{number}") as file:  # noqa: PTH123
                lines = file.read().splitlines()
        except PermissionError:
            with self._borrowed(number) as fd, open(f"/proc/self/fdinfo/{fd}") as file:  # noqa: PTH123
                lines = file.read().splitlines()
        except OSError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    @contextlib.contextmanager
    def _borrowed(self, number: int) -> Iterator[int]:
        """The same open file here: /proc/PID/fd of another user id is closed to a supervisor
        without privileges, ptrace rights over its namespace are not."""
        process = os.pidfd_open(int(self._status()["Tgid"]))
        try:
            fd = raw("pidfd_getfd", process, number, 0)
        finally:
            os.close(process)
        try:
            yield fd
        finally:
            os.close(fd)

    def mounts(self) -> Sequence[MountEntry]:
        """Its mount table, as the kernel has it."""
        with open(f"/proc/{self.pid}/mountinfo", "rb") as file:  # noqa: PTH123
            return parse_mountinfo(whole_lines(file.read(READ_LIMIT)))
