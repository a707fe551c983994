"""The variable service: get, get next, set, query, update and reclaim.

Names are CHAR16 bytes with their NUL, GUIDs their 16 bytes, attributes plain integers: that is
what messages and flash hold.

Source: contract 4.4 to 4.8 and 4.13; ED MdeModulePkg/Universal/Variable/RuntimeDxe/Variable.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulation.stmm.authenticated import AuthenticatedVariables
from emulation.stmm.config import StmmConfig
from emulation.stmm.ftw import FaultTolerantWrite
from emulation.stmm.fvb import FirmwareVolumeBlock
from emulation.stmm.language import LanguageSync
from emulation.stmm.mor import Handled, MorLock
from emulation.stmm.store import Found, Record, VariableStore
from emulation.stmm.times import is_not_later
from emulation.stmm.var_check import Property, VarCheck
from harness.formats.authentication import AUTHENTICATION_1_SIZE, descriptor_size
from harness.formats.efi import VARIABLE_ERROR_FLAG_GUID, Attributes, EfiStatus, encode_name
from harness.formats.mm import RuntimeCacheInfo
from harness.formats.variable_store import (
    STATE_ADDED,
    STATE_ADDED_IN_TRANSITION,
    STATE_DELETED,
    STATE_HEADER_VALID,
    STATE_IN_DELETED_TRANSITION,
    STORE_FORMATTED,
    STORE_HEADER_SIZE,
    STORE_HEALTHY,
    STORE_SIZE,
    VARIABLE_HEADER_SIZE,
    VARIABLE_STATE_OFFSET,
    VOLUME_HEADER_SIZE,
    StoreHeader,
    align,
)

NV: Final = int(Attributes.NON_VOLATILE)
BS: Final = int(Attributes.BOOTSERVICE_ACCESS)
RT: Final = int(Attributes.RUNTIME_ACCESS)
HR: Final = int(Attributes.HARDWARE_ERROR_RECORD)
AW: Final = int(Attributes.AUTHENTICATED_WRITE_ACCESS)
AT: Final = int(Attributes.TIME_BASED_AUTHENTICATED_WRITE_ACCESS)
APPEND: Final = int(Attributes.APPEND_WRITE)
_ATTRIBUTES_MASK: Final = NV | BS | RT | HR | AT | APPEND
"""EFI_VARIABLE_ATTRIBUTES_MASK: all defined bits but the deprecated AW."""

_NO_TIME: Final = bytes(16)
_ERROR_FLAG_NAME: Final = encode_name("VarErrorFlag")
_ERROR_FLAG_GUID: Final = VARIABLE_ERROR_FLAG_GUID.bytes_le
_NO_ERROR: Final = 0xFF
_SYSTEM_ERROR: Final = 0xEF


class StoreUnusable(Exception):
    """The volume is a variable store's, but the store's header says it is not formatted."""


@dataclass(frozen=True, slots=True)
class Space:
    """Answer of QueryVariableInfo, bytes."""

    maximum_storage: int
    remaining_storage: int
    maximum_variable: int


class VariableService:
    """The variable driver on one flash volume. ``start`` first."""

    def __init__(
        self, flash: FirmwareVolumeBlock, ftw: FaultTolerantWrite, config: StmmConfig
    ) -> None:
        self.at_runtime = False
        self.end_of_dxe = False
        self.var_check = VarCheck()
        self._flash = flash
        self._ftw = ftw
        self._config = config
        self._nv = VariableStore(STORE_SIZE, volatile=False)
        self._volatile = VariableStore(config.volatile_store_size, volatile=True)
        self._common_total = 0
        self._hardware_total = 0
        self._auth_support = False
        self._authenticated = AuthenticatedVariables(self, config)
        self._mor = MorLock(self, config)
        self._languages = LanguageSync(self)
        self._error_flag = _NO_ERROR
        self._reclaimed_for_os = False

    # --- start and phases -----------------------------------------------------------------------

    def start(self) -> None:
        """Read the store and create the variables of the authentication library.

        A failure of the flash leaves a service without authenticated variables that still answers.
        StoreUnusable if the store's header is not that of a formatted, healthy store.
        """
        header = StoreHeader.unpack(self._flash.image, VOLUME_HEADER_SIZE)
        if (header.format, header.state) != (STORE_FORMATTED, STORE_HEALTHY):
            raise StoreUnusable
        self._load()
        free = self._flash.read(
            VOLUME_HEADER_SIZE + self._nv.last_offset, STORE_SIZE - self._nv.last_offset
        )
        if free.strip(b"\xff") and self._reclaim(None, None).is_error:
            return
        if self._authenticated.start().is_error:
            return
        self._auth_support = True
        for name, guid, prop in self._authenticated.properties():
            self.var_check.set_property(name, guid, prop)
        self.var_check.set_property(
            _ERROR_FLAG_NAME, _ERROR_FLAG_GUID, Property(1, NV | BS | RT, 1, 1)
        )

    def enter_end_of_dxe(self) -> None:
        """What EDK2 does once at EndOfDxe: memory overwrite lock, checks armed, error flag."""
        if self.end_of_dxe:
            return
        self._mor.close()
        self.end_of_dxe = True
        self.var_check.armed = True
        found = self._find(_ERROR_FLAG_NAME, _ERROR_FLAG_GUID)
        flag = bytes([self._error_flag])
        if found is None or found.record.data != flag:
            self._update(found, _ERROR_FLAG_NAME, _ERROR_FLAG_GUID, flag, NV | BS | RT, None)

    def ready_to_boot(self) -> EfiStatus:
        """Function 5: EndOfDxe if it did not happen, then the one reclaim for the OS."""
        if self.at_runtime:
            return EfiStatus.UNSUPPORTED
        self.enter_end_of_dxe()
        if not self._reclaimed_for_os:
            self._reclaimed_for_os = True
            remaining = self._nv.capacity - self._common_total
            largest = max(self._config.max_variable_size, self._config.max_auth_variable_size)
            if remaining < largest:
                self._reclaim(None, None)
        return EfiStatus.SUCCESS

    def lock(self, name: bytes, guid: bytes) -> EfiStatus:
        """Function 8: a lock is a variable policy, so NOT_READY where there is no such engine."""
        if self.end_of_dxe:
            return EfiStatus.ACCESS_DENIED
        if not self._config.variable_policy:
            return EfiStatus.NOT_READY
        if name == b"\0\0":
            return EfiStatus.INVALID_PARAMETER
        self.var_check.lock(name, guid)
        return EfiStatus.SUCCESS

    def set_property(self, name: bytes, guid: bytes, revision: int, prop: Property) -> EfiStatus:
        """Function 9."""
        if self.end_of_dxe:
            return EfiStatus.ACCESS_DENIED
        if name == b"\0\0" or revision != 1:
            return EfiStatus.INVALID_PARAMETER
        self.var_check.set_property(name, guid, prop)
        return EfiStatus.SUCCESS

    # --- reading --------------------------------------------------------------------------------

    def find(self, name: bytes, guid: bytes) -> Record | None:
        """The variable as firmware code sees it: at runtime only with runtime access."""
        found = self._find(name, guid)
        return None if found is None else found.record

    def get(self, name: bytes, guid: bytes) -> Record | None:
        """GetVariable without the buffer: None is NOT_FOUND, also for the empty name."""
        return None if name == b"\0\0" else self.find(name, guid)

    def next(self, name: bytes, guid: bytes) -> Record | EfiStatus:
        """The variable after the given one; volatile ones first. The empty name begins.

        INVALID_PARAMETER for a name that does not exist, NOT_FOUND at the end.
        """
        records = [
            (store, record) for store in (self._volatile, self._nv) for record in store.records
        ]
        start = 0
        if name != b"\0\0":
            found = self._find(name, guid)
            if found is None:
                return EfiStatus.INVALID_PARAMETER
            start = 1 + next(i for i, (_, record) in enumerate(records) if record is found.record)
        for store, record in records[start:]:
            if not record.live or not self._visible(record):
                continue
            if record.state == STATE_ADDED_IN_TRANSITION:
                twin = store.find(record.name, record.guid, self._required())
                if twin is not None and twin.record.state == STATE_ADDED:
                    continue
            return record
        return EfiStatus.NOT_FOUND

    def query(self, attributes: int) -> Space | EfiStatus:
        """QueryVariableInfo, checks in the order of contract 4.8."""
        status = self._check_query(attributes)
        if status.is_error:
            return status
        store = self._nv if attributes & NV else self._volatile
        maximum = store.capacity
        if attributes & (NV | HR) == NV | HR:
            maximum = self._config.hardware_error_storage
        elif attributes & NV:
            maximum = self._common_space
        largest = self._max_size(attributes) - VARIABLE_HEADER_SIZE
        common, hardware = store.used(all_records=self.at_runtime)
        used = hardware if attributes & HR else common
        remaining = max(0, maximum - used)
        return Space(maximum, remaining, max(0, min(largest, remaining - VARIABLE_HEADER_SIZE)))

    def cache_info(self) -> RuntimeCacheInfo:
        """Function 14: sizes of the stores; there is no HOB store."""
        return RuntimeCacheInfo(0, self._nv.size, self._volatile.size, self._auth_support)

    def _check_query(self, attributes: int) -> EfiStatus:
        masked = attributes & _ATTRIBUTES_MASK
        if attributes == 0:
            return EfiStatus.INVALID_PARAMETER
        if attributes & AW or masked == 0:
            return EfiStatus.UNSUPPORTED
        if masked == NV or attributes & (RT | BS) == RT:
            return EfiStatus.INVALID_PARAMETER
        if self.at_runtime and not attributes & RT:
            return EfiStatus.INVALID_PARAMETER
        if attributes & (NV | HR) == HR:
            return EfiStatus.INVALID_PARAMETER
        if attributes & AT:
            return EfiStatus.SUCCESS if self._auth_support else EfiStatus.UNSUPPORTED
        if attributes & HR and not self._config.hardware_error_storage:
            return EfiStatus.UNSUPPORTED
        return EfiStatus.SUCCESS

    # --- SetVariable ----------------------------------------------------------------------------

    def set(self, name: bytes, guid: bytes, attributes: int, data: bytes) -> EfiStatus:
        """SetVariable, checks in the order of contract 4.6."""
        if name == b"\0\0":
            return EfiStatus.INVALID_PARAMETER
        status = self._check_attributes(attributes)
        if status.is_error:
            return status
        payload = self._payload(attributes, data)
        if isinstance(payload, EfiStatus):
            return payload
        if len(name) + len(payload) > self._max_size(attributes) - VARIABLE_HEADER_SIZE:
            return EfiStatus.INVALID_PARAMETER
        verdict = self._mor.check(name, guid, attributes, payload)
        if isinstance(verdict, Handled):
            return EfiStatus.SUCCESS
        if verdict.is_error:
            return verdict
        status = self.var_check.check(name, guid, attributes, payload)
        if status.is_error:
            return status
        found = self._find(name, guid, ignore_runtime=True)
        if found is not None:
            if self.at_runtime and not found.record.attributes & RT:
                return EfiStatus.WRITE_PROTECTED
            if attributes and attributes & ~APPEND != found.record.attributes:
                return EfiStatus.INVALID_PARAMETER
        status = self._languages.before_set(name, data)
        if status.is_error:
            return status
        if self._auth_support:
            return self._authenticated.process(name, guid, attributes, data)
        return self._update(found, name, guid, data, attributes, None)

    def _check_attributes(self, attributes: int) -> EfiStatus:
        """Rules 3 to 8."""
        deprecated = attributes & AW
        if attributes & ~(_ATTRIBUTES_MASK | AW):
            return EfiStatus.INVALID_PARAMETER
        if attributes & (RT | BS) == RT or attributes & _ATTRIBUTES_MASK == NV:
            return EfiStatus.UNSUPPORTED if deprecated else EfiStatus.INVALID_PARAMETER
        if attributes & (AT | AW):
            if not self._auth_support:
                return EfiStatus.INVALID_PARAMETER
        elif attributes & HR and not self._config.hardware_error_storage:
            return EfiStatus.INVALID_PARAMETER
        if attributes & (AT | AW) == AT | AW:
            return EfiStatus.UNSUPPORTED
        return EfiStatus.SUCCESS

    @staticmethod
    def _payload(attributes: int, data: bytes) -> bytes | EfiStatus:
        """Rules 9 and 10: the value behind the authentication descriptor."""
        if attributes & AW:
            return b"" if len(data) == AUTHENTICATION_1_SIZE else EfiStatus.UNSUPPORTED
        if attributes & AT:
            size = descriptor_size(data)
            return EfiStatus.SECURITY_VIOLATION if size is None else data[size:]
        return data

    def _max_size(self, attributes: int) -> int:
        """Header, name and data of the largest variable of this kind."""
        if attributes & HR:
            return self._config.max_hardware_error_size
        if attributes & (AT | AW):
            return self._config.max_auth_variable_size
        return self._config.max_variable_size

    # --- update ---------------------------------------------------------------------------------

    def update(
        self,
        name: bytes,
        guid: bytes,
        data: bytes,
        attributes: int,
        time: bytes | None = None,
    ) -> EfiStatus:
        """Store without any check of who asks: the authentication library's way to the store."""
        found = self._find(name, guid, ignore_runtime=True)
        return self._update(found, name, guid, data, attributes, time)

    def overwrite_volatile(self, record: Record, data: bytes) -> None:
        """Change a volatile variable's bytes in memory, as EDK2 does with SetupMode."""
        record.data = data
        record.raw = record.raw[: len(record.raw) - len(data)] + data

    def _update(
        self,
        found: Found | None,
        name: bytes,
        guid: bytes,
        data: bytes,
        attributes: int,
        time: bytes | None,
    ) -> EfiStatus:
        append = bool(attributes & APPEND)
        no_access = not attributes & (RT | BS)
        if found is None:
            if append and not data:
                return EfiStatus.SUCCESS
            if not data or no_access:
                return EfiStatus.NOT_FOUND
            if self.at_runtime and attributes & (NV | RT) != NV | RT:
                return EfiStatus.INVALID_PARAMETER
        else:
            old = found.record
            if self.at_runtime and found.store.volatile:
                return EfiStatus.WRITE_PROTECTED
            if self.at_runtime and old.attributes & (NV | RT) != NV | RT:
                return EfiStatus.INVALID_PARAMETER
            if (not append and not data) or no_access:
                return self._delete(found)
            if old.data == data and not append and time is None:
                return EfiStatus.SUCCESS
            if append:
                limit = self._max_size(attributes) - VARIABLE_HEADER_SIZE - len(old.name)
                if len(old.data) + len(data) > limit:
                    return EfiStatus.INVALID_PARAMETER
                data = old.data + data
            status = self._set_state(found.store, old, old.state & STATE_IN_DELETED_TRANSITION)
            if status.is_error:
                return status
        stamp = self._stamp(found, attributes, time)
        store = self._nv if attributes & NV else self._volatile
        record = Record.build(store.last_offset, attributes & ~APPEND, guid, name, data, stamp)
        return self._store_new(store, record, found)

    def _store_new(self, store: VariableStore, record: Record, found: Found | None) -> EfiStatus:
        if self._over_quota(store, record):
            if self.at_runtime and not store.volatile:
                self._record_error()
                return EfiStatus.OUT_OF_RESOURCES
            status = self._reclaim(found, record, store)
            if status.is_error and not store.volatile:
                self._record_error()
            return status
        if not store.volatile:
            status = self._write(record)
            if status.is_error:
                return status
            self._count(record)
        record.state = STATE_ADDED
        store.add(record)
        return EfiStatus.SUCCESS if found is None else self._delete(found)

    def _stamp(self, found: Found | None, attributes: int, time: bytes | None) -> bytes:
        """The time stamp to store; an append keeps the later one, and none if it creates."""
        if time is None or not attributes & AT:
            return _NO_TIME
        if not attributes & APPEND:
            return time
        if found is None:
            return _NO_TIME
        return time if is_not_later(found.record.time, time) else found.record.time

    def _over_quota(self, store: VariableStore, record: Record) -> bool:
        size = len(record.raw)
        if store.volatile:
            return store.last_offset + size > store.size
        if record.attributes & HR:
            return self._hardware_total + size > self._config.hardware_error_storage
        return self._common_total + size > self._common_space

    @property
    def _common_space(self) -> int:
        return self._nv.capacity - self._config.hardware_error_storage

    def _write(self, record: Record) -> EfiStatus:
        """Write a new record and then the state byte that makes it count."""
        place = VOLUME_HEADER_SIZE + record.offset
        steps = [(place, record.raw)]
        if not self._config.single_write:
            steps = [
                (place, record.raw[:VARIABLE_HEADER_SIZE]),
                (place + VARIABLE_STATE_OFFSET, bytes([STATE_HEADER_VALID])),
                (place + VARIABLE_HEADER_SIZE, record.raw[VARIABLE_HEADER_SIZE:]),
            ]
        steps.append((place + VARIABLE_STATE_OFFSET, bytes([STATE_ADDED])))
        for offset, piece in steps:
            status = self._flash.write_across_blocks(offset, piece)
            if status.is_error:
                return status
        return EfiStatus.SUCCESS

    def _delete(self, found: Found) -> EfiStatus:
        for record in (found.leftover, found.record):
            if record is not None:
                status = self._set_state(found.store, record, record.state & STATE_DELETED)
                if status.is_error:
                    return status
        return EfiStatus.SUCCESS

    def _set_state(self, store: VariableStore, record: Record, state: int) -> EfiStatus:
        if not store.volatile:
            place = VOLUME_HEADER_SIZE + record.offset + VARIABLE_STATE_OFFSET
            status = self._flash.write(place, bytes([state]))
            if status.is_error:
                return status
        record.state = state
        return EfiStatus.SUCCESS

    # --- reclaim --------------------------------------------------------------------------------

    def _reclaim(
        self, found: Found | None, new: Record | None, store: VariableStore | None = None
    ) -> EfiStatus:
        """Drop deleted records and add ``new``; through FTW if the store is in flash."""
        store = store or self._nv
        kept = store.survivors(found if found is not None and found.store is store else None)
        if new is not None:
            kept.append(new)
        total = sum(record.size for record in kept)
        if new is not None and total > store.capacity:
            return EfiStatus.OUT_OF_RESOURCES
        if store.volatile:
            store.replace(kept)
            return EfiStatus.SUCCESS
        hardware = sum(record.size for record in kept if record.attributes & HR)
        if new is not None and (
            hardware > self._config.hardware_error_storage or total - hardware > self._common_space
        ):
            return EfiStatus.OUT_OF_RESOURCES
        header = self._flash.read(VOLUME_HEADER_SIZE, STORE_HEADER_SIZE)
        image = header + b"".join(record.packed() for record in kept)
        status = self._ftw.write(0, VOLUME_HEADER_SIZE, image.ljust(STORE_SIZE, b"\xff"))
        self._load()
        return status

    def _load(self) -> None:
        self._nv.load(self._flash.read(VOLUME_HEADER_SIZE, STORE_SIZE))
        self._common_total, self._hardware_total = self._nv.used(all_records=True)

    def _count(self, record: Record) -> None:
        if record.attributes & HR:
            self._hardware_total += record.size
        else:
            self._common_total += record.size

    def _record_error(self) -> None:
        """Remember that the store was full; in flash once the boot phase allows it."""
        self._error_flag &= _SYSTEM_ERROR
        if not self.end_of_dxe:
            return
        found = self._find(_ERROR_FLAG_NAME, _ERROR_FLAG_GUID)
        if found is None or found.record.data == bytes([self._error_flag]):
            return
        record = found.record
        data = bytes([record.data[0] & _SYSTEM_ERROR])
        place = VOLUME_HEADER_SIZE + record.offset + VARIABLE_HEADER_SIZE + len(record.name)
        if not self._flash.write(place, data).is_error:
            record.data = data
            record.raw = record.raw[:-1] + data

    # --- helpers --------------------------------------------------------------------------------

    def room_for(self, sizes: dict[bytes, int], guid: bytes) -> bool:
        """Whether non-volatile variables (name to data size) fit together, with a reclaim if
        one is possible."""
        needed = sum(align(VARIABLE_HEADER_SIZE + len(n) + size) for n, size in sizes.items())
        if self._common_space - self._common_total >= needed:
            return True
        if self.at_runtime:
            return False
        common, _ = self._nv.used(all_records=False)
        replaced = [self._nv.find(name, guid) for name in sizes]
        freed = sum(found.record.size for found in replaced if found is not None)
        return self._common_space - common + freed >= needed

    def _find(self, name: bytes, guid: bytes, *, ignore_runtime: bool = False) -> Found | None:
        required = 0 if ignore_runtime else self._required()
        for store in (self._volatile, self._nv):
            found = store.find(name, guid, required)
            if found is not None:
                return found
        return None

    def _required(self) -> int:
        return RT if self.at_runtime else 0

    def _visible(self, record: Record) -> bool:
        return not self.at_runtime or bool(record.attributes & RT)
