"""A normal world that speaks to one StandaloneMM partition, with a storage that can lose power."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from emulation.faults import PowerLost
from emulation.stmm.config import StmmConfig
from emulation.stmm.standalone_mm import StandaloneMm
from harness.formats.efi import EfiStatus
from harness.formats.mm import (
    COMM_BUFFER_SIZE,
    AccessVariable,
    GetNextVariableName,
    Message,
    QueryVariableInfo,
    VarCheckProperty,
    VariableFunction,
)
from tests.emulation.memory_storage import MemoryStorage

VENDOR = UUID("12345678-1234-1234-1234-123456789abc")
OPTEE_BLOCK = 256
RELOCATION = 193
"""RPMB writes when OP-TEE moves the whole file: 192 blocks and one FAT entry."""


class CuttableStorage(MemoryStorage):
    """Loses power instead of doing write number ``cut_at`` (0 is the next one)."""

    cut_at: int | None = None
    failure: int = 0
    """A storage code that every write answers, without writing."""

    _good_writes: int | None = None

    def fail_after(self, writes: int | None) -> None:
        """Let this many writes succeed and fail all others (OUT_OF_MEMORY); None: no failures."""
        self._good_writes = writes

    def write(self, offset: int, data: bytes) -> int:
        if self._good_writes is not None:
            self._good_writes -= 1
            if self._good_writes < 0:
                return 0xFFFFFFFD
        if self.cut_at is not None:
            if self.cut_at == 0:
                raise PowerLost
            self.cut_at -= 1
        if self.failure:
            return self.failure
        return super().write(offset, data)


def rpmb_writes(writes: list[tuple[int, int]]) -> int:
    """What OP-TEE makes of storage writes once its file exists (stack 2.4)."""
    return sum(
        1 if offset // OPTEE_BLOCK == (offset + length - 1) // OPTEE_BLOCK else RELOCATION
        for offset, length in writes
    )


@dataclass
class Partition:
    """Start with :meth:`boot`; every call is one message through the 16 KiB buffer."""

    storage: CuttableStorage = field(default_factory=CuttableStorage)
    config: StmmConfig = field(default_factory=StmmConfig)

    started: bool = True

    def __post_init__(self) -> None:
        self.buffer = bytearray(COMM_BUFFER_SIZE)
        if self.started:
            self.boot()

    @classmethod
    def unstarted(cls, storage: CuttableStorage) -> Partition:
        """A partition whose first start is still to come."""
        return cls(storage, started=False)

    def boot(self) -> None:
        """Power on: a new partition on the same storage."""
        self.storage.cut_at = None
        self.mm = StandaloneMm(self.storage, self.config)
        self.mm.start()

    def restart_losing_power(self, write: int) -> None:
        """Start, losing power at the given storage write."""
        self.storage.cut_at = write
        self.mm = StandaloneMm(self.storage, self.config)
        self.mm.start()

    def call(self, function: int, payload: bytes = b"", guid: UUID | None = None) -> Message:
        message = Message(function, payload)
        raw = (message if guid is None else Message(function, payload, 0, guid)).pack()
        self.buffer[: len(raw)] = raw
        assert self.mm.communicate(self.buffer, len(raw)) == 0
        return Message.unpack(self.buffer)

    def status(self, function: int, payload: bytes = b"") -> EfiStatus:
        return EfiStatus(self.call(function, payload).status)

    def exit_boot_services(self) -> None:
        assert self.status(VariableFunction.EXIT_BOOT_SERVICE) == EfiStatus.SUCCESS

    def set(self, name: str, data: bytes, attributes: int = 7, guid: UUID = VENDOR) -> EfiStatus:
        request = AccessVariable(guid, name, len(data), attributes, data)
        return self.status(VariableFunction.SET_VARIABLE, request.pack(slack=4))

    def get(
        self, name: str, guid: UUID = VENDOR, capacity: int = 9000
    ) -> tuple[EfiStatus, AccessVariable]:
        request = AccessVariable(guid, name, capacity)
        answer = self.call(VariableFunction.GET_VARIABLE, request.pack())
        return EfiStatus(answer.status), AccessVariable.unpack(answer.payload)

    def value(self, name: str, guid: UUID = VENDOR) -> bytes | None:
        status, answer = self.get(name, guid)
        return answer.data if status == EfiStatus.SUCCESS else None

    def names(self) -> list[tuple[str, UUID]]:
        """All variables by GetNextVariableName."""
        found: list[tuple[str, UUID]] = []
        current = GetNextVariableName(UUID(int=0), "", 1024)
        while True:
            answer = self.call(VariableFunction.GET_NEXT_VARIABLE_NAME, current.pack())
            if answer.status == EfiStatus.NOT_FOUND:
                return found
            assert answer.status == EfiStatus.SUCCESS
            entry = GetNextVariableName.unpack(answer.payload)
            assert (entry.name, entry.guid) not in found
            found.append((entry.name, entry.guid))
            current = GetNextVariableName(entry.guid, entry.name, 1024)

    def query(self, attributes: int = 7) -> tuple[EfiStatus, QueryVariableInfo]:
        request = QueryVariableInfo(attributes).pack()
        answer = self.call(VariableFunction.QUERY_VARIABLE_INFO, request)
        return EfiStatus(answer.status), QueryVariableInfo.unpack(answer.payload)

    def free(self) -> int:
        status, info = self.query()
        assert status == EfiStatus.SUCCESS
        return info.remaining_storage

    def property_of(self, name: str, guid: UUID) -> tuple[EfiStatus, VarCheckProperty]:
        request = VarCheckProperty(guid, name, 0).pack()
        answer = self.call(VariableFunction.VAR_CHECK_PROPERTY_GET, request)
        return EfiStatus(answer.status), VarCheckProperty.unpack(answer.payload)

    def writes_of(self, name: str, data: bytes, attributes: int = 7) -> int:
        """Storage writes of one successful SetVariable."""
        before = len(self.storage.writes)
        assert self.set(name, data, attributes) == EfiStatus.SUCCESS
        return len(self.storage.writes) - before
