"""The kernel's efivars, tee_stmm_efi, efivarfs, OP-TEE driver and efi-pstore, broken."""

from __future__ import annotations

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
from emulation.mutants.registry import Original, Patches, Registry
from harness.formats.efi import EfiStatus

mutants: Final = Registry("Linux")

_ATTRIBUTES: Final = 4
_KNOWN_BITS: Final = 0x7F
_APPEND: Final = 0x40
_SLOW_SECONDS: Final = 2.5
_RACE_SECONDS: Final = 0.01


# --- errno ---------------------------------------------------------------------------------------


def _map_status(patches: Patches, status: EfiStatus, number: int) -> None:
    patches.replace(efivars_module, "_ERRNO", {**efivars_module._ERRNO, status: number})


@mutants("EFI_WRITE_PROTECTED is EPERM instead of EROFS", "special")
def erofs_is_eperm(patches: Patches) -> None:
    _map_status(patches, EfiStatus.WRITE_PROTECTED, errno.EPERM)


@mutants("EFI_OUT_OF_RESOURCES is EIO instead of ENOSPC", "exhaust", "supplicant")
def enospc_is_eio(patches: Patches) -> None:
    _map_status(patches, EfiStatus.OUT_OF_RESOURCES, errno.EIO)


@mutants("EFI_SECURITY_VIOLATION is EINVAL instead of EACCES", "authenticated")
def eacces_is_einval(patches: Patches) -> None:
    _map_status(patches, EfiStatus.SECURITY_VIOLATION, errno.EINVAL)


@mutants("EFI_INVALID_PARAMETER is EIO instead of EINVAL", "attributes")
def einval_is_eio(patches: Patches) -> None:
    _map_status(patches, EfiStatus.INVALID_PARAMETER, errno.EIO)


@mutants("EFI_ACCESS_DENIED is EACCES instead of EINVAL", "special")
def access_denied_is_eacces(patches: Patches) -> None:
    _map_status(patches, EfiStatus.ACCESS_DENIED, errno.EACCES)


@mutants("writing nothing to a variable that does not exist is ENOENT instead of EIO", "delete")
def missing_write_is_enoent(patches: Patches) -> None:
    def set_and_get(original: Original, self: Efivarfs, *args: Any) -> int | None:
        try:
            size: int | None = original(self, *args)
        except OSError as error:
            if error.errno == errno.EIO:
                raise OSError(errno.ENOENT, "SetVariable") from error
            raise
        return size

    patches.wrap(Efivarfs, "_set_and_get_size", set_and_get)


@mutants("unlink passes the errno of the firmware on", "delete", "authenticated")
def unlink_errno_passed_on(patches: Patches) -> None:
    def unlink(original: Original, self: Efivarfs, task: Task, parent: int, name: bytes) -> None:
        try:
            original(self, task, parent, name)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise OSError(errno.EIO, "SetVariable") from error
            raise

    patches.wrap(Efivarfs, "unlink", unlink)


# --- driver, mounts, read-only and read-write ----------------------------------------------------


@mutants("a remount read-write succeeds without a driver that can write", "takeover", "mount")
def remount_without_driver(patches: Patches) -> None:
    def reconfigure(original: Original, self: Efivarfs, *, read_only: bool) -> None:
        if read_only:
            original(self, read_only=True)
        self.read_only = read_only

    patches.wrap(Efivarfs, "reconfigure", reconfigure)


def _ignore_event(patches: Patches, ignored: OpsEvent) -> None:
    def changed(original: Original, self: Efivarfs, event: OpsEvent) -> None:
        if event is not ignored:
            original(self, event)

    patches.wrap(Efivarfs, "_operations_changed", changed)


@mutants("efivarfs stays read-only when the driver binds (meta-iot2050 #426)", "takeover")
def driver_leaves_read_only(patches: Patches) -> None:
    def changed(original: Original, self: Efivarfs, event: OpsEvent) -> None:
        # The boot's own take-over works, or nothing could be tested.
        if event is OpsEvent.READ_WRITE and self in bound:
            return
        if event is OpsEvent.READ_WRITE:
            bound.add(self)
        original(self, event)

    bound: WeakSet[Efivarfs] = WeakSet()
    patches.wrap(Efivarfs, "_operations_changed", changed)


@mutants("efivarfs stays read-write when the driver is unbound", "takeover")
def unbind_leaves_writable(patches: Patches) -> None:
    _ignore_event(patches, OpsEvent.READ_ONLY)


