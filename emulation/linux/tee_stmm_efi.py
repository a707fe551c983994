"""The driver ``tee_stmm_efi``: EFI variable operations by messages to StandaloneMM in OP-TEE.

Source: stack 5.1 to 5.3, K6 and K7 drivers/firmware/efi/stmm/tee_stmm_efi.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol
from uuid import UUID

from emulation.linux.efivars import (
    Efivars,
    KernelSeries,
    NextVariableReply,
    SpaceReply,
    VariableReply,
)
from emulation.linux.firmware import EfiRuntime
from emulation.linux.kernel import KERN_ERR, Kernel, Task, running
from harness.formats.efi import EfiStatus, encode_name
from harness.formats.mm import (
    CLIENT_ACCESS_SIZE,
    CLIENT_MIN_DATA,
    GET_NEXT_SIZE,
    MM_VARIABLE_GUID,
    PAYLOAD_FUDGE,
    PAYLOAD_SIZE_SIZE,
    VAR_CHECK_PROPERTY_SIZE,
    AccessVariable,
    GetNextVariableName,
    Message,
    PayloadSize,
    QueryVariableInfo,
    VarCheckProperty,
    VariableFunction,
    VariableProperty,
    spm_status,
)
from harness.formats.tee import Param, TeeError

DRIVER_NAME: Final = "tee-stmm-efi"
DEVICE_UUID: Final = MM_VARIABLE_GUID
DEVICE_NAME: Final = f"optee-ta-{DEVICE_UUID}"
CMD_COMMUNICATE: Final = 0

_ACCESS_SLACK: Final = 4
"""Linux' struct smm_variable_access ends in 4 bytes of padding that are sent after the data."""


class TeeClient(Protocol):
    """The TEE subsystem's in-kernel client (tee_client_*).

    Calls may sleep and may raise PowerLost.  They act for the current task.
    """

    def open_session(self, uuid: UUID) -> int:
        """Open a session; TeeError when the TEE refuses."""

    def close_session(self, session: int) -> None:
        """Close a session."""

    def invoke(self, session: int, command: int, params: list[Param]) -> None:
        """Invoke a command, parameters in and out in place; TeeError when the TEE refuses."""


class TeeStmmEfi:
    """The driver; one device at a time, because its state is global to the module.

    ``allocation_fails`` is asked before each message buffer is allocated (fault injection).
    """

    def __init__(
        self,
        kernel: Kernel,
        efivars: Efivars,
        runtime: EfiRuntime,
        *,
        series: KernelSeries = KernelSeries.K6,
        allocation_fails: Callable[[], bool] = lambda: False,
    ) -> None:
        self._kernel = kernel
        self._efivars = efivars
        self._runtime = runtime
        self._allocation_fails = allocation_fails
        # K6 and K7 differ in what they call a failed allocation: ENOSPC or EIO in user space.
        self._no_memory = (
            EfiStatus.OUT_OF_RESOURCES if series is KernelSeries.K6 else EfiStatus.DEVICE_ERROR
        )
        self._client: TeeClient | None = None
        self._session = 0
        self._operations: StmmOperations | None = None

    @property
    def bound(self) -> bool:
        """Whether a device is bound."""
        return self._operations is not None

    def probe(self, client: TeeClient, *, task: Task) -> None:
        """Bind to the StMM device and take the EFI variables over.

        OSError EINVAL when no session can be opened, EIO when StandaloneMM does not answer
        GET_PAYLOAD_SIZE sensibly.
        """
        with running(task):
            session = self._open(client)
            channel = _Channel(
                self._kernel, client, session, self._allocation_fails, self._no_memory
            )
            try:
                operations = StmmOperations(channel, _ask_max_payload(channel))
                self._take_over(operations, task)
            except Exception:
                client.close_session(session)
                raise
        self._client, self._session, self._operations = client, session, operations

    def remove(self, *, task: Task) -> None:
        """Unbind: give the EFI variables back to the firmware's own services."""
        operations, client = self._operations, self._client
        if operations is None or client is None:
            raise OSError(errno.ENODEV, "not bound")
        with suppress(OSError):
            self._efivars.unregister(operations, task=task)
        with suppress(OSError):
            self._runtime.register_generic(task=task)
        self._operations = self._client = None
        with running(task):
            client.close_session(self._session)

    def _open(self, client: TeeClient) -> int:
        try:
            return client.open_session(DEVICE_UUID)
        except TeeError as error:
            _device_error(self._kernel, f"tee_client_open_session failed, err: {error.result:x}")
            raise OSError(errno.EINVAL, "no session with StandaloneMM") from error

    def _take_over(self, operations: StmmOperations, task: Task) -> None:
        # The driver ignores both results: who could not be removed stays.
        with suppress(OSError):
            self._runtime.unregister_generic(task=task)
        self._kernel.printk("Using TEE-based EFI runtime variable services")
        with suppress(OSError):
            self._efivars.register(operations, task=task)


