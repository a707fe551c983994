"""The board's namespaces: built, entered and destroyed from the supervisor."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from emulation.userland.jail import wire
from emulation.userland.jail.beneath import Tree, tree
from emulation.userland.jail.dispatch import Dispatcher
from emulation.userland.jail.fuse import FuseConnection
from emulation.userland.jail.layout import plan_message
from emulation.userland.jail.namespaces import IdMaps, choose_maps, id_ranges
from emulation.userland.jail.nodes import NodeTree
from emulation.userland.jail.plan import JailError, JailPlan, SyscallHandlers
from emulation.userland.jail.seccomp import Listener
from emulation.userland.jail.spawner import Program, Pty
from emulation.userland.jail.workers import Workers
from emulation.userland.jail.zygote import Zygote

_WATCH_SECONDS: Final = 0.02
_ANSWER_SECONDS: Final = 10.0
# Only a board that dies meanwhile does not answer.
_SUPERBLOCK_SECONDS: Final = 2.0
_DEATH_SECONDS: Final = 5.0
_DYING_MILLISECONDS: Final = 5
_T = TypeVar("_T")
_TOLD: Final[dict[str, tuple[tuple[Any, ...], int]]] = {
    "pid": ((), 1),
    "fuse": ((int,), 1),
    "listener": ((), 2),
    "ready": ((), 0),
    "error": ((str, int, str), 0),
    "reply": ((int, (int, str), int), -1),
    "exit": ((int, int), 0),
}
"""What PID 1 says: types of the arguments and number of descriptors."""

_ANSWERS: Final[dict[str, tuple[type, int]]] = {"pty": (str, 2), "open": (int, 1)}
"""What comes with a reply to a request: type and number of descriptors; else a number."""

_AT_ANY_TIME: Final = ("reply", "exit")
_SIGKILL_BIT: Final = 1 << (signal.SIGKILL - 1)

_workers = Workers()


class Jail:
    """One power-on of the board's userland.

    Thread-safe.  ``maps``: which user ids the board has; ``pid`` is the host's number of its PID 1.
    """

    def __init__(
        self, plan: JailPlan, handlers: SyscallHandlers, on_death: Callable[[], None] | None
    ) -> None:
        self._plan = plan
        self._handlers = handlers
        self._on_death = on_death
        self._tree = NodeTree.of(plan.nodes, time.time())
        self._filesystems = [self._tree, *(mount.filesystem for mount in plan.filesystems)]
        self._lock = threading.Lock()
        self._end_lock = threading.Lock()
        self._sequence = itertools.count(1)
        self._answers: dict[int, tuple[Callable[[Any, int, list[int]], None], type, int]] = {}
        self._exits: dict[int, Callable[[int], None]] = {}
        self._empty = threading.Event()
        self._empty.set()
        self._watched: list[Callable[[], bool]] = []
        self._connections: list[FuseConnection] = []
        self._listener: Listener | None = None
        self._dispatcher: Dispatcher | None = None
        self._ready: Future[None] = Future()
        self._dead = threading.Event()
        self._killed = False
        self.pid = 0
        self.maps = IdMaps((), ())
        self._pidfd = -1
        self._proc = Tree(-1)
        self._epoll = select.epoll()
        self._handlers_of: dict[int, Callable[[int], None]] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.on_ready(self._wake, select.EPOLLIN, self._woken)
        _own_writable_binds(plan)
        self._said: set[str] = set()
        self._control = Zygote.shared().start(plan_message(plan))
        self.on_ready(self._control.fileno(), select.EPOLLIN, self._hear)
        self._thread = threading.Thread(target=self._run, name="jail", daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        plan: JailPlan,
        handlers: SyscallHandlers,
        *,
        on_death: Callable[[], None] | None = None,
        timeout: float = 10.0,
    ) -> Jail:
        """Build the namespaces and mounts; raises :class:`JailError` with the failing step.

        ``on_death`` is called once, from the jail thread, when PID 1 is gone for whatever reason;
        ``timeout`` in seconds.
        """
        jail = cls(plan, handlers, on_death)
        try:
            jail._ready.result(timeout)
        except TimeoutError:
            jail.kill()
            raise JailError("start", errno.ETIMEDOUT, f"no answer in {timeout} s") from None
        except JailError:
            jail.kill()
            raise
        return jail

    @property
    def alive(self) -> bool:
        """Whether PID 1 runs."""
        return not self._dead.is_set()

    # --- processes ---

    def spawn(self, program: Program, fds: Sequence[int], on_exit: Callable[[int], None]) -> int:
        """As a :class:`Spawner` does; ``on_exit`` is called in the jail thread."""

        def started(pid: int, _: list[int]) -> int:
            self._empty.clear()
            self._exits[pid] = on_exit
            return pid

        who = (program.uid, program.gid, program.controlling_tty)
        message = ("spawn", list(program.argv), dict(program.env), program.cwd, *who)
        return self._ask(message, started, tuple(fds))

    def signal(self, pid: int, number: int) -> None:
        """kill(2) inside the board; raises ``OSError``."""
        self._ask(("signal", pid, int(number)), lambda *_: None)

    def open_pty(self) -> Pty:
        """A new pseudo-terminal of the board's devpts."""
        return self._ask(("pty",), lambda name, fds: Pty(fds[0], fds[1], name))

    def wait_until_empty(self, timeout: float) -> bool:
        """Wait for the end of every process that was started here; False after ``timeout`` s."""
        return self._empty.wait(timeout)

    # --- for the kernel model ---

    def set_efivarfs_read_only(self, read_only: bool) -> None:
        """Set or clear SB_RDONLY of efivarfs' superblock (not the mounts' own flags).

        Callable from any thread; returns when it is done, as registering does on a board (the jail
        thread itself cannot wait). While files are open for writing the kernel says EBUSY, and the
        model's own flag has to answer."""
        done = threading.Event()
        with contextlib.suppress(OSError):
            self._send(("superblock", read_only), lambda *_: done.set())
            if threading.current_thread() is not self._thread:
                done.wait(_SUPERBLOCK_SECONDS)

    def poke(self) -> None:
        """Record devices have news: pump them. Callable from any thread; does not wait."""
        with self._end_lock, contextlib.suppress(OSError):
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def run_later(self, work: Callable[[], None]) -> None:
        """Run ``work`` on a worker thread."""
        _workers.run_later(work)

    def watch(self, still_needed: Callable[[], bool]) -> None:
        """Call ``still_needed`` now and then, in the jail thread, until it returns False."""
        self._watched.append(still_needed)
        if threading.current_thread() is not self._thread:
            self.poke()

    def has_fatal_signal(self, pid: int) -> bool:
        """Whether the board's thread ``pid`` is about to be killed, or gone.

        A signal whose default is to end the process becomes a pending SIGKILL of every thread
        (kernel/signal.c complete_signal)."""
        try:
            text = self._proc.read(f"{pid}/status", 4096)
        except OSError:
            return True
        pending = text.partition(b"\nSigPnd:")[2].split(None, 1)[0]
        return bool(int(pending, 16) & _SIGKILL_BIT)

    def request(self, message: tuple[object, ...], done: Callable[[object, int], None]) -> None:
        """Ask PID 1; ``done(value, errno)`` is called in the jail thread."""
        self._send(message, lambda value, number, _: done(value, number))

    def open_content(self, name: str, flags: int, done: Callable[[int, int], None]) -> None:
        """Have PID 1 open a file of the node tree; ``done(fd, errno)`` is called in the jail
        thread and closes the descriptor."""
        self._send(
            ("open", name, flags), lambda _, number, fds: done(-1 if number else fds[0], number)
        )

    def on_ready(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ``ready(events)`` in the jail thread when epoll says so; replaces, 0 removes."""
        known = fd in self._handlers_of
        if events == 0:
            if known:
                del self._handlers_of[fd]
                with contextlib.suppress(OSError):  # closed already
                    self._epoll.unregister(fd)
            return
        self._handlers_of[fd] = ready
        if known:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    # --- the end ---

    def kill(self) -> None:
        """Power cut: processes, mounts and FUSE connections are gone on return; idempotent."""
        with self._lock:
            first = not self._killed
            self._killed = True
        if first:
            self._kill_init()
            with self._end_lock, contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._dead.wait(_DEATH_SECONDS)
            self._thread.join(_DEATH_SECONDS)

    # --- plumbing ---

    def _send(
        self,
        message: tuple[object, ...],
        answered: Callable[[Any, int, list[int]], None],
        fds: tuple[int, ...] = (),
    ) -> None:
        kind, *arguments = message
        with self._lock:
            if self._killed or self._dead.is_set():
                raise OSError(errno.ESHUTDOWN, "the board is off")
            sequence = next(self._sequence)
            self._answers[sequence] = (answered, *_ANSWERS.get(str(kind), (int, 0)))
            try:
                wire.send(self._control, (kind, sequence, *arguments), fds)
            except OSError:
                del self._answers[sequence]
                raise

    def _ask(
        self,
        message: tuple[object, ...],
        take: Callable[[Any, list[int]], _T],
        fds: tuple[int, ...] = (),
    ) -> _T:
        """What ``take(value, descriptors)``, in the jail thread, makes of PID 1's answer."""
        future: Future[_T] = Future()

        def answered(value: Any, number: int, received: list[int]) -> None:
            if number:
                future.set_exception(OSError(number, os.strerror(number)))
            else:
                future.set_result(take(value, received))

        self._send(message, answered, fds)
        if threading.current_thread() is self._thread:
            raise RuntimeError("the jail thread cannot wait for itself")
        try:
            return future.result(_ANSWER_SECONDS)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "the board's PID 1 does not answer") from None

    def _run(self) -> None:
        looked = time.monotonic()
        try:
            while not self._dead.is_set():
                timeout = _WATCH_SECONDS if self._watched else -1
                for fd, events in self._epoll.poll(timeout):
                    ready = self._handlers_of.get(fd)
                    if ready is not None:
                        try:
                            ready(events)
                        except Exception:  # a mistake in one answer must not end the board
                            traceback.print_exc(file=sys.stderr)
                if self._watched and time.monotonic() - looked >= _WATCH_SECONDS:
                    self._look_after()
                    looked = time.monotonic()
        finally:
            self._bury()

    def _look_after(self) -> None:
        watched, self._watched = self._watched, []
        self._watched += [check for check in watched if check()]

    def _woken(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if self._dispatcher is not None:
            self._dispatcher.poke()

    def _hear(self, events: int) -> None:
        """A message of PID 1, or its end."""
        try:
            received = wire.receive(self._control)
            if received is not None:
                self._take(*received)
        except OSError:
            received = None
        except wire.Malformed as error:
            print(f"emulation: the board ends: its PID 1 is not itself ({error})", file=sys.stderr)
            received = None
        if received is None:
            self.on_ready(self._control.fileno(), 0, self._hear)
            self._await_death()

    def _take(self, message: list[Any], fds: list[int]) -> None:
        """Hear one message.  While PID 1 builds the board it is our program and nothing else runs
        there; afterwards it has answers and ends of processes to tell, which are numbers of the
        board, and nothing that it says is a process or a path of the host."""
        kind, *arguments = message
        types, count = _TOLD.get(kind, ((), -1))
        once = f"{kind} {arguments[0]}" if kind == "fuse" else kind
        try:
            if kind not in _AT_ANY_TIME:
                if self._ready.done() or once in self._said:
                    raise wire.Malformed(f"{kind!r} at the wrong time")
                self._said.add(once)
            known = len(arguments) == len(types) and all(map(isinstance, arguments, types))
            if not known or (count >= 0 and len(fds) != count):
                raise wire.Malformed(f"{kind!r} with other arguments")
            getattr(self, f"_on_{kind}")(fds, *arguments)
        except BaseException:
            wire.close_all(fds)
            raise

    def _await_death(self) -> None:
        if self._pidfd >= 0:
            self._kill_init()
            self.on_ready(self._pidfd, select.EPOLLIN, lambda _: self._dead.set())
        else:
            self._dead.set()

    def _kill_init(self) -> None:
        """End PID 1, and with it everything; then the FUSE connections.

        Those that wait for a FUSE reply die only once the connection is gone.  The others get a
        moment to die first, so that they do not see it go: a power cut gives no errors."""
        with self._end_lock:
            if self._pidfd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                dying = select.poll()
                dying.register(self._pidfd, select.POLLIN)
                dying.poll(_DYING_MILLISECONDS)
        for connection in self._connections:
            connection.close()

    def _on_pid(self, fds: list[int]) -> None:
        self._pidfd = fds[0]
        with open(f"/proc/self/fdinfo/{self._pidfd}") as file:  # noqa: PTH123
            self.pid = int(file.read().partition("\nPid:")[2].split(None, 1)[0])
        with self._lock:
            killed = self._killed
        if killed:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_fuse(self, fds: list[int], index: int) -> None:
        if not 0 <= index < len(self._filesystems):
            raise wire.Malformed("no such file system")
        pinned = _ways_to_mounts(self._plan, index - 1) if index else []
        connection = FuseConnection(self._filesystems[index], fds[0], self, pinned=pinned)
        self._connections.append(connection)

        def ready(events: int) -> None:
            if not connection.serve():
                self.on_ready(fds[0], 0, ready)

        self.on_ready(fds[0], select.EPOLLIN, ready)

    def _on_listener(self, fds: list[int]) -> None:
        self._listener = listener = Listener(fds[0])
        self._proc = Tree(fds[1])
        uids, gids = (self._proc.read(f"1/{kind}_map").decode() for kind in ("uid", "gid"))
        self.maps = IdMaps(id_ranges(uids), id_ranges(gids))
        self._dispatcher = dispatcher = Dispatcher(
            self._plan,
            self._handlers,
            self,
            self.maps,
            self.pid,
            self._proc,
            listener,
            self._tree,
        )

        def ready(events: int) -> None:
            if events & select.EPOLLIN:
                dispatcher.serve()
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                self.on_ready(fds[0], 0, ready)

        self.on_ready(fds[0], select.EPOLLIN, ready)

    def _on_ready(self, fds: list[int]) -> None:
        self._ready.set_result(None)

    def _on_error(self, fds: list[int], step: str, number: int, detail: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(JailError(step, number, detail))

    def _on_reply(self, fds: list[int], sequence: int, value: Any, number: int) -> None:
        with self._lock:
            asked = self._answers.pop(sequence, None)
        if asked is None or (not number and (type(value), len(fds)) != asked[1:]):
            raise wire.Malformed("a reply to no request")
        asked[0](value, number, fds)

    def _on_exit(self, fds: list[int], pid: int, status: int) -> None:
        on_exit = self._exits.pop(pid, None)
        if on_exit is not None:
            with contextlib.suppress(RuntimeError):  # a loop is closed: nobody is interested
                on_exit(status)
        if not self._exits:
            self._empty.set()

    def _bury(self) -> None:
        """PID 1 is gone: tell everybody who waits, close everything."""
        with self._lock:
            self._killed = True
            answers, self._answers = self._answers, {}
        if not self._ready.done():
            self._ready.set_exception(JailError("start", errno.ECHILD, "PID 1 died"))
        for answered, *_ in answers.values():
            answered(None, errno.ESHUTDOWN, [])
        for pid in tuple(self._exits):
            self._on_exit([], pid, signal.SIGKILL)
        self._empty.set()
        for connection in self._connections:
            connection.close()
        if self._dispatcher is not None:
            self._dispatcher.close()
        if self._listener is not None:
            self._listener.close()
        self._epoll.close()
        with self._end_lock:
            self._control.close()
            for fd in (self._wake, self._pidfd):
                if fd >= 0:
                    os.close(fd)
            self._wake = self._pidfd = -1
            self._proc.close()
        if self._on_death is not None:
            self._on_death()


def _ways_to_mounts(plan: JailPlan, index: int) -> list[bytes]:
    """Paths inside one file system of the plan at which others are mounted."""
    base = plan.filesystems[index].target + "/"
    targets = [mount.target for mount in plan.filesystems]
    return [os.fsencode(target[len(base) :]) for target in targets if target.startswith(base)]


def _own_writable_binds(plan: JailPlan) -> None:
    """Started by root, the board's root is nobody on the host: give it what it may write to."""
    if os.geteuid() != 0:
        return
    owner = choose_maps()[0].uids[0].outside
    for bind in plan.binds:
        if bind.writable and bind.source.is_dir():
            with tree(bind.source) as within:
                within.give(owner)
