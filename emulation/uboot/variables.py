"""U-Boot's EFI variable services: over StandaloneMM in OP-TEE, or its own with a file.

Names are Python strings of CHAR16; statuses are EfiStatus.  Source: stack 8, UB
lib/efi_loader (efi_variable_tee.c, efi_variable.c, efi_var_mem.c, efi_var_file.c).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from emulation.optee.optee import OpTee
from emulation.optee.stmm_partition import CMD_COMMUNICATE, STMM_UUID
from harness.formats.efi import Attributes, EfiStatus, decode_name, encode_name
from harness.formats.mm import (
    CLIENT_ACCESS_SIZE,
    CLIENT_MIN_DATA,
    PAYLOAD_FUDGE,
    PAYLOAD_SIZE_SIZE,
    PROPERTY_REVISION,
    AccessVariable,
    GetNextVariableName,
    Message,
    PayloadSize,
    VarCheckProperty,
    VariableFunction,
    VariableProperty,
    spm_status,
)
from harness.formats.tee import Param, TeeError

NV_BS_RT: Final = int(
    Attributes.NON_VOLATILE | Attributes.BOOTSERVICE_ACCESS | Attributes.RUNTIME_ACCESS
)
BS_RT: Final = int(Attributes.BOOTSERVICE_ACCESS | Attributes.RUNTIME_ACCESS)
_NAME_ROOM: Final = 1024
"""Bytes of name that U-Boot offers to GetNextVariableName at first; it grows on demand."""


class FirmwareError(Exception):
    """A service failed where U-Boot gives up; ``status`` is what it prints."""

    def __init__(self, status: EfiStatus) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(frozen=True)
class Variable:
    """One variable with its attributes (without U-Boot's own read-only bit) and data."""

    name: str
    guid: UUID
    attributes: int
    data: bytes


class VariableServices(Protocol):
    """What the rest of U-Boot uses (efi_get_variable_int and its like)."""

    def start(self) -> None:
        """efi_init_variables without the secure state; FirmwareError."""

    def get(self, name: str, guid: UUID) -> Variable | None:
        """The variable, None when there is none; FirmwareError otherwise."""

    def set(self, variable: Variable, *, read_only: bool = False) -> EfiStatus:
        """Set a variable without regard to its read-only mark; no data deletes it."""

    def __iter__(self) -> Iterator[Variable]:
        """All variables in the store's order."""

    def exit_boot_services(self) -> list[Variable]:
        """ExitBootServices: what stays readable in RAM for the operating system."""


class StmmVariables:
    """Variables in StandaloneMM; every message opens and closes its own session."""

    def __init__(self, optee: OpTee) -> None:
        self._optee = optee
        self._max_payload = 0

    def start(self) -> None:
        """Learn the payload size; FirmwareError DEVICE_ERROR without a working StandaloneMM."""
        status, answer = self._communicate(
            VariableFunction.GET_PAYLOAD_SIZE, bytes(PAYLOAD_SIZE_SIZE)
        )
        if status != EfiStatus.SUCCESS:
            raise FirmwareError(status)
        size = PayloadSize.unpack(answer).size
        if size < CLIENT_ACCESS_SIZE + CLIENT_MIN_DATA:
            raise FirmwareError(EfiStatus.DEVICE_ERROR)
        self._max_payload = size - PAYLOAD_FUDGE

    def get(self, name: str, guid: UUID) -> Variable | None:
        """See VariableServices."""
        size = 0
        while True:
            request = AccessVariable(guid, name, data_size=size)
            status, answer = self._communicate(VariableFunction.GET_VARIABLE, request.pack(slack=4))
            if status == EfiStatus.NOT_FOUND:
                return None
            found = AccessVariable.unpack(answer)
            if status == EfiStatus.SUCCESS:
                return Variable(name, guid, found.attributes, found.data)
            if status != EfiStatus.BUFFER_TOO_SMALL or found.data_size <= size:
                raise FirmwareError(status)
            size = found.data_size

    def set(self, variable: Variable, *, read_only: bool = False) -> EfiStatus:
        """See VariableServices: a read-only mark is lifted before and put back after."""
        name, guid = variable.name, variable.guid
        length = CLIENT_ACCESS_SIZE + len(encode_name(name)) + len(variable.data)
        if not name or length > self._max_payload:
            return EfiStatus.INVALID_PARAMETER
        status, found = self._property(name, guid)
        if status != EfiStatus.SUCCESS:
            return status
        if found.property & VariableProperty.READ_ONLY:
            found = replace(found, property=found.property & ~VariableProperty.READ_ONLY)
            status = self._set_property(found)
            if status != EfiStatus.SUCCESS:
                return status
        request = AccessVariable(guid, name, len(variable.data), variable.attributes, variable.data)
        status, _answer = self._communicate(VariableFunction.SET_VARIABLE, request.pack(slack=4))
        if not read_only:
            return status
        marked = VarCheckProperty(
            guid,
            name,
            PROPERTY_REVISION,
            found.property | VariableProperty.READ_ONLY,
            variable.attributes,
            1,
            len(variable.data),
        )
        mark_status = self._set_property(marked)
        return status if status != EfiStatus.SUCCESS else mark_status

    def __iter__(self) -> Iterator[Variable]:
        """See VariableServices.

        FirmwareError ABORTED when the walk comes back to where it was, as it does in a store where
        somebody wrote a variable twice; a real U-Boot goes round until its watchdog bites.
        """
        name, guid, room = "", UUID(int=0), _NAME_ROOM
        visited = set()
        while True:
            request = GetNextVariableName(guid, name, room)
            status, answer = self._communicate(
                VariableFunction.GET_NEXT_VARIABLE_NAME, request.pack()
            )
            if status == EfiStatus.NOT_FOUND:
                return
            following = GetNextVariableName.unpack(answer)
            if status == EfiStatus.BUFFER_TOO_SMALL and following.name_size > room:
                room = following.name_size
                continue
            if status != EfiStatus.SUCCESS:
                raise FirmwareError(status)
            name, guid = following.name, following.guid
            if (name, guid) in visited:
                raise FirmwareError(EfiStatus.ABORTED)
            visited.add((name, guid))
            variable = self.get(name, guid)
            if variable is not None:
                yield variable

    def exit_boot_services(self) -> list[Variable]:
        """Tell StandaloneMM that the runtime begins, then collect runtime variables."""
        self._communicate(VariableFunction.EXIT_BOOT_SERVICE, b"")
        return [variable for variable in self if variable.attributes & Attributes.RUNTIME_ACCESS]

    def _property(self, name: str, guid: UUID) -> tuple[EfiStatus, VarCheckProperty]:
        request = VarCheckProperty(guid, name)
        status, answer = self._communicate(
            VariableFunction.VAR_CHECK_PROPERTY_GET, replace(request, revision=0).pack()
        )
        if status == EfiStatus.NOT_FOUND:
            return EfiStatus.SUCCESS, request
        return status, VarCheckProperty.unpack(answer)

    def _set_property(self, wanted: VarCheckProperty) -> EfiStatus:
        status, _answer = self._communicate(VariableFunction.VAR_CHECK_PROPERTY_SET, wanted.pack())
        return status

    def _communicate(self, function: VariableFunction, payload: bytes) -> tuple[EfiStatus, bytes]:
        buffer = bytearray(Message(function, payload).pack())
        message, value = Param.memref_inout(buffer), Param.value_output()
        try:
            session = self._optee.open_session(STMM_UUID)
            try:
                self._optee.invoke(session, CMD_COMMUNICATE, [message, value])
            finally:
                self._optee.close_session(session)
        except TeeError:
            return EfiStatus.DEVICE_ERROR, payload
        status = spm_status(value.a)
        if status != EfiStatus.SUCCESS:
            return status, payload
        answer = Message.unpack(buffer)
        return EfiStatus(answer.status), answer.payload


_FILE_HEADER: Final = struct.Struct("<QQII")
_FILE_MAGIC: Final = 0x0161566966456255
_ENTRY: Final = struct.Struct("<IIQ16s")
_READ_ONLY_BIT: Final = 1 << 31


class FileVariables:
    """U-Boot's own variables: in memory, the non-volatile ones also in ``ubootefi.var``.

    The file is replaced as a whole, so a power cut leaves the old or the new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._variables: list[Variable] = []

    def start(self) -> None:
        """Read the file; one that is missing or damaged counts as empty."""
        self._variables = _parse_file(self._path.read_bytes()) if self._path.exists() else []

    def get(self, name: str, guid: UUID) -> Variable | None:
        """See VariableServices."""
        for variable in self._variables:
            if variable.name == name and variable.guid == guid:
                return variable
        return None

    def set(self, variable: Variable, *, read_only: bool = False) -> EfiStatus:
        """See VariableServices; an update moves the variable to the end."""
        old = self.get(variable.name, variable.guid)
        if old is None and not variable.data:
            return EfiStatus.NOT_FOUND
        if old is not None:
            self._variables.remove(old)
        if variable.data:
            self._variables.append(variable)
        if (old or variable).attributes & Attributes.NON_VOLATILE:
            self._save()
        return EfiStatus.SUCCESS

    def __iter__(self) -> Iterator[Variable]:
        """See VariableServices."""
        return iter(tuple(self._variables))

    def exit_boot_services(self) -> list[Variable]:
        """Boot-service variables go; nobody else is told."""
        return [variable for variable in self if variable.attributes & Attributes.RUNTIME_ACCESS]

    def _save(self) -> None:
        entries = b"".join(
            _pack_entry(variable)
            for variable in self._variables
            if variable.attributes & Attributes.NON_VOLATILE
        )
        header = _FILE_HEADER.pack(
            0, _FILE_MAGIC, _FILE_HEADER.size + len(entries), zlib.crc32(entries)
        )
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(header + entries)
        temporary.replace(self._path)


def _pack_entry(variable: Variable) -> bytes:
    entry = _ENTRY.pack(len(variable.data), variable.attributes, 0, variable.guid.bytes_le)
    entry += encode_name(variable.name) + variable.data
    return entry + bytes(-len(entry) % 8)


def _parse_file(raw: bytes) -> list[Variable]:
    if len(raw) < _FILE_HEADER.size:
        return []
    _reserved, magic, length, crc = _FILE_HEADER.unpack_from(raw)
    entries = raw[_FILE_HEADER.size : length]
    if magic != _FILE_MAGIC or length != len(raw) or zlib.crc32(entries) != crc:
        return []
    variables = []
    at = 0
    while at + _ENTRY.size <= len(entries):
        size, attributes, _time, guid = _ENTRY.unpack_from(entries, at)
        start = at + _ENTRY.size
        name = decode_name(entries[start:])
        data = start + len(encode_name(name))
        variables.append(
            Variable(
                name,
                UUID(bytes_le=guid),
                attributes & ~_READ_ONLY_BIT,
                entries[data : data + size],
            )
        )
        at = (data + size + 7) & ~7
    return variables
