"""What of the kernel lives in the board's userland machinery, and its services, broken."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any, Final

from emulation import board
from emulation.linux.efivarfs import Efivarfs
from emulation.linux.efivarfs_names import lookup_key
from emulation.linux.kernel import Task
from emulation.mutants.registry import Original, Patches, Registry
from emulation.userland.handlers import KernelHandlers
from emulation.userland.jail import dispatch, fuse
from emulation.userland.jail.caller import CAP_LINUX_IMMUTABLE, Caller, Proceed
from emulation.userland.jail.calls import mounts
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.fuse import FuseConnection
from emulation.userland.jail.syscalls import MS_RDONLY
from emulation.userland.system import board_units
from emulation.userland.system.units import ProcessUnit

mutants: Final = Registry("userland")

_FUSE_SUPER_MAGIC: Final = 0x65735546


@mutants("statfs(2) says that efivarfs is another file system", "mounts", "tools")
def wrong_file_system_magic(patches: Patches) -> None:
    patches.replace(board, "EFIVARFS_MAGIC", _FUSE_SUPER_MAGIC)


@mutants("any user may clear the immutable flag", "immutable", "permissions")
def chattr_by_anybody(patches: Patches) -> None:
    def has_capability(original: Original, self: Caller, number: int) -> bool:
        return number == CAP_LINUX_IMMUTABLE or bool(original(self, number))

    patches.wrap(Caller, "has_capability", has_capability)


@mutants("variables can be renamed", "links")
def rename_accepted(patches: Patches) -> None:
    def rename(self: FuseConnection, names: memoryview) -> tuple[bytes, ...]:
        filesystem = self.filesystem
        if not isinstance(filesystem, Efivarfs):
            raise OSError(errno.EPERM, "rename")
        old, new = bytes(names).split(b"\0")[:2]
        inode = filesystem._child(filesystem.root, old)
        dentry = filesystem._children[inode.ino]
        filesystem._uncache(dentry)
        moved = filesystem._children[inode.ino] = replace(dentry, name=new)
        filesystem._by_key[lookup_key(new)] = moved
        return ()

    def prepare(original: Original, self: FuseConnection, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._operations[fuse._RENAME] = lambda task, ino, body: rename(self, body[8:])
        self._operations[fuse._RENAME2] = lambda task, ino, body: rename(self, body[16:])

    patches.wrap(FuseConnection, "__init__", prepare)


@mutants("mkdir, links and renames are not implemented instead of not permitted", "links")
def links_not_implemented(patches: Patches) -> None:
    patches.replace(fuse, "_REFUSED", {})


@mutants("lseek(2) moves in a variable's file", "reads")
def seek_accepted(patches: Patches) -> None:
    def lseek(call: Call) -> None:
        raise Proceed

    calls = (
        replace(call, answer=lseek) if call.name == "lseek" else call
        for call in dispatch.SYSTEM_CALLS
    )
    patches.replace(dispatch, "SYSTEM_CALLS", tuple(calls))


@mutants("a write(2) of no bytes succeeds", "writes")
def empty_write_accepted(patches: Patches) -> None:
    def write(original: Original, self: KernelHandlers, task: Task, ino: int, data: bytes) -> int:
        written: int = original(self, task, ino, data) if data else 0
        return written

    patches.wrap(KernelHandlers, "write_efivarfs", write)


@mutants("a write(2) beyond any message is cut off instead of refused", "sizes")
def huge_write_truncated(patches: Patches) -> None:
    def write(original: Original, self: KernelHandlers, task: Task, ino: int, data: bytes) -> int:
        original(self, task, ino, data[:1024])
        return len(data)

    patches.wrap(KernelHandlers, "write_efivarfs", write)


@mutants("remounting with ro has no effect", "mounts", "takeover")
def remount_read_only_ignored(patches: Patches) -> None:
    def remount(original: Original, call: Call, path: str, flags: int, options: str) -> None:
        if flags & MS_RDONLY:
            call.reply(0)
        else:
            original(call, path, flags, options)

    patches.wrap(mounts, "_remount", remount)


@mutants("tee-supplicant is a build with RPMB_EMU, so no write reaches the card", "create")
def supplicant_emulates_rpmb(patches: Patches) -> None:
    def prepare(
        original: Original,
        self: ProcessUnit,
        file: Any,
        journal: Any,
        spawner: Any,
        argv: Any,
        *rest: Any,
    ) -> None:
        emulating = (*argv, "--rpmb-emu") if file is board_units.SUPPLICANT else argv
        original(self, file, journal, spawner, emulating, *rest)

    patches.wrap(ProcessUnit, "__init__", prepare)
