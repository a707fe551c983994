"""OP-TEE's RPMB client, its file system and the StandaloneMM partition's storage, broken."""

from dataclasses import replace
from typing import Any, Final

from emulation.mutants.mutant import Mutant, Original
from emulation.optee import stmm_partition
from emulation.optee.rpmb_client import RpmbClient
from emulation.optee.rpmb_fs import FileHandle, RpmbFileSystem
from harness.formats.rpmb import DATA_SIZE
from harness.formats.rpmb_fs import FatEntry
from harness.formats.tee import TeeError, TeeResult

_BOOT_WRITES: Final = 1000


def write_amplification(original: Original, address: int, size: int) -> bool:
    """every write copies the whole 48 KiB file (optee_os #7756)"""
    return False


def boot_eats_writes(original: Original, self: RpmbFileSystem) -> None:
    """mounting the RPMB file system costs a thousand RPMB writes"""
    mounted = self._pool_size is not None
    original(self)
    if not mounted:
        block = self._client.read(0, DATA_SIZE)
        for _ in range(_BOOT_WRITES):
            self._client.write(0, block)


def relocation_zeroes_tail(original: Original, self: RpmbFileSystem, *args: Any) -> None:
    """a relocating write zeroes what lies behind it (OP-TEE before 15bbaa331)"""
    config = self._config
    self._config = replace(config, release="4.1")
    try:
        original(self, *args)
    finally:
        self._config = config


def relocation_not_recorded(original: Original, self: RpmbFileSystem, handle: FileHandle) -> None:
    """the file table is not updated when a write moved the file"""
    stored = FatEntry.unpack(self._client.read(handle.address, FatEntry.SIZE))
    if not (stored.active and stored.data_size == handle.entry.data_size > 0):
        original(self, handle)


def absent_supplicant_is_final(original: Original, self: RpmbClient, *args: Any) -> bytes:
    """OP-TEE gives the RPMB up for good when a request finds no supplicant"""
    try:
        data: bytes = original(self, *args)
    except TeeError as error:
        self.dead = self.dead or error.result == TeeResult.OUT_OF_MEMORY
        raise
    return data


def absent_supplicant_is_einval(original: Original, result: TeeResult, *args: Any) -> int:
    """a write that finds no supplicant is an invalid argument"""
    wrong = TeeResult.GENERIC if result == TeeResult.OUT_OF_MEMORY else result
    answer: int = original(wrong, *args)
    return answer


def storage_failure_ignored(original: Original, self: Any, offset: int, data: bytes) -> int:
    """a write that storage refused is reported as done"""
    original(self, offset, data)
    return 0


def store_formatted_at_boot(
    original: Original, self: stmm_partition.StoreFile, offset: int, length: int
) -> tuple[int, bytes]:
    """the secure partition starts with a blank store at every boot"""
    code: int
    code, _ = original(self, offset, length)
    return code, bytes(length)


MUTANTS: Final = (
    Mutant(write_amplification, ("rpmb",), RpmbClient, "writes_atomically"),
    Mutant(boot_eats_writes, ("rpmb", "persist"), RpmbFileSystem, "_mount"),
    Mutant(relocation_zeroes_tail, ("exhaust", "space"), RpmbFileSystem, "_copy"),
    Mutant(relocation_not_recorded, ("persist",), RpmbFileSystem, "_write_entry"),
    Mutant(absent_supplicant_is_final, ("supplicant",), RpmbClient, "read"),
    Mutant(absent_supplicant_is_einval, ("supplicant",), stmm_partition, "storage_code"),
    Mutant(storage_failure_ignored, ("supplicant",), stmm_partition.StoreFile, "write"),
    Mutant(store_formatted_at_boot, ("persist",), stmm_partition.StoreFile, "read"),
)
