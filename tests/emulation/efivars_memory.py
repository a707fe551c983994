"""EFI variables in a dict, with the few firmware rules that the kernel's own code depends on."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from emulation.linux.efivars import NextVariableReply, SpaceReply, VariableReply
from harness.formats.efi import EfiStatus

VENDOR = UUID("12345678-1234-1234-1234-123456789abc")


class MemoryVariables:
    """Satisfies EfivarsOperations; ``before`` runs ahead of every call, ``forced`` replaces its
    status."""

    def __init__(self, *, supports_set: bool = True) -> None:
        self.supports_set = supports_set
        self.store: dict[tuple[str, UUID], tuple[int, bytes]] = {}
        self.calls: list[str] = []
        self.forced: dict[str, int] = {}
        self.before: Callable[[str], None] = lambda call: None
        self.room_answer: int = EfiStatus.SUCCESS

    def _enter(self, call: str) -> int | None:
        self.before(call)
        self.calls.append(call)
        return self.forced.get(call)

    def get_variable(
        self, name: str, guid: UUID, size: int, *, buffer: bool = True
    ) -> VariableReply:
        forced = self._enter("get")
        if forced is not None:
            return VariableReply(forced)
        if (name, guid) not in self.store:
            return VariableReply(EfiStatus.NOT_FOUND)
        attributes, data = self.store[name, guid]
        if size < len(data):
            return VariableReply(EfiStatus.BUFFER_TOO_SMALL, attributes, len(data))
        return VariableReply(EfiStatus.SUCCESS, attributes, len(data), data if buffer else None)

    def get_next_variable(self, name: str, guid: UUID, capacity: int) -> NextVariableReply:
        forced = self._enter("next")
        keys = list(self.store)
        following = keys.index((name, guid)) + 1 if name else 0
        if forced is not None:
            return NextVariableReply(forced, name_size=600)
        if following == len(keys):
            return NextVariableReply(EfiStatus.NOT_FOUND)
        return NextVariableReply(EfiStatus.SUCCESS, *keys[following])

    def set_variable(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        forced = self._enter("set")
        if forced is not None:
            return forced
        if not data:
            if self.store.pop((name, guid), None) is None:
                return EfiStatus.NOT_FOUND
            return EfiStatus.SUCCESS
        self.store[name, guid] = (attributes, data)
        return EfiStatus.SUCCESS

    def set_variable_nonblocking(self, name: str, guid: UUID, attributes: int, data: bytes) -> int:
        forced = self._enter("set-nonblocking")
        return EfiStatus.UNSUPPORTED if forced is None else forced

    def query_variable_info(self, attributes: int) -> SpaceReply:
        forced = self._enter("query")
        if forced is not None:
            return SpaceReply(forced)
        return SpaceReply(EfiStatus.SUCCESS, 1000, 1000 - 100 * len(self.store), 500)

    def query_variable_store(self, attributes: int, size: int) -> int:
        self._enter(f"room {size}")
        return self.room_answer
