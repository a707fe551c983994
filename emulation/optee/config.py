"""How an OP-TEE was built."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal
from uuid import UUID

Release = Literal["4.10", "4.1"]


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
    huk: bytes = bytes(16)
    """Hardware unique key."""
    chip_id: bytes = bytes(32)
    """What tee_otp_get_die_id answers."""
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
