"""efi-pstore: kernel crash records kept in EFI variables.

A dump must not sleep, so it uses the non-blocking SetVariable, which tee_stmm_efi refuses: with
that driver bound nothing is ever recorded.  Source: K6 drivers/firmware/efi/efi-pstore.c and
fs/pstore/platform.c.
"""

import errno
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from emulation.linux.efivars import NULL_GUID, Efivars
from emulation.linux.kernel import Kernel, Task, running
from harness.formats.efi import LINUX_CRASH_GUID, EfiStatus

_RECORD_BYTES: Final = 1024
_KMSG_BYTES: Final = 10240
_NV_BS_RT: Final = 7
_TYPE_DMESG: Final = 0
_WINDOW_BITS: Final = -12
"""Raw deflate with the window that pstore uses."""
_NAME: Final = re.compile(r"dump-type(\d+)-(\d+)-(-?\d+)-(\d+)-([CD])")


@dataclass(frozen=True)
class PstoreRecord:
    """One part of a dump: its variable's name, its number in /sys/fs/pstore, its text."""

    variable: str
    identity: int
    text: bytes

    @property
    def file_name(self) -> str:
        """Name in /sys/fs/pstore."""
        return f"dmesg-efi_pstore-{self.identity}"


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

    def records(self, *, task: Task) -> list[PstoreRecord]:
        """All stored parts; OSError EIO when the firmware fails, EINTR when interrupted."""
        found: list[PstoreRecord] = []
        name, guid = "", NULL_GUID
        with running(task), self._efivars.locked(task) as operations:
            while True:
                reply = operations.get_next_variable(name, guid, _RECORD_BYTES)
                if reply.status == EfiStatus.NOT_FOUND:
                    return found
                if reply.status != EfiStatus.SUCCESS:
                    raise OSError(errno.EIO, "GetNextVariableName")
                name, guid = reply.name, reply.guid
                match = _NAME.fullmatch(name)
                if guid != LINUX_CRASH_GUID or match is None:
                    continue
                content = operations.get_variable(name, guid, _RECORD_BYTES)
                if content.data is None:
                    raise OSError(errno.EIO, "GetVariable")
                found.append(_record(match, content.data))

    def erase(self, record: PstoreRecord, *, task: Task) -> None:
        """Delete a part; OSError EIO when the firmware refuses."""
        with running(task):
            status = self._efivars.set_variable(
                record.variable, LINUX_CRASH_GUID, _NV_BS_RT, b"", task=task
            )
        if status not in (EfiStatus.SUCCESS, EfiStatus.NOT_FOUND):
            raise OSError(errno.EIO, "SetVariable")

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


def _record(match: re.Match[str], data: bytes) -> PstoreRecord:
    _kind, part, dump, seconds = (int(field) for field in match.groups()[:4])
    text = zlib.decompress(data, _WINDOW_BITS) if match[5] == "C" else data
    return PstoreRecord(match[0], (seconds * 100 + part) * 1000 + dump, text)


def _deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, _WINDOW_BITS)
    return packer.compress(text) + packer.flush()
