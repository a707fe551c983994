"""What U-Boot does with EFI variables on its way to Linux.

Source: stack 8, UB lib/efi_loader (efi_setup.c:efi_init_obj_list, efi_var_common.c:
efi_init_secure_state, efi_bootmgr.c:efi_bootmgr_update_media_device_boot_option); truth state-002
and p2a for what it leaves.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from emulation.linux.firmware import FirmwareTables, RuntimeService, RuntimeVariable
from emulation.options import Variant
from emulation.uboot.variables import (
    BS_RT,
    NV_BS_RT,
    FirmwareError,
    Variable,
    VariableServices,
)
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus
from harness.formats.load_option import END_NODE, load_option

_LANGUAGES: Final = b"en-US\0"
"""CONFIG_EFI_PLATFORM_LANG_CODES."""
_AUTO_CREATED: Final = UUID("8108ac4e-9f11-4d59-850e-e21a522c59b2")
"""Optional data that marks a boot option as U-Boot's own."""
_HOST_DEVICE: Final = UUID("e61d73b9-a384-4acc-aeab-82e828f3628b")
"""U-Boot's vendor GUID of a node for a device of its driver model."""
_BOOT_OPTION: Final = re.compile(r"Boot[0-9A-F]{4}")


@dataclass(frozen=True)
class MediaDevice:
    """A disk that U-Boot makes a boot option for; ``path`` is its device path without the end."""

    label: str
    path: bytes

    def load_option(self) -> bytes:
        """The EFI_LOAD_OPTION of the option made for it."""
        return load_option(self.label, self.path + END_NODE, data=_AUTO_CREATED.bytes_le)


def _device(udata: str) -> bytes:
    return b"\x01\x04\x1c\x00" + _HOST_DEVICE.bytes_le + bytes.fromhex(udata)


_ROOT: Final = _device("0000000000000000")
_EMMC_NODE: Final = b"\x03\x1d\x05\x00\x00"
BOARD_MEDIA: Final = (
    MediaDevice("mmc 0", _ROOT + _device("5500000000000000") + _EMMC_NODE * 2),
    MediaDevice(
        "virtio 0",
        _ROOT
        + _device("5500000000000000")
        + _device("8600000020000000")
        + _device("1600860000000000"),
    ),
)
"""The disks of the recorded board."""


def _global(name: str, attributes: int, data: bytes) -> Variable:
    return Variable(name, GLOBAL_VARIABLE_GUID, attributes, data)


@dataclass(frozen=True)
class Uboot:
    """One run of U-Boot, up to ExitBootServices."""

    variant: Variant
    variables: VariableServices
    say: Callable[[str], None]
    media: tuple[MediaDevice, ...] = BOARD_MEDIA

    def boot(self) -> FirmwareTables:
        """Initialise EFI, then leave; what Linux inherits.

        When EFI cannot be initialised U-Boot says so, and Linux finds no EFI services.
        """
        try:
            self.variables.start()
            self._secure_state()
            self._update_boot_options()
            self._platform_language()
            self._os_indications()
        except FirmwareError as error:
            number = int(error.status) & ~(1 << 63)
            self.say(f"Error: Cannot initialize UEFI sub-system, r = {number}")
            return FirmwareTables(RuntimeService(0))
        return self._exit_boot_services()

    def _exit_boot_services(self) -> FirmwareTables:
        try:
            collected = self.variables.exit_boot_services()
        except FirmwareError:
            self.say("Can't populate EFI variables. No runtime variables will be available")
            collected = []
        return FirmwareTables.for_variant(
            self.variant,
            (RuntimeVariable(v.name, v.guid, v.attributes, v.data) for v in collected),
        )

    def _secure_state(self) -> None:
        """efi_init_secure_state: the mode follows from PK alone."""
        user_mode = self.variables.get("PK", GLOBAL_VARIABLE_GUID) is not None
        self._set("SecureBoot", bytes([user_mode]), read_only=True)
        self._set("SetupMode", bytes([not user_mode]), read_only=True)
        # Writable only in user mode, where the operating system may move on to those modes.
        self._set("AuditMode", b"\0", read_only=not user_mode)
        self._set("DeployedMode", b"\0", read_only=not user_mode)
        self._set("VendorKeys", b"\0", read_only=True)

    def _platform_language(self) -> None:
        self._set("PlatformLangCodes", _LANGUAGES, read_only=True)
        if self.variables.get("PlatformLang", GLOBAL_VARIABLE_GUID) is None:
            first = _LANGUAGES.rstrip(b"\0").split(b";")[0] + b"\0"
            self._check(self.variables.set(_global("PlatformLang", NV_BS_RT, first)))

    def _os_indications(self) -> None:
        self._set("OsIndicationsSupported", bytes(8), read_only=True)

    def _set(self, name: str, data: bytes, *, read_only: bool) -> None:
        self._check(self.variables.set(_global(name, BS_RT, data), read_only=read_only))

    @staticmethod
    def _check(status: EfiStatus) -> None:
        if status != EfiStatus.SUCCESS:
            raise FirmwareError(status)

    def _update_boot_options(self) -> None:
        """Keep one boot option for each disk: drop stale ones, add missing ones.

        A failure ends the work on options and nothing else: U-Boot's caller ignores it.
        """
        wanted = {device.load_option() for device in self.media}
        present = set()
        for variable in tuple(self.variables):
            if not self._is_automatic(variable):
                continue
            if variable.data in wanted:
                present.add(variable.data)
            elif not self._delete_option(variable):
                return
        for device in self.media:
            option = device.load_option()
            if option not in present and not self._add_option(option):
                return

    @staticmethod
    def _is_automatic(variable: Variable) -> bool:
        return (
            variable.guid == GLOBAL_VARIABLE_GUID
            and _BOOT_OPTION.fullmatch(variable.name) is not None
            and variable.data.endswith(_AUTO_CREATED.bytes_le)
        )

    def _add_option(self, option: bytes) -> bool:
        number = next(n for n in range(1 << 16) if self._option(n) is None)
        variable = _global(f"Boot{number:04X}", NV_BS_RT, option)
        if self.variables.set(variable) != EfiStatus.SUCCESS:
            return False
        return self._set_order(self._order() + struct.pack("<H", number))

    def _delete_option(self, variable: Variable) -> bool:
        deletion = _global(variable.name, 0, b"")
        if self.variables.set(deletion) != EfiStatus.SUCCESS:
            return False
        number = struct.pack("<H", int(variable.name[4:], 16))
        order = self._order()
        entries = [order[at : at + 2] for at in range(0, len(order), 2)]
        return number not in entries or self._set_order(
            b"".join(entry for entry in entries if entry != number)
        )

    def _option(self, number: int) -> Variable | None:
        return self.variables.get(f"Boot{number:04X}", GLOBAL_VARIABLE_GUID)

    def _order(self) -> bytes:
        order = self.variables.get("BootOrder", GLOBAL_VARIABLE_GUID)
        return b"" if order is None else order.data

    def _set_order(self, order: bytes) -> bool:
        return self.variables.set(_global("BootOrder", NV_BS_RT, order)) == EfiStatus.SUCCESS
