"""Contexts and shared memory of the TEE subsystem.

A context lives as long as its file is open *or* any of its shared memory is in use.  That is why a
supplicant killed in the middle of a request keeps ``/dev/teepriv0`` busy: OP-TEE still holds memory
the supplicant had given it.  Source: K6 drivers/tee/tee_core.c, tee_shm.c; truth log-kill4.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from typing import Final, Protocol

from emulation.linux.devices import UserMemory
from emulation.linux.kernel import Kernel

PAGE_SIZE: Final = 4096


class Pages(Protocol):
    """The bytes behind a piece of shared memory."""

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``."""

    def close(self) -> None:
        """Give the pages back."""


class MemfdPages:
    """Memory the kernel allocated (TEE_IOC_SHM_ALLOC): a memfd the caller maps too."""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("tee-shm", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size)
        self._map = mmap.mmap(self.descriptor, size)

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def close(self) -> None:
        self._map.close()
        os.close(self.descriptor)


class RegisteredPages:
    """Memory of the caller (TEE_IOC_SHM_REGISTER).

    The real kernel pins the pages; here they go with the process, so what is written after its
    death is dropped: nobody could read it.
    """

    def __init__(self, memory: UserMemory, address: int) -> None:
        self._memory = memory
        self._address = address

    def read(self, offset: int, length: int) -> bytes:
        return self._memory.read(self._address + offset, length)

    def write(self, offset: int, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._memory.write(self._address + offset, data)

    def close(self) -> None:
        """Nothing is held."""


class SharedMemory:
    """One ``struct tee_shm``: ``size`` bytes known to the TEE by ``number``."""

    def __init__(self, number: int, size: int, pages: Pages, context: TeeContext) -> None:
        self.number = number
        self.size = size
        self.pages = pages
        self._context = context
        self._references = 1
        context.get()

    def get(self) -> None:
        """Take a reference."""
        self._references += 1

    def put(self) -> None:
        """Drop a reference; the last one frees the memory and lets go of the context."""
        self._references -= 1
        if self._references == 0:
            self.pages.close()
            self._context.forget(self)
            self._context.put()


class TeeContext:
    """One open of a TEE device, by a process or by the kernel itself.

    ``nowait`` (supp_nowait) makes requests to an absent supplicant fail at once.  ``released`` is
    called when the last reference goes.
    """

    def __init__(
        self, kernel: Kernel, *, nowait: bool, released: Callable[[], None] = lambda: None
    ) -> None:
        self._kernel = kernel
        self.nowait = nowait
        self._released = released
        self._references = 1
        self._closed = False
        self._shared: dict[int, SharedMemory] = {}
        self._next_number = 1

    def get(self) -> None:
        """Take a reference."""
        self._references += 1

    def put(self) -> None:
        """Drop a reference."""
        self._references -= 1
        if self._references == 0:
            self._released()

    def share(self, size: int, pages: Pages) -> SharedMemory:
        """Make shared memory; the reference belongs to the caller's descriptor."""
        with self._kernel.lock:
            shared = SharedMemory(self._next_number, size, pages, self)
            self._next_number += 1
            self._shared[shared.number] = shared
            return shared

    def borrow(self, number: int) -> SharedMemory | None:
        """tee_shm_get_from_id: the memory with one more reference, None for an unknown number."""
        with self._kernel.lock:
            shared = self._shared.get(number)
            if shared is not None:
                shared.get()
            return shared

    def give_back(self, shared: SharedMemory) -> None:
        """tee_shm_put."""
        with self._kernel.lock:
            shared.put()

    def descriptor_closed(self, number: int) -> None:
        """The process closed its descriptor of this memory."""
        with self._kernel.lock:
            shared = self._shared.get(number)
            if shared is not None:
                shared.put()

    def forget(self, shared: SharedMemory) -> None:
        """Called by the memory itself when it is freed."""
        self._shared.pop(shared.number, None)

    def close(self) -> None:
        """The file was closed; a process that ends closes its memory descriptors too."""
        with self._kernel.lock:
            if self._closed:
                return
            self._closed = True
            for shared in tuple(self._shared.values()):
                shared.put()
            self.put()
