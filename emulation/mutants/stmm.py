"""StandaloneMM's variable service, broken.

A catalogue, one entry after the other: it grows with the mutants, and is not for reading through.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from emulation.mutants.mutant import Mutant, Original, Patches
from emulation.stmm import authenticated, pkcs7, signature_lists, standalone_mm
from emulation.stmm.authenticated import AuthenticatedVariables, Request, Trust
from emulation.stmm.fvb import FirmwareVolumeBlock
from emulation.stmm.refusal import Refused, refuse_if
from emulation.stmm.store import APPEND, AT, BS, NV, RT, Change, Found, Record, VariableStore
from emulation.stmm.var_check import READ_ONLY, Property, VarCheck
from emulation.stmm.variables import Space, VariableService
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus, encode_name
from harness.formats.variable_store import STORE_SIZE, VARIABLE_HEADER_SIZE

_GLOBAL: Final = GLOBAL_VARIABLE_GUID.bytes_le
_PK: Final = (encode_name("PK"), _GLOBAL)
_SETUP_MODE: Final = (encode_name("SetupMode"), _GLOBAL)
_BOOT_NEXT: Final = (encode_name("BootNext"), _GLOBAL)


@contextmanager
def _before_exit(service: VariableService, *, when: bool = True) -> Iterator[None]:
    """The service takes the block for something that happens before ExitBootServices."""
    at_runtime = service.at_runtime
    service.at_runtime = at_runtime and not when
    try:
        yield
    finally:
        service.at_runtime = at_runtime


# --- attributes -------------------------------------------------------------------------------


def _create_as_before_exit(patches: Patches, missing: int) -> None:
    """A variable that lacks the attribute can be created at run time."""

    def update(
        original: Original, self: VariableService, found: Found | None, change: Change
    ) -> None:
        with _before_exit(self, when=found is None and not change.attributes & missing):
            original(self, found, change)

    patches.wrap(VariableService, "_update", update)


def volatile_create_accepted(patches: Patches) -> None:
    """a volatile variable can be created at run time"""
    _create_as_before_exit(patches, NV)


def boot_only_create_accepted(patches: Patches) -> None:
    """a variable without run-time access can be created at run time"""
    _create_as_before_exit(patches, RT)


def runtime_without_boot_accepted(
    original: Original, self: VariableService, attributes: int
) -> None:
    """run-time access without boot-service access is accepted"""
    original(self, attributes | BS if attributes & RT else attributes)


def attribute_mismatch_accepted(original: Original, self: VariableService, change: Change) -> None:
    """an overwrite with other attributes is accepted and changes the data"""
    found = self._find(*change.key, ignore_runtime=True)
    if found is not None and change.attributes and not found.store.volatile:
        attributes = found.record.attributes | change.attributes & APPEND
        change = replace(change, attributes=attributes)
    original(self, change)


def boot_service_bit_lost(
    original: Original, self: VariableService, found: Found | None, change: Change
) -> None:
    """a write stores its attributes without the boot-service bit"""
    if found is None and change.attributes == NV | BS | RT and self.at_runtime:
        change = replace(change, attributes=NV | RT)
    original(self, found, change)


def append_bit_stored(
    original: Original, self: VariableService, found: Found | None, change: Change
) -> None:
    """the append bit is stored with the variable"""
    original(self, found, change)
    now = self._find(*change.key)
    if change.append and change.data and now is not None:
        now.record.attributes |= APPEND


# --- what is stored ---------------------------------------------------------------------------


def identical_rewrite_writes(
    original: Original, self: VariableService, found: Found | None, change: Change
) -> None:
    """rewriting a variable with the same data writes the flash"""
    same = found is not None and found.record.data == change.data != b""
    if found is None or not same or change.append or not self.at_runtime:
        original(self, found, change)
        return
    before = found.record.data
    found.record.data = b""
    try:
        original(self, found, change)
    finally:
        found.record.data = before


def _append_not(patches: Patches, when: Callable[[Change], bool]) -> None:
    """An append to what exists is taken for a plain write if ``when`` says so."""

    def update(
        original: Original, self: VariableService, found: Found | None, change: Change
    ) -> None:
        if found is not None and when(change):
            change = replace(change, attributes=change.attributes & ~APPEND)
        original(self, found, change)

    patches.wrap(VariableService, "_update", update)


def append_replaces(patches: Patches) -> None:
    """an append replaces the data"""
    _append_not(patches, lambda change: bool(change.data) and not change.attributes & AT)


def append_nothing_deletes(patches: Patches) -> None:
    """an append of nothing deletes the variable"""
    _append_not(patches, lambda change: not change.data)


def missing_delete_succeeds(
    original: Original, self: VariableService, found: Found | None, change: Change
) -> None:
    """deleting a variable that does not exist succeeds"""
    try:
        original(self, found, change)
    except Refused as refused:
        missing = found is None and refused.status == EfiStatus.NOT_FOUND
        if not (missing and self.at_runtime):
            raise


def _grow_limit(patches: Patches, by: int) -> None:
    def max_size(original: Original, self: VariableService, attributes: int) -> int:
        size: int = original(self, attributes)
        return size + by

    patches.wrap(VariableService, "_max_size", max_size)


def maximum_too_large(patches: Patches) -> None:
    """a variable four bytes larger than the maximum is accepted"""
    _grow_limit(patches, 4)


def maximum_refused(patches: Patches) -> None:
    """a variable of the maximum size is refused"""
    _grow_limit(patches, -1)


def name_case_folded(
    original: Original, self: VariableStore, name: bytes, guid: bytes, required: int = 0
) -> Found | None:
    """upper and lower case of a variable's name are the same"""
    known = {r.name.lower(): r.name for r in self.records if r.live and r.guid == guid}
    found: Found | None = original(self, known.get(name.lower(), name), guid, required)
    return found


