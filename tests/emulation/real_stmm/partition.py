"""StandaloneMM's real image, run by Unicorn (AArch64) with OP-TEE's services around it.

Source: OP-TEE 4.10 core/arch/arm/kernel/stmm_sp.c; FF-A 1.2; stack 3.
"""

from __future__ import annotations

import importlib
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from emulation.stmm.storage import SecureStorage
from harness.formats.mm import COMM_BUFFER_SIZE
from tests.emulation.real_stmm.boot_information import MemoryMap, Range, boot_information

_PAGE: Final = 0x1000
_IMAGE_ADDRESS: Final = 0x8000_4000
_SHARED_ADDRESS: Final = 0x9000_0000
_HEAP_SIZE: Final = 402 * _PAGE
_SECURE_SIZE: Final = 4 * _PAGE

_STORAGE_READ: Final = 0xC400_0066
_VERSION_1_2: Final = 0x10002
_NOT_SUPPORTED: Final = 0xFFFF_FFFF

_STMM, _PTA, _STORAGE = 1, 2, 4
_TO_STMM: Final = _PTA << 16 | _STMM
_FROM_STORAGE: Final = _STORAGE << 16 | _STMM
_SUPERVISOR_CALL: Final = 2

# FF-A: what a page may be used for.
_DATA: Final = 3
_DATA_RW: Final = 1
_DATA_RO: Final = 3
_NO_EXECUTE: Final = 4
# Unicorn: UC_PROT_*.
_READ, _WRITE, _EXECUTE = 1, 2, 4


class _Call(IntEnum):
    """FF-A functions, as x0 holds them."""

    ERROR = 0x8400_0060
    SUCCESS = 0x8400_0061
    VERSION = 0x8400_0063
    ID_GET = 0x8400_0069
    MSG_WAIT = 0x8400_006B
    DIRECT_REQUEST = 0xC400_006F
    DIRECT_RESPONSE = 0xC400_0070
    PERMISSIONS_GET = 0xC400_0088
    PERMISSIONS_SET = 0xC400_0089


_LEAVING: Final = (_Call.MSG_WAIT, _Call.DIRECT_RESPONSE, _Call.ERROR)
"""Calls that give control back to whoever sent the message."""


