"""Runs on the target under any python3 (3.7 or later, standard library only): takes batches of
steps from one fifo, performs each as one system call, and answers into another.

``python3 target.py DIRECTORY``; the directory holds the fifos ``request`` and ``answer``.
"""

# old python3, and the system calls themselves are meant
# ruff: noqa: PTH102, PTH104, PTH106, PTH108, PTH123, PTH208, PTH211, UP031

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import sys
from typing import Any

IDLE_SECONDS = 1800  # an orphan of a killed harness ends by itself
FS_IOC_GETFLAGS = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
FS_IOC_SETFLAGS = 1 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 2
if os.uname().machine.startswith(("mips", "ppc", "sparc")):
    # these number the directions differently (include/uapi/asm-generic/ioctl.h and theirs)
    FS_IOC_GETFLAGS = 2 << 29 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
    FS_IOC_SETFLAGS = 4 << 29 | struct.calcsize("l") << 16 | ord("f") << 8 | 2


# Calls that return a number or nothing, by kind of step; the first argument is the descriptor.
PLAIN: Any = {
    "write": lambda fd, step: os.write(fd, bytes.fromhex(step["data"])),
    "writev": lambda fd, step: os.writev(fd, [bytes.fromhex(part) for part in step["parts"]]),
    "pwrite": lambda fd, step: os.pwrite(fd, bytes.fromhex(step["data"]), step["offset"]),
    "lseek": lambda fd, step: os.lseek(fd, step["offset"], step["whence"]),
    "ftruncate": lambda fd, step: os.ftruncate(fd, step["size"]),
    "truncate": lambda _, step: os.truncate(step["path"], step["size"]),
    "unlink": lambda _, step: os.unlink(step["path"]),
    "rename": lambda _, step: os.rename(step["source"], step["target"]),
    "link": lambda _, step: os.link(step["source"], step["target"]),
    "symlink": lambda _, step: os.symlink(step["target"], step["path"]),
    "mkdir": lambda _, step: os.mkdir(step["path"], step["mode"]),
    "rmdir": lambda _, step: os.rmdir(step["path"]),
    "mknod": lambda _, step: os.mknod(step["path"], step["mode"], step["device"]),
}


class Unsupported(Exception):
    """This python3 cannot take the step."""


