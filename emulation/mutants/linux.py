"""The kernel's efivars, tee_stmm_efi, efivarfs, OP-TEE driver and efi-pstore, broken.

A catalogue, one entry after the other: it grows with the mutants, and is not for reading through.
"""

import errno
import re
import time
from dataclasses import replace
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary, WeakSet

from emulation.linux import efivarfs as efivarfs_module
from emulation.linux import efivarfs_names
from emulation.linux import efivars as efivars_module
from emulation.linux.efivarfs import FS_IMMUTABLE_FL, Efivarfs, MountOptions
from emulation.linux.efivars import OpsEvent, SpaceReply, VariableReply
from emulation.linux.firmware import EfiRuntime, RuntimeService
from emulation.linux.kernel import Task
from emulation.linux.optee import OpteeDriver
from emulation.linux.supplicant_queue import SupplicantQueue
from emulation.linux.tee_stmm_efi import StmmOperations
from emulation.linux.vfs import Attr, Entry, StatFs
from emulation.mutants.mutant import Mutant, Original, Patches
from harness.formats.efi import EfiStatus

_ATTRIBUTES: Final = 4
_APPEND: Final = 0x40


# --- errno ---------------------------------------------------------------------------------------


def _map_status(patches: Patches, status: EfiStatus, number: int) -> None:
    patches.replace(efivars_module, "_ERRNO", {**efivars_module._ERRNO, status: number})


def erofs_is_eperm(patches: Patches) -> None:
    """EFI_WRITE_PROTECTED is EPERM instead of EROFS"""
    _map_status(patches, EfiStatus.WRITE_PROTECTED, errno.EPERM)


def enospc_is_eio(patches: Patches) -> None:
    """EFI_OUT_OF_RESOURCES is EIO instead of ENOSPC"""
    _map_status(patches, EfiStatus.OUT_OF_RESOURCES, errno.EIO)


def eacces_is_einval(patches: Patches) -> None:
    """EFI_SECURITY_VIOLATION is EINVAL instead of EACCES"""
    _map_status(patches, EfiStatus.SECURITY_VIOLATION, errno.EINVAL)


def einval_is_eio(patches: Patches) -> None:
    """EFI_INVALID_PARAMETER is EIO instead of EINVAL"""
    _map_status(patches, EfiStatus.INVALID_PARAMETER, errno.EIO)


def access_denied_is_eacces(patches: Patches) -> None:
    """EFI_ACCESS_DENIED is EACCES instead of EINVAL"""
    _map_status(patches, EfiStatus.ACCESS_DENIED, errno.EACCES)


def missing_write_is_enoent(original: Original, self: Efivarfs, *args: Any) -> int | None:
    """writing nothing to a variable that does not exist is ENOENT instead of EIO"""
    try:
        size: int | None = original(self, *args)
    except OSError as error:
        if error.errno == errno.EIO:
            raise OSError(errno.ENOENT, "SetVariable") from error
        raise
    return size


def unlink_errno_passed_on(
    original: Original, self: Efivarfs, task: Task, parent: int, name: bytes
) -> None:
    """unlink passes the errno of the firmware on"""
    try:
        original(self, task, parent, name)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise OSError(errno.EIO, "SetVariable") from error
        raise


# --- driver, mounts, read-only and read-write ----------------------------------------------------


def remount_without_driver(original: Original, self: Efivarfs, *, read_only: bool) -> None:
    """a remount read-write succeeds without a driver that can write"""
    if read_only:
        original(self, read_only=True)
    self.read_only = read_only


def _ignore_event(patches: Patches, ignored: OpsEvent) -> None:
    def changed(original: Original, self: Efivarfs, event: OpsEvent) -> None:
        if event is not ignored:
            original(self, event)

    patches.wrap(Efivarfs, "_operations_changed", changed)


