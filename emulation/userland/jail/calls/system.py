"""The system as a whole: its name, its log, its modules, its end."""

from __future__ import annotations

import errno
import os
from typing import Final

from emulation.userland.jail.caller import CAP_SYS_ADMIN, CAP_SYS_BOOT, CAP_SYS_MODULE, Proceed
from emulation.userland.jail.calls.call import Call
from emulation.userland.jail.syscalls import pack_utsname

_REBOOT_MAGIC: Final = (0xFEE1DEAD, (672274793, 85072278, 369367448, 537993216))
_REBOOT_CAD: Final = (0x89ABCDEF, 0)


def uname(call: Call) -> None:
    """uname(2)."""
    name = call.shared.handlers.uname()
    packed = pack_utsname(
        name.sysname, call.shared.hostname, name.release, name.version, name.machine, "(none)"
    )
    call.caller.memory.write(call.args[0], packed)
    call.reply(0)


def sethostname(call: Call) -> None:
    """sethostname(2): the kernel's, and remembered here."""
    address, length = call.args[:2]
    if call.caller.has_capability(CAP_SYS_ADMIN) and length <= 64:
        call.shared.hostname = os.fsdecode(call.caller.memory.read(address, length))
    raise Proceed


def syslog(call: Call) -> None:
    """syslog(2)."""
    action, address, size = (value & 0xFFFFFFFFFFFFFFFF for value in call.args[:3])
    call.shared.drain_records()
    task = call.caller.task()
    result = call.shared.handlers.syslog(task, action & 0xFFFFFFFF, size & 0x7FFFFFFF)
    if isinstance(result, bytes):
        call.caller.memory.write(address, result)
        result = len(result)
    call.reply(result)


def load_module(call: Call) -> None:
    """init_module(2) and finit_module(2)."""
    caller = call.caller
    caller.require(CAP_SYS_MODULE)
    first, second, third = call.args[:3]
    from_file = call.name == "finit_module"
    path = caller.descriptor(first) if from_file else ""
    parameters = os.fsdecode(caller.memory.read_string(second if from_file else third))
    task = caller.task()

    def work() -> None:
        call.shared.handlers.load_module(task, path, parameters)
        call.reply(0)

    call.run(task, work)


def unload_module(call: Call) -> None:
    """delete_module(2)."""
    call.caller.require(CAP_SYS_MODULE)
    name = os.fsdecode(call.caller.memory.read_string(call.args[0]))
    task = call.caller.task()

    def work() -> None:
        call.shared.handlers.unload_module(task, name)
        call.reply(0)

    call.run(task, work)


def reboot(call: Call) -> None:
    """reboot(2)."""
    call.caller.require(CAP_SYS_BOOT)
    magic, magic2, command = (value & 0xFFFFFFFF for value in call.args[:3])
    if magic != _REBOOT_MAGIC[0] or magic2 not in _REBOOT_MAGIC[1]:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if command in _REBOOT_CAD:
        call.reply(0)
        return
    # No answer: the caller waits for the end, like everything else.
    call.shared.handlers.reboot(call.caller.task(), command)
