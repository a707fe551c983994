"""open(2) and its kin: device nodes, files of the model below /proc, the mount table."""

from __future__ import annotations

import errno
import os
import posixpath
import socket
import struct
from typing import Final

from emulation.userland.jail.caller import Proceed
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.calls.devices import give, open_node
from emulation.userland.jail.paths import absolute
from emulation.userland.jail.plan import JailPlan, OpenResult
from emulation.userland.jail.records import Records

_MOUNT_FILES: Final = ("mounts", "mountinfo", "mountstats")
"""Files of /proc/PID that show the mount table."""


def interesting_names(plan: JailPlan) -> frozenset[bytes]:
    """Last names of all that is not the kernel's own business to open."""
    last = (posixpath.basename(path) for path in (*(n.path for n in plan.nodes), *plan.open_hooks))
    return frozenset(name.encode() for name in (*last, *_MOUNT_FILES, "mtab"))


def open_path(call: Call) -> None:
    """open(2), creat(2), openat(2), openat2(2)."""
    args, caller, shared = call.args, call.caller, call.shared
    in_directory = call.name.startswith("openat")
    at = 1 if in_directory else 0
    raw_path = caller.memory.read_string(args[at])
    if raw_path.rpartition(b"/")[2] not in shared.interesting:
        raise Proceed
    path = absolute(caller, raw_path, args[0]) if in_directory else absolute(caller, raw_path)
    if call.name == "creat":
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    elif call.name == "openat2":
        flags = struct.unpack("<Q", caller.memory.read(args[2], 8))[0]
    else:
        flags = args[at + 1] & 0xFFFFFFFF
    if flags & os.O_PATH:
        raise Proceed
    if (node := shared.nodes.get(path)) is not None:
        open_node(call, node, flags)
    elif (hook := shared.hooks.get(path)) is not None:
        _open_hook(call, hook(caller.task(), flags), flags)
    elif (text := _mount_file(call, path)) is not None:
        _give_text(call, text.encode(errors="surrogateescape"), flags)
    else:
        raise Proceed


def _open_hook(call: Call, result: OpenResult, flags: int) -> None:
    if result is None:
        raise Proceed
    if isinstance(result, bytes):
        _give_text(call, result, flags)
    elif isinstance(result, socket.socket):
        give(call, result, flags)
    else:
        call.shared.require_room()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        call.shared.drain_records()
        records = Records(call.shared.supervisor, ours, result, call.shared.records)
        records.pump()
        if records.behind and flags & os.O_NONBLOCK:
            # It would be told EAGAIN before the end; dmesg falls back on syslog(2).
            theirs.close()
            records.close()
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        give(call, theirs, flags)


def _mount_file(call: Call, path: str) -> str | None:
    """The mount table as the board sees it, where ``path`` is a file that shows one."""
    mounts = call.shared.mounts
    if path in ("/etc/mtab", "/proc/mounts"):
        path = "/proc/self/mounts"
    _, proc, *middle, name = path.split("/")
    if proc != "proc" or not middle or name not in _MOUNT_FILES:
        return None
    if middle[0] in ("self", "thread-self"):
        table = call.caller.mounts()
    elif middle[0].isdecimal():
        table = mounts.table(middle[0])
    else:
        return None
    entries = mounts.view.apply(table)
    return "".join(getattr(entry, name)() for entry in entries)


def _give_text(call: Call, content: bytes, flags: int) -> None:
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    writer = os.memfd_create("text", os.MFD_CLOEXEC)
    try:
        os.write(writer, content)
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
    try:
        call.reply_fd(reader, cloexec=bool(flags & os.O_CLOEXEC))
    finally:
        os.close(reader)