def guid_ignored(
    original: Original, self: VariableStore, name: bytes, guid: bytes, required: int = 0
) -> Found | None:
    """variables of one name are the same whatever their vendor GUID"""
    found: Found | None = original(self, name, guid, required)
    other = next((r.guid for r in self.records if r.live and r.name == name), guid)
    return found or original(self, name, other, required)


def boot_next_dropped(original: Original, self: VariableService, change: Change) -> None:
    """SetVariable of BootNext succeeds and stores nothing"""
    if change.key != _BOOT_NEXT:
        original(self, change)


def setup_mode_writable(patches: Patches) -> None:
    """SetupMode can be written"""

    def property_of(
        original: Original, self: VarCheck, name: bytes, guid: bytes
    ) -> Property | None:
        prop: Property | None = original(self, name, guid)
        if prop is not None and (name, guid) == _SETUP_MODE:
            prop = replace(prop, property=prop.property & ~READ_ONLY)
        return prop

    def change(original: Original, self: VariableService, change: Change) -> None:
        found = self._find(*change.key)
        if found is not None and change.key == _SETUP_MODE and self.at_runtime:
            self.overwrite_volatile(found.record, change.data[:1] or b"\0")
        else:
            original(self, change)

    patches.wrap(VarCheck, "property_of", property_of)
    patches.wrap(VariableService, "set", change)


def large_value_spoilt(original: Original, variables: VariableService, payload: bytearray) -> None:
    """GetVariable spoils the last byte of a value above 4 KiB"""
    original(variables, payload)
    if len(payload) > 4096:
        payload[-5] = 0


def enumeration_misses_newest(
    original: Original, self: VariableService, name: bytes, guid: bytes
) -> Record:
    """GetNextVariableName leaves the newest variable out"""
    found: Record = original(self, name, guid)
    newest = next((r for r in reversed(self._nv.records) if r.live and r.attributes & RT), None)
    refuse_if(found is newest and self.at_runtime, EfiStatus.NOT_FOUND)
    return found


def reads_need_the_flash(
    original: Original, variables: VariableService, payload: bytearray
) -> None:
    """GetVariable asks the flash and fails while it is out of reach"""
    fails = variables.at_runtime and variables._flash._storage.read(0, 16)[0]
    refuse_if(fails, EfiStatus.DEVICE_ERROR)
    original(variables, payload)


# --- flash and space --------------------------------------------------------------------------


