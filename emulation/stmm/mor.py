"""Memory overwrite request control and its lock.

Source: stack 4.9; ED MdeModulePkg/Universal/Variable/RuntimeDxe/TcgMorLockSmm.c.
"""

from contextlib import suppress
from functools import partial
from typing import Final

from emulation.stmm.config import StmmConfig
from emulation.stmm.refusal import Refused, refuse_if
from emulation.stmm.store import BS, NV, RT, Change, Variables
from harness.formats.efi import (
    MEMORY_OVERWRITE_CONTROL_GUID,
    MEMORY_OVERWRITE_LOCK_GUID,
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
_ATTRIBUTES: Final = NV | BS | RT
_KEY_SIZE: Final = 8
_UNLOCKED: Final = b"\0"
_LOCKED: Final = b"\x01"
_LOCKED_WITH_KEY: Final = b"\x02"


class MorLock:
    """The lock's state, kept in memory until the partition restarts."""

    def __init__(self, variables: Variables, config: StmmConfig) -> None:
        self._variables = variables
        self._policy = config.variable_policy
        self._locked = False
        self._key: bytes | None = None
        self._own_write = False

    def check(self, change: Change) -> bool:
        """Rule 12 of SetVariable; True: the lock did the whole call. Raises Refused."""
        if change.key not in (_CONTROL, _LOCK):
            return False
        deletion = change.attributes == 0 or not change.data
        if deletion and (not self._policy or self._own_write):
            # Without the policy engine EDK2 lets anybody delete both variables.
            return False
        if change.key == _LOCK:
            refuse_if(deletion, EfiStatus.WRITE_PROTECTED)
            return self._check_lock(change.attributes, change.data)
        malformed = change.attributes != _ATTRIBUTES or len(change.data) != 1
        refuse_if(malformed, EfiStatus.INVALID_PARAMETER)
        refuse_if(self._locked, EfiStatus.ACCESS_DENIED)
        return False

    def close(self) -> None:
        """EndOfDxe: a control that exists counts as the platform's, and gets its lock, open.

        Without one neither variable is for the OS to make; the policy engine, if there is one,
        sees to that.
        """
        if self._variables.find(*_CONTROL) is not None:
            steps = [partial(self._set_lock, _ATTRIBUTES, _UNLOCKED)]
        else:
            steps = [
                partial(self._variables.lock, *_CONTROL),
                partial(self._set_lock, 0, b""),
                partial(self._variables.lock, *_LOCK),
            ]
        for step in steps:
            # EDK2 looks at none of these statuses.
            with suppress(Refused):
                step()

    def _check_lock(self, attributes: int, data: bytes) -> bool:
        malformed = attributes != _ATTRIBUTES or len(data) not in (1, _KEY_SIZE)
        refuse_if(malformed, EfiStatus.INVALID_PARAMETER)
        if self._own_write:
            return False
        if self._locked:
            self._unlock(data)
        elif len(data) == _KEY_SIZE:
            self._store(_LOCKED_WITH_KEY, locked=True, key=data)
        else:
            refuse_if(data not in (_UNLOCKED, _LOCKED), EfiStatus.INVALID_PARAMETER)
            self._store(data, locked=data == _LOCKED, key=None)
        return True

    def _unlock(self, data: bytes) -> None:
        refuse_if(self._key is None or len(data) != _KEY_SIZE, EfiStatus.ACCESS_DENIED)
        if data == self._key:
            self._store(_UNLOCKED, locked=False, key=None)
            return
        # One wrong guess and the key is forgotten until the next start, which the value tells.
        with suppress(Refused):
            self._store(_LOCKED, locked=True, key=None)
        raise Refused(EfiStatus.ACCESS_DENIED)

    def _store(self, value: bytes, *, locked: bool, key: bytes | None) -> None:
        self._set_lock(_ATTRIBUTES, value)
        self._locked, self._key = locked, key

    def _set_lock(self, attributes: int, value: bytes) -> None:
        self._own_write = True
        try:
            self._variables.set(Change(*_LOCK, attributes, value))
        finally:
            self._own_write = False
