"""The board's PID 1: builds the root file system, then reaps, spawns and mounts on request."""

# No pathlib, which would add to the time of every power-on.
# ruff: noqa: PTH119

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import secrets
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

from emulation.userland.jail import namespaces, seccomp, wire
from emulation.userland.jail.beneath import Tree
from emulation.userland.jail.builder import Builder, Roots, StepFailed, step
from emulation.userland.jail.namespaces import bind, mount, umount
from emulation.userland.jail.syscalls import host_architecture, raw

_TIOCSPTLCK, _TIOCGPTN, _TIOCGPTPEER = 0x40045431, 0x80045430, 0x5441
_AT_FDCWD, _STATX_MNT_ID = -100, 0x1000

_Answer = tuple[Any, tuple[int, ...]]
"""Value or None, when it is given later, and descriptors."""


def become_init(control: socket.socket, plan: dict[str, Any]) -> None:
    """Be PID 1, to the end; ``control`` leads to the supervisor."""
    cookie = secrets.randbits(64)
    try:
        roots = Builder(control, plan).build()
        with step("seccomp filter"):
            listener = seccomp.install(seccomp.build_filter(host_architecture(), cookie))
    except StepFailed as failure:
        report(control, failure)
        return
    namespaces.set_cookie(cookie)
    wire.send(control, ("listener",), (listener, roots.proc))
    os.close(listener)
    os.close(roots.proc)
    _Init(control, roots).run()


def report(control: socket.socket, failure: StepFailed) -> None:
    """Tell the supervisor which step failed."""
    error = failure.error
    with contextlib.suppress(OSError):
        wire.send(control, ("error", failure.step, error.errno or 0, str(error)))


def _busybox_endings() -> dict[int, str]:
    """What busybox's ``reboot`` and its kin tell init (busybox init/init.c); its shell prefers
    them to the board's own programs."""
    if os.path.basename(os.path.realpath("/bin/sh")) != "busybox":
        return {}
    return {signal.SIGTERM: "reboot", signal.SIGUSR1: "halt", signal.SIGUSR2: "poweroff"}


def _end_system(command: str) -> None:
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.execv(f"/opt/board/sbin/{command}", [command])
        finally:
            os._exit(127)


class _Init:
    """PID 1 after boot: a loop over the control socket and SIGCHLD."""

    def __init__(self, control: socket.socket, roots: Roots) -> None:
        self._control = control
        self._hidden = roots.efivarfs
        self._nodes = roots.nodes
        self._terminals = Tree(roots.pts)

    def run(self) -> None:
        wakeup, wakeup_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        endings = _busybox_endings()
        for number in endings:
            signal.signal(number, lambda *_: None)
        gc.collect()
        gc.freeze()
        gc.disable()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        wire.send(self._control, ("ready",))
        while True:
            for fd, _ in poll.poll():
                if fd == wakeup:
                    with contextlib.suppress(BlockingIOError):
                        for number in set(os.read(wakeup, 512)) & set(endings):
                            _end_system(endings[number])
                elif not self._serve():
                    return
            self._reap()

    def _serve(self) -> bool:
        received = wire.receive(self._control)
        if received is None:
            return False
        (kind, sequence, *arguments), fds = received
        try:
            value, extra = getattr(self, f"on_{kind}")(sequence, fds, *arguments)
        except OSError as error:
            self._reply(sequence, 0, error.errno or errno.EIO, ())
        else:
            if value is not None:
                self._reply(sequence, value, 0, extra)
            for fd in extra:
                os.close(fd)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _reply(self, sequence: int, value: Any, number: int, fds: tuple[int, ...]) -> None:
        wire.send(self._control, ("reply", sequence, value, number), fds)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                wire.send(self._control, ("exit", pid, status))

    # --- requests: (sequence, descriptors, arguments...) -> (value or None, descriptors) ---

    def on_spawn(self, sequence: int, fds: list[int], *program: Any) -> _Answer:
        pid = os.fork()
        if pid == 0:
            try:
                _execute(fds, *program)
            finally:
                os._exit(127)
        return pid, ()

    def on_signal(self, sequence: int, fds: list[int], pid: int, number: int) -> _Answer:
        os.kill(pid, number)
        return 0, ()

    def on_pty(self, sequence: int, fds: list[int]) -> _Answer:
        # Not by the board's names, which may lead to a file that nobody answers for.
        master = self._terminals.open("ptmx", os.O_RDWR)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        return f"/dev/pts/{number}", (master, slave)

    def on_open(self, sequence: int, fds: list[int], name: str, flags: int) -> _Answer:
        """The content of a block device: a board's FUSE mount is closed to the supervisor."""
        return 0, (os.open(name, flags | os.O_CLOEXEC, dir_fd=self._nodes),)

    def on_superblock(self, sequence: int, fds: list[int], read_only: bool) -> _Answer:
        namespaces.set_superblock_read_only(self._hidden, read_only)
        return 0, ()

    def on_mount(self, sequence: int, fds: list[int], target: str, flags: int) -> _Answer:
        def work() -> int:
            bind(f"/proc/self/fd/{self._hidden}", target, flags)
            return _mount_id(target)

        return self._in_child(sequence, work)

    def on_remount(self, sequence: int, fds: list[int], target: str, flags: int) -> _Answer:
        return self._in_child(sequence, lambda: mount(None, target, None, flags))

    def on_umount(self, sequence: int, fds: list[int], target: str, flags: int) -> _Answer:
        return self._in_child(sequence, lambda: umount(target, flags))

    def _in_child(self, sequence: int, work: Callable[[], int | None]) -> _Answer:
        """A path may lead through a file system that does not answer; PID 1 must not wait."""
        if os.fork() == 0:
            try:
                try:
                    self._reply(sequence, work() or 0, 0, ())
                except OSError as error:
                    self._reply(sequence, 0, error.errno or errno.EIO, ())
            finally:
                os._exit(0)
        return None, ()


def _mount_id(path: str) -> int:
    """STATX_MNT_ID (Linux 5.8), which opens nothing."""
    status = ctypes.create_string_buffer(256)
    raw("statx", _AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID, ctypes.addressof(status))
    return int(struct.unpack_from("<Q", status, 0x90)[0])


def _execute(
    fds: list[int], argv: list[str], env: dict[str, str], cwd: str, uid: int, gid: int, tty: bool
) -> None:
    """In the child: become ``argv``, or say on descriptor 2 why not."""
    try:
        os.setsid()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(fds)) for fd in fds]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        if tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # The supervisor may have been started in the background, where shells ignore ^C.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0o022)
        if uid or gid:
            os.setgroups([gid])
            os.setgid(gid)
            os.setuid(uid)
        try:
            os.chdir(cwd)
        except OSError:
            os.chdir("/")
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if error.errno == errno.ENOENT else 126)
