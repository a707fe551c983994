"""Devices that a program opens below /dev, as their drivers see it: open files and their ioctls."""

from dataclasses import dataclass
from typing import Protocol

from emulation.linux.kernel import Task


class UserMemory(Protocol):
    """Memory of the calling process; raises ``OSError(EFAULT)``."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``."""

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``."""


@dataclass(frozen=True)
class ReturnedFd:
    """Result of an ioctl that returns a new descriptor, which is installed in the caller; its
    number there is the result.

    ``close_after``: the model's copy is to be closed once the caller has its own.
    """

    fd: int
    close_after: bool = True


class DeviceFile(Protocol):
    """One open file of a device node (struct file)."""

    def ioctl(
        self, request: int, argument: int, memory: UserMemory, task: Task
    ) -> int | ReturnedFd:
        """ioctl(2): a result >= 0 or a descriptor; raises ``OSError``."""

    def close(self) -> None:
        """The last descriptor is gone."""


class Device(Protocol):
    """What a device node leads to."""

    def open(self, task: Task, flags: int) -> DeviceFile:
        """open(2), after the permission check; raises ``OSError``."""

    def may_sleep(self, request: int) -> bool:
        """Whether ioctl ``request`` may wait for something other than computation."""


class Storage(Protocol):
    """Content of a block device, by byte offset; may sleep."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes; empty at the end."""

    def write(self, offset: int, data: bytes) -> int:
        """The number of bytes taken; ``OSError(ENOSPC)`` at the end."""


@dataclass(frozen=True)
class DeviceNode:
    """A node below /dev with the owner and mode the board's udev gives it.

    With ``storage`` it is a block device, otherwise a character device.
    """

    path: str
    device: Device
    major: int
    minor: int
    storage: Storage | None = None
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