@mutants("the driver does not hand the variables back when it is unbound", "takeover")
def unbind_hands_nothing_back(patches: Patches) -> None:
    registered: WeakSet[EfiRuntime] = WeakSet()

    def register(original: Original, self: EfiRuntime, *, task: Task) -> None:
        if self not in registered:
            registered.add(self)
            original(self, task=task)

    patches.wrap(EfiRuntime, "register_generic", register)


@mutants("efivarfs is mounted read-write before any driver can write", "takeover", "mount")
def mounted_writable_too_early(patches: Patches) -> None:
    def fill(original: Original, self: Efivarfs, read_only: bool, task: Task) -> None:
        original(self, read_only, task)
        self.read_only = read_only

    patches.wrap(Efivarfs, "_fill", fill)


@mutants("a second mount makes the files anew, with their immutable flags", "mount")
def second_mount_starts_afresh(patches: Patches) -> None:
    def mount(original: Original, self: Efivarfs, options: str = "", **kwargs: Any) -> None:
        if self._mounted:
            self._kill()
            self._mounted = False
        original(self, options, **kwargs)

    patches.wrap(Efivarfs, "mount", mount)


@mutants("the mount options uid= and gid= have no effect", "mount")
def mount_owner_ignored(patches: Patches) -> None:
    def shown_only(original: Original, self: Efivarfs, *args: Any, **kwargs: Any) -> Any:
        inode = original(self, *args, **kwargs)
        inode.uid = inode.gid = 0
        return inode

    patches.wrap(Efivarfs, "_add", shown_only)


@mutants("efivarfs takes mount options that it does not know", "mount")
def unknown_mount_option_accepted(patches: Patches) -> None:
    parse = MountOptions.__dict__["parse"].__func__

    def lenient(cls: type[MountOptions], text: str) -> MountOptions:
        try:
            options: MountOptions = parse(cls, text)
        except OSError:
            options = cls()
        return options

    patches.replace(MountOptions, "parse", classmethod(lenient))


@mutants("df of efivarfs shows zeros although the firmware answers", "space")
def statfs_shows_zeros(patches: Patches) -> None:
    def statfs(original: Original, self: Efivarfs, task: Task) -> StatFs:
        shown: StatFs = original(self, task)
        return replace(shown, blocks=0, bfree=0, bavail=0)

    patches.wrap(Efivarfs, "statfs", statfs)


@mutants("df of efivarfs counts blocks of 4096 bytes", "space")
def statfs_wrong_block_size(patches: Patches) -> None:
    def statfs(original: Original, self: Efivarfs, task: Task) -> StatFs:
        shown: StatFs = original(self, task)
        return replace(shown, bsize=4096, frsize=4096)

    patches.wrap(Efivarfs, "statfs", statfs)


@mutants("the space of the store is asked for once and then repeated for ever", "space")
def statfs_cached(patches: Patches) -> None:
    def query(original: Original, self: Efivarfs, task: Task) -> SpaceReply:
        if self._space.last is None:
            self._space.last = original(self, task)
        return self._space.last

    patches.wrap(Efivarfs, "_query_space", query)


# --- names and the directory ---------------------------------------------------------------------


@mutants("a file can be created whose name ends in no GUID", "name")
def invalid_guid_accepted(patches: Patches) -> None:
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


@mutants("a file is found only by the case in which its GUID was written", "name")
def guid_case_matters(patches: Patches) -> None:
    patches.wrap(efivarfs_names, "lookup_key", lambda original, name: name)


@mutants("the case of a variable's name does not count in look-ups", "name")
def file_name_case_folded(patches: Patches) -> None:
    patches.wrap(efivarfs_names, "lookup_key", lambda original, name: name.lower())


@mutants("SetVariable gets names cut off after 64 characters", "name")
def long_name_truncated(patches: Patches) -> None:
    def set_variable(original: Original, self: StmmOperations, name: str, *args: Any) -> int:
        status: int = original(self, name[:64], *args)
        return status

    patches.wrap(StmmOperations, "set_variable", set_variable)


@mutants("a new variable does not appear in the directory", "create")
def listing_misses_new(patches: Patches) -> None:
    newest: WeakKeyDictionary[Efivarfs, int] = WeakKeyDictionary()

    def fill(original: Original, self: Efivarfs, read_only: bool, task: Task) -> None:
        original(self, read_only, task)
        newest[self] = max(self._inodes)

    def readdir(original: Original, self: Efivarfs, task: Task, ino: int) -> list[Entry]:
        return [entry for entry in original(self, task, ino) if entry.ino <= newest[self]]

    patches.wrap(Efivarfs, "_fill", fill)
    patches.wrap(Efivarfs, "readdir", readdir)


