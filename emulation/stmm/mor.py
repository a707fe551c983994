"""Memory overwrite request control and its lock.

Source: contract 4.9; ED MdeModulePkg/Universal/Variable/RuntimeDxe/TcgMorLockSmm.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from emulation.stmm.config import StmmConfig
from harness.formats.efi import (
    MEMORY_OVERWRITE_CONTROL_GUID,
    MEMORY_OVERWRITE_LOCK_GUID,
    Attributes,
    EfiStatus,
    encode_name,
)

_CONTROL: Final = (
    encode_name("MemoryOverwriteRequestControl"),
    MEMORY_OVERWRITE_CONTROL_GUID.bytes_le,
)
_LOCK: Final = (
    encode_name("MemoryOverwriteRequestControlLock"),
    MEMORY_OVERWRITE_LOCK_GUID.bytes_le,
)
_ATTRIBUTES: Final = int(
    Attributes.NON_VOLATILE | Attributes.BOOTSERVICE_ACCESS | Attributes.RUNTIME_ACCESS
)
_KEY_SIZE: Final = 8
_UNLOCKED: Final = b"\0"
_LOCKED: Final = b"\x01"
_LOCKED_WITH_KEY: Final = b"\x02"


@dataclass(frozen=True, slots=True)
class Handled:
    """The lock did the whole SetVariable; the caller sees success."""


class Variables(Protocol):
    """What the lock needs of the variable service."""

    def find(self, name: bytes, guid: bytes) -> object | None: ...

    def set(self, name: bytes, guid: bytes, attributes: int, data: bytes) -> EfiStatus: ...

    def lock(self, name: bytes, guid: bytes) -> EfiStatus: ...


class MorLock:
    """The lock's state, kept in memory until the partition restarts."""

    def __init__(self, variables: Variables, config: StmmConfig) -> None:
        self._variables = variables
        self._policy = config.variable_policy
        self._locked = False
        self._key: bytes | None = None
        self._own_write = False

    def check(self, name: bytes, guid: bytes, attributes: int, data: bytes) -> EfiStatus | Handled:
        """Rule 12 of SetVariable."""
        if (name, guid) not in (_CONTROL, _LOCK):
            return EfiStatus.SUCCESS
        deletion = attributes == 0 or not data
        if deletion and (not self._policy or self._own_write):
            # Without the policy engine EDK2 lets anybody delete both variables.
            return EfiStatus.SUCCESS
        if (name, guid) == _LOCK:
            return self._check_lock(attributes, data, deletion=deletion)
        if attributes != _ATTRIBUTES or len(data) != 1:
            return EfiStatus.INVALID_PARAMETER
        return EfiStatus.ACCESS_DENIED if self._locked else EfiStatus.SUCCESS

    def close(self) -> None:
        """EndOfDxe: a control that exists counts as the platform's, and gets its lock, open.

        Without one neither variable is for the OS to make; the policy engine, if there is one,
        sees to that.
        """
        self._own_write = True
        if self._variables.find(*_CONTROL) is not None:
            self._variables.set(*_LOCK, _ATTRIBUTES, _UNLOCKED)
        else:
            self._variables.lock(*_CONTROL)
            self._variables.set(*_LOCK, 0, b"")
            self._variables.lock(*_LOCK)
        self._own_write = False

    def _check_lock(self, attributes: int, data: bytes, *, deletion: bool) -> EfiStatus | Handled:
        if deletion:
            return EfiStatus.WRITE_PROTECTED
        if attributes != _ATTRIBUTES or len(data) not in (1, _KEY_SIZE):
            return EfiStatus.INVALID_PARAMETER
        if self._own_write:
            return EfiStatus.SUCCESS
        if self._locked:
            return self._unlock(data)
        if len(data) == _KEY_SIZE:
            return self._store(_LOCKED_WITH_KEY, locked=True, key=data)
        if data in (_UNLOCKED, _LOCKED):
            return self._store(data, locked=data == _LOCKED, key=None)
        return EfiStatus.INVALID_PARAMETER

    def _unlock(self, data: bytes) -> EfiStatus | Handled:
        if self._key is None or len(data) != _KEY_SIZE:
            return EfiStatus.ACCESS_DENIED
        if data == self._key:
            return self._store(_UNLOCKED, locked=False, key=None)
        # One wrong guess and the key is forgotten until the next start, which the value tells.
        self._store(_LOCKED, locked=True, key=None)
        return EfiStatus.ACCESS_DENIED

    def _store(self, value: bytes, *, locked: bool, key: bytes | None) -> EfiStatus | Handled:
        self._own_write = True
        status = self._variables.set(*_LOCK, _ATTRIBUTES, value)
        self._own_write = False
        if status.is_error:
            return status
        self._locked, self._key = locked, key
        return Handled()
