"""The zygote, and the board's PID 1.

The supervisor has threads, so it never forks: at its start it executes this module as a small
process of its own, the *zygote*, which prepares a child in new namespaces ahead of time.  On a
power-on that child forks PID 1, which builds the root file system from a list of steps made by
:mod:`emulation.userland.jail.jail` and then reaps, spawns and mounts on request.

If the supervisor dies its sockets close: the zygote and PID 1 exit.  If the zygote dies the rest
follows by PR_SET_PDEATHSIG, and with PID 1 the kernel ends every process and mount of the board.
Only the standard library is used; everything needed is imported before the host's root goes away.
"""

# No pathlib, which would add to the time of every power-on.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH108, PTH112, PTH119, PTH120, PTH123, PTH211

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
import sys
import termios
import traceback
from typing import Any, NoReturn

from emulation.userland.jail import namespaces, seccomp, wire
from emulation.userland.jail.namespaces import IdMaps, bind, mount, umount
from emulation.userland.jail.syscalls import (
    CLONE_NEWUSER,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    host_architecture,
    prctl,
    raw,
    unshare,
)

_PROC_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC


class StepFailed(Exception):
    """A step of building the namespaces failed."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.step = step
        self.error = error


@contextlib.contextmanager
def step(name: str) -> Any:
    """Name what an ``OSError`` inside the block was about."""
    try:
        yield
    except OSError as error:
        raise StepFailed(name, error) from error


# --- zygote ---------------------------------------------------------------------------------------


def zygote(control_fd: int) -> NoReturn:
    """Fork a board for every request, until the supervisor closes its end."""
    control = socket.socket(fileno=control_fd)
    prctl(PR_SET_NAME, b"board-zygote")
    spare = _prepare(control)
    while True:
        received = wire.receive(control)
        if received is None:
            os._exit(0)
        _, fds = received
        with contextlib.suppress(OSError):
            wire.send(spare, ("start",), tuple(fds))
        for fd in fds:
            os.close(fd)
        spare.close()
        spare = _prepare(control)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _prepare(control: socket.socket) -> socket.socket:
    """A child that has its namespaces and waits for the word to become a board."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        control.close()
        ours.close()
        try:
            _wait_for_power(theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    received = wire.receive(ours)
    if received is not None and received[0][0] == "unshared":
        _map_ids(ours, pid)
    return ours


def _map_ids(child: socket.socket, pid: int) -> None:
    failure: OSError | None = None
    for maps in namespaces.choose_maps():
        try:
            namespaces.write_maps(pid, maps)
        except OSError as error:
            failure = error
            continue
        lines = [[(p.inside, p.outside, p.count) for p in part] for part in (maps.uids, maps.gids)]
        wire.send(child, ("mapped", *lines))
        return
    wire.send(child, ("unmapped", failure.errno if failure else 0, str(failure)))


def _wait_for_power(parent: socket.socket) -> None:
    """The waiting child: unshare, wait, fork PID 1, outlive it."""
    failure: StepFailed | None = None
    maps: tuple[Any, ...] = ()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        with step("unshare(CLONE_NEWUSER)"):
            unshare(CLONE_NEWUSER)
        wire.send(parent, ("unshared",))
        with step("uid_map"):
            received = wire.receive(parent)
            if received is None:
                return
            if received[0][0] != "mapped":
                raise OSError(*received[0][1:])
            maps = received[0][1:]
        with step("unshare(mount, PID, network, IPC, UTS)"):
            unshare(namespaces.NAMESPACES)
    except StepFailed as error:
        failure = error
        wire.send(parent, ("failed",))
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # unshare(CLONE_NEWUSER) cleared it
    received = wire.receive(parent)
    if received is None:
        return
    plan_fd, control_fd = received[1]
    control = socket.socket(fileno=control_fd)
    if failure is not None:
        _report(control, failure)
        return
    pid = os.fork()
    if pid == 0:
        parent.close()
        try:
            _become_init(control, wire.load(plan_fd))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    wire.send(control, ("pid", pid, *maps))
    control.close()
    os.close(plan_fd)
    parent.close()
    os.waitpid(pid, 0)


def _report(control: socket.socket, failure: StepFailed) -> None:
    error = failure.error
    with contextlib.suppress(OSError):
        wire.send(control, ("error", failure.step, error.errno or 0, str(error)))


# --- PID 1 ----------------------------------------------------------------------------------------


def _become_init(control: socket.socket, plan: dict[str, Any]) -> None:
    cookie = secrets.randbits(64)
    try:
        hidden, nodes = _Builder(control, plan).build()
        with step("seccomp filter"):
            listener = seccomp.install(seccomp.build_filter(host_architecture(), cookie))
    except StepFailed as failure:
        _report(control, failure)
        return
    namespaces.set_cookie(cookie)
    wire.send(control, ("listener",), (listener,))
    os.close(listener)
    _Init(control, hidden, nodes).run()


class _Builder:
    """Builds the root file system; steps are tuples (name, arguments...), methods here."""

    def __init__(self, control: socket.socket, plan: dict[str, Any]) -> None:
        self._control = control
        self._plan = plan
        self._covers = 0
        self._hidden = -1
        self._nodes = -1

    def build(self) -> tuple[int, int]:
        """Returns O_PATH descriptors of the hidden efivarfs root, or -1, and of the nodes'."""
        plan = self._plan
        sources, fuse = [], []
        for path in plan["sources"]:
            with step(f"open {path}"):
                sources.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        for _ in range(plan["fuse_mounts"]):
            with step("open /dev/fuse"):
                fuse.append(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        self._sources, self._fuse = sources, fuse
        with step("become root of the board"):
            _become_root()
        with step("mount tmpfs"):
            mount(None, "/", None, MS_REC | MS_PRIVATE)
            mount("tmpfs", "/tmp", "tmpfs", 0, "mode=755")
            os.chdir("/tmp")
        with step("mount proc"):
            os.mkdir("proc")
            mount("proc", "proc", "proc", _PROC_FLAGS)
        with step("pivot_root"):
            os.mkdir(".old")
            raw("pivot_root", b".", b".old")
            os.chdir("/")
        for name, *arguments in plan["steps"]:
            with step(f"{name} {arguments[-1] if name == 'bind_source' else arguments[0]}"):
                getattr(self, name)(*arguments)
        with step("leave the host's root"):
            umount("/.old", MNT_DETACH)
            os.rmdir("/.old")
        for fd in (*sources, *fuse):
            os.close(fd)
        with step("sethostname"):
            socket.sethostname(plan["hostname"])
        _raise_loopback()
        _hide_arguments("/sbin/init")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        return self._hidden, self._nodes

    def directory(self, path: str, mode: int) -> None:
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)

    def symlink(self, path: str, target: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(target, path)

    def file(self, path: str, content: bytes, mode: int) -> None:
        """An ordinary file, or one bound over a name that cannot be written."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if path.startswith(("/proc/", "/sys/", "/usr/")) or os.path.ismount(path):
            self._covers += 1
            cover = f"/run/board/cover{self._covers}"
            self.file(cover, content, mode)
            mount(cover, path, None, MS_BIND)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(fd, mode)
        os.write(fd, content)
        os.close(fd)

    def tmpfs(self, path: str, options: str, flags: int) -> None:
        os.makedirs(path, exist_ok=True)
        mount("tmpfs", path, "tmpfs", flags, options)

    def devpts(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        flags = MS_NOSUID | MS_NOEXEC
        try:
            mount("devpts", path, "devpts", flags, "newinstance,ptmxmode=0666,mode=620,gid=5")
        except OSError:  # group tty has no id in this namespace
            mount("devpts", path, "devpts", flags, "newinstance,ptmxmode=0666,mode=600")

    def bind_source(self, index: int, read_only: bool, path: str) -> None:
        source = f"/proc/self/fd/{self._sources[index]}"
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        elif not os.path.lexists(path):
            self.file(path, b"", 0o644)
        mount(source, path, None, MS_BIND | MS_REC)
        if read_only:
            namespaces.make_read_only(path)

    def bind_path(self, source: str, path: str, flags: int) -> None:
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        elif not os.path.lexists(path):
            self.file(path, b"", 0o644)
        bind(source, path, flags)

    def fuse(self, index: int, path: str, flags: int) -> None:
        os.makedirs(path, exist_ok=True)
        fd = self._fuse[index]
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        mount("fuse", path, "fuse", flags, options)
        # Not before: a descriptor without a mount gives EPERM.
        wire.send(self._control, ("fuse", index), (fd,))

    def hide_efivarfs(self, path: str, read_only: bool) -> None:
        """Keep the root of efivarfs, so that the superblock outlives the board's mounts."""
        self._hidden = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if read_only:
            namespaces.set_superblock_read_only(self._hidden, True)

    def keep_nodes(self, path: str) -> None:
        """Keep the root of the device nodes, where the contents of block devices are."""
        self._nodes = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def read_only(self, path: str) -> None:
        bind(path, path, namespaces.mount_flags(path) | MS_RDONLY)


def _become_root() -> None:
    """Root of the board's namespace, whoever started it on the host."""
    with contextlib.suppress(PermissionError):  # denied with a map of a single id
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl(PR_SET_DUMPABLE, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def _raise_loopback() -> None:
    """``ip link set lo up``; a board without a network is still a board."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        _, flags = struct.unpack("16sh22x", request)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _hide_arguments(title: str) -> None:
    """Show ``title`` instead of the host's command line and environment in ps."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # arg_start, arg_end, env_start, env_end are fields 48-51 of proc(5), 45-48 behind the name.
    for start, end, text in (
        (int(fields[45]), int(fields[46]), title),
        (int(fields[47]), int(fields[48]), ""),
    ):
        size = end - start
        if size > 0:
            ctypes.memmove(start, text.encode()[: size - 1].ljust(size, b"\0"), size)
    prctl(PR_SET_NAME, os.path.basename(title).encode())


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

    def __init__(self, control: socket.socket, hidden: int, nodes: int) -> None:
        self._control = control
        self._hidden = hidden
        self._nodes = nodes

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

    def on_spawn(
        self,
        sequence: int,
        fds: list[int],
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        uid: int,
        gid: int,
        tty: bool,
    ) -> tuple[int, tuple[int, ...]]:
        pid = os.fork()
        if pid == 0:
            try:
                _execute(fds, argv, env, cwd, uid, gid, tty)
            finally:
                os._exit(127)
        return pid, ()

    def on_signal(
        self, sequence: int, fds: list[int], pid: int, number: int
    ) -> tuple[int, tuple[int, ...]]:
        os.kill(pid, number)
        return 0, ()

    def on_pty(self, sequence: int, fds: list[int]) -> tuple[str, tuple[int, ...]]:
        master, slave = os.openpty()
        return os.ttyname(slave), (master, slave)

    def on_open(
        self, sequence: int, fds: list[int], name: str, flags: int
    ) -> tuple[int, tuple[int, ...]]:
        """The content of a block device: a board's FUSE mount is closed to the supervisor."""
        return 0, (os.open(name, flags | os.O_CLOEXEC, dir_fd=self._nodes),)

    def on_superblock(
        self, sequence: int, fds: list[int], read_only: bool
    ) -> tuple[int, tuple[int, ...]]:
        namespaces.set_superblock_read_only(self._hidden, read_only)
        return 0, ()

    def on_mount(
        self, sequence: int, fds: list[int], target: str, flags: int
    ) -> tuple[None, tuple[int, ...]]:
        def work() -> int:
            bind(f"/proc/self/fd/{self._hidden}", target, flags)
            return _mount_id(target)

        return self._in_child(sequence, work)

    def on_remount(
        self, sequence: int, fds: list[int], target: str, flags: int
    ) -> tuple[None, tuple[int, ...]]:
        def work() -> int:
            mount(None, target, None, flags)
            return 0

        return self._in_child(sequence, work)

    def on_umount(
        self, sequence: int, fds: list[int], target: str, flags: int
    ) -> tuple[None, tuple[int, ...]]:
        def work() -> int:
            umount(target, flags)
            return 0

        return self._in_child(sequence, work)

    def _in_child(self, sequence: int, work: Any) -> tuple[None, tuple[int, ...]]:
        """A path may lead through a file system that does not answer; PID 1 must not wait."""
        if os.fork() == 0:
            try:
                try:
                    self._reply(sequence, work(), 0, ())
                except OSError as error:
                    self._reply(sequence, 0, error.errno or errno.EIO, ())
            finally:
                os._exit(0)
        return None, ()


def _mount_id(path: str) -> int:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file)
    finally:
        os.close(fd)
    return int(fields[b"mnt_id"])


def _execute(
    fds: list[int], argv: list[str], env: dict[str, str], cwd: str, uid: int, gid: int, tty: bool
) -> None:
    """In the child: become ``argv``, or say on descriptor 2 why not."""
    try:
        os.setsid()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in fds]
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


def id_maps(lines: tuple[list[tuple[int, int, int]], ...]) -> IdMaps:
    """The maps as the zygote reports them."""
    uids, gids = (tuple(namespaces.IdRange(*part) for part in lines[i]) for i in (0, 1))
    return IdMaps(uids, gids)


if __name__ == "__main__":
    zygote(int(sys.argv[1]))
