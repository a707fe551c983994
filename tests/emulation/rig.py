"""A whole board without its userland, with the few system calls that tests of it need.

The supplicant is the board's own program on a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulation.linux.kernel import Task, running
from emulation.machine import Machine
from emulation.options import BoardOptions
from tests.emulation.supplicant_thread import SupplicantThread
from tests.pace import until

ROOT = Task(1)
GUID = "12345678-1234-1234-1234-123456789abc"
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMMUTABLE = 0x10


class Rig:
    """A machine, its supplicant, and the few system calls that the tests need."""

    def __init__(self, state: Path, **options: object) -> None:
        self.machine = Machine(BoardOptions(**options), state)  # type: ignore[arg-type]
        self.supplicant = SupplicantThread(self.machine)
        self.console = bytearray()

    def boot(self, *, supplicant: bool = True) -> None:
        """Power on, mount efivarfs, and start the supplicant until the driver is bound."""
        self.machine.power_on(console=self.console.extend)
        self.machine.running.efivarfs.mount(task=ROOT)
        if supplicant:
            assert self.supplicant.start()
            self.wait(lambda: not self.machine.running.efivarfs.read_only)

    def reboot(self) -> None:
        self.machine.power_cut()
        self.supplicant = SupplicantThread(self.machine)
        self.boot()

    @staticmethod
    def wait(condition: Callable[[], bool]) -> None:
        until(condition, step=0.001)

    @property
    def counter(self) -> int:
        return self.machine.card.rpmb.write_counter

    def write(self, name: str, data: bytes, task: Task = ROOT, *, attributes: int = 7) -> None:
        """open(O_WRONLY|O_CREAT), one write, close; an existing file is made mutable first."""
        fs = self.machine.running.efivarfs
        with running(task):
            try:
                ino = fs.lookup(task, fs.root, name.encode()).ino
                fs.setflags(task, ino, fs.getflags(task, ino) & ~IMMUTABLE)
                handle = fs.open(task, ino, os.O_WRONLY)
            except FileNotFoundError:
                _attr, handle = fs.create(task, fs.root, name.encode(), 0o644, os.O_WRONLY)
            try:
                payload = attributes.to_bytes(4, "little") + data
                assert fs.write(task, handle, 0, payload) == len(payload)
            finally:
                fs.release(handle)

    def read(self, name: str, task: Task = ROOT) -> bytes:
        """The data without the attributes; empty when the variable does not exist."""
        fs = self.machine.running.efivarfs
        with running(task):
            handle = fs.open(task, fs.lookup(task, fs.root, name.encode()).ino, os.O_RDONLY)
            try:
                return fs.read(task, handle, 0, 65536)[4:]
            finally:
                fs.release(handle)

    def delete(self, name: str) -> None:
        fs = self.machine.running.efivarfs
        with running(ROOT):
            ino = fs.lookup(ROOT, fs.root, name.encode()).ino
            fs.setflags(ROOT, ino, fs.getflags(ROOT, ino) & ~IMMUTABLE)
            fs.unlink(ROOT, fs.root, name.encode())

    def names(self) -> set[str]:
        fs = self.machine.running.efivarfs
        return {entry.name.decode() for entry in fs.readdir(ROOT, fs.root)}

    def free(self) -> tuple[int, int]:
        space = self.machine.running.efivarfs.statfs(ROOT)
        return space.blocks, space.bavail

    @contextmanager
    def costs(self, low: int, high: int | None = None) -> Iterator[None]:
        """The block moves the RPMB write counter by ``low``..``high``."""
        before = self.counter
        yield
        assert low <= self.counter - before <= (low if high is None else high)


MakeRig = Callable[..., Rig]


def errno_of(work: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is what is tested)
        work()
    return caught.value.errno


def name(short: str) -> str:
    return f"{short}-{GUID}"
