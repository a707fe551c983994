"""The board's own tee-supplicant program on a thread of this process, its system calls answered by
the model: what the seccomp transport does, without namespaces."""

from __future__ import annotations

import array
import ctypes
import errno
import itertools
import os
import threading
from pathlib import PurePosixPath

from emulation.faults import PowerLost
from emulation.linux.devices import ReturnedFd
from emulation.linux.kernel import Killed, Task
from emulation.linux.mmc_ioctl import MmcNode
from emulation.linux.sysfs import Sysfs
from emulation.linux.tee_ioctl import TeeFile
from emulation.machine import Machine
from emulation.userland.system import tee_supplicant


class LocalMemory:
    """This process as the calling process."""

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))


def address_of(buffer: array.array[int] | bytearray) -> int:
    """Where a writable buffer lies."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def read_sysfs(sysfs: Sysfs, path: str, task: Task) -> str:
    """The text of an attribute, links followed."""
    return sysfs.read(
        task, sysfs.open(task, resolve(sysfs, path, task), os.O_RDONLY), 0, 4096
    ).decode()


def resolve(sysfs: Sysfs, path: str, task: Task) -> int:
    """The inode a path below /sys leads to."""
    names = list(PurePosixPath(path).parts[2:])
    trail = [sysfs.root]
    while names:
        name = names.pop(0)
        if name == "..":
            trail.pop()
            continue
        attr = sysfs.lookup(task, trail[-1], name.encode())
        if attr.mode & 0o170000 == 0o120000:
            names = list(PurePosixPath(sysfs.readlink(task, attr.ino).decode()).parts) + names
        else:
            trail.append(attr.ino)
    return trail[-1]


class ModelSystem(tee_supplicant.System):
    """System calls of one process of the board."""

    def __init__(self, machine: Machine, task: Task) -> None:
        self._machine = machine
        self.task = task
        self._numbers = itertools.count(1 << 20)
        self._files: dict[int, TeeFile | MmcNode] = {}
        self._memory = LocalMemory()

    def open(self, path: str, flags: int) -> int:  # type: ignore[override]
        for node in self._machine.nodes:
            if node.path == path:
                opened = node.device.open(self.task, flags)
                assert isinstance(opened, TeeFile | MmcNode)
                number = next(self._numbers)
                self._files[number] = opened
                return number
        raise FileNotFoundError(errno.ENOENT, path)

    def close(self, fd: int) -> None:
        if fd in self._files:
            self._files.pop(fd).close()
        else:
            os.close(fd)

    def ioctl(self, fd: int, request: int, buffer: array.array[int] | bytearray) -> int:
        result = self._files[fd].ioctl(request, address_of(buffer), self._memory, self.task)
        if isinstance(result, ReturnedFd):
            return result.fd if result.close_after else os.dup(result.fd)
        return result

    def read_text(self, path: str) -> str:
        return read_sysfs(self._machine.running.sysfs, path, self.task).strip()

    def exit(self) -> None:
        """The process ends: all its files are closed."""
        for number in tuple(self._files):
            self.close(number)


class SupplicantThread:
    """``tee-supplicant`` as a process that can be started, stopped and killed."""

    def __init__(self, machine: Machine, *, emulated_rpmb: bool = False) -> None:
        self._machine = machine
        self._emulated = emulated_rpmb
        self.requests = 0
        self._may_run = threading.Semaphore(0)
        self._held_after: int | None = None
        self._task: Task | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Start; False when it finds no free device."""
        task = Task(900)
        system = ModelSystem(self._machine, task)
        fd = tee_supplicant.open_device(system, ["/dev/teepriv0"])
        if fd is None:
            return False
        rpmb: tee_supplicant.Rpmb = (
            tee_supplicant.EmulatedRpmb() if self._emulated else tee_supplicant.MmcRpmb(system)
        )
        supplicant = tee_supplicant.Supplicant(system, fd, rpmb)
        self._task = task
        self._thread = threading.Thread(
            target=self._serve, args=(supplicant, system, task), daemon=True
        )
        self._thread.start()
        return True

    def _serve(
        self, supplicant: tee_supplicant.Supplicant, system: ModelSystem, task: Task
    ) -> None:
        process = supplicant.process

        def counting(func: int, params: list[tuple[int, int, int, int]]) -> object:
            self.requests += 1
            if self._held_after is not None and self.requests > self._held_after:
                self._may_run.acquire(timeout=10)
            if task.fatal.is_set():
                raise Killed
            return process(func, params)

        supplicant.process = counting  # type: ignore[method-assign,assignment]
        try:
            supplicant.serve()
        except (Killed, PowerLost):
            pass
        finally:
            system.exit()

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        return self._thread is not None and self._thread.is_alive()

    def hold(self, *, after: int = 0) -> None:
        """When it has served ``after`` more requests it stands still inside every one."""
        self._held_after = self.requests + after

    def release_one(self) -> None:
        """Let it finish the request it stands in."""
        self._may_run.release()

    def kill(self) -> None:
        """SIGKILL (or SIGTERM, which has no handler): gone at once, even while it stands still."""
        assert self._task is not None
        assert self._thread is not None
        self._task.fatal.set()
        self._may_run.release()
        self._thread.join(5)
        assert not self._thread.is_alive()

    stop = kill