def driver_leaves_read_only(patches: Patches) -> None:
    """efivarfs stays read-only when the driver binds (meta-iot2050 #426)"""

    def changed(original: Original, self: Efivarfs, event: OpsEvent) -> None:
        # The boot's own take-over works, or nothing could be tested.
        if event is OpsEvent.READ_WRITE and self in bound:
            return
        if event is OpsEvent.READ_WRITE:
            bound.add(self)
        original(self, event)

    bound: WeakSet[Efivarfs] = WeakSet()
    patches.wrap(Efivarfs, "_operations_changed", changed)


def unbind_leaves_writable(patches: Patches) -> None:
    """efivarfs stays read-write when the driver is unbound"""
    _ignore_event(patches, OpsEvent.READ_ONLY)


def unbind_hands_nothing_back(patches: Patches) -> None:
    """the driver does not hand the variables back when it is unbound"""
    registered: WeakSet[EfiRuntime] = WeakSet()

    def register(original: Original, self: EfiRuntime, *, task: Task) -> None:
        if self not in registered:
            registered.add(self)
            original(self, task=task)

    patches.wrap(EfiRuntime, "register_generic", register)


def mounted_writable_too_early(
    original: Original, self: Efivarfs, read_only: bool, task: Task
) -> None:
    """efivarfs is mounted read-write before any driver can write"""
    original(self, read_only, task)
    self.read_only = read_only


def second_mount_starts_afresh(
    original: Original, self: Efivarfs, options: str = "", **kwargs: Any
) -> None:
    """a second mount makes the files anew, with their immutable flags"""
    if self.mounted:
        self._kill()
        self.mounted = False
    original(self, options, **kwargs)


def mount_owner_ignored(original: Original, self: Efivarfs, *args: Any, **kwargs: Any) -> Any:
    """the mount options uid= and gid= have no effect"""
    inode = original(self, *args, **kwargs)
    inode.uid = inode.gid = 0
    return inode


def unknown_mount_option_accepted(patches: Patches) -> None:
    """efivarfs takes mount options that it does not know"""
    parse = MountOptions.__dict__["parse"].__func__

    def lenient(cls: type[MountOptions], text: str) -> MountOptions:
        try:
            options: MountOptions = parse(cls, text)
        except OSError:
            options = cls()
        return options

    patches.replace(MountOptions, "parse", classmethod(lenient))


def statfs_shows_zeros(original: Original, self: Efivarfs, task: Task) -> StatFs:
    """df of efivarfs shows zeros although the firmware answers"""
    shown: StatFs = original(self, task)
    return replace(shown, blocks=0, bfree=0, bavail=0)


def statfs_wrong_block_size(original: Original, self: Efivarfs, task: Task) -> StatFs:
    """df of efivarfs counts blocks of 4096 bytes"""
    shown: StatFs = original(self, task)
    return replace(shown, bsize=4096, frsize=4096)


def statfs_cached(original: Original, self: Efivarfs, task: Task) -> SpaceReply:
    """the space of the store is asked for once and then repeated for ever"""
    if self._space.last is None:
        self._space.last = original(self, task)
    return self._space.last


# --- names and the directory ---------------------------------------------------------------------


def invalid_guid_accepted(patches: Patches) -> None:
    """a file can be created whose name ends in no GUID"""

    def is_valid(original: Original, name: bytes) -> bool:
        return len(name) > efivarfs_names.GUID_CHARS + 1

    def split(original: Original, name: bytes) -> tuple[bytes, UUID]:
        digits = re.sub(
            rb"[^0-9a-fA-F]", b"0", name[-efivarfs_names.GUID_CHARS :].replace(b"-", b"")
        )
        return (
            name[: -efivarfs_names.GUID_CHARS - 1],
            UUID(digits.decode().ljust(32, "0")[:32]),
        )

    patches.wrap(efivarfs_names, "is_valid_name", is_valid)
    patches.wrap(efivarfs_names, "split_name", split)