def runtime_writes_not_stored(original: Original, self: VariableService, change: Change) -> None:
    """a change of run time stays in memory and is gone after a reboot"""
    storage = self._flash._storage
    if self.at_runtime:
        self._flash._storage = _Nowhere()
    try:
        original(self, change)
    finally:
        self._flash._storage = storage


class _Nowhere:
    """A storage that takes everything and keeps nothing."""

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        return 0, bytes(length)

    def write(self, offset: int, data: bytes) -> int:
        return 0


def state_written_twice(
    original: Original, self: FirmwareVolumeBlock, offset: int, data: bytes
) -> EfiStatus:
    """a state byte is written twice"""
    status: EfiStatus = original(self, offset, data)
    if len(data) == 1 and not status.is_error:
        status = original(self, offset, data)
    return status


def record_torn(
    original: Original, self: FirmwareVolumeBlock, offset: int, data: bytes
) -> EfiStatus:
    """the last byte of a new record never reaches the flash"""
    whole = len(data) > 1 and offset + len(data) <= STORE_SIZE
    status: EfiStatus = original(self, offset, data[: len(data) - 1] if whole else data)
    if whole and not status.is_error:
        self.image[offset : offset + len(data)] = data
    return status


def _reclaimed(patches: Patches, change: Callable[[list[Record]], list[Record]]) -> None:
    def survivors(original: Original, self: VariableStore, found: Found | None) -> list[Record]:
        kept: list[Record] = original(self, found)
        return kept if self.volatile else change(kept)

    patches.wrap(VariableStore, "survivors", survivors)


def reclaim_loses_variable(patches: Patches) -> None:
    """a reclaim loses a variable"""
    _reclaimed(patches, lambda kept: kept[:-1])


def reclaim_spoils_data(patches: Patches) -> None:
    """a reclaim spoils the last byte of every value"""

    def spoil(kept: list[Record]) -> list[Record]:
        for record in kept:
            if len(record.data) > 4:
                record.raw = record.raw[:-1] + bytes([record.raw[-1] ^ 1])
        return kept

    _reclaimed(patches, spoil)


def reclaim_loses_attributes(patches: Patches) -> None:
    """a reclaim forgets the run-time access of variables"""

    def strip(kept: list[Record]) -> list[Record]:
        for record in kept:
            raw = bytearray(record.raw)
            raw[4] &= ~RT & 0xFF
            record.raw = bytes(raw)
        return kept

    _reclaimed(patches, strip)


def reclaim_revives_deleted(
    original: Original, self: VariableStore, found: Found | None
) -> list[Record]:
    """a reclaim brings deleted variables back"""
    kept: list[Record] = original(self, found)
    names = {(record.name, record.guid) for record in kept}
    room = self.capacity - sum(record.size for record in kept) - 1024
    for record in reversed(self.records):
        if (record.name, record.guid) not in names and record.name and record.size <= room:
            names.add((record.name, record.guid))
            room -= record.size
            kept.append(record)
    return kept


def reclaim_never(
    original: Original, self: VariableService, found: Any, new: Any, store: Any = None
) -> None:
    """the store is never reclaimed"""
    refuse_if(store is None or not store.volatile, EfiStatus.OUT_OF_RESOURCES)
    original(self, found, new, store)


def reclaim_at_runtime(original: Original, self: VariableService, *args: Any) -> None:
    """the store is reclaimed at run time as well"""
    with _before_exit(self):
        original(self, *args)


def full_store_is_device_error(original: Original, self: VariableService, *args: Any) -> None:
    """a full store is reported as a device error"""
    try:
        original(self, *args)
    except Refused as refused:
        full = refused.status == EfiStatus.OUT_OF_RESOURCES
        refuse_if(full, EfiStatus.DEVICE_ERROR)
        raise


def refused_overwrite_deletes(
    original: Original, self: VariableService, found: Found | None, change: Change
) -> None:
    """an overwrite that does not fit loses the old value"""
    try:
        original(self, found, change)
    except Refused as refused:
        if refused.status == EfiStatus.OUT_OF_RESOURCES and found is not None:
            self._delete(found)
        raise