@mutants("a deleted variable stays in the directory", "delete")
def listing_shows_deleted(patches: Patches) -> None:
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


@mutants("unlink removes the file and not the variable", "delete", "mounts")
def unlink_keeps_variable(patches: Patches) -> None:
    def unlink(original: Original, self: Efivarfs, task: Task, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if self.read_only or inode.immutable:
            original(self, task, parent, name)
        self._remove(inode)

    patches.wrap(Efivarfs, "unlink", unlink)


@mutants("user space may create and read variables of the random seed's GUID", "special", "names")
def random_seed_visible(patches: Patches) -> None:
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


@mutants("the immutable flag does not keep a file from being opened for writing", "immutable")
def immutable_can_be_opened(patches: Patches) -> None:
    _without_flag(patches, "open", lambda fs, task, ino, flags: fs._inode(ino))


@mutants("the immutable flag does not keep a file from being unlinked", "immutable")
def immutable_can_be_unlinked(patches: Patches) -> None:
    _without_flag(patches, "unlink", lambda fs, task, parent, name: fs._child(parent, name))


@mutants("a created variable is not immutable", "immutable")
def created_not_immutable(patches: Patches) -> None:
    def create(original: Original, self: Efivarfs, *args: Any) -> tuple[Attr, int]:
        attr, handle = original(self, *args)
        self._inodes[attr.ino].immutable = False
        return attr, handle

    patches.wrap(Efivarfs, "create", create)


@mutants("a variable that is there at mount time is not immutable", "immutable", "mount")
def listed_not_immutable(patches: Patches) -> None:
    def add_listed(original: Original, self: Efivarfs, *args: Any) -> None:
        original(self, *args)
        self._inodes[max(self._inodes)].immutable = False

    patches.wrap(Efivarfs, "_add_listed", add_listed)


@mutants(
    "boot options are immutable as well, so that efibootmgr fails", "immutable", "boot_entries"
)
def boot_options_immutable(patches: Patches) -> None:
    patches.wrap(efivarfs_names, "is_removable", lambda *_: False)


@mutants("flags other than the immutable one can be set", "immutable")
def other_flags_accepted(patches: Patches) -> None:
    def setflags(original: Original, self: Efivarfs, task: Task, ino: int, flags: int) -> None:
        original(self, task, ino, flags & FS_IMMUTABLE_FL)

    patches.wrap(Efivarfs, "setflags", setflags)


@mutants("clearing the immutable flag has no effect", "immutable")
def flag_cannot_be_cleared(patches: Patches) -> None:
    def setflags(original: Original, self: Efivarfs, task: Task, ino: int, flags: int) -> None:
        original(self, task, ino, flags)
        self._regular(ino).immutable = True

    patches.wrap(Efivarfs, "setflags", setflags)


@mutants("everybody may write variables", "permissions")
def files_writable_by_all(patches: Patches) -> None:
    def add(original: Original, self: Efivarfs, *args: Any, mode: int, **kwargs: Any) -> Any:
        return original(self, *args, mode=mode | 0o222, **kwargs)

    patches.wrap(Efivarfs, "_add", add)


@mutants("variables can be read by root only", "permissions")
def files_readable_by_root_only(patches: Patches) -> None:
    def add(original: Original, self: Efivarfs, *args: Any, mode: int, **kwargs: Any) -> Any:
        return original(self, *args, mode=mode & 0o700, **kwargs)

    patches.wrap(Efivarfs, "_add", add)


# --- reading and writing -------------------------------------------------------------------------


def _write(patches: Patches, change: Any) -> None:
    patches.wrap(Efivarfs, "_write", change)


@mutants("a write shorter than the attributes is accepted", "writes")
def truncated_write_accepted(patches: Patches) -> None:
    def write(original: Original, self: Efivarfs, inode: Any, data: bytes, task: Task) -> int:
        if len(data) < _ATTRIBUTES:
            return len(data)
        written: int = original(self, inode, data, task)
        return written

    _write(patches, write)


@mutants("unknown attribute bits are ignored", "attributes")
def unknown_bits_ignored(patches: Patches) -> None:
    def write(original: Original, self: Efivarfs, inode: Any, data: bytes, task: Task) -> int:
        known = int.from_bytes(data[:_ATTRIBUTES], "little") & _KNOWN_BITS
        if len(data) >= _ATTRIBUTES:
            data = known.to_bytes(_ATTRIBUTES, "little") + data[_ATTRIBUTES:]
        written: int = original(self, inode, data, task)
        return written

    _write(patches, write)


@mutants("the second write(2) to an open file is appended", "writes")
def second_write_appends(patches: Patches) -> None:
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


@mutants("write(2) counts the data without the attributes", "writes")
def write_count_without_attributes(patches: Patches) -> None:
    def write(original: Original, self: Efivarfs, *args: Any) -> int:
        written: int = original(self, *args)
        return written - _ATTRIBUTES

    patches.wrap(Efivarfs, "write", write)


@mutants("content of boot options is not validated", "special")
def boot_options_not_validated(patches: Patches) -> None:
    patches.wrap(efivarfs_names, "is_valid_content", lambda *_: True)


@mutants("BootNext must have the two bytes that the kernel meant to demand", "special")
def validators_exact(patches: Patches) -> None:
    def is_valid(original: Original, name: str, guid: UUID, data: bytes) -> bool:
        rules = [
            rule
            for rule in efivarfs_names._RULES
            if rule.guid == guid and rule.pattern == name.encode()
        ]
        if rules and rules[0].check is not None:
            return rules[0].check(name, len(rules[0].prefix), data)
        return bool(original(name, guid, data))

    patches.wrap(efivarfs_names, "is_valid_content", is_valid)


@mutants("stat(2) shows the old size after an overwrite", "writes")
def size_stale_after_overwrite(patches: Patches) -> None:
    def write(original: Original, self: Efivarfs, inode: Any, data: bytes, task: Task) -> int:
        size = inode.size
        written: int = original(self, inode, data, task)
        inode.size = size or inode.size
        return written

    _write(patches, write)


@mutants("stat(2) shows the size without the attributes after a write", "sizes")
def size_without_attributes(patches: Patches) -> None:
    def set_and_get(original: Original, self: Efivarfs, *args: Any) -> int | None:
        size: int | None = original(self, *args)
        return None if size is None else size - _ATTRIBUTES

    patches.wrap(Efivarfs, "_set_and_get_size", set_and_get)


@mutants("stat(2) shows the size without the attributes of what was there at mount time", "mount")
def listed_size_without_attributes(patches: Patches) -> None:
    def add_listed(original: Original, self: Efivarfs, *args: Any) -> None:
        original(self, *args)
        self._inodes[max(self._inodes)].size -= _ATTRIBUTES

    patches.wrap(Efivarfs, "_add_listed", add_listed)


@mutants("reads come from a cache that writes do not refresh", "reads")
def reads_cached(patches: Patches) -> None:
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


@mutants("reading a variable gives its data without the attributes", "reads")
def read_without_attributes(patches: Patches) -> None:
    _content(patches, lambda content, offset: content[_ATTRIBUTES:])


@mutants("reading a variable gives the attributes in big-endian order", "reads")
def read_attributes_swapped(patches: Patches) -> None:
    _content(patches, lambda content, _: content[:_ATTRIBUTES][::-1] + content[_ATTRIBUTES:])


@mutants("only the first 4096 bytes of a variable can be read", "sizes")
def read_stops_at_page(patches: Patches) -> None:
    _content(patches, lambda content, offset: content[:4096])


@mutants("a read in small pieces begins anew with each", "reads")
def small_reads_restart(patches: Patches) -> None:
    def read(
        original: Original, self: Efivarfs, task: Task, handle: int, offset: int, size: int
    ) -> bytes:
        end = len(original(self, task, handle, 0, 1 << 16))
        data: bytes = original(self, task, handle, 0 if offset < end else offset, size)
        return data

    patches.wrap(Efivarfs, "read", read)


@mutants("fsync(2) succeeds", "writes")
def fsync_accepted(patches: Patches) -> None:
    patches.wrap(Efivarfs, "fsync", lambda *_: None)


@mutants("files can be opened with O_DIRECT", "reads", "create")
def direct_io_accepted(patches: Patches) -> None:
    patches.wrap(efivarfs_module, "_need_no_direct_io", lambda *_: None)


@mutants("SetVariable takes two and a half seconds longer", "latency")
def set_variable_slow(patches: Patches) -> None:
    def set_variable(original: Original, self: StmmOperations, *args: Any) -> int:
        time.sleep(_SLOW_SECONDS)
        status: int = original(self, *args)
        return status

    patches.wrap(StmmOperations, "set_variable", set_variable)


@mutants("the driver does not look at the read-only property of a variable", "special")
def read_only_property_ignored(patches: Patches) -> None:
    patches.wrap(StmmOperations, "_property", lambda *_: (EfiStatus.SUCCESS, 0))


@mutants("GetVariable by the driver never needs more room than it is offered", "sizes")
def small_buffer_not_reported(patches: Patches) -> None:
    def get(
        original: Original, self: StmmOperations, name: str, guid: UUID, size: int, **kwargs: Any
    ) -> VariableReply:
        reply: VariableReply = original(self, name, guid, size, **kwargs)
        if reply.status == EfiStatus.BUFFER_TOO_SMALL:
            reply = replace(reply, size=min(reply.size, 4096))
        return reply

    patches.wrap(StmmOperations, "get_variable", get)


# --- several at once -----------------------------------------------------------------------------


@mutants("readers do not wait for a writer and read an empty file meanwhile", "supplicant")
def reader_passes_writer(patches: Patches) -> None:
    def read(original: Original, self: Efivarfs, *args: Any) -> bytes:
        if self._efivars._holder is not None:
            return b""
        data: bytes = original(self, *args)
        return data

    patches.wrap(Efivarfs, "read", read)


@mutants("writers share one message buffer, filled before the lock is taken", "concurrency")
def message_buffer_shared(patches: Patches) -> None:
    shared: list[tuple[int, bytes]] = []

    def set_and_get(
        original: Original, self: Efivarfs, inode: Any, attributes: int, value: bytes, task: Task
    ) -> int | None:
        shared[:] = [(attributes, value)]
        time.sleep(_RACE_SECONDS)
        size: int | None = original(self, inode, *shared[0], task)
        return size

    patches.wrap(Efivarfs, "_set_and_get_size", set_and_get)


# --- supplicant ----------------------------------------------------------------------------------


@mutants("efivarfs turns read-only when the supplicant goes", "supplicant")
def supplicant_end_makes_read_only(patches: Patches) -> None:
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


@mutants("a second supplicant can open the device", "supplicant")
def second_supplicant_accepted(patches: Patches) -> None:
    def attach(original: Original, self: SupplicantQueue) -> None:
        self.attached = False
        original(self)

    patches.wrap(SupplicantQueue, "attach", attach)


@mutants("a writer that waits for the supplicant cannot be killed", "supplicant")
def waiting_writer_unkillable(patches: Patches) -> None:
    def request(
        original: Original, self: SupplicantQueue, *args: Any, task: Task, **kwargs: Any
    ) -> Any:
        return original(self, *args, task=Task.kernel(), **kwargs)

    patches.wrap(SupplicantQueue, "request", request)


@mutants("a write without a supplicant waits for one instead of failing", "supplicant")
def absent_supplicant_waited_for(patches: Patches) -> None:
    def request(
        original: Original, self: SupplicantQueue, *args: Any, nowait: bool, **kwargs: Any
    ) -> Any:
        return original(self, *args, nowait=False, **kwargs)

    patches.wrap(SupplicantQueue, "request", request)


@mutants("the requests of a supplicant that was killed are done by the next one", "supplicant")
def killed_supplicant_requests_kept(patches: Patches) -> None:
    def release(original: Original, self: SupplicantQueue) -> None:
        with self.kernel.lock:
            pending = [request for request in self._delivered.values() if request is not None]
            self._waiting.extendleft(reversed(pending))
            self._delivered.clear()
            self._synchronous = None
            self.attached = False
            self.kernel.wake()

    patches.wrap(SupplicantQueue, "release", release)


# --- efi-pstore, devices -------------------------------------------------------------------------


@mutants("the driver takes the non-blocking SetVariable, so that a crash calls the TEE", "pstore")
def nonblocking_write_accepted(patches: Patches) -> None:
    def set_variable(original: Original, self: StmmOperations, *args: Any) -> int:
        return self.set_variable(*args)

    patches.wrap(StmmOperations, "set_variable_nonblocking", set_variable)


@mutants("RTPROP promises SetVariable although it is gone after ExitBootServices", "takeover")
def set_variable_promised(patches: Patches) -> None:
    from emulation.linux import firmware

    promised = firmware._ALWAYS | RuntimeService.SET_VARIABLE
    patches.replace(firmware, "_ALWAYS", promised)