class Steps:
    """One method for each other kind of step; returns value, data, names, fields as needed."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}

    def fd(self, step: Any) -> int:
        if step["fd"] not in self.fds:
            raise OSError(errno.EBADF, "not open")
        return self.fds[step["fd"]]

    def do_open(self, step: Any) -> Any:
        flags = 0
        for name in step["flags"].split("|"):
            if not hasattr(os, name):
                raise Unsupported("no flag " + name)
            flags |= getattr(os, name)
        old = self.fds.pop(step["fd"], None)
        if old is not None:
            os.close(old)
        self.fds[step["fd"]] = os.open(step["path"], flags, step["mode"])
        return {"value": 0}

    def do_read(self, step: Any) -> Any:
        data = os.read(self.fd(step), step["size"])
        return {"value": len(data), "data": data.hex()}

    def do_pread(self, step: Any) -> Any:
        data = os.pread(self.fd(step), step["size"], step["offset"])
        return {"value": len(data), "data": data.hex()}

    def do_fstat(self, step: Any) -> Any:
        return self.stat_fields(os.fstat(self.fd(step)))

    def do_stat(self, step: Any) -> Any:
        return self.stat_fields(os.lstat(step["path"]))

    def stat_fields(self, found: Any) -> Any:
        names = ("mode", "nlink", "uid", "gid", "ino", "size", "mtime")
        fields = [[name, int(getattr(found, "st_" + name))] for name in names]
        return {"value": found.st_size, "fields": fields}

    def do_close(self, step: Any) -> Any:
        fd = self.fd(step)
        del self.fds[step["fd"]]
        os.close(fd)
        return {"value": 0}

    def do_getflags(self, step: Any) -> Any:
        import fcntl

        buffer = bytearray(struct.calcsize("l"))
        fcntl.ioctl(self.fd(step), FS_IOC_GETFLAGS, buffer)
        return {"value": struct.unpack("I", bytes(buffer[:4]))[0]}

    def do_setflags(self, step: Any) -> Any:
        import fcntl

        fcntl.ioctl(self.fd(step), FS_IOC_SETFLAGS, struct.pack("l", step["flags"]))

    def do_statfs(self, step: Any) -> Any:
        ctypes, libc = self.libc()
        # f_type is the first member of struct statfs everywhere, a machine word
        buffer = (ctypes.c_long * 64)()
        if libc.statfs(os.fsencode(step["path"]), buffer) != 0:
            raise OSError(ctypes.get_errno(), "statfs")
        found = os.statvfs(step["path"])
        fields = [
            ["bsize", found.f_bsize],
            ["frsize", found.f_frsize],
            ["blocks", found.f_blocks],
            ["bfree", found.f_bfree],
            ["bavail", found.f_bavail],
            ["files", found.f_files],
            ["ffree", found.f_ffree],
            ["namelen", found.f_namemax],
        ]
        return {"value": buffer[0], "fields": fields}

    def do_listdir(self, step: Any) -> Any:
        names = sorted(os.listdir(os.fsencode(step["path"])))
        return {"value": len(names), "names": [name.hex() for name in names]}

    def do_systemcall(self, step: Any) -> Any:
        ctypes, libc = self.libc()
        if not hasattr(libc, step["name"]):
            raise Unsupported("the C library has no " + step["name"])
        buffer = ctypes.create_string_buffer(step["room"] or 1)
        arguments = [] if step["fd"] is None else [ctypes.c_long(self.fd(step))]
        for one in step["arguments"]:
            if one is None:
                arguments.append(buffer)
            else:
                number = isinstance(one, int)
                arguments.append(ctypes.c_long(one) if number else bytes.fromhex(one))
        call = getattr(libc, step["name"])
        call.restype = ctypes.c_long
        result = self.checked(ctypes, call(*arguments))
        return {"value": result, "data": buffer.raw[: max(0, result)].hex() if step["room"] else ""}

    def do_mmap(self, step: Any) -> Any:
        ctypes, libc = self.libc()
        libc.mmap.restype = ctypes.c_long
        size, protection, sharing = step["size"], step["protection"], step["sharing"]
        words = [0, size, protection, sharing, self.fd(step), 0]
        self.checked(ctypes, libc.mmap(*map(ctypes.c_long, words)))

    def do_poll(self, step: Any) -> Any:
        import select

        poll = select.poll()
        poll.register(self.fd(step), step["events"])
        return {"value": sum(events for _, events in poll.poll(step["timeout"]))}

    def do_signalledwrite(self, step: Any) -> Any:
        ctypes, libc = self.libc()
        data, fd = bytes.fromhex(step["data"]), self.fd(step)
        libc.write.restype = ctypes.c_long
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        pid = os.getpid()
        child = os.fork()
        if child == 0:
            # not a timer: the alarm of serve() is one
            libc.usleep(step["after"])
            os.kill(pid, signal.SIGUSR1)
            os._exit(0)
        try:
            # not os.write, which would write again when it was interrupted
            return {"value": self.checked(ctypes, libc.write(fd, data, len(data)))}
        finally:
            os.waitpid(child, 0)
            signal.signal(signal.SIGUSR1, before)

    def libc(self) -> Any:
        try:
            import ctypes
        except ImportError:
            raise Unsupported("this python3 has no ctypes") from None
        return ctypes, ctypes.CDLL(None, use_errno=True)

    def checked(self, ctypes: Any, result: int) -> int:
        if result == -1:
            raise OSError(ctypes.get_errno(), "failed")
        return result

    def take(self, step: Any) -> Any:
        kind = step["kind"]
        try:
            if kind in PLAIN:
                return {"value": PLAIN[kind](self.fd(step) if "fd" in step else None, step) or 0}
            return getattr(self, "do_" + kind)(step) or {"value": 0}
        except Unsupported as missing:
            return {"unsupported": str(missing)}
        except OSError as error:
            return {"errno": errno.errorcode.get(error.errno or 0, "E%s" % error.errno)}
        except ValueError as error:
            # e.g. NUL in a path: the C library could not have made this call
            return {"unsupported": str(error)}


def serve(directory: str) -> None:
    steps = Steps()
    while True:
        signal.alarm(IDLE_SECONDS)
        with open(directory + "/request", "rb") as request:
            batch = request.read()
        answer = [steps.take(step) for step in json.loads(batch.decode("ascii"))]
        with open(directory + "/answer", "wb") as reply:
            reply.write(json.dumps(answer).encode("ascii"))


if __name__ == "__main__":
    os.umask(0)
    serve(sys.argv[1])
