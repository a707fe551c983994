"""StandaloneMM's variable service, broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from emulation.mutants.registry import Original, Patches, Registry
from emulation.stmm import authenticated, pkcs7, signature_lists, standalone_mm
from emulation.stmm.authenticated import AuthenticatedVariables, Request, Trust
from emulation.stmm.fvb import FirmwareVolumeBlock
from emulation.stmm.store import Found, Record, VariableStore
from emulation.stmm.var_check import READ_ONLY, Property, VarCheck
from emulation.stmm.variables import APPEND, AT, BS, NV, RT, Space, VariableService
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus, encode_name
from harness.formats.variable_store import STORE_SIZE, VARIABLE_HEADER_SIZE

mutants: Final = Registry("StandaloneMM")

_GLOBAL: Final = GLOBAL_VARIABLE_GUID.bytes_le
_PK: Final = encode_name("PK")
_SETUP_MODE: Final = encode_name("SetupMode")
_BOOT_NEXT: Final = encode_name("BootNext")


def _update(
    patches: Patches,
    change: Callable[[Original, VariableService, Found | None, list[Any]], EfiStatus],
) -> None:
    """Replace the update of the store; ``change`` gets name, GUID, data, attributes and time."""

    def update(
        original: Original, self: VariableService, found: Found | None, *rest: Any
    ) -> EfiStatus:
        return change(original, self, found, list(rest))

    patches.wrap(VariableService, "_update", update)


def _set(
    patches: Patches,
    change: Callable[[Original, VariableService, bytes, bytes, int, bytes], EfiStatus],
) -> None:
    patches.wrap(VariableService, "set", change)


# --- attributes -------------------------------------------------------------------------------


def _update_as_before_exit(
    patches: Patches, accepted: Callable[[Found | None, int, bytes], bool]
) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        at_runtime = self.at_runtime
        if accepted(found, rest[3], rest[2]):
            self.at_runtime = False
        try:
            status: EfiStatus = original(self, found, *rest)
        finally:
            self.at_runtime = at_runtime
        return status

    _update(patches, change)


@mutants("a volatile variable can be created at run time", "attributes")
def volatile_create_accepted(patches: Patches) -> None:
    _update_as_before_exit(patches, lambda found, attributes, _: not found and not attributes & NV)


@mutants("a variable without run-time access can be created at run time", "attributes")
def boot_only_create_accepted(patches: Patches) -> None:
    _update_as_before_exit(patches, lambda found, attributes, _: not found and not attributes & RT)


@mutants("run-time access without boot-service access is accepted", "attributes")
def runtime_without_boot_accepted(patches: Patches) -> None:
    def check(original: Original, self: VariableService, attributes: int) -> EfiStatus:
        status: EfiStatus = original(self, attributes | BS if attributes & RT else attributes)
        return status

    patches.wrap(VariableService, "_check_attributes", check)


@mutants("an overwrite with other attributes is accepted and changes the data", "attributes")
def attribute_mismatch_accepted(patches: Patches) -> None:
    def change(
        original: Original,
        self: VariableService,
        name: bytes,
        guid: bytes,
        attributes: int,
        data: bytes,
    ) -> EfiStatus:
        found = self._find(name, guid, ignore_runtime=True)
        if found is not None and attributes and not found.store.volatile:
            attributes = found.record.attributes | attributes & APPEND
        status: EfiStatus = original(self, name, guid, attributes, data)
        return status

    _set(patches, change)


@mutants("a write stores its attributes without the boot-service bit", "attributes")
def boot_service_bit_lost(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        if found is None and rest[3] == NV | BS | RT and self.at_runtime:
            rest[3] = NV | RT
        status: EfiStatus = original(self, found, *rest)
        return status

    _update(patches, change)


@mutants("the append bit is stored with the variable", "writes", "attributes")
def append_bit_stored(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        status: EfiStatus = original(self, found, *rest)
        if rest[3] & APPEND and not status.is_error and rest[2]:
            now = self._find(rest[0], rest[1])
            if now is not None:
                now.record.attributes |= APPEND
        return status

    _update(patches, change)


# --- what is stored ---------------------------------------------------------------------------


@mutants("rewriting a variable with the same data writes the flash", "rpmb", "space")
def identical_rewrite_writes(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        same = found is not None and found.record.data == rest[2] != b""
        if found is None or not same or rest[3] & APPEND or not self.at_runtime:
            status: EfiStatus = original(self, found, *rest)
            return status
        before = found.record.data
        found.record.data = b""
        try:
            status = original(self, found, *rest)
        finally:
            found.record.data = before
        return status

    _update(patches, change)


@mutants("an append replaces the data", "writes")
def append_replaces(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        if found is not None and rest[2] and not rest[3] & AT:
            rest[3] &= ~APPEND
        status: EfiStatus = original(self, found, *rest)
        return status

    _update(patches, change)


@mutants("an append of nothing deletes the variable", "writes")
def append_nothing_deletes(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        if found is not None and not rest[2]:
            rest[3] &= ~APPEND
        status: EfiStatus = original(self, found, *rest)
        return status

    _update(patches, change)


@mutants("deleting a variable that does not exist succeeds", "delete")
def missing_delete_succeeds(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        status: EfiStatus = original(self, found, *rest)
        missing = found is None and status == EfiStatus.NOT_FOUND and self.at_runtime
        return EfiStatus.SUCCESS if missing else status

    _update(patches, change)


def _grow_limit(patches: Patches, by: int) -> None:
    def max_size(original: Original, self: VariableService, attributes: int) -> int:
        size: int = original(self, attributes)
        return size + by

    patches.wrap(VariableService, "_max_size", max_size)


@mutants("a variable four bytes larger than the maximum is accepted", "size")
def maximum_too_large(patches: Patches) -> None:
    _grow_limit(patches, 4)


@mutants("a variable of the maximum size is refused", "size")
def maximum_refused(patches: Patches) -> None:
    _grow_limit(patches, -1)


@mutants("upper and lower case of a variable's name are the same", "names")
def name_case_folded(patches: Patches) -> None:
    def find(
        original: Original, self: VariableStore, name: bytes, guid: bytes, required: int = 0
    ) -> Found | None:
        known = {r.name.lower(): r.name for r in self.records if r.live and r.guid == guid}
        found: Found | None = original(self, known.get(name.lower(), name), guid, required)
        return found

    patches.wrap(VariableStore, "find", find)


@mutants("variables of one name are the same whatever their vendor GUID", "create")
def guid_ignored(patches: Patches) -> None:
    def find(
        original: Original, self: VariableStore, name: bytes, guid: bytes, required: int = 0
    ) -> Found | None:
        found: Found | None = original(self, name, guid, required)
        other = next((r.guid for r in self.records if r.live and r.name == name), guid)
        return found or original(self, name, other, required)

    patches.wrap(VariableStore, "find", find)


@mutants("SetVariable of BootNext succeeds and stores nothing", "boot_entries")
def boot_next_dropped(patches: Patches) -> None:
    def change(
        original: Original,
        self: VariableService,
        name: bytes,
        guid: bytes,
        attributes: int,
        data: bytes,
    ) -> EfiStatus:
        if (name, guid) == (_BOOT_NEXT, _GLOBAL):
            return EfiStatus.SUCCESS
        status: EfiStatus = original(self, name, guid, attributes, data)
        return status

    _set(patches, change)


@mutants("SetupMode can be written", "special")
def setup_mode_writable(patches: Patches) -> None:
    def property_of(
        original: Original, self: VarCheck, name: bytes, guid: bytes
    ) -> Property | None:
        prop: Property | None = original(self, name, guid)
        if prop is not None and (name, guid) == (_SETUP_MODE, _GLOBAL):
            prop = dataclasses.replace(prop, property=prop.property & ~READ_ONLY)
        return prop

    def change(
        original: Original,
        self: VariableService,
        name: bytes,
        guid: bytes,
        attributes: int,
        data: bytes,
    ) -> EfiStatus:
        found = self._find(name, guid)
        if found is not None and (name, guid) == (_SETUP_MODE, _GLOBAL) and self.at_runtime:
            self.overwrite_volatile(found.record, data[:1] or b"\0")
            return EfiStatus.SUCCESS
        status: EfiStatus = original(self, name, guid, attributes, data)
        return status

    patches.wrap(VarCheck, "property_of", property_of)
    _set(patches, change)


@mutants("GetVariable spoils the last byte of a value above 4 KiB", "sizes")
def large_value_spoilt(patches: Patches) -> None:
    def get(original: Original, variables: VariableService, payload: bytearray) -> EfiStatus:
        status: EfiStatus = original(variables, payload)
        if status == EfiStatus.SUCCESS and len(payload) > 4096:
            payload[-5] = 0
        return status

    patches.wrap(standalone_mm, "_get", get)


@mutants("GetNextVariableName leaves the newest variable out", "mounts")
def enumeration_misses_newest(patches: Patches) -> None:
    def following(
        original: Original, self: VariableService, name: bytes, guid: bytes
    ) -> Record | EfiStatus:
        found: Record | EfiStatus = original(self, name, guid)
        newest = next((r for r in reversed(self._nv.records) if r.live and r.attributes & RT), None)
        return EfiStatus.NOT_FOUND if found is newest and self.at_runtime else found

    patches.wrap(VariableService, "next", following)


@mutants("GetVariable asks the flash and fails while it is out of reach", "supplicant")
def reads_need_the_flash(patches: Patches) -> None:
    def get(original: Original, variables: VariableService, payload: bytearray) -> EfiStatus:
        if variables.at_runtime and variables._flash._storage.read(0, 16)[0]:
            return EfiStatus.DEVICE_ERROR
        status: EfiStatus = original(variables, payload)
        return status

    patches.wrap(standalone_mm, "_get", get)


# --- flash and space --------------------------------------------------------------------------


@mutants("a change of run time stays in memory and is gone after a reboot", "persist")
def runtime_writes_not_stored(patches: Patches) -> None:
    def change(
        original: Original,
        self: VariableService,
        name: bytes,
        guid: bytes,
        attributes: int,
        data: bytes,
    ) -> EfiStatus:
        storage = self._flash._storage
        if self.at_runtime:
            self._flash._storage = _Nowhere()
        try:
            status: EfiStatus = original(self, name, guid, attributes, data)
        finally:
            self._flash._storage = storage
        return status

    _set(patches, change)


class _Nowhere:
    """A storage that takes everything and keeps nothing."""

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        return 0, bytes(length)

    def write(self, offset: int, data: bytes) -> int:
        return 0


@mutants("a state byte is written twice", "rpmb")
def state_written_twice(patches: Patches) -> None:
    def write(original: Original, self: FirmwareVolumeBlock, offset: int, data: bytes) -> EfiStatus:
        status: EfiStatus = original(self, offset, data)
        if len(data) == 1 and not status.is_error:
            status = original(self, offset, data)
        return status

    patches.wrap(FirmwareVolumeBlock, "write", write)


@mutants("the last byte of a new record never reaches the flash", "persist")
def record_torn(patches: Patches) -> None:
    def write(original: Original, self: FirmwareVolumeBlock, offset: int, data: bytes) -> EfiStatus:
        whole = len(data) > 1 and offset + len(data) <= STORE_SIZE
        status: EfiStatus = original(self, offset, data[: len(data) - 1] if whole else data)
        if whole and not status.is_error:
            self.image[offset : offset + len(data)] = data
        return status

    patches.wrap(FirmwareVolumeBlock, "write", write)


def _reclaimed(patches: Patches, change: Callable[[list[Record]], list[Record]]) -> None:
    def survivors(original: Original, self: VariableStore, found: Found | None) -> list[Record]:
        kept: list[Record] = original(self, found)
        return kept if self.volatile else change(kept)

    patches.wrap(VariableStore, "survivors", survivors)


@mutants("a reclaim loses a variable", "exhaust")
def reclaim_loses_variable(patches: Patches) -> None:
    _reclaimed(patches, lambda kept: kept[:-1])


@mutants("a reclaim spoils the last byte of every value", "exhaust")
def reclaim_spoils_data(patches: Patches) -> None:
    def spoil(kept: list[Record]) -> list[Record]:
        for record in kept:
            if len(record.data) > 4:
                record.raw = record.raw[:-1] + bytes([record.raw[-1] ^ 1])
        return kept

    _reclaimed(patches, spoil)


@mutants("a reclaim forgets the run-time access of variables", "exhaust")
def reclaim_loses_attributes(patches: Patches) -> None:
    def strip(kept: list[Record]) -> list[Record]:
        for record in kept:
            raw = bytearray(record.raw)
            raw[4] &= ~RT & 0xFF
            record.raw = bytes(raw)
        return kept

    _reclaimed(patches, strip)


@mutants("a reclaim brings deleted variables back", "exhaust")
def reclaim_revives_deleted(patches: Patches) -> None:
    def survivors(original: Original, self: VariableStore, found: Found | None) -> list[Record]:
        kept: list[Record] = original(self, found)
        names = {(record.name, record.guid) for record in kept}
        room = self.capacity - sum(record.size for record in kept) - 1024
        for record in reversed(self.records):
            if (record.name, record.guid) not in names and record.name and record.size <= room:
                names.add((record.name, record.guid))
                room -= record.size
                kept.append(record)
        return kept

    patches.wrap(VariableStore, "survivors", survivors)


@mutants("the store is never reclaimed", "exhaust")
def reclaim_never(patches: Patches) -> None:
    def reclaim(
        original: Original, self: VariableService, found: Any, new: Any, store: Any = None
    ) -> EfiStatus:
        if store is None or not store.volatile:
            return EfiStatus.OUT_OF_RESOURCES
        status: EfiStatus = original(self, found, new, store)
        return status

    patches.wrap(VariableService, "_reclaim", reclaim)


@mutants("the store is reclaimed at run time as well", "exhaust")
def reclaim_at_runtime(patches: Patches) -> None:
    def store_new(
        original: Original, self: VariableService, store: VariableStore, record: Record, found: Any
    ) -> EfiStatus:
        at_runtime = self.at_runtime
        self.at_runtime = False
        try:
            status: EfiStatus = original(self, store, record, found)
        finally:
            self.at_runtime = at_runtime
        return status

    patches.wrap(VariableService, "_store_new", store_new)


@mutants("a full store is reported as a device error", "exhaust")
def full_store_is_device_error(patches: Patches) -> None:
    def store_new(original: Original, self: VariableService, *args: Any) -> EfiStatus:
        status: EfiStatus = original(self, *args)
        full = status == EfiStatus.OUT_OF_RESOURCES
        return EfiStatus.DEVICE_ERROR if full else status

    patches.wrap(VariableService, "_store_new", store_new)


@mutants("an overwrite that does not fit loses the old value", "exhaust")
def refused_overwrite_deletes(patches: Patches) -> None:
    def change(
        original: Original, self: VariableService, found: Found | None, rest: list[Any]
    ) -> EfiStatus:
        status: EfiStatus = original(self, found, *rest)
        if status == EfiStatus.OUT_OF_RESOURCES and found is not None:
            self._delete(found)
        return status

    _update(patches, change)


@mutants("QueryVariableInfo does not count deleted records at run time", "space")
def delete_frees_at_once(patches: Patches) -> None:
    def query(original: Original, self: VariableService, attributes: int) -> Space | EfiStatus:
        at_runtime = self.at_runtime
        self.at_runtime = False
        try:
            space: Space | EfiStatus = original(self, attributes)
        finally:
            self.at_runtime = at_runtime
        return space

    patches.wrap(VariableService, "query", query)


def _query(patches: Patches, change: Callable[[VariableService, Space], Space]) -> None:
    def query(original: Original, self: VariableService, attributes: int) -> Space | EfiStatus:
        space: Space | EfiStatus = original(self, attributes)
        return change(self, space) if isinstance(space, Space) else space

    patches.wrap(VariableService, "query", query)


@mutants("QueryVariableInfo repeats its first answer", "space")
def space_never_changes(patches: Patches) -> None:
    first: dict[int, Space] = {}
    _query(patches, lambda service, space: first.setdefault(id(service), space))


@mutants("QueryVariableInfo leaves the headers of the records out", "space")
def record_headers_not_counted(patches: Patches) -> None:
    def change(service: VariableService, space: Space) -> Space:
        headers = len(service._nv.records) * VARIABLE_HEADER_SIZE
        return dataclasses.replace(space, remaining_storage=space.remaining_storage + headers)

    _query(patches, change)


@mutants("QueryVariableInfo reports the whole volume as room for variables", "space")
def capacity_too_large(patches: Patches) -> None:
    def change(service: VariableService, space: Space) -> Space:
        return dataclasses.replace(space, maximum_storage=3 * space.maximum_storage)

    _query(patches, change)


# --- authenticated variables ------------------------------------------------------------------


@mutants("signatures of authenticated variables are not checked", "authenticated")
def signature_not_checked(patches: Patches) -> None:
    def check(original: Original, self: AuthenticatedVariables, *args: Any) -> EfiStatus:
        original(self, *args)
        return EfiStatus.SUCCESS

    patches.wrap(AuthenticatedVariables, "_check_signature", check)


@mutants("an older time stamp is accepted", "authenticated")
def timestamp_not_compared(patches: Patches) -> None:
    patches.wrap(authenticated, "is_not_later", lambda original, first, second: False)


@mutants("the same signed message is accepted twice", "authenticated")
def replay_accepted(patches: Patches) -> None:
    def is_not_later(original: Original, first: bytes, second: bytes) -> bool:
        return first != second and bool(original(first, second))

    patches.wrap(authenticated, "is_not_later", is_not_later)


@mutants("any signer may overwrite a private authenticated variable", "authenticated")
def other_signer_accepted(patches: Patches) -> None:
    def is_owner(
        original: Original,
        self: AuthenticatedVariables,
        request: Request,
        stored: Record | None,
        digest: str,
        found: pkcs7.Signers,
        content: bytes,
    ) -> bool:
        if stored is not None:
            return pkcs7.verify(request.message, found.first, content)
        return bool(original(self, request, stored, digest, found, content))

    patches.wrap(AuthenticatedVariables, "_is_owner", is_owner)


@mutants("whoever signs may replace the platform key", "secure_boot")
def any_platform_key_accepted(patches: Patches) -> None:
    patches.wrap(AuthenticatedVariables, "_is_platform_key", lambda *_: True)


@mutants("a signature by a KEK does not change db", "secure_boot")
def kek_not_trusted(patches: Patches) -> None:
    def with_kek(original: Original, self: AuthenticatedVariables, *args: Any) -> EfiStatus:
        if self._setup_mode:
            status: EfiStatus = original(self, *args)
            return status
        return EfiStatus.SECURITY_VIOLATION

    patches.wrap(AuthenticatedVariables, "_with_kek", with_kek)


@mutants("an append to dbx repeats entries that it has", "secure_boot")
def dbx_append_duplicates(patches: Patches) -> None:
    patches.wrap(signature_lists, "without_known", lambda original, stored, added: added)


@mutants("an append to a signature database replaces it", "secure_boot")
def dbx_append_replaces(patches: Patches) -> None:
    def update(original: Original, self: AuthenticatedVariables, request: Request) -> EfiStatus:
        plain = dataclasses.replace(request, attributes=request.attributes & ~APPEND)
        status: EfiStatus = original(self, plain)
        return status

    patches.wrap(AuthenticatedVariables, "_update", update)


@mutants("enrolling a platform key does not end setup mode", "secure_boot")
def setup_mode_stays(patches: Patches) -> None:
    patches.wrap(AuthenticatedVariables, "_enter_mode", lambda *_, **__: EfiStatus.SUCCESS)


@mutants("the platform key can be deleted like any file", "secure_boot")
def platform_key_unlinked(patches: Patches) -> None:
    def process(
        original: Original,
        self: AuthenticatedVariables,
        name: bytes,
        guid: bytes,
        attributes: int,
        data: bytes,
    ) -> EfiStatus:
        if (name, guid) == (_PK, _GLOBAL) and not attributes and not data:
            self._variables.update(name, guid, b"", 0)
            return self._enter_mode(setup=True)
        status: EfiStatus = original(self, name, guid, attributes, data)
        return status

    patches.wrap(AuthenticatedVariables, "process", process)


@mutants("a private authenticated variable can be deleted like any file", "authenticated")
def private_variable_unlinked(patches: Patches) -> None:
    def private(
        original: Original,
        self: AuthenticatedVariables,
        name: bytes,
        guid: bytes,
        attributes: int,
        data: bytes,
    ) -> EfiStatus:
        if not attributes and not data:
            return self._variables.update(name, guid, b"", 0)
        status: EfiStatus = original(self, name, guid, attributes, data)
        return status

    patches.wrap(AuthenticatedVariables, "_private", private)


@mutants("the platform key may be any data, not one signature list", "secure_boot")
def signature_lists_not_checked(patches: Patches) -> None:
    patches.wrap(signature_lists, "well_formed", lambda *_, **__: True)


@mutants("a private authenticated variable is stored with its descriptor", "authenticated")
def descriptor_stored(patches: Patches) -> None:
    def store(
        original: Original, self: AuthenticatedVariables, request: Request, trust: Trust
    ) -> tuple[EfiStatus, bool]:
        status: EfiStatus
        status, deleted = original(self, request, trust)
        if trust is Trust.PRIVATE and not status.is_error and not deleted and request.payload:
            whole = request.time + request.certificate + request.payload
            self._variables.update(request.name, request.guid, whole, request.attributes)
        return status, deleted

    patches.wrap(AuthenticatedVariables, "_store_verified", store)
