"""The efivars core: which operations serve EFI variables, who may call them, and their errno.

One set of operations is registered at a time; file systems learn of a change through a notifier
chain; a semaphore is held while the firmware works.  Source: stack 5.4 and 5.5, K6
drivers/firmware/efi/vars.c and efi.c.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NoReturn, Protocol
from uuid import UUID

from emulation.linux.kernel import KERN_ALERT, KERN_ERR, KERN_WARNING, Kernel, Killed, Oops, Task
from harness.formats.efi import EfiStatus, encode_name

EFI_VARIABLE_MASK: Final = 0x7F
"""Attribute bits the kernel knows; any other is EINVAL before the firmware is asked."""

NULL_GUID: Final = UUID(int=0)

_QUERYLESS_SIZE_MAX: Final = 1 << 16
"""Largest variable (data + name, bytes) accepted when the store cannot be asked for room."""


class KernelSeries(Enum):
    """Which kernel's efivarfs and driver are modelled: 6.12 (recorded) or 7.3."""

    K6 = "K6"
    K7 = "K7"


class OpsEvent(IntEnum):
    """What the notifier chain tells when operations are registered."""

    READ_ONLY = 0
    READ_WRITE = 1


@dataclass(frozen=True)
class VariableReply:
    """Answer to GetVariable.

    ``size`` is *data_size after the call, in bytes: the needed size with BUFFER_TOO_SMALL.
    ``data`` is None unless the call succeeded into a buffer.
    """

    status: int
    attributes: int = 0
    size: int = 0
    data: bytes | None = None


@dataclass(frozen=True)
class NextVariableReply:
    """Answer to GetNextVariableName; ``name`` and ``guid`` are the next variable on SUCCESS.

    ``name_size`` is in bytes with the NUL: the needed capacity with BUFFER_TOO_SMALL.
    """

    status: int
    name: str = ""
    guid: UUID = NULL_GUID
    name_size: int = 0


@dataclass(frozen=True)
class SpaceReply:
    """Answer to QueryVariableInfo, bytes."""

    status: int
    max_storage: int = 0
    remaining: int = 0
    max_variable: int = 0