class RealStandaloneMm:
    """One started partition, with the interface of ``emulation.stmm.standalone_mm.StandaloneMm``.

    An exception of ``storage`` (a power cut) passes through and leaves the partition dead.
    """

    def __init__(self, image: Path, storage: SecureStorage) -> None:
        """Needs the package ``unicorn``; ModuleNotFoundError without it."""
        self._storage = storage
        content = image.read_bytes()
        size = -(-len(content) // _PAGE) * _PAGE
        heap = Range(_IMAGE_ADDRESS + size, _HEAP_SIZE)
        secure = Range(heap.end, _SECURE_SIZE)
        shared = Range(_SHARED_ADDRESS, COMM_BUFFER_SIZE)
        self._memory = MemoryMap(Range(_IMAGE_ADDRESS, size), heap, secure, shared)
        self._permissions: dict[int, int] = {}
        self._raised: BaseException | None = None
        self._left: list[int] = []
        self._entry = _IMAGE_ADDRESS
        self.dead = False
        self._make_cpu(content)

    def start(self) -> None:
        """Let it initialise, up to its first wait for a message."""
        secure = self._memory.secure.start
        self._cpu.mem_write(secure, boot_information(self._memory))
        self._run([secure, 0, 0, 0, 0, 0, 0, 0])

    def communicate(self, buffer: bytearray, size: int) -> int | None:
        """One message, in place; x4, or None if it ended with FFA_ERROR or an abort."""
        self._cpu.mem_write(_SHARED_ADDRESS, bytes(buffer[:size]))
        left = self._run([_Call.DIRECT_REQUEST, _TO_STMM, 0, _SHARED_ADDRESS, size, 0, 0, 0])
        buffer[:] = self._cpu.mem_read(_SHARED_ADDRESS, COMM_BUFFER_SIZE)
        return left[4] if left[0] == _Call.DIRECT_RESPONSE else None

    def _make_cpu(self, content: bytes) -> None:
        unicorn: Any = importlib.import_module("unicorn")
        names: Any = importlib.import_module("unicorn.arm64_const")
        self._failure: type[Exception] = unicorn.UcError
        self._registers = [getattr(names, f"UC_ARM64_REG_X{number}") for number in range(8)]
        self._program_counter = names.UC_ARM64_REG_PC
        self._cpu: Any = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._cpu.ctl_set_cpu_model(names.UC_CPU_ARM64_A57)
        memory = self._memory
        self._map(memory.image, _READ | _EXECUTE)
        for writable in (memory.heap, memory.secure, memory.shared):
            self._map(writable, _READ | _WRITE)
        self._cpu.mem_write(memory.image.start, content)
        self._cpu.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)

    def _map(self, memory: Range, permissions: int) -> None:
        self._cpu.mem_map(memory.start, memory.size, permissions)
        self._note(memory, permissions)

    def _note(self, memory: Range, permissions: int) -> None:
        for page in range(memory.start, memory.end, _PAGE):
            self._permissions[page] = permissions

    def _run(self, registers: list[int]) -> list[int]:
        """Go on with x0 to x7 as given until it calls for OP-TEE; x0 to x7 as it left them.

        Those of an FFA_ERROR if it aborted, now or before.
        """
        if not self.dead:
            self._set(registers)
            try:
                self._cpu.emu_start(self._entry, 0)
            except self._failure:
                self.dead = True
        if self._raised is not None:
            self.dead = True
            raised, self._raised = self._raised, None
            raise raised
        if self.dead:
            return [_Call.ERROR, 0, _NOT_SUPPORTED, 0, 0, 0, 0, 0]
        return self._left

    def _set(self, registers: list[int]) -> None:
        for register, value in zip(self._registers, registers, strict=True):
            self._cpu.reg_write(register, value)

    def _interrupt(self, cpu: Any, number: int, _: object) -> None:
        """An exception of the CPU. Nothing may be raised through Unicorn's own code."""
        try:
            self._serve(number)
        except BaseException as error:
            self._raised = error
            cpu.emu_stop()

    def _serve(self, number: int) -> None:
        """spm_handle_scall."""
        if number != _SUPERVISOR_CALL:
            self.dead = True
            self._cpu.emu_stop()
            return
        registers = [self._cpu.reg_read(register) for register in self._registers]
        if registers[0] not in _LEAVING:
            self._set(self._answer(registers))
            return
        self._left = registers
        self._entry = self._cpu.reg_read(self._program_counter)
        self._cpu.emu_stop()

    def _answer(self, registers: list[int]) -> list[int]:
        match registers[0]:
            case _Call.VERSION:
                return [_VERSION_1_2, *registers[1:]]
            case _Call.ID_GET:
                return [_Call.SUCCESS, registers[1], _STMM, *registers[3:]]
            case _Call.DIRECT_REQUEST:
                return self._storage_service(registers)
            case _Call.PERMISSIONS_GET:
                return [_Call.SUCCESS, 0, self._get_permissions(registers[1]), 0, 0, 0, 0, 0]
            case _Call.PERMISSIONS_SET:
                self._set_permissions(Range(registers[1], registers[2] * _PAGE), registers[3])
                return [_Call.SUCCESS, 0, 0, 0, 0, 0, 0, 0]
        return [_Call.ERROR, 0, _NOT_SUPPORTED, 0, 0, 0, 0, 0]

    def _storage_service(self, registers: list[int]) -> list[int]:
        _, _, _, action, address, length, offset, _ = registers
        if action == _STORAGE_READ:
            code, data = self._storage.read(offset, length)
            self._cpu.mem_write(address, data)
        else:
            code = self._storage.write(offset, bytes(self._cpu.mem_read(address, length)))
        return [_Call.DIRECT_RESPONSE, _FROM_STORAGE, 0, code, 0, 0, 0, 0]

    def _get_permissions(self, address: int) -> int:
        permissions = self._permissions[address]
        data = _DATA_RW if permissions & _WRITE else _DATA_RO if permissions & _READ else 0
        return data if permissions & _EXECUTE else data | _NO_EXECUTE

    def _set_permissions(self, memory: Range, wanted: int) -> None:
        data = {_DATA_RW: _READ | _WRITE, _DATA_RO: _READ}.get(wanted & _DATA, 0)
        permissions = data if wanted & _NO_EXECUTE else data | _EXECUTE
        self._cpu.mem_protect(memory.start, memory.size, permissions)
        self._note(memory, permissions)
