"""Mounting efivarfs, and statfs(2) of every file system of the model."""

from __future__ import annotations

import errno
import os
from typing import Final

from emulation.userland.jail.caller import CAP_SYS_ADMIN, Proceed
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.mounts import MountEntry, containing
from emulation.userland.jail.paths import Named, Opened, absolute
from emulation.userland.jail.syscalls import (
    CHANGES_A_MOUNT,
    MS_BIND,
    MS_NOATIME,
    MS_RDONLY,
    MS_RELATIME,
    MS_REMOUNT,
    PER_MOUNT,
    encode_dev,
    pack_statfs,
)

_ST_OPTIONS: Final = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048,
    "relatime": 4096,
}  # fmt: skip
_ST_VALID: Final = 0x20


def statfs(call: Call) -> None:
    """statfs(2) and fstatfs(2)."""
    caller, (first, address) = call.caller, call.args[:2]
    where: Named | Opened
    if by_name := call.name == "statfs":
        where = call.shared.mounts.named(caller, caller.memory.read_string(first))
    else:
        where = call.shared.mounts.opened(caller, first)
    filesystem = where.mount.filesystem
    task = caller.task()

    def work() -> None:
        if by_name:
            where.inode(task)  # the name has to be there
        st = filesystem.statfs(task)
        major, minor = map(int, where.entry.device.split(":"))
        packed = pack_statfs(
            where.mount.magic, st.bsize, st.blocks, st.bfree, st.bavail, st.files, st.ffree,
            encode_dev(major, minor), st.namelen, st.frsize, _st_flags(where.entry),
        )  # fmt: skip
        caller.memory.write(address, packed)
        call.reply(0)

    call.run(task, work, sleeps=filesystem.may_sleep("statfs"))


def _st_flags(entry: MountEntry) -> int:
    words = {*entry.options.split(","), *entry.super_options.split(",")[:1]}
    return _ST_VALID | sum(bit for word, bit in _ST_OPTIONS.items() if word in words)


def mount(call: Call) -> None:
    """mount(2): a new mount of efivarfs, or new flags for one."""
    source, target, kind, flags, data = call.args[:5]
    memory = call.caller.memory

    def text(address: int) -> str:
        return os.fsdecode(memory.read_string(address)) if address else ""

    path = absolute(call.caller, memory.read_string(target) if target else b"")
    if flags & MS_REMOUNT and not flags & MS_BIND:
        entry = containing(call.caller.mounts(), path)
        if entry is None or entry.path != path or not call.shared.mounts.is_efivarfs(entry):
            raise Proceed
        _remount(call, path, flags, text(data))
    elif flags & CHANGES_A_MOUNT == 0 and text(kind) == "efivarfs":
        _mount_efivarfs(call, text(source), path, flags, text(data))
    else:
        raise Proceed


def _mount_efivarfs(call: Call, source: str, path: str, flags: int, options: str) -> None:
    call.caller.require(CAP_SYS_ADMIN)
    shared = call.shared
    first = not shared.mounts.efivarfs
    if flags & MS_RDONLY:
        options = f"ro,{options}"
    read_only = shared.handlers.mount_efivarfs(call.caller.task(), first, options)

    def done(value: object, number: int) -> None:
        if number == 0 and isinstance(value, int):
            shared.mounts.view.sources[value] = source or "none"
            shared.mounts.look_for_efivarfs()
            call.reply(0)
        else:
            if first:
                shared.handlers.unmounted_efivarfs()
            call.fail(number)

    if first:
        shared.supervisor.request(("superblock", read_only), lambda *_: None)
    own = flags & PER_MOUNT
    own |= 0 if flags & MS_NOATIME else MS_RELATIME
    shared.supervisor.request(("mount", path, own), done)


def _remount(call: Call, path: str, flags: int, options: str) -> None:
    call.caller.require(CAP_SYS_ADMIN)
    read_only = bool(flags & MS_RDONLY)
    handlers, task = call.shared.handlers, call.caller.task()
    if not read_only:
        handlers.remount_efivarfs(task, False, options)

    def done(value: object, number: int) -> None:
        def answer() -> None:
            if number:
                raise OSError(number, os.strerror(number))
            if read_only:
                # Only now: the kernel says EBUSY before it asks the file system.
                handlers.remount_efivarfs(task, True, options)
            call.reply(0)

        call.settle(answer)

    call.shared.supervisor.request(("remount", path, flags), done)


def umount(call: Call) -> None:
    """umount2(2); what the jail mounted for itself is no mount point."""
    mounts = call.shared.mounts
    path = absolute(call.caller, call.caller.memory.read_string(call.args[0]))
    entry = containing(call.caller.mounts(), path)
    if entry is None or entry.path != path:
        raise Proceed
    if entry.id in mounts.view.hidden:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if not mounts.is_efivarfs(entry):
        raise Proceed
    call.caller.require(CAP_SYS_ADMIN)

    def done(value: object, number: int) -> None:
        if number:
            call.fail(number)
            return
        mounts.look_for_efivarfs()
        if not mounts.efivarfs:
            call.shared.handlers.unmounted_efivarfs()
        call.reply(0)

    call.shared.supervisor.request(("umount", path, call.args[1]), done)