def delete_frees_at_once(original: Original, self: VariableService, attributes: int) -> Space:
    """QueryVariableInfo does not count deleted records at run time"""
    with _before_exit(self):
        space: Space = original(self, attributes)
    return space


def _query(patches: Patches, change: Callable[[VariableService, Space], Space]) -> None:
    def query(original: Original, self: VariableService, attributes: int) -> Space:
        return change(self, original(self, attributes))

    patches.wrap(VariableService, "query", query)


def space_never_changes(patches: Patches) -> None:
    """QueryVariableInfo repeats its first answer"""
    first: dict[int, Space] = {}
    _query(patches, lambda service, space: first.setdefault(id(service), space))


def record_headers_not_counted(patches: Patches) -> None:
    """QueryVariableInfo leaves the headers of the records out"""

    def change(service: VariableService, space: Space) -> Space:
        headers = len(service._nv.records) * VARIABLE_HEADER_SIZE
        return replace(space, remaining_storage=space.remaining_storage + headers)

    _query(patches, change)


def capacity_too_large(patches: Patches) -> None:
    """QueryVariableInfo reports the whole volume as room for variables"""

    def change(service: VariableService, space: Space) -> Space:
        return replace(space, maximum_storage=3 * space.maximum_storage)

    _query(patches, change)


# --- authenticated variables ------------------------------------------------------------------


def signature_not_checked(original: Original, self: AuthenticatedVariables, *args: Any) -> None:
    """signatures of authenticated variables are not checked"""
    with suppress(Refused):
        original(self, *args)


def timestamp_not_compared(patches: Patches) -> None:
    """an older time stamp is accepted"""
    patches.wrap(authenticated, "is_not_later", lambda original, first, second: False)


def replay_accepted(original: Original, first: bytes, second: bytes) -> bool:
    """the same signed message is accepted twice"""
    return first != second and bool(original(first, second))


def other_signer_accepted(
    original: Original,
    self: AuthenticatedVariables,
    request: Request,
    stored: Record | None,
    digest: str,
    found: pkcs7.Signers,
    content: bytes,
) -> bool:
    """any signer may overwrite a private authenticated variable"""
    if stored is not None:
        return pkcs7.verify(request.message, found.first, content)
    return bool(original(self, request, stored, digest, found, content))


def any_platform_key_accepted(patches: Patches) -> None:
    """whoever signs may replace the platform key"""
    patches.wrap(AuthenticatedVariables, "_is_platform_key", lambda *_: True)


def kek_not_trusted(original: Original, self: AuthenticatedVariables, change: Change) -> None:
    """a signature by a KEK does not change db"""
    refuse_if(not self._setup_mode, EfiStatus.SECURITY_VIOLATION)
    original(self, change)


def dbx_append_duplicates(patches: Patches) -> None:
    """an append to dbx repeats entries that it has"""
    patches.wrap(signature_lists, "without_known", lambda original, stored, added: added)


def dbx_append_replaces(original: Original, self: AuthenticatedVariables, request: Request) -> None:
    """an append to a signature database replaces it"""
    original(self, replace(request, attributes=request.attributes & ~APPEND))


def setup_mode_stays(patches: Patches) -> None:
    """enrolling a platform key does not end setup mode"""
    patches.wrap(AuthenticatedVariables, "_enter_mode", lambda *_, **__: None)


def platform_key_unlinked(original: Original, self: AuthenticatedVariables, change: Change) -> None:
    """the platform key can be deleted like any file"""
    if change.key == _PK and not change.attributes and not change.data:
        self._variables.update(change)
        self._enter_mode(setup=True)
    else:
        original(self, change)


def private_variable_unlinked(
    original: Original, self: AuthenticatedVariables, change: Change
) -> None:
    """a private authenticated variable can be deleted like any file"""
    if not change.attributes and not change.data:
        self._variables.update(change)
    else:
        original(self, change)


def signature_lists_not_checked(patches: Patches) -> None:
    """the platform key may be any data, not one signature list"""
    patches.wrap(signature_lists, "well_formed", lambda *_, **__: True)


