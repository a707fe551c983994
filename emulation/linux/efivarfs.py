"""efivarfs: EFI variables as files, one superblock for all mounts.

The directory is a snapshot taken at mount time; reads and writes go to the firmware each time.
Longer than other files because the kernel's is one piece: a superblock, its inodes, their lock.
Source: stack 6, K6 and K7 fs/efivarfs (super.c, inode.c, file.c, vars.c).
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Self
from uuid import UUID

from emulation.linux import efivarfs_names as names
from emulation.linux.efivars import (
    EFI_VARIABLE_MASK,
    NULL_GUID,
    Efivars,
    EfivarsOperations,
    KernelSeries,
    OpsEvent,
    SpaceReply,
    status_to_errno,
)
from emulation.linux.firmware import EfiRuntime, RuntimeService
from emulation.linux.kernel import (
    KERN_ERR,
    KERN_INFO,
    KERN_WARNING,
    Kernel,
    Task,
    running,
)
from emulation.linux.vfs import Attr, Entry, PlainFilesystem, StatFs
from harness.formats.efi import LINUX_RANDOM_SEED_GUID, EfiStatus

EFIVARFS_MAGIC: Final = 0xDE5E81E4
FS_IMMUTABLE_FL: Final = 0x10

_ATTRIBUTES_BYTES: Final = 4
_KMALLOC_MAX: Final = 4 << 20
"""Largest kmalloc, bytes (4 KiB pages, MAX_PAGE_ORDER 10): more data is ENOMEM."""
REFUSED_WRITE: Final = _ATTRIBUTES_BYTES + _KMALLOC_MAX + 1
"""Bytes of a write(2) that is refused for its length, whatever it contains."""
_ENUMERATION_NAME_BYTES: Final = 512
"""Capacity offered to GetNextVariableName; a longer name ends the enumeration."""
_NV_BS_RT: Final = 7
_READS_PER_SECOND: Final = 100
"""Reads an ordinary user gets per second before each one sleeps (kernel/user.c)."""
_RATELIMIT_SECONDS: Final = 1.0
_RATELIMIT_SLEEP: Final = 0.05
_STATFS_CALLS: Final = 5
_STATFS_SECONDS: Final = 2.0
_SLEEPING_OPERATIONS: Final = frozenset({"read", "write", "create", "unlink", "statfs"})


@dataclass(eq=False)
class _Inode:
    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: float
    immutable: bool = False
    nlink: int = 1
    name: str = ""
    guid: UUID = NULL_GUID
    openers: int = 0
    writers: int = 0
    removed: bool = False

    def attr(self) -> Attr:
        return Attr(
            ino=self.ino,
            mode=self.mode,
            nlink=self.nlink,
            uid=self.uid,
            gid=self.gid,
            size=self.size,
            mtime=self.mtime,
        )


@dataclass(frozen=True)
class _Dentry:
    name: bytes
    inode: _Inode


@dataclass(frozen=True)
class _Handle:
    inode: _Inode
    uid: int
    writable: bool


@dataclass(frozen=True)
class MountOptions:
    """Owner of everything in the file system; efivarfs knows no other option."""

    uid: int = 0
    gid: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``uid=N,gid=N``; OSError EINVAL for anything else."""
        values = {"uid": 0, "gid": 0}
        for option in filter(None, text.split(",")):
            key, _equals, value = option.partition("=")
            if key not in values or not value.isdecimal():
                raise OSError(errno.EINVAL, f"efivarfs: bad option {option}")
            values[key] = int(value)
        return cls(**values)

    def shown(self) -> str:
        """What /proc/mounts shows after the general options, with its leading comma."""
        uid = f",uid={self.uid}" if self.uid else ""
        return uid + (f",gid={self.gid}" if self.gid else "")