def guid_case_matters(patches: Patches) -> None:
    """a file is found only by the case in which its GUID was written"""
    patches.wrap(efivarfs_names, "lookup_key", lambda original, name: name)


def file_name_case_folded(patches: Patches) -> None:
    """the case of a variable's name does not count in look-ups"""
    patches.wrap(efivarfs_names, "lookup_key", lambda original, name: name.lower())


def long_name_truncated(original: Original, self: StmmOperations, name: str, *args: Any) -> int:
    """SetVariable gets names cut off after 64 characters"""
    status: int = original(self, name[:64], *args)
    return status


def listing_misses_new(patches: Patches) -> None:
    """a new variable does not appear in the directory"""
    newest: WeakKeyDictionary[Efivarfs, int] = WeakKeyDictionary()

    def fill(original: Original, self: Efivarfs, read_only: bool, task: Task) -> None:
        original(self, read_only, task)
        newest[self] = max(self._inodes)

    def readdir(original: Original, self: Efivarfs, task: Task, ino: int) -> list[Entry]:
        return [entry for entry in original(self, task, ino) if entry.ino <= newest[self]]

    patches.wrap(Efivarfs, "_fill", fill)
    patches.wrap(Efivarfs, "readdir", readdir)


def listing_shows_deleted(patches: Patches) -> None:
    """a deleted variable stays in the directory"""
    ghosts: dict[int, list[Entry]] = {}

    def remove(original: Original, self: Efivarfs, inode: Any) -> None:
        dentry = self._children.get(inode.ino)
        if dentry is not None:
            ghost = Entry(name=dentry.name, ino=inode.ino, mode=inode.mode)
            ghosts.setdefault(id(self), []).append(ghost)
        original(self, inode)

    def readdir(original: Original, self: Efivarfs, task: Task, ino: int) -> list[Entry]:
        entries: list[Entry] = original(self, task, ino)
        names = {entry.name for entry in entries}
        return entries + [ghost for ghost in ghosts.get(id(self), []) if ghost.name not in names]

    patches.wrap(Efivarfs, "_remove", remove)
    patches.wrap(Efivarfs, "readdir", readdir)


def unlink_keeps_variable(
    original: Original, self: Efivarfs, task: Task, parent: int, name: bytes
) -> None:
    """unlink removes the file and not the variable"""
    inode = self._child(parent, name)
    if self.read_only or inode.immutable:
        original(self, task, parent, name)
    self._remove(inode)


def random_seed_visible(patches: Patches) -> None:
    """user space may create and read variables of the random seed's GUID"""
    patches.replace(efivarfs_module, "LINUX_RANDOM_SEED_GUID", UUID(int=1))


# --- the immutable flag, permissions -------------------------------------------------------------


def _without_flag(patches: Patches, operation: str, inode_of: Any) -> None:
    def operate(original: Original, self: Efivarfs, *args: Any) -> Any:
        inode = inode_of(self, *args)
        immutable, inode.immutable = inode.immutable, False
        try:
            return original(self, *args)
        finally:
            inode.immutable = immutable

    patches.wrap(Efivarfs, operation, operate)


def immutable_can_be_opened(patches: Patches) -> None:
    """the immutable flag does not keep a file from being opened for writing"""
    _without_flag(patches, "open", lambda fs, task, ino, flags: fs._inode(ino))


def immutable_can_be_unlinked(patches: Patches) -> None:
    """the immutable flag does not keep a file from being unlinked"""
    _without_flag(patches, "unlink", lambda fs, task, parent, name: fs._child(parent, name))


def created_not_immutable(original: Original, self: Efivarfs, *args: Any) -> tuple[Attr, int]:
    """a created variable is not immutable"""
    attr, handle = original(self, *args)
    self._inodes[attr.ino].immutable = False
    return attr, handle


def listed_not_immutable(original: Original, self: Efivarfs, *args: Any) -> None:
    """a variable that is there at mount time is not immutable"""
    original(self, *args)
    self._inodes[max(self._inodes)].immutable = False