def descriptor_stored(
    original: Original, self: AuthenticatedVariables, request: Request, trust: Trust
) -> bool:
    """a private authenticated variable is stored with its descriptor"""
    deleted: bool = original(self, request, trust)
    if trust is Trust.PRIVATE and not deleted and request.payload:
        whole = request.time + request.certificate + request.payload
        self._variables.update(Change(*request.key, request.attributes, whole))
    return deleted


MUTANTS: Final = (
    Mutant(volatile_create_accepted, ("attributes",)),
    Mutant(boot_only_create_accepted, ("attributes",)),
    Mutant(runtime_without_boot_accepted, ("attributes",), VariableService, "_check_attributes"),
    Mutant(attribute_mismatch_accepted, ("attributes",), VariableService, "set"),
    Mutant(boot_service_bit_lost, ("attributes",), VariableService, "_update"),
    Mutant(append_bit_stored, ("writes", "attributes"), VariableService, "_update"),
    Mutant(identical_rewrite_writes, ("rpmb", "space"), VariableService, "_update"),
    Mutant(append_replaces, ("writes",)),
    Mutant(append_nothing_deletes, ("writes",)),
    Mutant(missing_delete_succeeds, ("delete",), VariableService, "_update"),
    Mutant(maximum_too_large, ("size",)),
    Mutant(maximum_refused, ("size",)),
    Mutant(name_case_folded, ("names",), VariableStore, "find"),
    Mutant(guid_ignored, ("create",), VariableStore, "find"),
    Mutant(boot_next_dropped, ("boot_entries",), VariableService, "set"),
    Mutant(setup_mode_writable, ("special",)),
    Mutant(large_value_spoilt, ("sizes",), standalone_mm, "_get"),
    Mutant(enumeration_misses_newest, ("mounts",), VariableService, "next"),
    Mutant(reads_need_the_flash, ("supplicant",), standalone_mm, "_get"),
    Mutant(runtime_writes_not_stored, ("persist",), VariableService, "set"),
    Mutant(state_written_twice, ("rpmb",), FirmwareVolumeBlock, "write"),
    Mutant(record_torn, ("persist",), FirmwareVolumeBlock, "write"),
    Mutant(reclaim_loses_variable, ("exhaust",)),
    Mutant(reclaim_spoils_data, ("exhaust",)),
    Mutant(reclaim_loses_attributes, ("exhaust",)),
    Mutant(reclaim_revives_deleted, ("exhaust",), VariableStore, "survivors"),
    Mutant(reclaim_never, ("exhaust",), VariableService, "_reclaim"),
    Mutant(reclaim_at_runtime, ("exhaust",), VariableService, "_make_room"),
    Mutant(full_store_is_device_error, ("exhaust",), VariableService, "_make_room"),
    Mutant(refused_overwrite_deletes, ("exhaust",), VariableService, "_update"),
    Mutant(delete_frees_at_once, ("space",), VariableService, "query"),
    Mutant(space_never_changes, ("space",)),
    Mutant(record_headers_not_counted, ("space",)),
    Mutant(capacity_too_large, ("space",)),
    Mutant(signature_not_checked, ("authenticated",), AuthenticatedVariables, "_check_signature"),
    Mutant(timestamp_not_compared, ("authenticated",)),
    Mutant(replay_accepted, ("authenticated",), authenticated, "is_not_later"),
    Mutant(other_signer_accepted, ("authenticated",), AuthenticatedVariables, "_is_owner"),
    Mutant(any_platform_key_accepted, ("secure_boot",)),
    Mutant(kek_not_trusted, ("secure_boot",), AuthenticatedVariables, "_with_kek"),
    Mutant(dbx_append_duplicates, ("secure_boot",)),
    Mutant(dbx_append_replaces, ("secure_boot",), AuthenticatedVariables, "_update"),
    Mutant(setup_mode_stays, ("secure_boot",)),
    Mutant(platform_key_unlinked, ("secure_boot",), AuthenticatedVariables, "process"),
    Mutant(private_variable_unlinked, ("authenticated",), AuthenticatedVariables, "_private"),
    Mutant(signature_lists_not_checked, ("secure_boot",)),
    Mutant(descriptor_stored, ("authenticated",), AuthenticatedVariables, "_store_verified"),
)
