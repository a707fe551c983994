"""A system call that waits for its answer, and what all of one power-on share."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from emulation.faults import PowerLost
from emulation.linux.devices import DeviceFile, DeviceNode, ReturnedFd
from emulation.linux.kernel import Killed, Task, running
from emulation.userland.jail.caller import Caller, Proceed
from emulation.userland.jail.nodes import NodeTree
from emulation.userland.jail.paths import Mounts
from emulation.userland.jail.plan import OpenHook, SyscallHandlers
from emulation.userland.jail.records import Records
from emulation.userland.jail.seccomp import Listener, Notification
from emulation.userland.jail.supervisor import Supervisor

MAX_DEVICE_FILES: Final = 256
"""Character devices and records that the board may have open at once."""


@dataclass
class Shared:
    """What the calls of one power-on share.

    ``nodes``, ``hooks``: by path in the board; ``interesting``: last names of what an open(2) may
    be answered for.  ``files``: open character devices, by the inode of their socket; ``disks``:
    open block devices, by the path of their content.  ``undelivered``: arguments and result of an
    ioctl whose caller was interrupted, by thread.  ``records``: open record devices and sinks.
    """

    supervisor: Supervisor
    listener: Listener
    handlers: SyscallHandlers
    tree: NodeTree
    mounts: Mounts
    nodes: Mapping[str, DeviceNode]
    hooks: Mapping[str, OpenHook]
    interesting: frozenset[bytes]
    hostname: str
    files: dict[str, tuple[DeviceNode, DeviceFile]] = field(default_factory=dict)
    undelivered: dict[int, tuple[tuple[int, ...], int | ReturnedFd]] = field(default_factory=dict)
    records: list[Records] = field(default_factory=list)

    def require_room(self) -> None:
        """Raises ``OSError(ENFILE)`` where the board has as many devices open as may be: each is a
        descriptor of the supervisor's, too."""
        if len(self.files) + len(self.records) >= MAX_DEVICE_FILES:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def drain_records(self) -> None:
        """What is written to a record device is there for the next reader when write(2)
        returns."""
        for records in tuple(self.records):
            records.drain()

    def close(self) -> None:
        """The power is gone: nobody will close what the board had open."""
        for records in tuple(self.records):
            records.close()
        for _, file in self.files.values():
            file.close()
        self.files.clear()


class Call(NamedTuple):
    """One call; its handler answers, now or later, or raises :class:`Proceed` or ``OSError``."""

    name: str
    notification: Notification
    caller: Caller
    shared: Shared

    @property
    def args(self) -> tuple[int, ...]:
        """The six arguments, 64 bits each."""
        return self.notification.args

    def reply(self, value: int) -> bool:
        """The call returns ``value``; False if the caller is gone."""
        return self.shared.listener.reply(self.notification.id, value)

    def reply_fd(self, fd: int, *, cloexec: bool) -> bool:
        """The call returns a duplicate of ``fd``; False if the caller is gone."""
        return self.shared.listener.reply_fd(self.notification.id, fd, cloexec=cloexec)

    def fail(self, number: int) -> bool:
        """The call fails with errno ``number``."""
        return self.shared.listener.fail(self.notification.id, number)

    def settle(self, work: Callable[[], None]) -> None:
        """Run ``work``, which answers; an exception becomes the answer."""
        try:
            work()
        except Proceed:
            self.shared.listener.proceed(self.notification.id)
        except OSError as error:
            self.fail(error.errno or errno.EIO)
        except (Killed, PowerLost):
            pass
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self.fail(errno.EIO)

    def run(self, task: Task, work: Callable[[], None], *, sleeps: bool = True) -> None:
        """Run ``work``, which answers, on behalf of ``task``: here, or where it ``sleeps`` on a
        worker, until a signal to the caller ends it."""
        if not sleeps:
            with running(task):
                work()
            return
        active = [True]

        def finish() -> None:
            try:
                with running(task):
                    self.settle(work)
            finally:
                active.clear()

        def still_needed() -> bool:
            if not active:
                return False
            if not self.shared.listener.valid(self.notification.id):
                task.fatal.set()
                return False
            return True

        self.shared.supervisor.run_later(finish)
        self.shared.supervisor.watch(still_needed)


Answer = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class SystemCall:
    """A call that the model answers, sometimes.

    ``path``: which argument names a file to open; nearly all of these are the kernel's business.
    ``of_disks``: of interest only while a device is open.
    """

    name: str
    answer: Answer
    path: int | None = None
    of_disks: bool = False
