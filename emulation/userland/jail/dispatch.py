"""Answers the system calls that seccomp hands over, on behalf of the kernel model.

Runs in the jail thread; what may sleep moves to a worker thread and is answered from there.  What
the model has no opinion on is handed back to the kernel (`proceed`).  A new one is a function
below :mod:`emulation.userland.jail.calls`, its line in :data:`SYSTEM_CALLS`, and its name in
:data:`emulation.userland.jail.seccomp.NOTIFIED`.
"""

from __future__ import annotations

from typing import Final

from emulation.userland.jail.beneath import Tree
from emulation.userland.jail.caller import Caller
from emulation.userland.jail.calls import devices, efivarfs, mounts, opens, system
from emulation.userland.jail.calls.call import Call, Shared, SystemCall
from emulation.userland.jail.layout import NODES_TARGET
from emulation.userland.jail.namespaces import IdMaps
from emulation.userland.jail.nodes import NodeTree
from emulation.userland.jail.paths import Mounts
from emulation.userland.jail.plan import JailPlan, SyscallHandlers
from emulation.userland.jail.seccomp import Listener, Notification
from emulation.userland.jail.supervisor import Supervisor
from emulation.userland.jail.syscalls import host_architecture, prompt_readlink, read_path

SYSTEM_CALLS: Final = (
    SystemCall("open", opens.open_path, path=0),
    SystemCall("creat", opens.open_path, path=0),
    SystemCall("openat", opens.open_path, path=1),
    SystemCall("openat2", opens.open_path, path=1),
    SystemCall("ioctl", devices.ioctl),
    SystemCall("fstat", devices.fstat, of_disks=True),
    SystemCall("newfstatat", devices.fstat, of_disks=True),
    SystemCall("statx", devices.fstat, of_disks=True),
    SystemCall("lseek", efivarfs.lseek),
    SystemCall("write", efivarfs.write),
    SystemCall("writev", efivarfs.writev),
    SystemCall("statfs", mounts.statfs),
    SystemCall("fstatfs", mounts.statfs),
    SystemCall("mount", mounts.mount),
    SystemCall("umount2", mounts.umount),
    SystemCall("uname", system.uname),
    SystemCall("sethostname", system.sethostname),
    SystemCall("syslog", system.syslog),
    SystemCall("init_module", system.load_module),
    SystemCall("finit_module", system.load_module),
    SystemCall("delete_module", system.unload_module),
    SystemCall("reboot", system.reboot),
)


class Dispatcher:
    """One power-on's system calls."""

    def __init__(
        self,
        plan: JailPlan,
        handlers: SyscallHandlers,
        supervisor: Supervisor,
        maps: IdMaps,
        init_pid: int,
        proc: Tree,
        listener: Listener,
        tree: NodeTree,
    ) -> None:
        """``init_pid``: PID 1, which nobody looks into; ``proc``: the board's /proc, whatever it
        mounts over that."""
        self._maps = maps
        self._init_pid = init_pid
        self._home = ""
        self._shared = Shared(
            supervisor=supervisor,
            listener=listener,
            handlers=handlers,
            tree=tree,
            mounts=Mounts(plan, handlers, proc),
            nodes={node.path: node for node in plan.nodes},
            hooks=dict(plan.open_hooks),
            interesting=opens.interesting_names(plan),
            hostname=plan.hostname,
        )
        numbers = host_architecture().numbers
        self._calls = {numbers[call.name]: call for call in SYSTEM_CALLS if call.name in numbers}

    def serve(self) -> None:
        """Take one notification and answer it, now or later."""
        shared = self._shared
        notification = shared.listener.receive()
        if notification is None:
            return
        if notification.pid == self._init_pid:
            shared.listener.proceed(notification.id)
            return
        if not self._home:
            # Of the first program of the board, which cannot have made a namespace yet.
            self._home = Caller(notification.pid, self._maps).user_namespace()
        kind = self._calls[notification.number]
        if kind.path is not None:
            # Nearly all of them, and nearly all of these are the kernel's own business.
            path = read_path(notification.pid, notification.args[kind.path])
            if path is not None and path.rpartition(b"/")[2] not in shared.interesting:
                shared.listener.proceed(notification.id)
                return
        elif kind.of_disks and not (shared.tree.handles and _may_be_device(notification)):
            shared.listener.proceed(notification.id)
            return
        caller = Caller(notification.pid, self._maps, self._home)
        call = Call(kind.name, notification, caller, shared)
        call.settle(lambda: kind.answer(call))

    def poke(self) -> None:
        """Record devices may have news."""
        for records in tuple(self._shared.records):
            records.pump()

    def close(self) -> None:
        """The power is gone."""
        self._shared.close()


def _may_be_device(notification: Notification) -> bool:
    """Whether the call's descriptor leads to the node tree: hardly ever, and fstat(2) is frequent.
    The tee-supplicant always has a device open."""
    try:
        fd = notification.args[0] & 0xFFFFFFFF
        return prompt_readlink(f"/proc/{notification.pid}/fd/{fd}").startswith(NODES_TARGET)
    except PermissionError:
        return True
    except OSError:
        return False
