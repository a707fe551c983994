"""What the owner of a board allows."""

from __future__ import annotations

from enum import StrEnum


class Consent(StrEnum):
    """What the owner of a board may allow; each is given by itself in ``[consents]``."""

    POWER_CYCLE = "power_cycle"  # also covers a reboot
    WRITE_RPMB = "write_rpmb"
    STOP_SUPPLICANT = "stop_supplicant"
    UNBIND_DRIVER = "unbind_driver"
    CRASH_KERNEL = "crash_kernel"
    FOREIGN_RPMB_WRITE = "foreign_rpmb_write"
    PROGRAM_KEY = "program_key"
    FOREIGN_VARIABLES = "foreign_variables"  # variables that are not of our own vendor GUID
    SECURE_BOOT_KEYS = "secure_boot_keys"  # PK, KEK, db, dbx of a board in setup mode
