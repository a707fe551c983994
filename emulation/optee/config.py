"""How an OP-TEE was built."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal
from uuid import UUID

Release = Literal["4.10", "4.1"]

HUK_SIZE: Final = 16
"""HW_UNIQUE_KEY_LENGTH."""
DIE_ID_SIZE: Final = 32
"""TEE_FS_KM_CHIP_ID_LENGTH."""


@dataclass(frozen=True)
class OpTeeConfig:
    """Build options and what the chip is born with."""

    release: Release = "4.10"
    """4.1 loses what lies behind a relocating write (stack 2.4, mended by 15bbaa331) and gives
    the secure partition SPM codes instead of FF-A numbers (stack 3)."""
    test_key: bool = True
    """CFG_RPMB_TESTKEY; otherwise the RPMB key is derived from ``huk`` and the CID."""
    write_key: bool = True
    """CFG_RPMB_WRITE_KEY: program the key of a blank part."""
    reset_fat: bool = False
    """CFG_RPMB_RESET_FAT: format the RPMB file system at every boot."""
    announce_probe: bool = False
    """CFG_RPMB_ANNOUNCE_PROBE_CAP: the kernel routes RPMB, no device needs the supplicant."""
    huk: bytes = field(default=bytes(HUK_SIZE), repr=False)
    """Hardware unique key: zero where the platform has none (core/kernel/otp_stubs.c)."""
    huk_compat: bool = True
    """CFG_CORE_HUK_SUBKEY_COMPAT: RPMB and storage key as before OP-TEE 3.7."""
    die_id: bytes | None = b"BEEF" * (DIE_ID_SIZE // 4)
    """What the storage key is derived from in compat mode: this pattern, or with
    CFG_CORE_HUK_SUBKEY_COMPAT_USE_OTP_DIE_ID the platform's; None: its default, which OP-TEE
    derives from ``huk``."""
    stmm: bool = True
    """CFG_STMM_PATH: StandaloneMM is part of the image."""
    listed_devices: tuple[UUID, ...] = ()
    """Pseudo-applications that are listed without any condition (GET_DEVICES)."""
    log_level: int = 2
    """CFG_TEE_CORE_LOG_LEVEL: 1 errors, 2 and information, 3 and debug."""


class LogLevel(IntEnum):
    """Levels of OP-TEE's console messages."""

    ERROR = 1
    INFO = 2
    DEBUG = 3


class Trace:
    """OP-TEE's console: lines as OP-TEE prints them, without source line numbers."""

    def __init__(self, log: Callable[[str], None], level: int) -> None:
        self._log = log
        self._level = level
        self.debugging = level >= LogLevel.DEBUG

    def error(self, function: str, text: str) -> None:
        """EMSG."""
        if self._level >= LogLevel.ERROR:
            self._log(f"E/TC:? 0 {function} {text}")

    def info(self, function: str, text: str) -> None:
        """IMSG."""
        if self._level >= LogLevel.INFO:
            self._log(f"I/TC:? 0 {function} {text}")

    def debug(self, function: str, text: str) -> None:
        """DMSG."""
        if self.debugging:
            self._log(f"D/TC:? 0 {function} {text}")
