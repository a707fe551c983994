"""Walls taken down, one each: code for the supervisor (``here``) and for the zygote and PID 1
(``there``). Only tests have them: the product has no such switch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Breach:
    """What is executed before anything runs."""

    here: str = ""
    there: str = ""

    def __add__(self, other: Breach) -> Breach:
        return Breach(f"{self.here}\n{other.here}", f"{self.there}\n{other.there}")


NONE = Breach()

OPEN_INIT = Breach(
    there="""
from emulation.userland.jail import builder
real_prctl = builder.prctl
def prctl(option, value):
    real_prctl(option, 1 if option == builder.PR_SET_DUMPABLE else value)
builder.prctl = prctl
"""
)

BELIEVE_INIT = Breach(
    here="""
import os
from emulation.userland.jail import jail
def take(self, message, fds):
    kind, *arguments = message
    if kind == "pid" and arguments:
        self._pidfd = os.pidfd_open(arguments[0])
    else:
        getattr(self, f"_on_{kind}")(fds, *arguments)
jail.Jail._take = take
"""
)

FOLLOW_LINKS = Breach(
    here="""
from emulation.userland.system import rootfs
def persistent(state):
    made = []
    for name in ("root", "var"):
        source = state / "rootfs" / name
        source.mkdir(parents=True, exist_ok=True)
        made.append(rootfs.Bind(source, f"/{name}", writable=True))
    for name in ("lib", "log", "cache", "tmp"):
        (state / "rootfs" / "var" / name).mkdir(exist_ok=True)
    (state / "rootfs" / "var" / "tmp").chmod(0o1777)
    return made
rootfs._persistent = persistent
"""
)

PROC_BY_NAME = Breach(
    here="""
from emulation.userland.jail import jail, mounts
heard = jail.Jail._on_listener
def listener(self, fds):
    heard(self, fds)
    def table(pid):
        with open(f"/proc/{self.pid}/root/proc/{pid}/mountinfo") as file:
            return mounts.parse_mountinfo(file.read())
    self._dispatcher._shared.mounts.table = table
jail.Jail._on_listener = listener
"""
)

ANY_CALLER = Breach(
    here="""
from emulation import board
board.RunningBoard._board_uid = lambda self, uid: 0
"""
)

MANY_CALLERS = Breach(
    here="""
from emulation.userland.system import manager
manager.MAX_CLIENTS = 1 << 20
"""
)

ANY_REQUEST = Breach(
    here="""
import json
from emulation.userland.system import manager
async def serve(self, reader, writer):
    request = json.loads(await reader.readline())
    await self._commands[request["command"]](0, list(request["arguments"]))
    writer.close()
manager.Manager._serve = serve
"""
)

OPEN_STATE = Breach(
    here="""
import os
import emulation.__main__ as program
program._close_to_others = lambda state: os.chmod(state, 0o755)
"""
)

KEYS = Breach(
    there="""
from emulation.userland.jail import seccomp
keys = ("add_key", "request_key", "keyctl")
seccomp.UNSUPPORTED = tuple(name for name in seccomp.UNSUPPORTED if name not in keys)
"""
)

OLD_KEYRING = Breach(
    there="""
from emulation.userland.jail import walls
walls.leave_behind = lambda: None
"""
)

ANY_ARCHITECTURE = Breach(
    there="""
import struct
from emulation.userland.jail import seccomp
build = seccomp.build_filter
def build_filter(architecture, cookie):
    code = build(architecture, cookie)
    allow = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    return code[:16] + allow + code[24:]
seccomp.build_filter = build_filter
"""
)

UNLOCKED = Breach(
    there="""
from emulation.userland.jail import builder, namespaces
make_read_only = namespaces.make_read_only
namespaces.make_read_only = lambda target: None
staged = builder.Builder.bind_source
def bind_source(self, index, path):
    staged(self, index, path)
    if path == "/mnt/host":
        make_read_only(path)
builder.Builder.bind_source = bind_source
"""
)

UNLIMITED = Breach(
    here="""
from emulation.userland.jail import plan
plan.Limits.rlimits = lambda self: {"RLIMIT_CORE": 0}
plan.Limits.tmpfs_options = property(lambda self: "size=50%")
"""
)

LIMIT_A_USER = Breach(
    there="""
import resource
from emulation.userland.jail import walls
enter = walls.enter_inner
def enter_inner(maps, limits):
    most = limits.pop("RLIMIT_NPROC")
    enter(maps, limits)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
walls.enter_inner = enter_inner
"""
)

MANY_DEVICES = Breach(
    here="""
from emulation.userland.jail.calls import call
call.MAX_DEVICE_FILES = 1 << 20
"""
)

_SHARED = """
from emulation.userland.jail import namespaces
namespaces.NAMESPACES &= ~{flag}
"""

HOST_NETWORK = Breach(there=_SHARED.format(flag="namespaces.CLONE_NEWNET"))
HOST_IPC = Breach(there=_SHARED.format(flag="namespaces.CLONE_NEWIPC"))
