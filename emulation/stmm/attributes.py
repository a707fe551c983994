"""Attributes of variables as plain integers, which messages and flash hold."""

from typing import Final

from harness.formats.efi import Attributes

NV: Final = int(Attributes.NON_VOLATILE)
BS: Final = int(Attributes.BOOTSERVICE_ACCESS)
RT: Final = int(Attributes.RUNTIME_ACCESS)
HR: Final = int(Attributes.HARDWARE_ERROR_RECORD)
AW: Final = int(Attributes.AUTHENTICATED_WRITE_ACCESS)
AT: Final = int(Attributes.TIME_BASED_AUTHENTICATED_WRITE_ACCESS)
APPEND: Final = int(Attributes.APPEND_WRITE)