@dataclass
class _ReadLimit:
    """A user's ratelimit state: a burst of reads per window."""

    window_start: float
    reads: int = 0

    def admits(self, now: float) -> bool:
        if now - self.window_start >= _RATELIMIT_SECONDS:
            self.window_start, self.reads = now, 0
        if self.reads >= _READS_PER_SECOND:
            return False
        self.reads += 1
        return True


@dataclass
class _SpaceCache:
    """K7 asks the firmware at most 5 times in 2 s and repeats its last answer otherwise."""

    asked: list[float] = field(default_factory=list)
    last: SpaceReply | None = None

    def must_ask(self, now: float) -> bool:
        self.asked = [moment for moment in self.asked if now - moment < _STATFS_SECONDS]
        if self.last is not None and len(self.asked) >= _STATFS_CALLS:
            return False
        self.asked.append(now)
        return True


class Efivarfs(PlainFilesystem):
    """The file-system type and its single superblock.

    Satisfies :class:`emulation.linux.vfs.Filesystem`.  Errors are OSError with the errno
    that user space sees.  ``on_read_only`` is called with the new value whenever the kernel itself
    flips the superblock (never for a remount), in the thread that registered the operations.
    Per-mount ``ro``, permission bits and umask are the caller's business (VFS).
    """

    write_moves_offset = False
    """Every write is the whole variable (K6 fs/efivarfs/file.c leaves *ppos alone)."""

    def __init__(
        self,
        kernel: Kernel,
        efivars: Efivars,
        runtime: EfiRuntime,
        *,
        series: KernelSeries = KernelSeries.K6,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kernel = kernel
        self._efivars = efivars
        self._runtime = runtime
        self._k7 = series is KernelSeries.K7
        self._clock = clock
        self._numbers = count(1)
        self.root = next(self._numbers)
        self.read_only = True
        self.on_read_only: Callable[[bool], None] = lambda read_only: None
        self.options = MountOptions()
        self.mounted = False
        """Whether there is a superblock, that is at least one mount."""
        self._handle_numbers = count(1)
        self._handles: dict[int, _Handle] = {}
        self._inodes: dict[int, _Inode] = {}
        self._children: dict[int, _Dentry] = {}
        self._by_key: dict[bytes, _Dentry] = {}
        self._read_limits: dict[int, _ReadLimit] = {}
        self._space = _SpaceCache()

    # Superblock

    def mount(self, options: str = "", *, read_only: bool = False, task: Task) -> None:
        """A mount: the first one fills the superblock, later ones share it as it is.

        Raises OSError EOPNOTSUPP without EFI variables, EINVAL for bad options, EINTR when the
        wait for the firmware was interrupted.
        """
        if not self._efivars.available:
            raise OSError(errno.EOPNOTSUPP, "no EFI variables")
        parsed = MountOptions.parse(options)
        if not self.mounted:
            self.options = parsed
            self._fill(read_only, task)
            self.mounted = True

    def unmount(self) -> None:
        """The last mount is gone, and the superblock with it."""
        if self.mounted:
            self.mounted = False
            self._kill()

    def reconfigure(self, *, read_only: bool) -> None:
        """Remount: set the superblock's flag as user space asks.

        Raises OSError EINVAL when writing is asked for and SetVariable does not exist, EBUSY when
        files are open for writing on the way to read-only.
        """
        if not read_only and not self._efivars.supports_writes:
            self._kernel.printk(
                "Firmware does not support SetVariableRT. Can not remount with rw", KERN_ERR
            )
            raise OSError(errno.EINVAL, "SetVariable is not supported")
        if read_only and not self.read_only and self._open_for_writing():
            raise OSError(errno.EBUSY, "files are open for writing")
        self.read_only = read_only

    def thaw(self, *, task: Task) -> None:
        """Bring the directory up to date with the firmware (K7 efivarfs_unfreeze_fs).

        OSError EOPNOTSUPP on K6, which cannot be frozen.
        """
        if not self._k7:
            raise OSError(errno.EOPNOTSUPP, "this kernel does not freeze efivarfs")
        self._kernel.printk("efivarfs: resyncing variable state")
        for dentry in tuple(self._children.values()):
            size = self._stored_size(dentry.inode, task)
            dentry.inode.size = size
            if size == 0:
                shown = dentry.name.decode("utf-8", "replace")
                self._kernel.printk(f"efivarfs: removing variable {shown}")
                self._remove(dentry.inode)
        self._enumerate(task, self._add_missing, stop_at_duplicate=False)
        self._kernel.printk("efivarfs: finished resyncing variable state")

    def _fill(self, read_only: bool, task: Task) -> None:
        self.read_only = read_only or not self._efivars.supports_writes
        with self._kernel.lock:
            self._children.clear()
            self._by_key.clear()
            root = _Inode(
                ino=self.root,
                mode=stat.S_IFDIR | 0o755,
                uid=self.options.uid,
                gid=self.options.gid,
                size=0,
                mtime=self._clock(),
                nlink=2,
            )
            self._inodes = {root.ino: root}
        self._efivars.subscribe(self._operations_changed)
        try:
            self._enumerate(task, self._add_listed, stop_at_duplicate=True)
        except BaseException:
            self._kill()
            raise

    def _kill(self) -> None:
        self._efivars.unsubscribe(self._operations_changed)
        with self._kernel.lock:
            self._children.clear()
            self._by_key.clear()
            self._inodes.clear()

    def _operations_changed(self, event: OpsEvent) -> None:
        read_only = event is OpsEvent.READ_ONLY
        if read_only != self.read_only:
            self.read_only = read_only
            self.on_read_only(read_only)

    def _enumerate(
        self,
        task: Task,
        add: Callable[[EfivarsOperations, str, UUID], None],
        *,
        stop_at_duplicate: bool,
    ) -> None:
        """efivar_init: most surprises end the walk, not the mount."""
        name, guid = "", NULL_GUID
        with self._locked(task) as operations:
            while True:
                reply = operations.get_next_variable(name, guid, _ENUMERATION_NAME_BYTES)
                if reply.status == EfiStatus.UNSUPPORTED:
                    raise OSError(errno.EOPNOTSUPP, "the firmware enumerates no variables")
                if reply.status != EfiStatus.SUCCESS:
                    self._log_end_of_walk(reply.status, reply.name_size)
                    return
                name, guid = reply.name, reply.guid
                if stop_at_duplicate and self._is_listed(name, guid):
                    self._kernel.printk(f"efivars: duplicate variable: {name}-{guid}", KERN_WARNING)
                    return
                if guid != LINUX_RANDOM_SEED_GUID:
                    add(operations, name, guid)

    def _log_end_of_walk(self, status: int, name_size: int) -> None:
        if status == EfiStatus.BUFFER_TOO_SMALL:
            text = f"Variable name size exceeds maximum ({name_size} > {_ENUMERATION_NAME_BYTES})"
        elif status == EfiStatus.NOT_FOUND:
            return
        else:
            text = f"get_next_variable: status={status:x}"
        self._kernel.printk(f"efivars: {text}", KERN_WARNING)

    def _is_listed(self, name: str, guid: UUID) -> bool:
        if self._k7:
            return names.lookup_key(names.listed_name(name, guid)) in self._by_key
        return any(
            dentry.inode.name == name and dentry.inode.guid == guid
            for dentry in self._children.values()
        )

    def _add_listed(self, operations: EfivarsOperations, name: str, guid: UUID) -> None:
        file_name = names.listed_name(name, guid)
        size = operations.get_variable(name, guid, 0, buffer=False).size
        self._add(
            file_name,
            names.is_removable(file_name[: -names.GUID_CHARS - 1], guid),
            mode=0o644,
            size=size + _ATTRIBUTES_BYTES,
            variable=(name, guid),
        )

    def _add_missing(self, operations: EfivarsOperations, name: str, guid: UUID) -> None:
        file_name = names.listed_name(name, guid)
        if names.lookup_key(file_name) not in self._by_key:
            shown = file_name.decode("utf-8", "replace")
            self._kernel.printk(f"efivarfs: creating variable {shown}", KERN_INFO)
            self._add_listed(operations, name, guid)

    def _stored_size(self, inode: _Inode, task: Task) -> int:
        try:
            with self._locked(task) as operations:
                reply = operations.get_variable(inode.name, inode.guid, 0, buffer=False)
        except InterruptedError:
            return 0
        if reply.status not in (EfiStatus.SUCCESS, EfiStatus.BUFFER_TOO_SMALL):
            return 0
        return reply.size + _ATTRIBUTES_BYTES

    # Directory

    def lookup(self, task: Task, parent: int, name: bytes) -> Attr:
        """Attributes of ``name``; the GUID's case does not matter.  ENOENT, ENAMETOOLONG."""
        with self._kernel.lock:
            return self._child(parent, name).attr()

    def readdir(self, task: Task, ino: int) -> list[Entry]:
        """All files, newest first, without ``.`` and ``..``."""
        with self._kernel.lock:
            self._directory(ino)
            return [
                Entry(name=dentry.name, ino=dentry.inode.ino, mode=dentry.inode.mode)
                for dentry in reversed(self._children.values())
            ]

    def create(
        self, task: Task, parent: int, name: bytes, mode: int, flags: int
    ) -> tuple[Attr, int]:
        """Create an empty file, of which the firmware learns nothing, and open it.

        The new file may be immutable at once, yet this handle can write it.  EROFS, EEXIST,
        EINVAL for a name that is no variable's, EPERM for the random seed, EINTR.
        """
        self._need_writable()
        with self._kernel.lock:
            self._directory(parent)
            _need_short_name(name)
            if names.lookup_key(name) in self._by_key:
                raise OSError(errno.EEXIST, "exists")
        if not names.is_valid_name(name):
            raise OSError(errno.EINVAL, "not NAME-GUID")
        variable_part, guid = names.split_name(name)
        if guid == LINUX_RANDOM_SEED_GUID:
            raise OSError(errno.EPERM, "the random seed is not for user space")
        if not self._k7:
            # K6 puts the entry on a list that the semaphore guards: it waits for a stuck writer.
            with self._locked(task):
                pass
        inode = self._add(
            name,
            names.is_removable(variable_part, guid),
            mode=mode & 0o7777,
            size=0,
            variable=(names.created_variable_name(variable_part), guid),
        )
        _need_no_direct_io(flags)
        return inode.attr(), self._open(inode, task, flags)

    def unlink(self, task: Task, parent: int, name: bytes) -> None:
        """Delete the variable and the file.

        EROFS, ENOENT, EPERM when immutable; every refusal of the firmware is EINVAL.
        """
        self._need_writable()
        with self._kernel.lock:
            inode = self._child(parent, name)
        if inode.immutable:
            raise OSError(errno.EPERM, "immutable")
        try:
            with self._locked(task):
                status = self._efivars.set_variable_locked(inode.name, inode.guid, 0, b"")
        except InterruptedError:
            status = EfiStatus.ABORTED
        if status not in (EfiStatus.SUCCESS, EfiStatus.NOT_FOUND):
            raise OSError(errno.EINVAL, "the firmware did not delete the variable")
        self._remove(inode)

    # Inodes

    def getattr(self, task: Task, ino: int) -> Attr:
        """Attributes, also of a deleted file that is still open."""
        with self._kernel.lock:
            return self._inode(ino).attr()

    def setattr(
        self,
        task: Task,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        mtime: float | None = None,
    ) -> Attr:
        """Change attributes; a size changes only what is shown (K6) or nothing (K7).

        EROFS, EPERM when immutable — except for a size while a handle is open for writing, which
        is how ftruncate after a creating open looks.
        """
        self._need_writable()
        with self._kernel.lock:
            inode = self._inode(ino)
            only_size = mode is None and uid is None and gid is None and mtime is None
            if inode.immutable and not (only_size and inode.writers):
                raise OSError(errno.EPERM, "immutable")
            if mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
            inode.uid = inode.uid if uid is None else uid
            inode.gid = inode.gid if gid is None else gid
            if size is not None:
                inode.mtime = self._clock()
                if not self._k7:
                    inode.size = size
            inode.mtime = inode.mtime if mtime is None else mtime
            return inode.attr()

    def getflags(self, task: Task, ino: int) -> int:
        """FS_IOC_GETFLAGS: 0x10 when immutable.  ENOTTY for the directory."""
        with self._kernel.lock:
            return FS_IMMUTABLE_FL if self._regular(ino).immutable else 0

    def setflags(self, task: Task, ino: int, flags: int) -> None:
        """FS_IOC_SETFLAGS.  EROFS, ENOTTY, EPERM without ownership or capability, EOPNOTSUPP."""
        self._need_writable()
        with self._kernel.lock:
            inode = self._regular(ino)
            if task.uid != inode.uid and not task.capable:
                raise OSError(errno.EPERM, "not the owner")
            immutable = bool(flags & FS_IMMUTABLE_FL)
            if immutable != inode.immutable and not task.capable:
                raise OSError(errno.EPERM, "needs CAP_LINUX_IMMUTABLE")
            if flags & ~FS_IMMUTABLE_FL:
                raise OSError(errno.EOPNOTSUPP, "only the immutable flag exists")
            inode.immutable = immutable

    # Files

    def open(self, task: Task, ino: int, flags: int) -> int:
        """Open a file.  For writing: EROFS, then EPERM when immutable.  EINVAL for O_DIRECT."""
        with self._kernel.lock:
            inode = self._inode(ino)
            if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
                self._need_writable()
                if inode.immutable:
                    raise OSError(errno.EPERM, "immutable")
            _need_no_direct_io(flags)
            return self._open(inode, task, flags)

    def fsync(self, task: Task, handle: int) -> None:
        """There is none (K6 fs/efivarfs/file.c): EINVAL."""
        raise OSError(errno.EINVAL, "no fsync")

    def release(self, handle: int) -> None:
        """Last close of a handle; a K7 file that is still empty then disappears."""
        with self._kernel.lock:
            opened = self._handles.pop(handle)
            inode = opened.inode
            inode.openers -= 1
            inode.writers -= opened.writable
            if self._k7 and inode.openers == 0 and inode.size == 0 and inode.nlink:
                inode.removed = True
                self._remove(inode)
            self._forget_if_unused(inode)

    def read(self, task: Task, handle: int, offset: int, size: int) -> bytes:
        """Attributes (4 bytes, little-endian) and data, from ``offset``.

        The firmware is asked each time.  A file without a variable reads as empty; ordinary users
        are slowed down to 100 reads a second.
        """
        opened = self._handles[handle]
        self._limit_reads(opened.uid)
        inode = opened.inode
        with self._locked(task) as operations:
            reply = operations.get_variable(inode.name, inode.guid, 0, buffer=False)
        if reply.status == EfiStatus.NOT_FOUND:
            return b""
        if reply.status not in (EfiStatus.SUCCESS, EfiStatus.BUFFER_TOO_SMALL):
            raise OSError(status_to_errno(reply.status), "GetVariable")
        with self._locked(task) as operations:
            reply = operations.get_variable(inode.name, inode.guid, reply.size)
        if reply.data is None:
            raise OSError(status_to_errno(reply.status), "GetVariable")
        content = reply.attributes.to_bytes(_ATTRIBUTES_BYTES, "little") + reply.data
        return content[offset : offset + size]

    def write(self, task: Task, handle: int, offset: int, data: bytes) -> int:
        """One SetVariable: attributes (4 bytes) and the whole data; ``offset`` means nothing.

        Returns ``len(data)``.  EINVAL for less than 4 bytes, unknown attribute bits or content
        that the kernel refuses, ENOMEM above 4 MiB, EIO where the variable to delete is missing,
        otherwise the errno of the firmware's status.
        """
        return self._write(self._handles[handle].inode, data, task)

    def write_inode(self, task: Task, ino: int, data: bytes) -> int:
        """Like :meth:`write`, for a file that somebody has open for writing."""
        with self._kernel.lock:
            inode = self._regular(ino)
        return self._write(inode, data, task)

    def _write(self, inode: _Inode, data: bytes, task: Task) -> int:
        if len(data) < _ATTRIBUTES_BYTES:
            raise OSError(errno.EINVAL, "shorter than the attributes")
        attributes = int.from_bytes(data[:_ATTRIBUTES_BYTES], "little")
        if attributes & ~EFI_VARIABLE_MASK:
            raise OSError(errno.EINVAL, "unknown attribute bits")
        value = data[_ATTRIBUTES_BYTES:]
        if len(value) > _KMALLOC_MAX:
            raise OSError(errno.ENOMEM, "larger than kmalloc allows")
        if inode.removed:
            raise OSError(errno.EIO, "the file was removed")
        if not names.is_valid_content(inode.name, inode.guid, value):
            raise OSError(errno.EINVAL, "malformed content")
        stored = self._set_and_get_size(inode, attributes, value, task)
        if stored is None:
            self._written_away(inode)
        else:
            inode.size = stored + _ATTRIBUTES_BYTES
            if self._k7:
                inode.mtime = self._clock()
        return len(data)

    def statfs(self, task: Task) -> StatFs:
        """Room in the store in bytes, where the firmware's RTPROP promises QueryVariableInfo."""
        space = SpaceReply(EfiStatus.SUCCESS)
        if RuntimeService.QUERY_VARIABLE_INFO in self._runtime.services:
            space = self._query_space(task)
        return StatFs(
            type=EFIVARFS_MAGIC,
            bsize=1,
            blocks=space.max_storage,
            bfree=space.remaining,
            bavail=space.remaining,
            files=0,
            ffree=0,
            namelen=names.NAME_MAX,
            frsize=1,
        )

    def may_sleep(self, operation: str) -> bool:
        """Whether ``operation`` (a method's name) can wait for the firmware."""
        return operation in _SLEEPING_OPERATIONS

    # Inside

    @contextmanager
    def _locked(self, task: Task) -> Iterator[EfivarsOperations]:
        with running(task), self._efivars.locked(task) as operations:
            yield operations

    def _set_and_get_size(
        self, inode: _Inode, attributes: int, value: bytes, task: Task
    ) -> int | None:
        """SetVariable, then the new data size in bytes; None when the variable is gone."""
        with self._locked(task) as operations:
            status = self._efivars.set_variable_locked(inode.name, inode.guid, attributes, value)
            if status != EfiStatus.SUCCESS:
                error = status_to_errno(status)
                # ENOENT from write(2) would look like a missing file.
                raise OSError(errno.EIO if error == errno.ENOENT else error, "SetVariable")
            reply = operations.get_variable(inode.name, inode.guid, 0, buffer=False)
        if reply.status == EfiStatus.NOT_FOUND:
            return None
        return reply.size if reply.status == EfiStatus.BUFFER_TOO_SMALL else 0

    def _written_away(self, inode: _Inode) -> None:
        """A write deleted the variable: K6 unhashes the file at once, K7 at the last close."""
        if self._k7:
            inode.size = 0
        else:
            self._remove(inode)

    def _query_space(self, task: Task) -> SpaceReply:
        now = time.monotonic()
        if self._k7 and not self._space.must_ask(now) and self._space.last is not None:
            return self._space.last
        with running(task):
            space = self._efivars.query_variable_info(_NV_BS_RT)
        if space.status not in (EfiStatus.SUCCESS, EfiStatus.UNSUPPORTED):
            self._kernel.printk(f"query_variable_info() failed: 0x{space.status:x}", KERN_WARNING)
        self._space.last = space
        return space

    def _limit_reads(self, uid: int) -> None:
        if uid == 0:
            return
        with self._kernel.lock:
            limit = self._read_limits.setdefault(uid, _ReadLimit(time.monotonic()))
        # The kernel sleeps uninterruptibly here, so this is not the task's own sleep.
        while not limit.admits(time.monotonic()):
            self._kernel.wait(lambda: False, task=Task.kernel(), timeout=_RATELIMIT_SLEEP)

    def _add(
        self, file_name: bytes, removable: bool, *, mode: int, size: int, variable: tuple[str, UUID]
    ) -> _Inode:
        with self._kernel.lock:
            inode = _Inode(
                ino=next(self._numbers),
                mode=stat.S_IFREG | mode,
                uid=self.options.uid,
                gid=self.options.gid,
                size=size,
                mtime=self._clock(),
                immutable=not removable,
                name=variable[0],
                guid=variable[1],
            )
            self._inodes[inode.ino] = inode
            # Two variables may share a file name ('/' becomes '!'); a look-up finds the newer.
            dentry = _Dentry(file_name, inode)
            self._children[inode.ino] = self._by_key[names.lookup_key(file_name)] = dentry
            return inode

    def _remove(self, inode: _Inode) -> None:
        with self._kernel.lock:
            inode.nlink = 0
            dentry = self._children.pop(inode.ino, None)
            if dentry is not None:
                self._uncache(dentry)
            self._forget_if_unused(inode)

    def _uncache(self, removed: _Dentry) -> None:
        key = names.lookup_key(removed.name)
        if self._by_key[key] is removed:
            del self._by_key[key]
            for dentry in self._children.values():
                if names.lookup_key(dentry.name) == key:
                    self._by_key[key] = dentry

    def _forget_if_unused(self, inode: _Inode) -> None:
        if inode.nlink == 0 and inode.openers == 0:
            self._inodes.pop(inode.ino, None)

    def _open(self, inode: _Inode, task: Task, flags: int) -> int:
        with self._kernel.lock:
            writable = flags & os.O_ACCMODE != os.O_RDONLY
            handle = next(self._handle_numbers)
            self._handles[handle] = _Handle(inode, task.uid, writable)
            inode.openers += 1
            inode.writers += writable
            return handle

    def _open_for_writing(self) -> bool:
        with self._kernel.lock:
            return any(handle.writable for handle in self._handles.values())

    def _need_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "the superblock is read-only")

    def _inode(self, ino: int) -> _Inode:
        try:
            return self._inodes[ino]
        except KeyError:
            raise OSError(errno.ENOENT, "no such inode") from None

    def _regular(self, ino: int) -> _Inode:
        inode = self._inode(ino)
        if not stat.S_ISREG(inode.mode):
            raise OSError(errno.ENOTTY, "the directory has no flags")
        return inode

    def _directory(self, ino: int) -> _Inode:
        if ino != self.root:
            raise OSError(errno.ENOTDIR, "not a directory")
        return self._inode(ino)

    def _child(self, parent: int, name: bytes) -> _Inode:
        self._directory(parent)
        _need_short_name(name)
        dentry = self._by_key.get(names.lookup_key(name))
        if dentry is None:
            raise OSError(errno.ENOENT, "no such variable")
        return dentry.inode


def _need_short_name(name: bytes) -> None:
    if len(name) > names.NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "file name too long")


def _need_no_direct_io(flags: int) -> None:
    # A creating open checks this after the file exists (do_dentry_open).
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "no direct I/O")