class EfivarsOperations(Protocol):
    """``struct efivar_operations``: what serves variables.

    A name is a ``str`` as :func:`harness.formats.efi.decode_name` makes it, without NUL.
    All calls may sleep and may raise PowerLost or Killed.
    """

    @property
    def supports_set(self) -> bool:
        """Whether ``set_variable`` is filled in; without it file systems are read-only."""

    def get_variable(
        self, name: str, guid: UUID, size: int, *, buffer: bool = True
    ) -> VariableReply:
        """GetVariable into ``size`` bytes; ``buffer=False`` passes a NULL data pointer."""

    def get_next_variable(self, name: str, guid: UUID, capacity: int) -> NextVariableReply:
        """GetNextVariableName into ``capacity`` bytes; the empty name asks for the first."""

    def set_variable(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        """SetVariable; returns the status."""

    def set_variable_nonblocking(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        """SetVariable from a context that must not sleep; returns the status."""

    def query_variable_info(self, attributes: int) -> SpaceReply:
        """QueryVariableInfo."""

    def query_variable_store(self, attributes: int, size: int) -> int:
        """Whether ``size`` more bytes of name and data fit; UNSUPPORTED when unknown."""


_ERRNO: Final[dict[int, int]] = {
    EfiStatus.SUCCESS: 0,
    EfiStatus.INVALID_PARAMETER: errno.EINVAL,
    EfiStatus.OUT_OF_RESOURCES: errno.ENOSPC,
    EfiStatus.DEVICE_ERROR: errno.EIO,
    EfiStatus.WRITE_PROTECTED: errno.EROFS,
    EfiStatus.SECURITY_VIOLATION: errno.EACCES,
    EfiStatus.NOT_FOUND: errno.ENOENT,
    EfiStatus.ABORTED: errno.EINTR,
}


def status_to_errno(status: int) -> int:
    """The errno of an EFI status, 0 for success; whatever has no row is EINVAL (stack 5.5)."""
    return _ERRNO.get(status, errno.EINVAL)


class Efivars:
    """The one registry of EFI variable operations of a running kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._operations: EfivarsOperations | None = None
        self._listeners: list[Callable[[OpsEvent], None]] = []
        self._holder: Task | None = None
        self._queue: deque[object] = deque()

    @property
    def available(self) -> bool:
        """Whether any operations are registered (efivar_is_available)."""
        return self._operations is not None

    @property
    def supports_writes(self) -> bool:
        """Whether the registered operations can set a variable (efivar_supports_writes)."""
        return self._operations is not None and self._operations.supports_set

    def subscribe(self, listener: Callable[[OpsEvent], None]) -> None:
        """Join the notifier chain; called in the thread that registers, semaphore held."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: Callable[[OpsEvent], None]) -> None:
        """Leave the notifier chain."""
        self._listeners.remove(listener)

    def register(self, operations: EfivarsOperations, *, task: Task) -> None:
        """Make ``operations`` the registered ones and tell the chain.

        Raises OSError EBUSY when others are registered, EINTR when the sleep was interrupted.
        """
        with self._semaphore(task):
            if self._operations is not None:
                self._log("efivars already registered", KERN_WARNING)
                raise OSError(errno.EBUSY, "efivars already registered")
            self._operations = operations
            event = OpsEvent.READ_WRITE if self.supports_writes else OpsEvent.READ_ONLY
            for listener in tuple(self._listeners):
                listener(event)
            self._log("Registered efivars operations")

    def unregister(self, operations: EfivarsOperations, *, task: Task) -> None:
        """Remove ``operations``; the chain is not told.

        Raises OSError EINVAL when they are not the registered ones, EINTR when interrupted.
        """
        with self._semaphore(task):
            if self._operations is None:
                self._log("efivars not registered", KERN_ERR)
                raise OSError(errno.EINVAL, "efivars not registered")
            if self._operations is not operations:
                raise OSError(errno.EINVAL, "other efivars are registered")
            self._log("Unregistered efivars operations")
            self._operations = None

    @contextmanager
    def locked(self, task: Task) -> Iterator[EfivarsOperations]:
        """Hold the semaphore around firmware calls (efivar_lock .. efivar_unlock).

        Raises OSError EINTR when interrupted while waiting.  Without registered operations the
        kernel dereferences NULL: that is logged and Oops raised, the semaphore stays down.
        """
        self._down(task)
        operations = self._dereference()
        try:
            yield operations
        except Oops:
            raise
        except BaseException:
            self._up()
            raise
        self._up()

    def try_locked(self, task: Task) -> bool:
        """Take the semaphore without sleeping (efivar_trylock); give back with :meth:`unlock`."""
        with self._kernel.lock:
            if self._holder is not None or self._queue:
                return False
            self._holder = task
            return True

    def unlock(self) -> None:
        """Give back what :meth:`try_locked` took."""
        self._up()

    def query_variable_info(self, attributes: int) -> SpaceReply:
        """QueryVariableInfo, which takes no lock: it queues inside the TEE, not here."""
        return self._dereference().query_variable_info(attributes)

    def set_variable_locked(
        self, name: str, guid: UUID, attributes: int, data: bytes, *, nonblocking: bool = False
    ) -> int:
        """SetVariable by a caller that holds the semaphore, after the check for room. Raises Oops
        where the operations have none: nobody asks for it but who opened a file before these came.

        Source: K6 vars.c efivar_set_variable_locked.
        """
        operations = self._dereference()
        if data:
            status = _check_room(operations, attributes, len(data) + len(encode_name(name)) - 2)
            if status != EfiStatus.SUCCESS:
                return status
        if not operations.supports_set:
            # The pointer to set_variable is NULL, and is called.
            self._oops()
        setter = operations.set_variable_nonblocking if nonblocking else operations.set_variable
        return setter(name, guid, attributes, data)

    def set_variable(
        self, name: str, guid: UUID, attributes: int, data: bytes, *, task: Task
    ) -> int:
        """SetVariable with the semaphore; ABORTED when the wait for it was interrupted."""
        try:
            with self.locked(task):
                return self.set_variable_locked(name, guid, attributes, data)
        except InterruptedError:
            return EfiStatus.ABORTED

    @contextmanager
    def _semaphore(self, task: Task) -> Iterator[None]:
        self._down(task)
        try:
            yield
        finally:
            self._up()

    def _down(self, task: Task) -> None:
        """down_interruptible: first come, first served."""
        ticket = object()
        with self._kernel.lock:
            self._queue.append(ticket)

        def take() -> bool:
            if self._holder is not None or self._queue[0] is not ticket:
                return False
            self._holder = task
            return True

        try:
            self._kernel.wait(take, task=task)
        except Killed:
            raise InterruptedError(errno.EINTR, "interrupted while waiting for efivars") from None
        finally:
            with self._kernel.lock:
                self._queue.remove(ticket)
                self._kernel.wake()

    def _up(self) -> None:
        with self._kernel.lock:
            self._holder = None
            self._kernel.wake()

    def _dereference(self) -> EfivarsOperations:
        if self._operations is None:
            self._oops()
        return self._operations

    def _oops(self) -> NoReturn:
        self._kernel.printk(
            "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000",
            KERN_ALERT,
        )
        raise Oops

    def _log(self, text: str, level: int = 6) -> None:
        self._kernel.printk(f"efivars: {text}", level)


def _check_room(operations: EfivarsOperations, attributes: int, size: int) -> int:
    status = operations.query_variable_store(attributes, size)
    if status != EfiStatus.UNSUPPORTED:
        return status
    return EfiStatus.SUCCESS if size <= _QUERYLESS_SIZE_MAX else EfiStatus.OUT_OF_RESOURCES
