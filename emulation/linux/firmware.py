"""EFI runtime services as U-Boot leaves them to Linux, and the operations Linux makes of them.

After ExitBootServices U-Boot serves GetVariable and GetNextVariableName from a copy in RAM and
SetVariable not at all.  Source: stack 8, UB lib/efi_loader (efi_runtime.c, efi_var_mem.c,
efi_variable.c, efi_variable_tee.c), K6 drivers/firmware/efi/efi.c.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Self
from uuid import UUID

from emulation.linux.efivars import NULL_GUID, Efivars, NextVariableReply, SpaceReply, VariableReply
from emulation.linux.kernel import Kernel, Task
from emulation.options import Variant
from harness.formats.efi import EfiStatus, encode_name


class RuntimeService(IntFlag):
    """Bits of EFI_RT_PROPERTIES_TABLE.RuntimeServicesSupported that this stack looks at."""

    GET_VARIABLE = 0x10
    GET_NEXT_VARIABLE_NAME = 0x20
    SET_VARIABLE = 0x40
    SET_VIRTUAL_ADDRESS_MAP = 0x80
    CONVERT_POINTER = 0x100
    RESET_SYSTEM = 0x400
    QUERY_VARIABLE_INFO = 0x2000


_ALWAYS: Final = (
    RuntimeService.GET_VARIABLE
    | RuntimeService.GET_NEXT_VARIABLE_NAME
    | RuntimeService.SET_VIRTUAL_ADDRESS_MAP
    | RuntimeService.CONVERT_POINTER
    | RuntimeService.RESET_SYSTEM
)

_BUFFER_BYTES: Final = 0x20000
"""EFI_VAR_BUF_SIZE: U-Boot's variable memory."""
_FILE_HEADER_BYTES: Final = 24
_ENTRY_HEADER_BYTES: Final = 32


def advertised_services(variant: Variant) -> RuntimeService:
    """The RTPROP mask of a board's firmware (tests/truth/README.md, stack 8)."""
    if variant in ("mm-query", "file"):
        return _ALWAYS | RuntimeService.QUERY_VARIABLE_INFO
    return _ALWAYS


@dataclass(frozen=True)
class RuntimeVariable:
    """A variable in U-Boot's memory; the name is without NUL."""

    name: str
    guid: UUID
    attributes: int
    data: bytes

    @property
    def entry_bytes(self) -> int:
        """Room it takes in U-Boot's memory (struct efi_var_entry, 8-byte aligned)."""
        used = _ENTRY_HEADER_BYTES + len(encode_name(self.name)) + len(self.data)
        return (used + 7) & ~7


@dataclass(frozen=True)
class FirmwareTables:
    """What Linux inherits from U-Boot: the advertised services and the variables in RAM.

    ``own_store`` says that U-Boot keeps variables itself (in a file) and so can answer
    QueryVariableInfo at run time; with StMM it answers UNSUPPORTED even where it advertises it.
    """

    services: RuntimeService
    variables: tuple[RuntimeVariable, ...] = ()
    own_store: bool = False

    @classmethod
    def for_variant(cls, variant: Variant, variables: Iterable[RuntimeVariable] = ()) -> Self:
        """The tables that the firmware of ``variant`` leaves with ``variables`` in RAM."""
        return cls(advertised_services(variant), tuple(variables), own_store=variant == "file")


