"""The StandaloneMM partition: CPU driver, MM core and the handler of the variable protocol.

Source: stack 4.1 to 4.3; ED StandaloneMmPkg (EventHandle.c, StandaloneMmCore.c) and
MdeModulePkg/Universal/Variable/RuntimeDxe/VariableSmm.c:SmmVariableHandler.
"""

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from emulation.stmm.config import StmmConfig
from emulation.stmm.ftw import FaultTolerantWrite
from emulation.stmm.fvb import FirmwareVolumeBlock
from emulation.stmm.refusal import Refused, need, refuse_if
from emulation.stmm.storage import SecureStorage
from emulation.stmm.store import Change
from emulation.stmm.var_check import Property
from emulation.stmm.variables import VariableService
from harness.formats.efi import EfiStatus
from harness.formats.mm import (
    ACCESS_VARIABLE_SIZE,
    COMM_BUFFER_SIZE,
    END_OF_DXE_EVENT_GUID,
    FUNCTION_HEADER_SIZE,
    GET_NEXT_SIZE,
    LOCK_VARIABLE_SIZE,
    MM_HEADER_SIZE,
    MM_VARIABLE_GUID,
    PAYLOAD_OFFSET,
    PAYLOAD_SIZE_SIZE,
    QUERY_SIZE,
    RUNTIME_CACHE_INFO_SIZE,
    VAR_CHECK_PROPERTY_SIZE,
    AccessVariable,
    GetNextVariableName,
    PayloadSize,
    QueryVariableInfo,
    VarCheckProperty,
    VariableFunction,
)

SPM_SUCCESS: Final = 0
SPM_ACCESS_DENIED: Final = -3 & 0xFFFF_FFFF_FFFF_FFFF

_BOUNDED_HEADER: Final = 25
"""sizeof(EFI_MM_COMMUNICATE_HEADER), by which a message is bounded: packed, with a byte of data."""
_MAX_UINTN: Final = (1 << 64) - 1
_VARIABLE_PROTOCOL: Final = MM_VARIABLE_GUID.bytes_le
_END_OF_DXE: Final = END_OF_DXE_EVENT_GUID.bytes_le
_U64: Final = struct.Struct("<Q")
_HEADER: Final = struct.Struct("<16sQ")
_STATUS_OFFSET: Final = 32
_CACHE_INFO_FIELDS: Final = RUNTIME_CACHE_INFO_SIZE - 7


