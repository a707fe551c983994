"""efi-pstore: kernel crash records kept in EFI variables.

A dump must not sleep, so it uses the non-blocking SetVariable, which tee_stmm_efi refuses: with
that driver bound nothing is ever recorded.  Source: K6 drivers/firmware/efi/efi-pstore.c and
fs/pstore/platform.c.
"""

import time
import zlib
from collections.abc import Callable
from typing import Final

from emulation.linux.efivars import Efivars
from emulation.linux.kernel import Kernel, Task, running
from harness.formats.efi import LINUX_CRASH_GUID, EfiStatus

_RECORD_BYTES: Final = 1024
_KMSG_BYTES: Final = 10240
_NV_BS_RT: Final = 7
_TYPE_DMESG: Final = 0
_WINDOW_BITS: Final = -12
"""Raw deflate with the window that pstore uses."""


class EfiPstore:
    """The module ``efi_pstore`` and the part of pstore that calls it."""

    def __init__(
        self, kernel: Kernel, efivars: Efivars, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._kernel = kernel
        self._efivars = efivars
        self._clock = clock
        self._dumps = 0
        self.registered = False

    def load(self) -> None:
        """Load the module: it registers only if variables can be written at this moment."""
        if self._efivars.supports_writes and not self.registered:
            self.registered = True
            self._kernel.printk("pstore: Registered efi_pstore as persistent store backend")

    def unload(self) -> None:
        """Unload the module."""
        self.registered = False

    def dump(self, reason: str, log: bytes, *, task: Task) -> int:
        """Record the end of ``log`` as a crash for ``reason`` ("Panic", "Oops").

        Returns how many parts were stored; a refused part is lost without a word.
        """
        if not self.registered:
            return 0
        self._dumps += 1
        newest = log[-_KMSG_BYTES:]
        stored = part = 0
        while newest:
            part += 1
            header = f"{reason}#{self._dumps} Part{part}\n".encode()
            room = _RECORD_BYTES - len(header)
            stored += self._write(part, header + newest[-room:], task)
            newest = newest[:-room]
        return stored

    def _write(self, part: int, text: bytes, task: Task) -> bool:
        packed = _deflate(text)
        kind, data = ("C", packed) if len(packed) < len(text) else ("D", text)
        name = f"dump-type{_TYPE_DMESG}-{part}-{self._dumps}-{int(self._clock())}-{kind}"
        if not self._efivars.try_locked(task):
            return False
        try:
            with running(task):
                status = self._efivars.set_variable_locked(
                    name, LINUX_CRASH_GUID, _NV_BS_RT, data, nonblocking=True
                )
        finally:
            self._efivars.unlock()
        return status == EfiStatus.SUCCESS


def _deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, _WINDOW_BITS)
    return packer.compress(text) + packer.flush()