def boot_options_immutable(patches: Patches) -> None:
    """boot options are immutable as well, so that efibootmgr fails"""
    patches.wrap(efivarfs_names, "is_removable", lambda *_: False)


def other_flags_accepted(
    original: Original, self: Efivarfs, task: Task, ino: int, flags: int
) -> None:
    """flags other than the immutable one can be set"""
    original(self, task, ino, flags & FS_IMMUTABLE_FL)


def flag_cannot_be_cleared(
    original: Original, self: Efivarfs, task: Task, ino: int, flags: int
) -> None:
    """clearing the immutable flag has no effect"""
    original(self, task, ino, flags)
    self._regular(ino).immutable = True


def files_writable_by_all(
    original: Original, self: Efivarfs, *args: Any, mode: int, **kwargs: Any
) -> Any:
    """everybody may write variables"""
    return original(self, *args, mode=mode | 0o222, **kwargs)


def files_readable_by_root_only(
    original: Original, self: Efivarfs, *args: Any, mode: int, **kwargs: Any
) -> Any:
    """variables can be read by root only"""
    return original(self, *args, mode=mode & 0o700, **kwargs)


# --- reading and writing -------------------------------------------------------------------------


def truncated_write_accepted(
    original: Original, self: Efivarfs, inode: Any, data: bytes, task: Task
) -> int:
    """a write shorter than the attributes is accepted"""
    if len(data) < _ATTRIBUTES:
        return len(data)
    written: int = original(self, inode, data, task)
    return written


def unknown_bits_ignored(
    original: Original, self: Efivarfs, inode: Any, data: bytes, task: Task
) -> int:
    """unknown attribute bits are ignored"""
    known = int.from_bytes(data[:_ATTRIBUTES], "little") & 0x7F
    if len(data) >= _ATTRIBUTES:
        data = known.to_bytes(_ATTRIBUTES, "little") + data[_ATTRIBUTES:]
    written: int = original(self, inode, data, task)
    return written


def second_write_appends(patches: Patches) -> None:
    """the second write(2) to an open file is appended"""
    written_to: set[int] = set()

    def write(
        original: Original, self: Efivarfs, task: Task, handle: int, offset: int, data: bytes
    ) -> int:
        sent = data
        if handle in written_to and len(data) > _ATTRIBUTES:
            attributes = int.from_bytes(data[:_ATTRIBUTES], "little") | _APPEND
            sent = attributes.to_bytes(_ATTRIBUTES, "little") + data[_ATTRIBUTES:]
        written: int = original(self, task, handle, offset, sent)
        written_to.add(handle)
        return written

    def release(original: Original, self: Efivarfs, handle: int) -> None:
        written_to.discard(handle)
        original(self, handle)

    patches.wrap(Efivarfs, "write", write)
    patches.wrap(Efivarfs, "release", release)


def write_count_without_attributes(original: Original, self: Efivarfs, *args: Any) -> int:
    """write(2) counts the data without the attributes"""
    written: int = original(self, *args)
    return written - _ATTRIBUTES


def boot_options_not_validated(patches: Patches) -> None:
    """content of boot options is not validated"""
    patches.wrap(efivarfs_names, "is_valid_content", lambda *_: True)


def validators_exact(original: Original, name: str, guid: UUID, data: bytes) -> bool:
    """BootNext must have the two bytes that the kernel meant to demand"""
    rules = [
        rule
        for rule in efivarfs_names._RULES
        if rule.guid == guid and rule.pattern == name.encode()
    ]
    if rules and rules[0].check is not None:
        return rules[0].check(name, len(rules[0].prefix), data)
    return bool(original(name, guid, data))


def size_stale_after_overwrite(
    original: Original, self: Efivarfs, inode: Any, data: bytes, task: Task
) -> int:
    """stat(2) shows the old size after an overwrite"""
    size = inode.size
    written: int = original(self, inode, data, task)
    inode.size = size or inode.size
    return written


