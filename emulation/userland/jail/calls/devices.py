"""Device nodes: open files of drivers, and the contents of block devices."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from functools import partial
from typing import Final

from emulation.linux.devices import DeviceNode, ReturnedFd
from emulation.linux.kernel import Task
from emulation.linux.vfs import Attr
from emulation.userland.jail.caller import CAP_DAC_OVERRIDE, Proceed
from emulation.userland.jail.calls import efivarfs
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.layout import NODES_TARGET
from emulation.userland.jail.paths import AT_FDCWD
from emulation.userland.jail.seccomp import IOCTL_REQUESTS
from emulation.userland.jail.syscalls import NodeStat, host_architecture

_CONTENT_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_SYNC
"""Flags of open(2) that stay with an open device."""


def open_node(call: Call, node: DeviceNode, flags: int) -> None:
    """open(2) of a device node."""
    shared, task = call.shared, call.caller.task()
    # The node may have been given to somebody else since the boot.
    allowed = _permits(shared.tree.status(node), task, flags)
    if not allowed and not call.caller.has_capability(CAP_DAC_OVERRIDE):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    shared.require_room()
    file = node.device.open(task, flags)
    if node.storage is not None:
        name = shared.tree.content(node)
        lost = file.close
    else:
        name = shared.tree.opened(node, lambda: closed())
        lost = partial(shared.tree.forget, name)
    path = f"{NODES_TARGET}/{name}"
    shared.files[path] = (node, file)

    def closed() -> None:
        if shared.files.pop(path, None) is not None:
            file.close()

    def done(fd: int, number: int) -> None:
        if number:
            lost()
            call.fail(number)
            return
        call.reply_fd(fd, cloexec=bool(flags & os.O_CLOEXEC))
        # close(2) is a request to the FUSE mount, which this thread has to answer.
        shared.supervisor.run_later(lambda: os.close(fd))

    shared.supervisor.open_content(name, flags & _CONTENT_FLAGS, done)


def give(call: Call, theirs: socket.socket, flags: int) -> None:
    """The caller's open(2) returns the socket, which is closed here."""
    with theirs:
        if flags & os.O_NONBLOCK:
            fcntl.fcntl(theirs, fcntl.F_SETFL, os.O_NONBLOCK)
        call.reply_fd(theirs.fileno(), cloexec=bool(flags & os.O_CLOEXEC))


def _permits(status: Attr, task: Task, flags: int) -> bool:
    """generic_permission() for open(2), without capabilities."""
    wanted = {os.O_RDONLY: 4, os.O_WRONLY: 2}.get(flags & os.O_ACCMODE, 6)
    shift = 6 if task.uid == status.uid else 3 if task.gid == status.gid else 0
    return status.mode >> shift & wanted == wanted


def ioctl(call: Call) -> None:
    """ioctl(2) of a device, or one of those that the VFS answers itself."""
    shared, caller, args = call.shared, call.caller, call.args[:3]
    fd, request, argument = args
    request &= 0xFFFFFFFF
    link = caller.descriptor(fd)
    if request in IOCTL_REQUESTS:
        efivarfs.set_flags(call, request)
        return
    opened = shared.files.get(link)
    if opened is None:
        raise Proceed
    lost = shared.undelivered.pop(caller.pid, None)
    if lost is not None and lost[0] == args:
        # The call was carried out before a signal interrupted and restarted it.
        _return(call, lost[1])
        return
    node, file = opened
    # A character device judged its user when it was opened; to read who it is takes a third
    # of the time of an ioctl.
    task = caller.task() if node.storage is not None else Task.kernel()

    def work() -> None:
        _return(call, file.ioctl(request, argument, caller.memory, task))

    call.run(task, work, sleeps=node.device.may_sleep(request))


def _return(call: Call, result: int | ReturnedFd) -> None:
    if isinstance(result, int):
        delivered = call.reply(result)
    else:
        delivered = call.reply_fd(result.fd, cloexec=True)
        if delivered and result.close_after:
            os.close(result.fd)
    if not delivered:
        call.shared.undelivered[call.caller.pid] = (call.args[:3], result)


def fstat(call: Call) -> None:
    """An open device is a regular file to the kernel."""
    memory, shared = call.caller.memory, call.shared
    fd, address = call.args[0] & 0xFFFFFFFF, call.args[1]
    if call.name != "fstat":
        if fd == AT_FDCWD or (address and memory.read_string(address)):
            raise Proceed
        address = call.args[2 if call.name == "newfstatat" else 4]
    opened = shared.files.get(call.caller.descriptor(fd))
    if opened is None:
        raise Proceed
    attr = shared.tree.status(opened[0])
    status = NodeStat(
        shared.mounts.nodes_device, attr.ino, attr.mode, attr.uid, attr.gid, attr.rdev, attr.mtime
    )
    packed = status.pack_statx() if call.name == "statx" else status.pack(host_architecture())
    memory.write(address, packed)
    call.reply(0)
