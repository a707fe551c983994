"""The secure partition that StandaloneMM runs in, as OP-TEE hosts it.

Source: stack 2.6 and 3; OT41 and OTH core/arch/arm/kernel/stmm_sp.c.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NoReturn, Protocol
from uuid import UUID

from emulation.faults import Faults
from emulation.optee.config import OpTeeConfig, Release, Trace
from emulation.optee.rpmb_fs import FileHandle, RpmbFileSystem
from emulation.stmm.storage import SecureStorage
from harness.formats.rpmb_fs import file_name
from harness.formats.tee import Param, ParamType, TeeError, TeeOrigin, TeeResult, param_types

STMM_UUID: Final = UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
COMMUNICATION_BUFFER: Final = 16384
"""Bytes of the buffer that StandaloneMM and OP-TEE share: 4 pages."""
CMD_COMMUNICATE: Final = 0
STORE_FILE: Final = file_name(STMM_UUID, b"EFI_VARS")

_SPM_CODES: Final[Mapping[TeeResult, int]] = MappingProxyType(
    {
        TeeResult.SUCCESS: 0,
        TeeResult.NOT_SUPPORTED: -1,
        TeeResult.ACCESS_DENIED: -3,
        TeeResult.OUT_OF_MEMORY: -5,
    }
)
_FFA_CODES: Final[Mapping[TeeResult, int]] = MappingProxyType(
    {
        TeeResult.SUCCESS: 0,
        TeeResult.NOT_SUPPORTED: -1,
        TeeResult.NOT_IMPLEMENTED: -1,
        TeeResult.OUT_OF_MEMORY: -3,
        TeeResult.ACCESS_DENIED: -6,
        TeeResult.NO_DATA: -9,
    }
)
_INVALID_PARAMETERS: Final = -2
"""Every other failure, in both numberings."""

_COMMUNICATE_TYPES: Final = (
    ParamType.MEMREF_INOUT,
    ParamType.VALUE_OUTPUT,
    ParamType.NONE,
    ParamType.NONE,
)


def storage_code(result: TeeResult, release: Release) -> int:
    """What the partition finds in x3: a 32-bit code in a 64-bit register, so zero-extended."""
    codes = _SPM_CODES if release == "4.1" else _FFA_CODES
    return codes.get(result, _INVALID_PARAMETERS) & 0xFFFFFFFF


class SecurePartition(Protocol):
    """StandaloneMM, as OP-TEE calls it."""

    def start(self) -> None:
        """Initialise; uses the storage."""
        ...

    def communicate(self, buffer: bytearray, size: int) -> int | None:
        """Handle the message in the first ``size`` bytes in place; what it leaves in x4.

        None: it ended with FFA_ERROR in place of a response.
        """
        ...


LoadPartition = Callable[[SecureStorage], SecurePartition]


class StoreFile:
    """The storage service: one file in the RPMB, opened and closed for every access.

    Fault points ``storage.read`` and ``storage.write``.
    """

    def __init__(
        self, files: RpmbFileSystem, release: Release, trace: Trace, faults: Faults
    ) -> None:
        self._files = files
        self._release = release
        self._trace = trace
        self._faults = faults

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        """Storage: a code and ``length`` bytes; fewer than that is CORRUPT_OBJECT."""
        self._trace.debug("stmm_handle_storage_service", "RPMB read")
        data = b""
        try:
            self._pass("storage.read")
            data = self._files.read(self._open(), offset, length)
            result = TeeResult.SUCCESS if len(data) == length else TeeResult.CORRUPT_OBJECT
        except TeeError as error:
            result = error.result
        return storage_code(result, self._release), data

    def write(self, offset: int, data: bytes) -> int:
        """Storage: write ``data``, making the file if there is none."""
        self._trace.debug("stmm_handle_storage_service", "RPMB write")
        result = TeeResult.SUCCESS
        try:
            self._pass("storage.write")
            self._files.write(self._open_or_create(), offset, data)
        except TeeError as error:
            result = error.result
        return storage_code(result, self._release)

    def _pass(self, point: str) -> None:
        fault = self._faults.point(point)
        if fault is not None:
            raise TeeError(TeeResult(fault.argument))

    def _open(self) -> FileHandle:
        return self._files.open(STORE_FILE, STMM_UUID)

    def _open_or_create(self) -> FileHandle:
        try:
            return self._open()
        except TeeError as error:
            if error.result != TeeResult.ITEM_NOT_FOUND:
                raise
        return self._files.create(STORE_FILE, STMM_UUID)


class StmmContext:
    """The one instance of the partition; it stays when its last session closes.

    Fault points ``stmm.start`` and ``stmm.call``, passed before the partition runs.
    """

    def __init__(
        self, config: OpTeeConfig, storage: SecureStorage, load: LoadPartition, faults: Faults
    ) -> None:
        self._config = config
        self._storage = storage
        self._load = load
        self._faults = faults
        self._partition: SecurePartition | None = None
        # One buffer for all calls: what a call does not overwrite is there in the next.
        self._buffer = bytearray(COMMUNICATION_BUFFER)
        self.panicked = False
        self.sessions = 0

    @property
    def initialising(self) -> bool:
        """Whether the partition is still running its start."""
        return self._partition is None

    def start(self) -> None:
        """Load the partition and let it initialise; TeeError TARGET_DEAD if it panics."""
        self._pass("stmm.start")
        partition = self._load(self._storage)
        partition.start()
        self._partition = partition

    def check_open(self, kinds: tuple[ParamType, ...]) -> None:
        """What a new session must satisfy; TeeError BAD_PARAMETERS, BAD_STATE."""
        if any(kind != ParamType.NONE for kind in kinds):
            raise TeeError(TeeResult.BAD_PARAMETERS, TeeOrigin.TRUSTED_APP)
        if self.initialising:
            raise TeeError(TeeResult.BAD_STATE, TeeOrigin.TEE)

    def invoke(self, command: int, params: list[Param]) -> None:
        """PTA_STMM_CMD_COMMUNICATE; the checks in the order of stack 3, TeeError."""
        if self.panicked or self._partition is None:
            raise TeeError(TeeResult.TARGET_DEAD, TeeOrigin.TEE)
        if command != CMD_COMMUNICATE or param_types(params) != _COMMUNICATE_TYPES:
            raise TeeError(TeeResult.BAD_PARAMETERS, TeeOrigin.TRUSTED_APP)
        message, answer = params[0], params[1]
        size = message.size
        if size > COMMUNICATION_BUFFER:
            message.size = COMMUNICATION_BUFFER
            raise TeeError(TeeResult.EXCESS_DATA, TeeOrigin.TRUSTED_APP)
        if message.memory is None or len(message.memory) < size:
            raise TeeError(TeeResult.BAD_PARAMETERS, TeeOrigin.TRUSTED_APP)
        self._pass("stmm.call")
        self._buffer[:size] = message.memory[:size]
        code = self._partition.communicate(self._buffer, size)
        if code is None:
            self._panic()
        answer.a = code & 0xFFFFFFFF
        message.memory[:size] = self._buffer[:size]

    def _pass(self, point: str) -> None:
        if self._faults.point(point) is not None:
            self._panic()

    def _panic(self) -> NoReturn:
        self.panicked = True
        raise TeeError(TeeResult.TARGET_DEAD, TeeOrigin.TRUSTED_APP)