def size_without_attributes(original: Original, self: Efivarfs, *args: Any) -> int | None:
    """stat(2) shows the size without the attributes after a write"""
    size: int | None = original(self, *args)
    return None if size is None else size - _ATTRIBUTES


def listed_size_without_attributes(original: Original, self: Efivarfs, *args: Any) -> None:
    """stat(2) shows the size without the attributes of what was there at mount time"""
    original(self, *args)
    self._inodes[max(self._inodes)].size -= _ATTRIBUTES


def reads_cached(patches: Patches) -> None:
    """reads come from a cache that writes do not refresh"""
    cache: dict[Any, bytes] = {}

    def read(
        original: Original, self: Efivarfs, task: Task, handle: int, offset: int, size: int
    ) -> bytes:
        inode = self._handles[handle].inode
        if inode not in cache:
            cache[inode] = original(self, task, handle, 0, 1 << 16)
        return cache[inode][offset : offset + size]

    patches.wrap(Efivarfs, "read", read)


def _content(patches: Patches, change: Any) -> None:
    def read(
        original: Original, self: Efivarfs, task: Task, handle: int, offset: int, size: int
    ) -> bytes:
        content: bytes = change(original(self, task, handle, 0, 1 << 16), offset)
        return content[offset : offset + size]

    patches.wrap(Efivarfs, "read", read)


def read_without_attributes(patches: Patches) -> None:
    """reading a variable gives its data without the attributes"""
    _content(patches, lambda content, offset: content[_ATTRIBUTES:])


def read_attributes_swapped(patches: Patches) -> None:
    """reading a variable gives the attributes in big-endian order"""
    _content(patches, lambda content, _: content[:_ATTRIBUTES][::-1] + content[_ATTRIBUTES:])


def read_stops_at_page(patches: Patches) -> None:
    """only the first 4096 bytes of a variable can be read"""
    _content(patches, lambda content, offset: content[:4096])


def small_reads_restart(
    original: Original, self: Efivarfs, task: Task, handle: int, offset: int, size: int
) -> bytes:
    """a read in small pieces begins anew with each"""
    end = len(original(self, task, handle, 0, 1 << 16))
    data: bytes = original(self, task, handle, 0 if offset < end else offset, size)
    return data


def fsync_accepted(patches: Patches) -> None:
    """fsync(2) succeeds"""
    patches.wrap(Efivarfs, "fsync", lambda *_: None)


def direct_io_accepted(patches: Patches) -> None:
    """files can be opened with O_DIRECT"""
    patches.wrap(efivarfs_module, "_need_no_direct_io", lambda *_: None)


def set_variable_slow(original: Original, self: StmmOperations, *args: Any) -> int:
    """SetVariable takes two and a half seconds longer"""
    time.sleep(2.5)
    status: int = original(self, *args)
    return status


def read_only_property_ignored(patches: Patches) -> None:
    """the driver does not look at the read-only property of a variable"""
    patches.wrap(StmmOperations, "_property", lambda *_: (EfiStatus.SUCCESS, 0))


def small_buffer_not_reported(
    original: Original, self: StmmOperations, name: str, guid: UUID, size: int, **kwargs: Any
) -> VariableReply:
    """GetVariable by the driver never needs more room than it is offered"""
    reply: VariableReply = original(self, name, guid, size, **kwargs)
    if reply.status == EfiStatus.BUFFER_TOO_SMALL:
        reply = replace(reply, size=min(reply.size, 4096))
    return reply


# --- several at once -----------------------------------------------------------------------------


def reader_passes_writer(original: Original, self: Efivarfs, *args: Any) -> bytes:
    """readers do not wait for a writer and read an empty file meanwhile"""
    if self._efivars._holder is not None:
        return b""
    data: bytes = original(self, *args)
    return data


