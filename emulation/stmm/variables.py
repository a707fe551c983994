"""The variable service: get, get next, set, query, update and reclaim.

Names are CHAR16 bytes with their NUL, GUIDs their 16 bytes, attributes plain integers: that is
what messages and flash hold.

Source: stack 4.4 to 4.8 and 4.13; ED MdeModulePkg/Universal/Variable/RuntimeDxe/Variable.c.
"""

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from emulation.stmm.authenticated import AuthenticatedVariables
from emulation.stmm.config import StmmConfig
from emulation.stmm.ftw import FaultTolerantWrite
from emulation.stmm.fvb import FirmwareVolumeBlock
from emulation.stmm.language import LanguageSync
from emulation.stmm.mor import MorLock
from emulation.stmm.refusal import Refused, need, refuse_if
from emulation.stmm.store import (
    APPEND,
    AT,
    AW,
    BS,
    HR,
    NV,
    RT,
    Change,
    Found,
    Record,
    VariableStore,
    is_not_later,
)
from emulation.stmm.var_check import Property, VarCheck
from harness.formats.authentication import AUTHENTICATION_1_SIZE, descriptor_size
from harness.formats.efi import VARIABLE_ERROR_FLAG_GUID, EfiStatus, encode_name
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

_ATTRIBUTES_MASK: Final = NV | BS | RT | HR | AT | APPEND
"""EFI_VARIABLE_ATTRIBUTES_MASK: all defined bits but the deprecated AW."""