class _Channel:
    """Messages to StandaloneMM over one session (tee_mm_communicate, mm_communicate)."""

    def __init__(
        self,
        kernel: Kernel,
        client: TeeClient,
        session: int,
        allocation_fails: Callable[[], bool],
        no_memory: EfiStatus,
    ) -> None:
        self._kernel = kernel
        self._client = client
        self._session = session
        self._allocation_fails = allocation_fails
        self._no_memory = no_memory

    def allocate(self) -> EfiStatus:
        """Allocate a message buffer (setup_mm_hdr): SUCCESS, or the status callers then return."""
        return self._no_memory if self._allocation_fails() else EfiStatus.SUCCESS

    def request(self, function: VariableFunction, payload: bytes) -> tuple[EfiStatus, bytes]:
        """Allocate a buffer and :meth:`communicate`."""
        status = self.allocate()
        if status != EfiStatus.SUCCESS:
            return status, payload
        return self.communicate(function, payload)

    def communicate(self, function: VariableFunction, payload: bytes) -> tuple[EfiStatus, bytes]:
        """Send one message; the status that the caller sees and the payload that came back.

        ReturnStatus starts as 0 in the zeroed buffer, so a message that nobody handles succeeds.
        """
        buffer = bytearray(Message(function, payload).pack())
        status = self._invoke(buffer)
        if status != EfiStatus.SUCCESS:
            self.complain("mm_communicate failed!")
            return status, payload
        answer = Message.unpack(buffer)
        return EfiStatus(answer.status), answer.payload

    def complain(self, text: str) -> None:
        """dev_err."""
        _device_error(self._kernel, text)

    def _invoke(self, buffer: bytearray) -> EfiStatus:
        message, value = Param.memref_inout(buffer), Param.value_output()
        try:
            self._client.invoke(self._session, CMD_COMMUNICATE, [message, value])
        except TeeError as error:
            self.complain(f"PTA_STMM_CMD_COMMUNICATE invoke error: 0x{error.result:x}")
            return EfiStatus.DEVICE_ERROR
        return spm_status(value.a)


def _device_error(kernel: Kernel, text: str) -> None:
    kernel.printk(f"{DRIVER_NAME} {DEVICE_NAME}: {text}", KERN_ERR)


def _ask_max_payload(channel: _Channel) -> int:
    """The largest payload in bytes that the driver sends; OSError EIO."""
    status, answer = channel.request(VariableFunction.GET_PAYLOAD_SIZE, bytes(PAYLOAD_SIZE_SIZE))
    if status != EfiStatus.SUCCESS:
        raise OSError(errno.EIO, "GET_PAYLOAD_SIZE failed")
    size = PayloadSize.unpack(answer).size
    if size < CLIENT_ACCESS_SIZE + CLIENT_MIN_DATA:
        raise OSError(errno.EIO, "the payload size is too small")
    return size - PAYLOAD_FUDGE