class StandaloneMm:
    """One started secure partition.

    ``start`` initialises it from ``storage``; ``communicate`` handles one message. Nothing that
    a message or the storage holds raises; only ``emulation.faults.PowerLost`` passes through.
    """

    def __init__(self, storage: SecureStorage, config: StmmConfig | None = None) -> None:
        self._config = config or StmmConfig()
        self._flash = FirmwareVolumeBlock(storage, self._config)
        self.variables: VariableService | None = None
        """The variable service, or None if it did not start."""

    def start(self) -> None:
        """Run the drivers' start code; a flash that cannot be formatted leaves no variable
        service, and its messages come back untouched."""
        with suppress(Refused):
            need(self._flash.start())
            ftw = FaultTolerantWrite(self._flash)
            ftw.start()
            variables = VariableService(self._flash, ftw, self._config)
            variables.start()
            self.variables = variables

    def communicate(self, buffer: bytearray, size: int) -> int | None:
        """Handle the message in ``buffer`` in place; x4, 64 bits, or None: FFA_ERROR instead.

        ``buffer`` is the whole shared buffer of 16384 bytes: a message is bounded by that, not by
        the ``size`` the client passed, so a lying length reads what an earlier call left there.
        """
        if len(buffer) < COMM_BUFFER_SIZE:
            buffer.extend(bytes(COMM_BUFFER_SIZE - len(buffer)))
        guid, length = _HEADER.unpack_from(buffer)
        if self._too_long(length):
            return None if self._config.refuses_by_ffa_error else SPM_ACCESS_DENIED
        if self.variables is None:
            return SPM_SUCCESS
        if guid == _VARIABLE_PROTOCOL:
            self._handle(self.variables, buffer, length)
        elif guid == _END_OF_DXE:
            self.variables.enter_end_of_dxe()
        return SPM_SUCCESS

    def _too_long(self, length: int) -> bool:
        """Whether the bounds check refuses a message of ``length`` bytes after its header."""
        if self._config.refuses_by_ffa_error and length > _MAX_UINTN - _BOUNDED_HEADER:
            # This release adds where others subtract. The sum wraps and passes; the handler then
            # finds the length itself too large. Of the lengths that wrap only with the buffer's
            # address, the partition dies: copying them aborts.
            return False
        return length > COMM_BUFFER_SIZE - _BOUNDED_HEADER

    def _handle(self, variables: VariableService, buffer: bytearray, length: int) -> None:
        """SmmVariableHandler."""
        if length < FUNCTION_HEADER_SIZE:
            return
        size = length - FUNCTION_HEADER_SIZE
        if size > self._config.max_payload:
            return
        (function,) = _U64.unpack_from(buffer, MM_HEADER_SIZE)
        payload = buffer[PAYLOAD_OFFSET : PAYLOAD_OFFSET + size]
        if size < _MINIMUM.get(function, 0):
            return
        status = EfiStatus.SUCCESS
        try:
            self._call(variables, function, payload, buffer)
        except Refused as refused:
            status = refused.status
        _U64.pack_into(buffer, _STATUS_OFFSET, status)
        buffer[PAYLOAD_OFFSET : PAYLOAD_OFFSET + size] = payload

    def _call(
        self, variables: VariableService, function: int, payload: bytearray, buffer: bytearray
    ) -> None:
        match function:
            case VariableFunction.GET_VARIABLE:
                _get(variables, payload)
            case VariableFunction.GET_NEXT_VARIABLE_NAME:
                _get_next(variables, payload)
            case VariableFunction.SET_VARIABLE:
                _set(variables, payload)
            case VariableFunction.QUERY_VARIABLE_INFO:
                _query(variables, payload)
            case VariableFunction.READY_TO_BOOT:
                variables.ready_to_boot()
            case VariableFunction.EXIT_BOOT_SERVICE:
                variables.at_runtime = True
            case VariableFunction.LOCK_VARIABLE:
                guid = bytes(buffer[PAYLOAD_OFFSET : PAYLOAD_OFFSET + 16])
                variables.lock(_open_name(buffer, LOCK_VARIABLE_SIZE), guid)
            case VariableFunction.VAR_CHECK_PROPERTY_SET:
                _set_property(variables, buffer)
            case VariableFunction.VAR_CHECK_PROPERTY_GET:
                _get_property(variables, payload)
            case VariableFunction.GET_PAYLOAD_SIZE:
                payload[:PAYLOAD_SIZE_SIZE] = PayloadSize(self._config.max_payload).pack()
            case VariableFunction.INIT_RUNTIME_VARIABLE_CACHE:
                # Its pointers lie in the normal world, which this build never maps.
                raise Refused(EfiStatus.ACCESS_DENIED)
            case VariableFunction.SYNC_RUNTIME_CACHE:
                pass
            case VariableFunction.GET_RUNTIME_CACHE_INFO:
                # The structure's padding is not the firmware's to change.
                info = variables.cache_info().pack()[:_CACHE_INFO_FIELDS]
                payload[:_CACHE_INFO_FIELDS] = info
            case _:
                raise Refused(EfiStatus.UNSUPPORTED)


_MINIMUM: Final[Mapping[int, int]] = {
    VariableFunction.GET_VARIABLE: ACCESS_VARIABLE_SIZE,
    VariableFunction.GET_NEXT_VARIABLE_NAME: GET_NEXT_SIZE,
    VariableFunction.SET_VARIABLE: ACCESS_VARIABLE_SIZE,
    VariableFunction.QUERY_VARIABLE_INFO: QUERY_SIZE,
    VariableFunction.VAR_CHECK_PROPERTY_GET: VAR_CHECK_PROPERTY_SIZE,
    VariableFunction.GET_PAYLOAD_SIZE: PAYLOAD_SIZE_SIZE,
    VariableFunction.GET_RUNTIME_CACHE_INFO: RUNTIME_CACHE_INFO_SIZE,
}
"""Payloads shorter than this are left alone, status included."""


def _access(payload: bytearray) -> tuple[bytes, bytes, int, int, int]:
    """(name with NUL, GUID, DataSize, Attributes, offset of the data). Refused: ACCESS_DENIED."""
    guid, data_size, name_size, attributes = AccessVariable.unpack_header(payload)
    data_start = ACCESS_VARIABLE_SIZE + name_size
    too_long = data_start + data_size > min(len(payload), _MAX_UINTN)
    refuse_if(too_long, EfiStatus.ACCESS_DENIED)
    name = payload[ACCESS_VARIABLE_SIZE:data_start]
    refuse_if(not _ends_with_nul(name), EfiStatus.ACCESS_DENIED)
    return _terminated(name), guid, data_size, attributes, data_start