_NO_TIME: Final = bytes(16)
_ERROR_FLAG_NAME: Final = encode_name("VarErrorFlag")
_ERROR_FLAG_GUID: Final = VARIABLE_ERROR_FLAG_GUID.bytes_le
_NO_ERROR: Final = 0xFF
_SYSTEM_ERROR: Final = 0xEF


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
        Refused if the store's header is not that of a formatted, healthy store.
        """
        header = StoreHeader.unpack(self._flash.image, VOLUME_HEADER_SIZE)
        usable = (header.format, header.state) == (STORE_FORMATTED, STORE_HEALTHY)
        refuse_if(not usable, EfiStatus.VOLUME_CORRUPTED)
        self._load()
        free = self._flash.read(
            VOLUME_HEADER_SIZE + self._nv.last_offset, STORE_SIZE - self._nv.last_offset
        )
        try:
            if free.strip(b"\xff"):
                self._reclaim(None, None)
            self._authenticated.start()
        except Refused:
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
            change = Change(_ERROR_FLAG_NAME, _ERROR_FLAG_GUID, NV | BS | RT, flag)
            with suppress(Refused):
                self._update(found, change)

    def ready_to_boot(self) -> None:
        """Function 5: EndOfDxe if it did not happen, then the one reclaim for the OS."""
        refuse_if(self.at_runtime, EfiStatus.UNSUPPORTED)
        self.enter_end_of_dxe()
        if not self._reclaimed_for_os:
            self._reclaimed_for_os = True
            remaining = self._nv.capacity - self._common_total
            largest = max(self._config.max_variable_size, self._config.max_auth_variable_size)
            if remaining < largest:
                with suppress(Refused):
                    self._reclaim(None, None)

    def lock(self, name: bytes, guid: bytes) -> None:
        """Function 8: a lock is a variable policy, so NOT_READY where there is no such engine."""
        refuse_if(self.end_of_dxe, EfiStatus.ACCESS_DENIED)
        refuse_if(not self._config.variable_policy, EfiStatus.NOT_READY)
        refuse_if(name == b"\0\0", EfiStatus.INVALID_PARAMETER)
        self.var_check.lock(name, guid)

    def set_property(self, name: bytes, guid: bytes, revision: int, prop: Property) -> None:
        """Function 9."""
        refuse_if(self.end_of_dxe, EfiStatus.ACCESS_DENIED)
        refuse_if(name == b"\0\0" or revision != 1, EfiStatus.INVALID_PARAMETER)
        self.var_check.set_property(name, guid, prop)

    # --- reading --------------------------------------------------------------------------------

    def find(self, name: bytes, guid: bytes) -> Record | None:
        """The variable as firmware code sees it: at runtime only with runtime access."""
        found = self._find(name, guid)
        return None if found is None else found.record

    def get(self, name: bytes, guid: bytes) -> Record:
        """GetVariable without the buffer. Refused: NOT_FOUND, also for the empty name."""
        record = None if name == b"\0\0" else self.find(name, guid)
        if record is None:
            raise Refused(EfiStatus.NOT_FOUND)
        return record

    def next(self, name: bytes, guid: bytes) -> Record:
        """The variable after the given one; volatile ones first. The empty name begins.

        Refused: INVALID_PARAMETER for a name that does not exist, NOT_FOUND at the end.
        """
        records = [
            (store, record) for store in (self._volatile, self._nv) for record in store.records
        ]
        start = 0
        if name != b"\0\0":
            found = self._find(name, guid)
            if found is None:
                raise Refused(EfiStatus.INVALID_PARAMETER)
            start = 1 + next(i for i, (_, record) in enumerate(records) if record is found.record)
        for store, record in records[start:]:
            if not record.live or not self._visible(record):
                continue
            if record.state == STATE_ADDED_IN_TRANSITION:
                twin = store.find(record.name, record.guid, self._required())
                if twin is not None and twin.record.state == STATE_ADDED:
                    continue
            return record
        raise Refused(EfiStatus.NOT_FOUND)

    def query(self, attributes: int) -> Space:
        """QueryVariableInfo, checks in the order of stack 4.8. Raises Refused."""
        self._check_query(attributes)
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

    def _check_query(self, attributes: int) -> None:
        masked = attributes & _ATTRIBUTES_MASK
        refuse_if(attributes == 0, EfiStatus.INVALID_PARAMETER)
        refuse_if(attributes & AW or masked == 0, EfiStatus.UNSUPPORTED)
        refuse_if(masked == NV or attributes & (RT | BS) == RT, EfiStatus.INVALID_PARAMETER)
        refuse_if(self.at_runtime and not attributes & RT, EfiStatus.INVALID_PARAMETER)
        refuse_if(attributes & (NV | HR) == HR, EfiStatus.INVALID_PARAMETER)
        if attributes & AT:
            refuse_if(not self._auth_support, EfiStatus.UNSUPPORTED)
        elif attributes & HR:
            refuse_if(not self._config.hardware_error_storage, EfiStatus.UNSUPPORTED)

    # --- SetVariable ----------------------------------------------------------------------------

    def set(self, change: Change) -> None:
        """SetVariable, checks in the order of stack 4.6. Raises Refused."""
        refuse_if(change.name == b"\0\0", EfiStatus.INVALID_PARAMETER)
        self._check_attributes(change.attributes)
        bare = self._without_descriptor(change)
        limit = self._max_size(change.attributes) - VARIABLE_HEADER_SIZE
        refuse_if(len(bare.name) + len(bare.data) > limit, EfiStatus.INVALID_PARAMETER)
        if self._mor.check(bare):
            return
        self.var_check.check(bare)
        found = self._find(*change.key, ignore_runtime=True)
        if found is not None:
            stored = found.record.attributes
            refuse_if(self.at_runtime and not stored & RT, EfiStatus.WRITE_PROTECTED)
            differ = change.attributes and change.attributes & ~APPEND != stored
            refuse_if(differ, EfiStatus.INVALID_PARAMETER)
        self._languages.before_set(change.name, change.data)
        if self._auth_support:
            self._authenticated.process(change)
        else:
            self._update(found, change)

    def _check_attributes(self, attributes: int) -> None:
        """Rules 3 to 8."""
        deprecated = attributes & AW
        refuse_if(attributes & ~(_ATTRIBUTES_MASK | AW), EfiStatus.INVALID_PARAMETER)
        if attributes & (RT | BS) == RT or attributes & _ATTRIBUTES_MASK == NV:
            raise Refused(EfiStatus.UNSUPPORTED if deprecated else EfiStatus.INVALID_PARAMETER)
        if attributes & (AT | AW):
            refuse_if(not self._auth_support, EfiStatus.INVALID_PARAMETER)
        elif attributes & HR:
            refuse_if(not self._config.hardware_error_storage, EfiStatus.INVALID_PARAMETER)
        refuse_if(attributes & (AT | AW) == AT | AW, EfiStatus.UNSUPPORTED)

    @staticmethod
    def _without_descriptor(change: Change) -> Change:
        """Rules 9 and 10: with the value behind the authentication descriptor."""
        if change.attributes & AW:
            refuse_if(len(change.data) != AUTHENTICATION_1_SIZE, EfiStatus.UNSUPPORTED)
            return dataclasses.replace(change, data=b"")
        if change.attributes & AT:
            size = descriptor_size(change.data)
            refuse_if(size is None, EfiStatus.SECURITY_VIOLATION)
            return dataclasses.replace(change, data=change.data[size:])
        return change

    def _max_size(self, attributes: int) -> int:
        """Header, name and data of the largest variable of this kind."""
        if attributes & HR:
            return self._config.max_hardware_error_size
        if attributes & (AT | AW):
            return self._config.max_auth_variable_size
        return self._config.max_variable_size

    # --- update ---------------------------------------------------------------------------------

    def update(self, change: Change) -> None:
        """Store without any check of who asks: the authentication library's way to the store."""
        self._update(self._find(*change.key, ignore_runtime=True), change)

    def overwrite_volatile(self, record: Record, data: bytes) -> None:
        """Change a volatile variable's bytes in memory, as EDK2 does with SetupMode."""
        record.data = data
        record.raw = record.raw[: len(record.raw) - len(data)] + data

    def _update(self, found: Found | None, change: Change) -> None:
        if found is None:
            if change.append and not change.data:
                return
            self._check_new(change)
        else:
            old = found.record
            self._check_old(found)
            if change.deletes:
                self._delete(found)
                return
            if old.data == change.data and not change.append and change.time is None:
                return
            if change.append:
                change = self._appended(old, change)
            self._set_state(found.store, old, old.state & STATE_IN_DELETED_TRANSITION)
        store = self._nv if change.attributes & NV else self._volatile
        record = Record.build(store.last_offset, change, self._stamp(found, change))
        self._store_new(store, record, found)

    def _check_new(self, change: Change) -> None:
        refuse_if(change.deletes, EfiStatus.NOT_FOUND)
        stays = change.attributes & (NV | RT) == NV | RT
        refuse_if(self.at_runtime and not stays, EfiStatus.INVALID_PARAMETER)

    def _check_old(self, found: Found) -> None:
        if self.at_runtime:
            refuse_if(found.store.volatile, EfiStatus.WRITE_PROTECTED)
            stays = found.record.attributes & (NV | RT) == NV | RT
            refuse_if(not stays, EfiStatus.INVALID_PARAMETER)

    def _appended(self, old: Record, change: Change) -> Change:
        """With the old data in front of the new."""
        data = old.data + change.data
        limit = self._max_size(change.attributes) - VARIABLE_HEADER_SIZE - len(old.name)
        refuse_if(len(data) > limit, EfiStatus.INVALID_PARAMETER)
        return dataclasses.replace(change, data=data)

    def _store_new(self, store: VariableStore, record: Record, found: Found | None) -> None:
        if self._over_quota(store, record):
            self._make_room(store, record, found)
            return
        if not store.volatile:
            self._write(record)
            self._count(record)
        record.state = STATE_ADDED
        store.add(record)
        if found is not None:
            self._delete(found)

    def _make_room(self, store: VariableStore, record: Record, found: Found | None) -> None:
        """Add a record that is beyond the quota, by a reclaim where one is possible."""
        try:
            refuse_if(self.at_runtime and not store.volatile, EfiStatus.OUT_OF_RESOURCES)
            self._reclaim(found, record, store)
        except Refused:
            if not store.volatile:
                self._record_error()
            raise

    def _stamp(self, found: Found | None, change: Change) -> bytes:
        """The time stamp to store; an append keeps the later one, and none if it creates."""
        if change.time is None or not change.attributes & AT:
            return _NO_TIME
        if not change.append:
            return change.time
        if found is None:
            return _NO_TIME
        old = found.record.time
        return change.time if is_not_later(old, change.time) else old

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

    def _write(self, record: Record) -> None:
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
            need(self._flash.write_across_blocks(offset, piece))

    def _delete(self, found: Found) -> None:
        for record in (found.leftover, found.record):
            if record is not None:
                self._set_state(found.store, record, record.state & STATE_DELETED)

    def _set_state(self, store: VariableStore, record: Record, state: int) -> None:
        if not store.volatile:
            place = VOLUME_HEADER_SIZE + record.offset + VARIABLE_STATE_OFFSET
            need(self._flash.write(place, bytes([state])))
        record.state = state

    # --- reclaim --------------------------------------------------------------------------------

    def _reclaim(
        self, found: Found | None, new: Record | None, store: VariableStore | None = None
    ) -> None:
        """Drop deleted records and add ``new``; through FTW if the store is in flash."""
        store = store or self._nv
        kept = store.survivors(found if found is not None and found.store is store else None)
        if new is not None:
            kept.append(new)
        total = sum(record.size for record in kept)
        refuse_if(new is not None and total > store.capacity, EfiStatus.OUT_OF_RESOURCES)
        if store.volatile:
            store.replace(kept)
            return
        hardware = sum(record.size for record in kept if record.attributes & HR)
        full = hardware > self._config.hardware_error_storage
        full = full or total - hardware > self._common_space
        refuse_if(new is not None and full, EfiStatus.OUT_OF_RESOURCES)
        header = self._flash.read(VOLUME_HEADER_SIZE, STORE_HEADER_SIZE)
        image = header + b"".join(record.packed() for record in kept)
        try:
            self._ftw.write(0, VOLUME_HEADER_SIZE, image.ljust(STORE_SIZE, b"\xff"))
        finally:
            self._load()

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