class StmmOperations:
    """``tee_efivar_ops``: every EFI variable operation as one to three messages."""

    supports_set = True

    def __init__(self, channel: _Channel, max_payload: int) -> None:
        self._channel = channel
        self._max_payload = max_payload

    def get_variable(
        self, name: str, guid: UUID, size: int, *, buffer: bool = True
    ) -> VariableReply:
        """GetVariable; ``size`` is trimmed to what a message carries.

        A success is followed by a second message that asks for the variable's property, whose
        failure becomes the result.
        """
        name_size = len(encode_name(name))
        room = self._max_payload - CLIENT_ACCESS_SIZE - name_size
        if room < 0:
            return VariableReply(EfiStatus.INVALID_PARAMETER, size=size)
        request = AccessVariable(guid, name, data_size=min(size, room))
        status, payload = self._channel.request(
            VariableFunction.GET_VARIABLE, request.pack(slack=_ACCESS_SLACK)
        )
        if status not in (EfiStatus.SUCCESS, EfiStatus.BUFFER_TOO_SMALL):
            return VariableReply(status, size=size)
        answer = AccessVariable.unpack(payload)
        if status == EfiStatus.BUFFER_TOO_SMALL:
            return VariableReply(status, size=answer.data_size)
        status, _property = self._property(name, guid)
        if status != EfiStatus.SUCCESS:
            return VariableReply(status, size=answer.data_size)
        if not buffer:
            return VariableReply(EfiStatus.INVALID_PARAMETER, answer.attributes, answer.data_size)
        return VariableReply(status, answer.attributes, answer.data_size, answer.data)

    def get_next_variable(self, name: str, guid: UUID, capacity: int) -> NextVariableReply:
        """GetNextVariableName; ``capacity`` (bytes) is trimmed to what a message carries."""
        name_size = len(encode_name(name))
        room = self._max_payload - GET_NEXT_SIZE
        if capacity < name_size or name_size > room:
            return NextVariableReply(EfiStatus.INVALID_PARAMETER, name_size=capacity)
        request = GetNextVariableName(guid, name, min(capacity, room))
        status, payload = self._channel.request(
            VariableFunction.GET_NEXT_VARIABLE_NAME, request.pack()
        )
        if status not in (EfiStatus.SUCCESS, EfiStatus.BUFFER_TOO_SMALL):
            return NextVariableReply(status, name_size=capacity)
        answer = GetNextVariableName.unpack(payload)
        if status == EfiStatus.BUFFER_TOO_SMALL:
            return NextVariableReply(status, name_size=answer.name_size)
        return NextVariableReply(status, answer.name, answer.guid, answer.name_size)

    def set_variable(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        """SetVariable: the property first; a read-only variable never reaches StandaloneMM."""
        if not name:
            return EfiStatus.INVALID_PARAMETER
        if CLIENT_ACCESS_SIZE + len(encode_name(name)) + len(data) > self._max_payload:
            return EfiStatus.INVALID_PARAMETER
        # The buffer comes first, so that no failure follows the property's message.
        status = self._channel.allocate()
        if status != EfiStatus.SUCCESS:
            return status
        status, found = self._property(name, guid)
        if status != EfiStatus.SUCCESS:
            self._channel.complain("Getting variable property failed")
            return status
        if found & VariableProperty.READ_ONLY:
            return EfiStatus.WRITE_PROTECTED
        request = AccessVariable(guid, name, len(data), attributes, data)
        status, _payload = self._channel.communicate(
            VariableFunction.SET_VARIABLE, request.pack(slack=_ACCESS_SLACK)
        )
        return status

    def set_variable_nonblocking(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        """A call into the TEE can always sleep, so there is no such operation."""
        return EfiStatus.UNSUPPORTED

    def query_variable_info(self, attributes: int) -> SpaceReply:
        """QueryVariableInfo, passed through."""
        status, payload = self._channel.request(
            VariableFunction.QUERY_VARIABLE_INFO, QueryVariableInfo(attributes).pack()
        )
        if status != EfiStatus.SUCCESS:
            return SpaceReply(status)
        answer = QueryVariableInfo.unpack(payload)
        return SpaceReply(
            status, answer.maximum_storage, answer.remaining_storage, answer.maximum_variable
        )

    def query_variable_store(self, attributes: int, size: int) -> int:
        """efi_query_variable_store does nothing off x86."""
        return EfiStatus.SUCCESS

    def _property(self, name: str, guid: UUID) -> tuple[EfiStatus, int]:
        """The property bits of a variable; one without a property has none set."""
        if VAR_CHECK_PROPERTY_SIZE + len(encode_name(name)) > self._max_payload:
            return EfiStatus.INVALID_PARAMETER, 0
        status, payload = self._channel.request(
            VariableFunction.VAR_CHECK_PROPERTY_GET,
            VarCheckProperty(guid, name, revision=0).pack(),
        )
        if status == EfiStatus.NOT_FOUND:
            return EfiStatus.SUCCESS, 0
        if status != EfiStatus.SUCCESS:
            return status, 0
        return status, VarCheckProperty.unpack(payload).property
