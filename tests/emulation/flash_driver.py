"""The flash driver of the real stack, compiled for this machine, and an OP-TEE for it.

The driver's sources are compiled as they are, against ``host/Edk2.h`` in place of EDK2's headers.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from harness.formats.efi import EfiStatus
from harness.formats.variable_store import VOLUME_SIZE
from tests.emulation.memory_storage import MemoryStorage

FLASH_DRIVER: Final = Path(__file__).parents[2] / "emulation" / "qemu" / "flash_driver"
PACKAGE: Final = FLASH_DRIVER / "StmmRpmbPkg"

STORAGE_ENDPOINT: Final = 4
STORAGE_READ: Final = 0xC4000066
STORAGE_WRITE: Final = 0xC4000067
INVALID_PARAMETERS: Final = 0xFFFFFFFE
"""FF-A's -2 as it arrives in a 64-bit register; OP-TEE's answer also when there is no file."""

TERMINATOR: Final = 0xFFFFFFFFFFFFFFFF
PLENTY_OF_PAGES: Final = 402

_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unknown-pragmas")
_UNDEFINED = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")

_Message = ctypes.CFUNCTYPE(
    ctypes.c_uint64, ctypes.c_uint16, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)
)
_U64 = ctypes.c_uint64
_Pointer = ctypes.POINTER(ctypes.c_uint64)


def platform_pcds() -> dict[str, int]:
    """The sizes that the platform file sets, by the PCD's name."""
    text = (PACKAGE / "StmmRpmb.dsc").read_text()
    found = re.findall(r"^ *\w+\.(Pcd\w+)\|(0x[0-9A-Fa-f]+|\d+)$", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


def compile_driver(folder: Path) -> Path:
    """A shared library of the driver, the flash information library and the host's EDK2."""
    sources = sorted(PACKAGE.glob("*/*.c"))
    headers = folder / "include"
    for source in [*sources, *PACKAGE.glob("*/*.h")]:
        for name in re.findall(r"^#include <(.+)>$", source.read_text(), re.MULTILINE):
            header = headers / name
            header.parent.mkdir(parents=True, exist_ok=True)
            header.write_text('#include "Edk2.h"\n')
    library = folder / "driver.so"
    program = compiler()
    assert program is not None
    command = [program, "-shared", "-fPIC", "-std=gnu11", "-O1", "-o", str(library)]
    options = [*_WARNINGS, *_UNDEFINED, f"-I{headers}", f"-I{FLASH_DRIVER / 'host'}"]
    pcds = [f"-D{name}={value:#x}" for name, value in platform_pcds().items()]
    files = [*sources, FLASH_DRIVER / "host" / "Edk2.c"]
    subprocess.run([*command, *options, *pcds, *map(str, files)], check=True, timeout=120)
    return library


class FakeOpTee:
    """OP-TEE's storage service as the driver sees it: direct messages, and a file behind them.

    ``answer`` may take a call over: it is given the service, offset and length, and returns a code
    for x3, or None to have the storage do the call.
    """

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.calls: list[tuple[int, int, int]] = []
        self.answer: Callable[[int, int, int], int | None] = lambda service, offset, length: None
        self.message_status = 0
        """What sending a message returns; anything but 0: the message is not delivered."""

    @property
    def content(self) -> bytes:
        """The file; empty if there is none."""
        return bytes(self._storage.content)

    @property
    def writes(self) -> list[tuple[int, int]]:
        """(offset, length) of the writes, in order."""
        return [(at, length) for service, at, length in self.calls if service == STORAGE_WRITE]

    def message(
        self, endpoint: int, flags: int, arguments: ctypes._Pointer[ctypes.c_uint64]
    ) -> int:
        """A direct message; x3 to x7 are replaced by the answer's, as OP-TEE composes it."""
        assert (endpoint, flags, arguments[4]) == (STORAGE_ENDPOINT, 0, 0)
        if self.message_status:
            return self.message_status
        service, address, length, offset = arguments[:4]
        self.calls.append((service, offset, length))
        code = self.answer(service, offset, length)
        if code is None:
            code = self._serve(service, address, length, offset)
        for index, value in enumerate((code, 0, 0, 0, 0)):
            arguments[index] = value
        return 0

    def _serve(self, service: int, address: int, length: int, offset: int) -> int:
        if service == STORAGE_READ:
            code, data = self._storage.read(offset, length)
            ctypes.memmove(address, data, len(data))
            return code
        assert service == STORAGE_WRITE
        return self._storage.write(offset, ctypes.string_at(address, length))


class FlashDriver:
    """The compiled driver; :meth:`start` is a power-on. One at a time: its state is global."""

    def __init__(self, library: Path, storage: FakeOpTee) -> None:
        self.storage = storage
        self._library = ctypes.CDLL(str(library))
        self._library.HostFvb.restype = ctypes.c_void_p
        self._library.RpmbFvbInitialize.restype = _U64
        self._message = _Message(lambda *words: self.storage.message(*words))

    def start(self, pages: int = PLENTY_OF_PAGES) -> int:
        """The entry point's status, on a machine with that many pages of free memory."""
        self._library.HostReset(self._message, _U64(pages))
        status: int = self._library.RpmbFvbInitialize(None, None)
        return status

    @property
    def installed(self) -> bool:
        """Whether the protocol is there for others."""
        return bool(self._library.HostFvb())

    @property
    def image(self) -> bytes:
        """The flash as the variable driver sees it in memory."""
        return ctypes.string_at(self.address, VOLUME_SIZE)

    @property
    def address(self) -> int:
        """Where the flash is in memory."""
        found = _U64()
        assert self._call(2, ctypes.byref(found)) == EfiStatus.SUCCESS
        return found.value

    def attributes(self) -> int:
        """GetAttributes."""
        found = ctypes.c_uint32()
        assert self._call(0, ctypes.byref(found)) == EfiStatus.SUCCESS
        return found.value

    def set_attributes(self, wanted: int) -> tuple[int, int]:
        """(status, attributes afterwards)"""
        value = ctypes.c_uint32(wanted)
        return self._call(1, ctypes.byref(value)), value.value

    def block_size(self, lba: int) -> tuple[int, int, int]:
        """(status, size, number of such blocks)"""
        size, count = _U64(), _U64()
        status = self._call(3, _U64(lba), ctypes.byref(size), ctypes.byref(count))
        return status, size.value, count.value

    def read(self, lba: int, offset: int, length: int) -> tuple[int, bytes]:
        """(status, what was read)"""
        buffer = ctypes.create_string_buffer(length)
        count = _U64(length)
        status = self._call(4, _U64(lba), _U64(offset), ctypes.byref(count), buffer)
        return status, buffer.raw[: count.value]

    def write(self, lba: int, offset: int, data: bytes) -> tuple[int, int]:
        """(status, bytes written)"""
        count = _U64(len(data))
        status = self._call(5, _U64(lba), _U64(offset), ctypes.byref(count), data)
        return status, count.value

    def erase(self, *ranges: tuple[int, int]) -> int:
        """EraseBlocks of (first block, number of blocks)."""
        words = [_U64(word) for one in ranges for word in one]
        return self._call(6, *words, _U64(TERMINATOR))

    def area(self, name: str) -> tuple[int, int, int]:
        """(status, offset in the flash, length) of NvStorage, FtwWorking or FtwSpare."""
        function = self._library[f"GetVariableFlash{name}Info"]
        function.restype = _U64
        base, length = _U64(), _U64()
        status: int = function(ctypes.byref(base), ctypes.byref(length))
        start = self.address if self.installed else 0
        return status, base.value - start, length.value

    def area_without_answer(self, name: str) -> int:
        """The status when there is nowhere to put the answer."""
        function = self._library[f"GetVariableFlash{name}Info"]
        function.restype = _U64
        status: int = function(None, None)
        return status

    def _call(self, member: int, *arguments: object) -> int:
        fvb = self._library.HostFvb()
        assert fvb
        entry = ctypes.cast(fvb, _Pointer)[member]
        function = ctypes.CFUNCTYPE(_U64)(entry)
        status: int = function(ctypes.c_void_p(fvb), *arguments)
        return status


EFI_STATUS_OF_CODE: Final[Mapping[int, EfiStatus]] = {
    0xFFFFFFFF: EfiStatus.UNSUPPORTED,
    0xFFFFFFFE: EfiStatus.INVALID_PARAMETER,
    0xFFFFFFFD: EfiStatus.OUT_OF_RESOURCES,
    0xFFFFFFFA: EfiStatus.ACCESS_DENIED,
    0xFFFFFFF7: EfiStatus.NOT_FOUND,
}
"""What becomes of the codes that OP-TEE's storage service answers with."""