class GenericOperations:
    """``generic_ops``: EFI variable operations on the firmware's own runtime services.

    Runtime memory does not change after ExitBootServices, so what these answer is a snapshot of
    that moment.
    """

    def __init__(self, tables: FirmwareTables) -> None:
        self._tables = tables
        self._variables = tables.variables

    @property
    def supports_set(self) -> bool:
        """SetVariable exists only where the firmware advertises it."""
        return RuntimeService.SET_VARIABLE in self._tables.services

    def get_variable(
        self, name: str, guid: UUID, size: int, *, buffer: bool = True
    ) -> VariableReply:
        """GetVariable from RAM (efi_get_variable_mem)."""
        found = self._find(name, guid)
        if found is None:
            return VariableReply(EfiStatus.NOT_FOUND, size=size)
        variable = self._variables[found]
        needed = len(variable.data)
        if size < needed:
            return VariableReply(EfiStatus.BUFFER_TOO_SMALL, variable.attributes, needed)
        if not buffer:
            return VariableReply(EfiStatus.INVALID_PARAMETER, size=needed)
        return VariableReply(EfiStatus.SUCCESS, variable.attributes, needed, variable.data)

    def get_next_variable(self, name: str, guid: UUID, capacity: int) -> NextVariableReply:
        """GetNextVariableName from RAM, in the order in which U-Boot collected them."""
        following = 0
        if name:
            found = self._find(name, guid)
            if found is None:
                return NextVariableReply(EfiStatus.INVALID_PARAMETER)
            following = found + 1
        if following == len(self._variables):
            return NextVariableReply(EfiStatus.NOT_FOUND)
        variable = self._variables[following]
        name_size = len(encode_name(variable.name))
        if capacity < name_size:
            return NextVariableReply(EfiStatus.BUFFER_TOO_SMALL, name_size=name_size)
        return NextVariableReply(EfiStatus.SUCCESS, variable.name, variable.guid, name_size)

    def set_variable(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        """SetVariable is gone after ExitBootServices."""
        return EfiStatus.UNSUPPORTED

    def set_variable_nonblocking(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        """The same service; the firmware knows no difference."""
        return self.set_variable(name, guid, attributes, data)

    def query_variable_info(self, attributes: int) -> SpaceReply:
        """QueryVariableInfo: figures of U-Boot's memory, or UNSUPPORTED when StMM is the store."""
        if not self._tables.own_store:
            return SpaceReply(EfiStatus.UNSUPPORTED)
        used = _FILE_HEADER_BYTES + sum(variable.entry_bytes for variable in self._variables)
        return SpaceReply(
            EfiStatus.SUCCESS,
            max_storage=_BUFFER_BYTES - _FILE_HEADER_BYTES,
            remaining=max(0, _BUFFER_BYTES - used - _ENTRY_HEADER_BYTES),
            max_variable=_BUFFER_BYTES - _FILE_HEADER_BYTES - _ENTRY_HEADER_BYTES,
        )

    def query_variable_store(self, attributes: int, size: int) -> int:
        """Only x86 kernels ask the store here."""
        return EfiStatus.SUCCESS

    def _find(self, name: str, guid: UUID) -> int | None:
        for index, variable in enumerate(self._variables):
            if variable.name == name and variable.guid == guid:
                return index
        return None


class EfiRuntime:
    """``struct efi`` of the kernel: RTPROP and the generic operations (K6 efi.c)."""

    def __init__(self, kernel: Kernel, efivars: Efivars, tables: FirmwareTables) -> None:
        self._kernel = kernel
        self._efivars = efivars
        self.services = tables.services
        """The firmware's RTPROP mask; it stays when a TEE driver takes the variables over."""
        self._generic = GenericOperations(tables)

    @property
    def _usable(self) -> bool:
        # generic_ops_supported: firmware without variable services gets no operations at all.
        get_and_next = RuntimeService.GET_VARIABLE | RuntimeService.GET_NEXT_VARIABLE_NAME
        return bool(self.services & get_and_next) and (
            self._generic.get_next_variable("", NULL_GUID, 0).status != EfiStatus.UNSUPPORTED
        )

    def register_generic(self, *, task: Task) -> None:
        """efivars_generic_ops_register; OSError EBUSY when others are registered."""
        if self._usable:
            self._efivars.register(self._generic, task=task)

    def unregister_generic(self, *, task: Task) -> None:
        """efivars_generic_ops_unregister; nothing happens when they were never filled."""
        if self._usable:
            self._efivars.unregister(self._generic, task=task)
