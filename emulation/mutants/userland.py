"""What of the kernel lives in the board's userland machinery, and its services, broken."""

import errno
from dataclasses import replace
from typing import Any, Final

from emulation import board
from emulation.linux.efivarfs import Efivarfs
from emulation.linux.efivarfs_names import lookup_key
from emulation.linux.kernel import Task
from emulation.mutants.mutant import Mutant, Original, Patches
from emulation.userland.handlers import KernelHandlers
from emulation.userland.jail import dispatch, fuse
from emulation.userland.jail.caller import CAP_LINUX_IMMUTABLE, Caller, Proceed
from emulation.userland.jail.calls import mounts
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.fuse import FuseConnection
from emulation.userland.jail.syscalls import MS_RDONLY
from emulation.userland.system import board_units
from emulation.userland.system.units import ProcessUnit

_FUSE_SUPER_MAGIC: Final = 0x65735546


def wrong_file_system_magic(patches: Patches) -> None:
    """statfs(2) says that efivarfs is another file system"""
    patches.replace(board, "EFIVARFS_MAGIC", _FUSE_SUPER_MAGIC)


def chattr_by_anybody(original: Original, self: Caller, number: int) -> bool:
    """any user may clear the immutable flag"""
    return number == CAP_LINUX_IMMUTABLE or bool(original(self, number))


def rename_accepted(patches: Patches) -> None:
    """variables can be renamed"""

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


def links_not_implemented(patches: Patches) -> None:
    """mkdir, links and renames are not implemented instead of not permitted"""
    patches.replace(fuse, "_REFUSED", {})


def seek_accepted(patches: Patches) -> None:
    """lseek(2) moves in a variable's file"""

    def lseek(call: Call) -> None:
        raise Proceed

    calls = (
        replace(call, answer=lseek) if call.name == "lseek" else call
        for call in dispatch.SYSTEM_CALLS
    )
    patches.replace(dispatch, "SYSTEM_CALLS", tuple(calls))


def empty_write_accepted(
    original: Original, self: KernelHandlers, task: Task, ino: int, data: bytes
) -> int:
    """a write(2) of no bytes succeeds"""
    written: int = original(self, task, ino, data) if data else 0
    return written


def huge_write_truncated(
    original: Original, self: KernelHandlers, task: Task, ino: int, data: bytes
) -> int:
    """a write(2) beyond any message is cut off instead of refused"""
    original(self, task, ino, data[:1024])
    return len(data)


def remount_read_only_ignored(
    original: Original, call: Call, path: str, flags: int, options: str
) -> None:
    """remounting with ro has no effect"""
    if flags & MS_RDONLY:
        call.reply(0)
    else:
        original(call, path, flags, options)


def supplicant_emulates_rpmb(
    original: Original, self: ProcessUnit, *args: Any, **kwargs: Any
) -> None:
    """tee-supplicant is a build with RPMB_EMU, so no write reaches the card"""
    original(self, *args, **kwargs)
    if self.file is board_units.SUPPLICANT:
        self._argv = (*self._argv, "--rpmb-emu")


MUTANTS: Final = (
    Mutant(wrong_file_system_magic, ("mounts", "tools")),
    Mutant(chattr_by_anybody, ("immutable", "permissions"), Caller, "has_capability"),
    Mutant(rename_accepted, ("links",)),
    Mutant(links_not_implemented, ("links",)),
    Mutant(seek_accepted, ("reads",)),
    Mutant(empty_write_accepted, ("writes",), KernelHandlers, "write_efivarfs"),
    Mutant(huge_write_truncated, ("sizes",), KernelHandlers, "write_efivarfs"),
    Mutant(remount_read_only_ignored, ("mounts", "takeover"), mounts, "_remount"),
    Mutant(supplicant_emulates_rpmb, ("create",), ProcessUnit, "__init__"),
)