def _get(variables: VariableService, payload: bytearray) -> None:
    name, guid, capacity, _, start = _access(payload)
    record = variables.get(name, guid)
    size = len(record.data)
    AccessVariable.pack_answer(payload, size, record.attributes)
    refuse_if(capacity < size, EfiStatus.BUFFER_TOO_SMALL)
    payload[start : start + size] = record.data


def _get_next(variables: VariableService, payload: bytearray) -> None:
    guid, capacity = GetNextVariableName.unpack_header(payload)
    refuse_if(GET_NEXT_SIZE + capacity > len(payload), EfiStatus.ACCESS_DENIED)
    refuse_if(not _ends_with_nul(payload[GET_NEXT_SIZE:]), EfiStatus.ACCESS_DENIED)
    room = payload[GET_NEXT_SIZE : GET_NEXT_SIZE + (capacity & ~1)]
    refuse_if(_nul_at(room) is None, EfiStatus.INVALID_PARAMETER)
    found = variables.next(_terminated(room), guid)
    size = len(found.name)
    if size > capacity:
        GetNextVariableName.pack_header(payload, guid, size)
        raise Refused(EfiStatus.BUFFER_TOO_SMALL)
    GetNextVariableName.pack_header(payload, found.guid, size)
    payload[GET_NEXT_SIZE : GET_NEXT_SIZE + size] = found.name


def _set(variables: VariableService, payload: bytearray) -> None:
    name, guid, size, attributes, start = _access(payload)
    variables.set(Change(name, guid, attributes, bytes(payload[start : start + size])))


def _query(variables: VariableService, payload: bytearray) -> None:
    attributes = QueryVariableInfo.unpack(payload).attributes
    space = variables.query(attributes)
    answer = QueryVariableInfo(
        attributes, space.maximum_storage, space.remaining_storage, space.maximum_variable
    )
    # The structure's padding is not the firmware's to change.
    payload[: QUERY_SIZE - 4] = answer.pack()[: QUERY_SIZE - 4]


def _set_property(variables: VariableService, buffer: bytearray) -> None:
    guid, _, revision, prop, attributes, smallest, largest = VarCheckProperty.unpack_header(
        buffer[PAYLOAD_OFFSET : PAYLOAD_OFFSET + VAR_CHECK_PROPERTY_SIZE]
    )
    name = _open_name(buffer, VAR_CHECK_PROPERTY_SIZE)
    variables.set_property(name, guid, revision, Property(prop, attributes, smallest, largest))


def _get_property(variables: VariableService, payload: bytearray) -> None:
    guid, name_size, *_ = VarCheckProperty.unpack_header(payload)
    end = VAR_CHECK_PROPERTY_SIZE + name_size
    refuse_if(end > len(payload), EfiStatus.ACCESS_DENIED)
    raw = payload[VAR_CHECK_PROPERTY_SIZE:end]
    refuse_if(not _ends_with_nul(raw), EfiStatus.ACCESS_DENIED)
    name = _terminated(raw)
    refuse_if(name == b"\0\0", EfiStatus.INVALID_PARAMETER)
    found = variables.var_check.property_of(name, guid)
    if found is None:
        raise Refused(EfiStatus.NOT_FOUND)
    VarCheckProperty.pack_answer(
        payload, found.property, found.attributes, found.min_size, found.max_size
    )


def _open_name(buffer: bytearray, offset: int) -> bytes:
    """A name in a message whose sizes nobody checks: up to a NUL, at worst the buffer's end."""
    return _terminated(buffer[PAYLOAD_OFFSET + offset :])


def _ends_with_nul(name: bytearray) -> bool:
    """Whether the last whole CHAR16 is NUL; an odd byte behind it does not count."""
    end = len(name) & ~1
    return end >= 2 and name[end - 2 : end] == b"\0\0"


def _nul_at(name: bytearray) -> int | None:
    """Byte offset of the first CHAR16 that is NUL."""
    at = name.find(b"\0\0")
    while at >= 0 and at % 2:
        at = name.find(b"\0\0", at + 1)
    return at if at >= 0 else None


def _terminated(name: bytearray) -> bytes:
    """The string with one NUL, cut at its first."""
    at = _nul_at(name)
    text = name[: len(name) & ~1] if at is None else name[:at]
    return bytes(text) + b"\0\0"
