"""Answers the system calls that seccomp hands over, on behalf of the kernel model.

Runs in the jail thread; what may sleep moves to a worker thread and is answered from there.  What
the model has no opinion on is handed back to the kernel (`proceed`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import posixpath
import re
import select
import socket
import stat
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from emulation.faults import PowerLost
from emulation.linux.efivarfs import REFUSED_WRITE
from emulation.linux.kernel import Killed, Task, running
from emulation.userland.jail.fuse import FS_IOC_SETFLAGS, Attr, Filesystem, flags_from_xattr
from emulation.userland.jail.layout import NODES_TARGET
from emulation.userland.jail.mounts import BoardView, MountEntry, containing, parse_mountinfo
from emulation.userland.jail.namespaces import IdMaps, to_board
from emulation.userland.jail.nodes import NodeTree
from emulation.userland.jail.plan import (
    DeviceFile,
    DeviceNode,
    FuseMount,
    JailPlan,
    MessageSource,
    OpenHook,
    OpenResult,
    ReturnedFd,
    SyscallHandlers,
    WriteSink,
)
from emulation.userland.jail.seccomp import IOCTL_REQUESTS, Listener, Notification, notified_names
from emulation.userland.jail.syscalls import (
    MS_BIND,
    MS_MOVE,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    NodeStat,
    ProcessMemory,
    StatFsFields,
    encode_dev,
    host_architecture,
    pack_utsname,
    prompt_readlink,
    raw,
    read_path,
)

CAP_DAC_OVERRIDE, CAP_LINUX_IMMUTABLE, CAP_SYS_MODULE = 1, 9, 16
CAP_SYS_ADMIN, CAP_SYS_BOOT = 21, 22

_AT_FDCWD: Final = 0xFFFFFF9C
_IOVEC: Final = struct.Struct("<QQ")
_IOV_MAX: Final = 1024
"""struct iovec: address, length; and how many writev(2) takes (include/uapi/linux/uio.h)."""
_NOT_A_NEW_MOUNT: Final = (
    MS_REMOUNT | MS_BIND | MS_MOVE | MS_SHARED | MS_SLAVE | MS_PRIVATE | MS_UNBINDABLE
)
_PER_MOUNT: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME
_ST_OPTIONS: Final = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048,
    "relatime": 4096,
}  # fmt: skip
_ST_VALID: Final = 0x20
_MAXIMUM_STEPS: Final = 400
_MOUNT_FILES: Final = ("mounts", "mountinfo", "mountstats")
_RECORD_BUFFER: Final = 1 << 20
"""Bytes asked for; the host grants net.core.wmem_max, which is some 500 short records."""

_CONTENT_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_SYNC
"""Flags of open(2) that stay with an open block device."""

_SOCKET_LINK: Final = "socket:["
_REBOOT_MAGIC: Final = (0xFEE1DEAD, (672274793, 85072278, 369367448, 537993216))
_REBOOT_CAD: Final = (0x89ABCDEF, 0)


class Proceed(Exception):
    """The kernel's own answer is right."""


_PROC_STATUS: Final = re.compile(r"^(Name|Tgid|Uid|Gid|NSpid|CapEff):[ \t]*(.*)$", re.MULTILINE)
_PROC_STATUS_BYTES: Final = 8192


