"""OP-TEE's RPMB client, its file system and the StandaloneMM partition's storage, broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from emulation.mutants.registry import Original, Patches, Registry
from emulation.optee import stmm_partition
from emulation.optee.errors import TeeError
from emulation.optee.rpmb_client import RpmbClient
from emulation.optee.rpmb_fs import FileHandle, RpmbFileSystem
from harness.formats.rpmb import DATA_SIZE
from harness.formats.rpmb_fs import FatEntry
from harness.formats.tee import TeeResult

mutants: Final = Registry("OP-TEE")

_BOOT_WRITES: Final = 1000


@mutants("every write copies the whole 48 KiB file (optee_os #7756)", "rpmb")
def write_amplification(patches: Patches) -> None:
    def atomically(original: Original, address: int, size: int) -> bool:
        return False

    patches.wrap(RpmbClient, "writes_atomically", atomically)


@mutants("mounting the RPMB file system costs a thousand RPMB writes", "rpmb", "persist")
def boot_eats_writes(patches: Patches) -> None:
    def mount(original: Original, self: RpmbFileSystem) -> None:
        mounted = self._pool_size is not None
        original(self)
        if not mounted:
            block = self._client.read(0, DATA_SIZE)
            for _ in range(_BOOT_WRITES):
                self._client.write(0, block)

    patches.wrap(RpmbFileSystem, "_mount", mount)


@mutants(
    "a relocating write zeroes what lies behind it (OP-TEE before 15bbaa331)", "exhaust", "space"
)
def relocation_zeroes_tail(patches: Patches) -> None:
    def copy(original: Original, self: RpmbFileSystem, *args: Any) -> None:
        config = self._config
        self._config = replace(config, release="4.1")
        try:
            original(self, *args)
        finally:
            self._config = config

    patches.wrap(RpmbFileSystem, "_copy", copy)


@mutants("the file table is not updated when a write moved the file", "persist")
def relocation_not_recorded(patches: Patches) -> None:
    def write_entry(original: Original, self: RpmbFileSystem, handle: FileHandle) -> None:
        stored = FatEntry.unpack(self._client.read(handle.address, FatEntry.SIZE))
        if not (stored.active and stored.data_size == handle.entry.data_size > 0):
            original(self, handle)

    patches.wrap(RpmbFileSystem, "_write_entry", write_entry)


@mutants("OP-TEE gives the RPMB up for good when a request finds no supplicant", "supplicant")
def absent_supplicant_is_final(patches: Patches) -> None:
    def read(original: Original, self: RpmbClient, *args: Any) -> bytes:
        try:
            data: bytes = original(self, *args)
        except TeeError as error:
            self._dead = self._dead or error.result == TeeResult.OUT_OF_MEMORY
            raise
        return data

    patches.wrap(RpmbClient, "read", read)


@mutants("a write that finds no supplicant is an invalid argument", "supplicant")
def absent_supplicant_is_einval(patches: Patches) -> None:
    def code(original: Original, result: TeeResult, *args: Any) -> int:
        wrong = TeeResult.GENERIC if result == TeeResult.OUT_OF_MEMORY else result
        answer: int = original(wrong, *args)
        return answer

    patches.wrap(stmm_partition, "storage_code", code)


@mutants("a write that storage refused is reported as done", "supplicant")
def storage_failure_ignored(patches: Patches) -> None:
    def write(original: Original, self: Any, offset: int, data: bytes) -> int:
        original(self, offset, data)
        return 0

    patches.wrap(stmm_partition.StoreFile, "write", write)


@mutants("the secure partition starts with a blank store at every boot", "persist")
def store_formatted_at_boot(patches: Patches) -> None:
    def read(
        original: Original, self: stmm_partition.StoreFile, offset: int, length: int
    ) -> tuple[int, bytes]:
        code: int
        code, _ = original(self, offset, length)
        return code, bytes(length)

    patches.wrap(stmm_partition.StoreFile, "read", read)