def message_buffer_shared(patches: Patches) -> None:
    """writers share one message buffer, filled before the lock is taken"""
    shared: list[tuple[int, bytes]] = []

    def set_and_get(
        original: Original, self: Efivarfs, inode: Any, attributes: int, value: bytes, task: Task
    ) -> int | None:
        shared[:] = [(attributes, value)]
        time.sleep(0.01)
        size: int | None = original(self, inode, *shared[0], task)
        return size

    patches.wrap(Efivarfs, "_set_and_get_size", set_and_get)


# --- supplicant ----------------------------------------------------------------------------------


def supplicant_end_makes_read_only(patches: Patches) -> None:
    """efivarfs turns read-only when the supplicant goes"""
    mounted: list[Efivarfs] = []

    def mount(original: Original, self: Efivarfs, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        mounted[:] = [self]

    def released(original: Original, self: OpteeDriver) -> None:
        original(self)
        for efivarfs in mounted:
            efivarfs._operations_changed(OpsEvent.READ_ONLY)

    patches.wrap(Efivarfs, "mount", mount)
    patches.wrap(OpteeDriver, "_supplicant_released", released)


def second_supplicant_accepted(original: Original, self: SupplicantQueue) -> None:
    """a second supplicant can open the device"""
    self.attached = False
    original(self)


def waiting_writer_unkillable(
    original: Original, self: SupplicantQueue, *args: Any, task: Task, **kwargs: Any
) -> Any:
    """a writer that waits for the supplicant cannot be killed"""
    return original(self, *args, task=Task.kernel(), **kwargs)


def absent_supplicant_waited_for(
    original: Original, self: SupplicantQueue, *args: Any, nowait: bool, **kwargs: Any
) -> Any:
    """a write without a supplicant waits for one instead of failing"""
    return original(self, *args, nowait=False, **kwargs)


def killed_supplicant_requests_kept(original: Original, self: SupplicantQueue) -> None:
    """the requests of a supplicant that was killed are done by the next one"""
    with self.kernel.lock:
        pending = [request for request in self._delivered.values() if request is not None]
        self._waiting.extendleft(reversed(pending))
        self._delivered.clear()
        self._synchronous = None
        self.attached = False
        self.kernel.wake()


# --- efi-pstore, devices -------------------------------------------------------------------------


def nonblocking_write_accepted(original: Original, self: StmmOperations, *args: Any) -> int:
    """the driver takes the non-blocking SetVariable, so that a crash calls the TEE"""
    return self.set_variable(*args)


def set_variable_promised(patches: Patches) -> None:
    """RTPROP promises SetVariable although it is gone after ExitBootServices"""
    from emulation.linux import firmware

    promised = firmware._ALWAYS | RuntimeService.SET_VARIABLE
    patches.replace(firmware, "_ALWAYS", promised)


MUTANTS: Final = (
    Mutant(erofs_is_eperm, ("special",)),
    Mutant(enospc_is_eio, ("exhaust", "supplicant")),
    Mutant(eacces_is_einval, ("authenticated",)),
    Mutant(einval_is_eio, ("attributes",)),
    Mutant(access_denied_is_eacces, ("special",)),
    Mutant(missing_write_is_enoent, ("delete",), Efivarfs, "_set_and_get_size"),
    Mutant(unlink_errno_passed_on, ("delete", "authenticated"), Efivarfs, "unlink"),
    Mutant(remount_without_driver, ("takeover", "mount"), Efivarfs, "reconfigure"),
    Mutant(driver_leaves_read_only, ("takeover",)),
    Mutant(unbind_leaves_writable, ("takeover",)),
    Mutant(unbind_hands_nothing_back, ("takeover",)),
    Mutant(mounted_writable_too_early, ("takeover", "mount"), Efivarfs, "_fill"),
    Mutant(second_mount_starts_afresh, ("mount",), Efivarfs, "mount"),
    Mutant(mount_owner_ignored, ("mount",), Efivarfs, "_add"),
    Mutant(unknown_mount_option_accepted, ("mount",)),
    Mutant(statfs_shows_zeros, ("space",), Efivarfs, "statfs"),
    Mutant(statfs_wrong_block_size, ("space",), Efivarfs, "statfs"),
    Mutant(statfs_cached, ("space",), Efivarfs, "_query_space"),
    Mutant(invalid_guid_accepted, ("name",)),
    Mutant(guid_case_matters, ("name",)),
    Mutant(file_name_case_folded, ("name",)),
    Mutant(long_name_truncated, ("name",), StmmOperations, "set_variable"),
    Mutant(listing_misses_new, ("create",)),
    Mutant(listing_shows_deleted, ("delete",)),
    Mutant(unlink_keeps_variable, ("delete", "mounts"), Efivarfs, "unlink"),
    Mutant(random_seed_visible, ("special", "names")),
    Mutant(immutable_can_be_opened, ("immutable",)),
    Mutant(immutable_can_be_unlinked, ("immutable",)),
    Mutant(created_not_immutable, ("immutable",), Efivarfs, "create"),
    Mutant(listed_not_immutable, ("immutable", "mount"), Efivarfs, "_add_listed"),
    Mutant(boot_options_immutable, ("immutable", "boot_entries")),
    Mutant(other_flags_accepted, ("immutable",), Efivarfs, "setflags"),
    Mutant(flag_cannot_be_cleared, ("immutable",), Efivarfs, "setflags"),
    Mutant(files_writable_by_all, ("permissions",), Efivarfs, "_add"),
    Mutant(files_readable_by_root_only, ("permissions",), Efivarfs, "_add"),
    Mutant(truncated_write_accepted, ("writes",), Efivarfs, "_write"),
    Mutant(unknown_bits_ignored, ("attributes",), Efivarfs, "_write"),
    Mutant(second_write_appends, ("writes",)),
    Mutant(write_count_without_attributes, ("writes",), Efivarfs, "write"),
    Mutant(boot_options_not_validated, ("special",)),
    Mutant(validators_exact, ("special",), efivarfs_names, "is_valid_content"),
    Mutant(size_stale_after_overwrite, ("writes",), Efivarfs, "_write"),
    Mutant(size_without_attributes, ("sizes",), Efivarfs, "_set_and_get_size"),
    Mutant(listed_size_without_attributes, ("mount",), Efivarfs, "_add_listed"),
    Mutant(reads_cached, ("reads",)),
    Mutant(read_without_attributes, ("reads",)),
    Mutant(read_attributes_swapped, ("reads",)),
    Mutant(read_stops_at_page, ("sizes",)),
    Mutant(small_reads_restart, ("reads",), Efivarfs, "read"),
    Mutant(fsync_accepted, ("writes",)),
    Mutant(direct_io_accepted, ("reads", "create")),
    Mutant(set_variable_slow, ("latency",), StmmOperations, "set_variable"),
    Mutant(read_only_property_ignored, ("special",)),
    Mutant(small_buffer_not_reported, ("sizes",), StmmOperations, "get_variable"),
    Mutant(reader_passes_writer, ("supplicant",), Efivarfs, "read"),
    Mutant(message_buffer_shared, ("concurrency",)),
    Mutant(supplicant_end_makes_read_only, ("supplicant",)),
    Mutant(second_supplicant_accepted, ("supplicant",), SupplicantQueue, "attach"),
    Mutant(waiting_writer_unkillable, ("supplicant",), SupplicantQueue, "request"),
    Mutant(absent_supplicant_waited_for, ("supplicant",), SupplicantQueue, "request"),
    Mutant(killed_supplicant_requests_kept, ("supplicant",), SupplicantQueue, "release"),
    Mutant(nonblocking_write_accepted, ("pstore",), StmmOperations, "set_variable_nonblocking"),
    Mutant(set_variable_promised, ("takeover",)),
)