class Board(Protocol):
    """What the dispatcher needs of the jail."""

    def run_later(self, work: Callable[[], None]) -> None:
        """Run ``work`` on a worker thread."""
        ...

    def watch(self, still_needed: Callable[[], bool]) -> None:
        """Call ``still_needed`` now and then, in the jail thread, until it returns False."""
        ...

    def request(self, message: tuple[object, ...], done: Callable[[object, int], None]) -> None:
        """Ask PID 1; ``done(value, errno)`` is called in the jail thread."""
        ...

    def open_content(self, name: str, flags: int, done: Callable[[int, int], None]) -> None:
        """Have PID 1 open a file of the node tree; ``done(fd, errno)`` is called in the jail
        thread and closes the descriptor."""
        ...

    def on_ready(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ``ready(events)`` in the jail thread when epoll says so; replaces, 0 removes."""
        ...


@dataclass(frozen=True)
class Caller:
    """A thread of the board that waits in a system call; ``pid`` is the host's number."""

    pid: int
    maps: IdMaps

    @property
    def memory(self) -> ProcessMemory:
        """Its memory."""
        return ProcessMemory(self.pid)

    def task(self) -> Task:
        """It as the model knows it."""
        fields = self._status()
        uid = to_board(self.maps.uids, int(fields["Uid"].split()[3]))
        gid = to_board(self.maps.gids, int(fields["Gid"].split()[3]))
        capable = bool(int(fields["CapEff"], 16) >> CAP_SYS_ADMIN & 1)
        return Task(int(fields["NSpid"].split()[-1]), uid, gid, capable, comm=fields["Name"])

    def has_capability(self, number: int) -> bool:
        """Whether the capability is effective."""
        return bool(int(self._status()["CapEff"], 16) >> number & 1)

    def _status(self) -> dict[str, str]:
        # Read at nearly every call of a device: only what is asked for is taken apart.
        fd = os.open(f"/proc/{self.pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, _PROC_STATUS_BYTES)
        finally:
            os.close(fd)
        return dict(_PROC_STATUS.findall(text.decode(errors="replace")))

    def descriptor(self, number: int) -> str:
        """Where descriptor ``number`` leads; EBADF."""
        try:
            return prompt_readlink(f"/proc/{self.pid}/fd/{number}")
        except PermissionError:
            with self._borrowed(number) as fd:
                return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        except OSError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def descriptor_info(self, number: int) -> dict[str, str]:
        """fdinfo: flags (octal), mnt_id, ino (Linux 5.15)."""
        try:
            with open(f"/proc/{self.pid}/fdinfo/{number}") as file:  # noqa: PTH123
                lines = file.read().splitlines()
        except PermissionError:
            with self._borrowed(number) as fd, open(f"/proc/self/fdinfo/{fd}") as file:  # noqa: PTH123
                lines = file.read().splitlines()
        except OSError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    @contextlib.contextmanager
    def _borrowed(self, number: int) -> Iterator[int]:
        """The same open file here: /proc/PID/fd of another user id is closed to a supervisor
        without privileges, ptrace rights over its namespace are not."""
        process = os.pidfd_open(int(self._status()["Tgid"]))
        try:
            fd = raw("pidfd_getfd", process, number, 0)
        finally:
            os.close(process)
        try:
            yield fd
        finally:
            os.close(fd)

    def absolute(self, path: str, directory: int = _AT_FDCWD) -> str:
        """``path`` from the board's root, without "." and ".."; symlinks stay."""
        if not path.startswith("/"):
            if directory & 0xFFFFFFFF == _AT_FDCWD:
                base = os.readlink(f"/proc/{self.pid}/cwd")  # noqa: PTH115
            else:
                base = self.descriptor(directory)
            path = f"{base}/{path}"
        return "/" + posixpath.normpath(path).lstrip("/")

    def mounts(self) -> Sequence[MountEntry]:
        """Its mount table, as the kernel has it."""
        with open(f"/proc/{self.pid}/mountinfo", errors="surrogateescape") as file:  # noqa: PTH123
            return parse_mountinfo(file.read())


class Dispatcher:
    """One power-on's system calls. ``devices``: device number of a FUSE mount -> the mount."""

    def __init__(
        self,
        plan: JailPlan,
        handlers: SyscallHandlers,
        board: Board,
        maps: IdMaps,
        init_pid: int,
        listener: Listener,
        tree: NodeTree,
    ) -> None:
        self._tree = tree
        self._handlers = handlers
        self._board = board
        self._maps = maps
        self._init = Caller(init_pid, maps)
        self._listener = listener
        self._hostname = plan.hostname
        self._names = notified_names(host_architecture())
        self._nodes = {node.path: node for node in plan.nodes}
        self._hooks: dict[str, OpenHook] = dict(plan.open_hooks)
        last_names = [posixpath.basename(path) for path in (*self._nodes, *self._hooks)]
        self._interesting = {name.encode() for name in (*last_names, *_MOUNT_FILES, "mtab")}
        self._open_files: dict[int, tuple[DeviceNode, DeviceFile]] = {}
        self._disks: dict[str, tuple[DeviceNode, DeviceFile]] = {}
        self._undelivered: dict[int, tuple[tuple[int, ...], int | ReturnedFd]] = {}
        self._sources: list[_Records] = []
        self._view, self._devices = self._find_mounts(plan)
        self._efivarfs_targets = self._find_efivarfs()
        calls: dict[str, Callable[[Notification, Caller], None]] = {
            "open": self._open,
            "creat": self._open,
            "openat": self._open,
            "openat2": self._open,
            "ioctl": self._ioctl,
            "statfs": self._statfs,
            "fstatfs": self._statfs,
            "lseek": self._lseek,
            "write": self._write,
            "writev": self._writev,
            "fstat": self._fstat,
            "newfstatat": self._fstat,
            "statx": self._fstat,
            "mount": self._mount,
            "umount2": self._umount,
            "uname": self._uname,
            "sethostname": self._sethostname,
            "syslog": self._syslog,
            "init_module": self._load_module,
            "finit_module": self._load_module,
            "delete_module": self._unload_module,
            "reboot": self._reboot,
        }
        self._calls = {number: calls[name] for number, name in self._names.items()}
        self._path_argument = {
            number: 0 if name in ("open", "creat") else 1
            for number, name in self._names.items()
            if calls[name] == self._open
        }
        self._stats = {n for n, name in self._names.items() if calls[name] == self._fstat}

    def serve(self) -> None:
        """Take one notification and answer it, now or later."""
        notification = self._listener.receive()
        if notification is None:
            return
        at = self._path_argument.get(notification.number)
        if at is not None:
            # Nearly all of them, and nearly all of these are the kernel's own business.
            path = read_path(notification.pid, notification.args[at])
            if path is not None and path.rpartition(b"/")[2] not in self._interesting:
                self._listener.proceed(notification.id)
                return
        elif notification.number in self._stats and not self._tree.handles:
            self._listener.proceed(notification.id)
            return
        call = self._calls[notification.number]
        self._settle(notification, lambda: call(notification, Caller(notification.pid, self._maps)))

    def poke(self) -> None:
        """Record devices may have news."""
        for records in tuple(self._sources):
            records.pump()

    def close(self) -> None:
        """The power is gone: nobody will close what the board had open."""
        for records in tuple(self._sources):
            records.close()
        for _, file in (*self._open_files.values(), *self._disks.values()):
            file.close()
        self._open_files.clear()
        self._disks.clear()

    # --- answering ---

    def _settle(self, notification: Notification, work: Callable[[], None]) -> None:
        """Run ``work``, which answers; an exception becomes the answer."""
        try:
            work()
        except Proceed:
            self._listener.proceed(notification.id)
        except OSError as error:
            self._listener.fail(notification.id, error.errno or errno.EIO)
        except (Killed, PowerLost):
            pass
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._listener.fail(notification.id, errno.EIO)

    def _sleep(self, notification: Notification, task: Task, work: Callable[[], None]) -> None:
        """Run ``work`` on a worker; a signal to the caller ends it."""
        active = [True]

        def finish() -> None:
            try:
                with running(task):
                    self._settle(notification, work)
            finally:
                active.clear()

        def still_needed() -> bool:
            if not active:
                return False
            if not self._listener.valid(notification.id):
                task.fatal.set()
                return False
            return True

        self._board.run_later(finish)
        self._board.watch(still_needed)

    # --- open ---

    def _open(self, notification: Notification, caller: Caller) -> None:
        name = self._names[notification.number]
        at = self._path_argument[notification.number]
        args = notification.args
        raw_path = caller.memory.read_string(args[at])
        if raw_path.rpartition(b"/")[2] not in self._interesting:
            raise Proceed
        path = caller.absolute(os.fsdecode(raw_path), args[0] if at else _AT_FDCWD)
        if name == "creat":
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        elif name == "openat2":
            flags = struct.unpack("<Q", caller.memory.read(args[2], 8))[0]
        else:
            flags = args[at + 1] & 0xFFFFFFFF
        if flags & os.O_PATH:
            raise Proceed
        node = self._nodes.get(path)
        if node is not None:
            self._open_node(notification, caller, node, flags)
            return
        hook = self._hooks.get(path)
        if hook is not None:
            self._open_hook(notification, hook(caller.task(), flags), flags)
            return
        text = self._mount_file(caller, path)
        if text is None:
            raise Proceed
        self._give_text(notification, text, flags)

    def _open_node(
        self, notification: Notification, caller: Caller, node: DeviceNode, flags: int
    ) -> None:
        task = caller.task()
        # The node may have been given to somebody else since the boot.
        allowed = _permits(self._tree.status(node), task, flags)
        if not allowed and not caller.has_capability(CAP_DAC_OVERRIDE):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        file = node.device.open(task, flags)
        if node.storage is not None:
            self._open_content(notification, node, file, flags)
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.shutdown(socket.SHUT_WR)  # read(2) on the board's end returns 0
        inode = os.fstat(theirs.fileno()).st_ino
        self._open_files[inode] = (node, file)

        def closed(events: int) -> None:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._board.on_ready(ours.fileno(), 0, closed)
                ours.close()
                if self._open_files.pop(inode, None) is not None:
                    file.close()
            else:
                ours.recv(1 << 16)

        self._board.on_ready(ours.fileno(), select.EPOLLIN, closed)
        self._give(notification, theirs, flags)

    def _open_content(
        self, notification: Notification, node: DeviceNode, file: DeviceFile, flags: int
    ) -> None:
        name, cloexec = self._tree.content(node), bool(flags & os.O_CLOEXEC)
        self._disks[f"{NODES_TARGET}/{name}"] = (node, file)

        def done(fd: int, number: int) -> None:
            if number:
                self._listener.fail(notification.id, number)
                return
            self._listener.reply_fd(notification.id, fd, cloexec=cloexec)
            # close(2) is a request to the FUSE mount, which this thread has to answer.
            self._board.run_later(lambda: os.close(fd))

        self._board.open_content(name, flags & _CONTENT_FLAGS, done)

    def _open_hook(self, notification: Notification, result: OpenResult, flags: int) -> None:
        if result is None:
            raise Proceed
        if isinstance(result, bytes):
            self._give_text(notification, result, flags)
        elif isinstance(result, socket.socket):
            self._give(notification, result, flags)
        else:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._drain_sources()
            records = _Records(self._board, ours, result, self._sources)
            records.pump()
            if records.behind and flags & os.O_NONBLOCK:
                # It would be told EAGAIN before the end; dmesg falls back on syslog(2).
                theirs.close()
                records.close()
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._give(notification, theirs, flags)

    def _mount_file(self, caller: Caller, path: str) -> str | None:
        if path in ("/etc/mtab", "/proc/mounts"):
            path = "/proc/self/mounts"
        _, proc, *middle, name = path.split("/")
        if proc != "proc" or not middle or name not in _MOUNT_FILES:
            return None
        if middle[0] in ("self", "thread-self"):
            pid = str(caller.pid)
        elif middle[0].isdigit():
            pid = f"{self._init.pid}/root/proc/{middle[0]}"
        else:
            return None
        with open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as file:  # noqa: PTH123
            entries = self._view.apply(parse_mountinfo(file.read()))
        return "".join(getattr(entry, name)() for entry in entries)

    def _give_text(self, notification: Notification, text: str | bytes, flags: int) -> None:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        content = text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
        writer = os.memfd_create("text", os.MFD_CLOEXEC)
        try:
            os.write(writer, content)
            reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writer)
        try:
            self._listener.reply_fd(notification.id, reader, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(reader)

    def _give(self, notification: Notification, theirs: socket.socket, flags: int) -> None:
        with theirs:
            if flags & os.O_NONBLOCK:
                fcntl.fcntl(theirs, fcntl.F_SETFL, os.O_NONBLOCK)
            fd, cloexec = theirs.fileno(), bool(flags & os.O_CLOEXEC)
            self._listener.reply_fd(notification.id, fd, cloexec=cloexec)

    # --- ioctl ---

    def _ioctl(self, notification: Notification, caller: Caller) -> None:
        fd, request, argument = notification.args[:3]
        link = caller.descriptor(fd)
        if request & 0xFFFFFFFF in IOCTL_REQUESTS:
            self._set_flags(notification, caller, request & 0xFFFFFFFF)
            return
        opened = None
        if link.startswith(_SOCKET_LINK):
            opened = self._open_files.get(int(link[len(_SOCKET_LINK) : -1]))
        else:
            opened = self._disks.get(link)
        if opened is None:
            raise Proceed
        args = notification.args[:3]
        lost = self._undelivered.pop(caller.pid, None)
        if lost is not None and lost[0] == args:
            # The call was carried out before a signal interrupted and restarted it.
            self._return(notification, caller, args, lost[1])
            return
        node, file = opened
        # A character device judged its user when it was opened; to read who it is takes a third
        # of the time of an ioctl.
        task = caller.task() if node.storage is not None else Task.kernel()

        def work() -> None:
            result = file.ioctl(request & 0xFFFFFFFF, argument, caller.memory, task)
            self._return(notification, caller, args, result)

        if node.device.may_sleep(request & 0xFFFFFFFF):
            self._sleep(notification, task, work)
        else:
            with running(task):
                work()

    def _return(
        self,
        notification: Notification,
        caller: Caller,
        args: tuple[int, ...],
        result: int | ReturnedFd,
    ) -> None:
        if isinstance(result, int):
            delivered = self._listener.reply(notification.id, result)
        else:
            delivered = self._listener.reply_fd(notification.id, result.fd, cloexec=True)
            if delivered and result.close_after:
                os.close(result.fd)
        if not delivered:
            self._undelivered[caller.pid] = (args, result)

    def _set_flags(self, notification: Notification, caller: Caller, request: int) -> None:
        fd, _, argument = notification.args[:3]
        info = caller.descriptor_info(fd)
        entry = self._entry(caller, int(info["mnt_id"]))
        mount = self._devices.get(entry.device) if entry else None
        if entry is None or mount is None:
            raise Proceed
        if entry.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if request == FS_IOC_SETFLAGS:
            flags = struct.unpack("<I", caller.memory.read(argument, 4))[0]
        else:
            flags = flags_from_xattr(caller.memory.read(argument, 28))
        filesystem = mount.filesystem
        task = caller.task()
        ino = int(info["ino"]) if "ino" in info else self._inode(caller, fd, entry, mount, task)
        capable = caller.has_capability(CAP_LINUX_IMMUTABLE)
        task.capable = capable
        if not capable and filesystem.getattr(task, ino).uid != task.uid:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        def work() -> None:
            filesystem.setflags(task, ino, flags)
            self._listener.reply(notification.id, 0)

        if filesystem.may_sleep("setflags"):
            self._sleep(notification, task, work)
        else:
            work()

    def _inode(
        self, caller: Caller, fd: int, entry: MountEntry, mount: FuseMount, task: Task
    ) -> int:
        """By name, before Linux 5.15."""
        inside = posixpath.relpath(caller.descriptor(fd), entry.path)
        return _walk(mount.filesystem, task, inside)

    # --- statfs ---

    def _statfs(self, notification: Notification, caller: Caller) -> None:
        if self._names[notification.number] == "fstatfs":
            info = caller.descriptor_info(notification.args[0])
            entry = self._entry(caller, int(info["mnt_id"]))
            inside = "."
        else:
            path = os.fsdecode(caller.memory.read_string(notification.args[0]))
            entry, inside = self._locate(caller, path)
        mount = self._devices.get(entry.device) if entry else None
        if entry is None or mount is None:
            raise Proceed
        task = caller.task()
        address = notification.args[1]

        def work() -> None:
            _walk(mount.filesystem, task, inside)
            st = mount.filesystem.statfs(task)
            major, minor = map(int, entry.device.split(":"))
            fields = StatFsFields(
                mount.magic, st.bsize, st.blocks, st.bfree, st.bavail, st.files, st.ffree,
                encode_dev(major, minor), st.namelen, st.frsize, _st_flags(entry),
            )  # fmt: skip
            caller.memory.write(address, fields.pack())
            self._listener.reply(notification.id, 0)

        if mount.filesystem.may_sleep("statfs"):
            self._sleep(notification, task, work)
        else:
            work()

    def _locate(self, caller: Caller, path: str) -> tuple[MountEntry | None, str]:
        """The mount that ``path`` leads to, and the way from its root, for FUSE mounts.

        The supervisor may not look inside a FUSE mount of the board, so symlinks are followed up
        to its root only; :func:`_walk` does the rest."""
        entries = caller.mounts()
        names = caller.absolute(path).split("/")[1:]
        done = "/"
        for _ in range(_MAXIMUM_STEPS):
            # A nested mount may begin further down the path.
            entry = containing(entries, posixpath.join(done, *names))
            if entry is not None and entry.device in self._devices:
                return entry, posixpath.relpath(posixpath.join(done, *names), entry.path)
            if not names:
                return entry, "."
            step = posixpath.join(done, names.pop(0))
            try:
                target = os.readlink(f"/proc/{caller.pid}/root{step}")  # noqa: PTH115
            except OSError:
                done = step  # no link, or no such name: the kernel will say
            else:
                whole = posixpath.normpath(posixpath.join(done, target, *names))
                done, names = "/", whole.lstrip("/").split("/")
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    # --- fstat ---

    def _fstat(self, notification: Notification, caller: Caller) -> None:
        """An open block device is a regular file to the kernel."""
        name = self._names[notification.number]
        fd, address = notification.args[0] & 0xFFFFFFFF, notification.args[1]
        if name != "fstat":
            if fd == _AT_FDCWD or (address and caller.memory.read_string(address)):
                raise Proceed
            address = notification.args[2 if name == "newfstatat" else 4]
        opened = self._disks.get(caller.descriptor(fd))
        if opened is None:
            raise Proceed
        attr = self._tree.status(opened[0])
        status = NodeStat(
            self._nodes_device, attr.ino, attr.mode, attr.uid, attr.gid, attr.rdev, attr.mtime
        )
        packed = status.pack_statx() if name == "statx" else status.pack(host_architecture())
        caller.memory.write(address, packed)
        self._listener.reply(notification.id, 0)

    # --- efivarfs, where FUSE differs ---

    def _lseek(self, notification: Notification, caller: Caller) -> None:
        if not self._on_efivarfs(caller.descriptor(notification.args[0])):
            raise Proceed
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))  # no llseek (K6 fs/efivarfs/file.c)

    def _write(self, notification: Notification, caller: Caller) -> None:
        """A write(2) of nothing, or of more than one FUSE request carries."""
        fd, address, length = notification.args[:3]
        task, ino = self._written_variable(fd, caller)
        data = caller.memory.read(address, min(length, REFUSED_WRITE))

        def work() -> None:
            self._listener.reply(notification.id, self._handlers.write_efivarfs(task, ino, data))

        self._sleep(notification, task, work)

    def _writev(self, notification: Notification, caller: Caller) -> None:
        """writev(2) of several parts: each is a write by itself, because efivarfs has no write_iter
        (K6 fs/read_write.c, do_loop_readv_writev)."""
        fd, address, count = notification.args[:3]
        task, ino = self._written_variable(fd, caller)
        if count > _IOV_MAX:
            raise Proceed  # EINVAL
        vector = list(_IOVEC.iter_unpack(caller.memory.read(address, count * _IOVEC.size)))
        if not sum(length for _, length in vector):
            raise Proceed  # 0
        parts = [
            caller.memory.read(base, min(length, REFUSED_WRITE))
            for number, (base, length) in enumerate(vector)
            if length or number == 0
        ]

        def work() -> None:
            written = 0
            for part in parts:
                try:
                    written += self._handlers.write_efivarfs(task, ino, part)
                except OSError:
                    if not written:
                        raise
                    break
            self._listener.reply(notification.id, written)

        self._sleep(notification, task, work)

    def _written_variable(self, fd: int, caller: Caller) -> tuple[Task, int]:
        """Who writes, and to which inode; Proceed where ``fd`` is no variable open for writing."""
        if not self._on_efivarfs(caller.descriptor(fd)):
            raise Proceed
        info = caller.descriptor_info(fd)
        if int(info["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
            raise Proceed  # EBADF
        entry = self._entry(caller, int(info["mnt_id"]))
        mount = self._devices.get(entry.device) if entry else None
        if entry is None or mount is None:
            raise Proceed
        task = caller.task()
        ino = int(info["ino"]) if "ino" in info else self._inode(caller, fd, entry, mount, task)
        return task, ino

    def _on_efivarfs(self, path: str) -> bool:
        """Whether ``path`` is a variable; the directory itself is an ordinary one."""
        return posixpath.dirname(path) in self._efivarfs_targets

    def _find_efivarfs(self) -> set[str]:
        entries = self._view.apply(self._init.mounts())
        return {entry.path for entry in entries if entry.type == "efivarfs"}

    # --- mounts ---

    def _find_mounts(self, plan: JailPlan) -> tuple[BoardView, dict[str, FuseMount]]:
        entries = self._init.mounts()
        nodes = next(entry.device for entry in entries if entry.path == NODES_TARGET)
        self._nodes_device = os.makedev(*map(int, nodes.split(":")))
        devices = {}
        for mount in plan.filesystems:
            entry = next((e for e in reversed(entries) if e.path == mount.target), None)
            if entry is not None:
                devices[entry.device] = mount
        view = BoardView(
            {device: mount.type for device, mount in devices.items()},
            lambda device: devices[device].filesystem.read_only,
            lambda device: self._handlers.shown_options(devices[device].type),
        )
        targets = {mount.target for mount in plan.filesystems} | _PUBLIC
        last = {entry.path: entry.id for entry in entries}
        view.hidden = {
            entry.id
            for entry in entries
            if entry.path not in targets or entry.id != last[entry.path]
        }
        return view, devices

    def _entry(self, caller: Caller, mount_id: int) -> MountEntry | None:
        return next((entry for entry in caller.mounts() if entry.id == mount_id), None)

    def _mount(self, notification: Notification, caller: Caller) -> None:
        source, target, kind, flags, data = notification.args[:5]
        memory = caller.memory

        def text(address: int) -> str:
            return os.fsdecode(memory.read_string(address)) if address else ""

        path = caller.absolute(text(target))
        if flags & MS_REMOUNT and not flags & MS_BIND:
            entry = containing(caller.mounts(), path)
            if entry is None or entry.path != path or not self._is_efivarfs(entry):
                raise Proceed
            self._remount(notification, caller, path, flags, text(data))
        elif flags & _NOT_A_NEW_MOUNT == 0 and text(kind) == "efivarfs":
            self._mount_efivarfs(notification, caller, text(source), path, flags, text(data))
        else:
            raise Proceed

    def _is_efivarfs(self, entry: MountEntry) -> bool:
        mount = self._devices.get(entry.device)
        return mount is not None and mount.type == "efivarfs"

    def _mount_efivarfs(
        self,
        notification: Notification,
        caller: Caller,
        source: str,
        path: str,
        flags: int,
        options: str,
    ) -> None:
        _require(caller, CAP_SYS_ADMIN)
        first = not self._efivarfs_targets
        if flags & MS_RDONLY:
            options = f"ro,{options}"
        read_only = self._handlers.mount_efivarfs(caller.task(), first, options)

        def done(value: object, number: int) -> None:
            if number == 0 and isinstance(value, int):
                self._view.sources[value] = source or "none"
                self._efivarfs_targets = self._find_efivarfs()
                self._listener.reply(notification.id, 0)
            else:
                if first:
                    self._handlers.unmounted_efivarfs()
                self._listener.fail(notification.id, number)

        if first:
            self._board.request(("superblock", read_only), lambda *_: None)
        own = flags & _PER_MOUNT
        own |= 0 if flags & MS_NOATIME else MS_RELATIME
        self._board.request(("mount", path, own), done)

    def _remount(
        self, notification: Notification, caller: Caller, path: str, flags: int, options: str
    ) -> None:
        _require(caller, CAP_SYS_ADMIN)
        read_only = bool(flags & MS_RDONLY)
        task = caller.task()
        if not read_only:
            self._handlers.remount_efivarfs(task, False, options)

        def done(value: object, number: int) -> None:
            def answer() -> None:
                if number:
                    raise OSError(number, os.strerror(number))
                if read_only:
                    # Only now: the kernel says EBUSY before it asks the file system.
                    self._handlers.remount_efivarfs(task, True, options)
                self._listener.reply(notification.id, 0)

            self._settle(notification, answer)

        self._board.request(("remount", path, flags), done)

    def _umount(self, notification: Notification, caller: Caller) -> None:
        path = caller.absolute(os.fsdecode(caller.memory.read_string(notification.args[0])))
        entry = containing(caller.mounts(), path)
        if entry is None or entry.path != path:
            raise Proceed
        if entry.id in self._view.hidden:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not self._is_efivarfs(entry):
            raise Proceed
        _require(caller, CAP_SYS_ADMIN)

        def done(value: object, number: int) -> None:
            if number:
                self._listener.fail(notification.id, number)
                return
            self._efivarfs_targets = self._find_efivarfs()
            if not self._efivarfs_targets:
                self._handlers.unmounted_efivarfs()
            self._listener.reply(notification.id, 0)

        self._board.request(("umount", path, notification.args[1]), done)

    # --- the rest ---

    def _uname(self, notification: Notification, caller: Caller) -> None:
        name = self._handlers.uname()
        packed = pack_utsname(
            name.sysname, self._hostname, name.release, name.version, name.machine, "(none)"
        )
        caller.memory.write(notification.args[0], packed)
        self._listener.reply(notification.id, 0)

    def _sethostname(self, notification: Notification, caller: Caller) -> None:
        address, length = notification.args[:2]
        if caller.has_capability(CAP_SYS_ADMIN) and length <= 64:
            self._hostname = os.fsdecode(caller.memory.read(address, length))
        raise Proceed

    def _drain_sources(self) -> None:
        """What is written to a record device is there for the next reader when write(2)
        returns."""
        for records in list(self._sources):
            records.drain()

    def _syslog(self, notification: Notification, caller: Caller) -> None:
        action, address, size = (value & 0xFFFFFFFFFFFFFFFF for value in notification.args[:3])
        self._drain_sources()
        result = self._handlers.syslog(caller.task(), action & 0xFFFFFFFF, size & 0x7FFFFFFF)
        if isinstance(result, bytes):
            caller.memory.write(address, result)
            result = len(result)
        self._listener.reply(notification.id, result)

    def _load_module(self, notification: Notification, caller: Caller) -> None:
        _require(caller, CAP_SYS_MODULE)
        first, second, third = notification.args[:3]
        from_file = self._names[notification.number] == "finit_module"
        path = caller.descriptor(first) if from_file else ""
        parameters = os.fsdecode(caller.memory.read_string(second if from_file else third))
        task = caller.task()

        def work() -> None:
            self._handlers.load_module(task, path, parameters)
            self._listener.reply(notification.id, 0)

        self._sleep(notification, task, work)

    def _unload_module(self, notification: Notification, caller: Caller) -> None:
        _require(caller, CAP_SYS_MODULE)
        name = os.fsdecode(caller.memory.read_string(notification.args[0]))
        task = caller.task()

        def work() -> None:
            self._handlers.unload_module(task, name)
            self._listener.reply(notification.id, 0)

        self._sleep(notification, task, work)

    def _reboot(self, notification: Notification, caller: Caller) -> None:
        _require(caller, CAP_SYS_BOOT)
        magic, magic2, command = (value & 0xFFFFFFFF for value in notification.args[:3])
        if magic != _REBOOT_MAGIC[0] or magic2 not in _REBOOT_MAGIC[1]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if command in _REBOOT_CAD:
            self._listener.reply(notification.id, 0)
            return
        # No answer: the caller waits for the end, like everything else.
        self._handlers.reboot(caller.task(), command)


_PUBLIC: Final = frozenset(
    {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/run", "/tmp", "/var"}
)
"""Mounts of the jail that a board has too."""


def _require(caller: Caller, capability: int) -> None:
    if not caller.has_capability(capability):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _permits(status: Attr, task: Task, flags: int) -> bool:
    """generic_permission() for open(2), without capabilities."""
    wanted = {os.O_RDONLY: 4, os.O_WRONLY: 2}.get(flags & os.O_ACCMODE, 6)
    shift = 6 if task.uid == status.uid else 3 if task.gid == status.gid else 0
    return status.mode >> shift & wanted == wanted


def _st_flags(entry: MountEntry) -> int:
    words = {*entry.options.split(","), *entry.super_options.split(",")[:1]}
    return _ST_VALID | sum(bit for word, bit in _ST_OPTIONS.items() if word in words)


def _walk(filesystem: Filesystem, task: Task, inside: str) -> int:
    """The inode at path ``inside`` the file system; :class:`Proceed` where a link leads out."""
    trail = [filesystem.root]
    names = [name for name in inside.split("/") if name not in ("", ".")]
    links = 0
    while names:
        name = names.pop(0)
        if name == "..":
            if len(trail) == 1:
                raise Proceed
            trail.pop()
            continue
        attr = filesystem.lookup(task, trail[-1], os.fsencode(name))
        if stat.S_ISLNK(attr.mode):
            links += 1
            if links > 40:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.fsdecode(filesystem.readlink(task, attr.ino))
            if target.startswith("/"):
                raise Proceed
            names[:0] = [part for part in target.split("/") if part not in ("", ".")]
        else:
            trail.append(attr.ino)
    return trail[-1]


class _Records:
    """One open descriptor of a record device or a sink."""

    def __init__(
        self,
        board: Board,
        sock: socket.socket,
        target: WriteSink | MessageSource,
        registry: list[_Records],
    ) -> None:
        self._board = board
        self._sock = sock
        self._target = target
        self._registry = registry
        self._pending: bytes | None = None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _RECORD_BUFFER)
        registry.append(self)
        board.on_ready(sock.fileno(), select.EPOLLIN, self._ready)

    @property
    def behind(self) -> bool:
        """Whether records wait for room in the reader's buffer."""
        return self._pending is not None

    def pump(self) -> None:
        """Send records until the reader has caught up or its buffer is full."""
        if isinstance(self._target, WriteSink):
            return
        events = select.EPOLLIN
        try:
            while True:
                if self._pending is None:
                    self._pending = self._target.next_message()
                if self._pending is None:
                    break
                self._sock.send(self._pending)
                self._pending = None
        except BlockingIOError:
            events |= select.EPOLLOUT
        except OSError:
            return  # the reader is going; EPOLLHUP follows
        self._board.on_ready(self._sock.fileno(), events, self._ready)

    def close(self) -> None:
        """Forget the descriptor."""
        if self in self._registry:
            self._registry.remove(self)
            self._board.on_ready(self._sock.fileno(), 0, self._ready)
            self._sock.close()
            if not isinstance(self._target, WriteSink):
                self._target.closed()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self.pump()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self.drain()

    def drain(self) -> None:
        """Take everything that was written so far."""
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # closed with records unread; what it wrote is still queued
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            if isinstance(self._target, WriteSink):
                self._target.received(data)
            else:
                self._target.written(data)
