"""The running kernel as the models see it: tasks, sleeping and waking, printk.

One :class:`Kernel` exists per power-on.  Model code is called from several worker threads of the
supervisor; each thread acts for one :class:`Task`.  :meth:`Kernel.wait` is the only place where
model code sleeps, so a fatal signal or a power cut can end every sleep.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Self

from emulation.faults import PowerLost

LOG_BUFFER_BYTES: Final = 1 << 17
"""Size of the printk ring (CONFIG_LOG_BUF_SHIFT 17, the default of K6)."""

KERN_EMERG, KERN_ALERT, KERN_CRIT, KERN_ERR = 0, 1, 2, 3
KERN_WARNING, KERN_NOTICE, KERN_INFO, KERN_DEBUG = 4, 5, 6, 7


class Killed(Exception):
    """A fatal signal ended a sleep: the task never returns to user space (ERESTARTSYS)."""


class Oops(Killed):
    """The task's own fault in the kernel ended it: what it held stays held."""


class FatalSignal(threading.Event):
    """A task's pending fatal signal; setting it wakes the task wherever :meth:`Kernel.wait` sleeps.

    A plain event would leave the sleeper asleep, or make it poll.
    """

    def __init__(self) -> None:
        super().__init__()
        self._wakers: list[Callable[[], None]] = []

    def set(self) -> None:
        """Deliver the signal; harmless when repeated."""
        super().set()
        for waker in tuple(self._wakers):
            waker()

    @contextmanager
    def waking(self, waker: Callable[[], None]) -> Iterator[None]:
        """Call ``waker`` when the signal arrives inside the block."""
        self._wakers.append(waker)
        try:
            yield
        finally:
            self._wakers.remove(waker)


@dataclass(eq=False)
class Task:
    """A thread of the board on whose behalf model code runs.

    ``pid`` is the number in the board's PID namespace, ``capable`` whether it holds the
    capabilities of root (CAP_SYS_RAWIO, CAP_LINUX_IMMUTABLE, CAP_SYS_ADMIN).
    """

    pid: int
    uid: int = 0
    gid: int = 0
    capable: bool = True
    fatal: FatalSignal = field(default_factory=FatalSignal)
    comm: str = ""

    @classmethod
    def kernel(cls, comm: str = "kworker") -> Self:
        """A kernel thread: no signal ever reaches it."""
        return cls(pid=0, comm=comm)


_current: ContextVar[Task | None] = ContextVar("current_task", default=None)


def current_task() -> Task:
    """The task this thread acts for; a kernel thread when nobody said otherwise."""
    return _current.get() or Task.kernel()


@contextmanager
def running(task: Task) -> Iterator[Task]:
    """Act for ``task`` inside the block, so that an RPC far below sleeps on its behalf."""
    token = _current.set(task)
    try:
        yield task
    finally:
        _current.reset(token)


@dataclass(frozen=True)
class LogRecord:
    """One printk line; ``sequence`` counts from 0, ``seconds`` run from the kernel's start."""

    sequence: int
    seconds: float
    level: int
    text: str

    def __str__(self) -> str:
        return f"[{self.seconds:12.6f}] {self.text}"


class KernelLog:
    """The printk ring; thread-safe."""

    def __init__(self, clock: Callable[[], float], *, capacity: int = LOG_BUFFER_BYTES) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._ring: deque[LogRecord] = deque()
        self._bytes = 0
        self.next_sequence = 0
        """Number of the record that the next printk will make; a mark for :meth:`records`."""
        self.cleared = 0
        """First sequence number after the last :meth:`clear`."""
        self._listeners: list[Callable[[LogRecord], None]] = []

    def append(self, text: str, level: int) -> LogRecord:
        """Add one record and tell the listeners, in the caller's thread."""
        with self._lock:
            record = LogRecord(self.next_sequence, self._clock(), level, text)
            self.next_sequence += 1
            self._ring.append(record)
            self._bytes += len(text)
            while self._bytes > self._capacity:
                self._bytes -= len(self._ring.popleft().text)
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(record)
        return record

    def records(self, since: int | None = None) -> list[LogRecord]:
        """Records from sequence number ``since`` on; by default those after the last clear."""
        with self._lock:
            first = self.cleared if since is None else since
            return [record for record in self._ring if record.sequence >= first]

    def clear(self) -> None:
        """What ``dmesg -C`` does: records stay in the ring and vanish from the default view."""
        with self._lock:
            self.cleared = self.next_sequence

    def listen(self, listener: Callable[[LogRecord], None]) -> None:
        """Call ``listener`` for every later record (the console, /dev/kmsg readers)."""
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[LogRecord], None]) -> None:
        """Undo :meth:`listen`."""
        with self._lock:
            self._listeners.remove(listener)


class Kernel:
    """One kernel from its start to the loss of power.

    ``lock`` guards model state.  It is never held while calling into the secure world, because
    such a call may sleep until the supplicant answers.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self.lock = threading.Condition()
        self.log = KernelLog(lambda: self.uptime)
        self.console_loglevel = 7
        self.powered = True
        """False from the power cut on."""

    @property
    def uptime(self) -> float:
        """Seconds since the kernel started."""
        return self._clock() - self._started

    def printk(self, text: str, level: int = KERN_INFO) -> None:
        """Log one line at ``level`` (0 emergency .. 7 debug)."""
        self.log.append(text, level)

    def wait(
        self, predicate: Callable[[], bool], *, task: Task, timeout: float | None = None
    ) -> bool:
        """Sleep until ``predicate`` (called with :attr:`lock` held) is true.

        Returns False when ``timeout`` seconds passed first.  Raises :class:`PowerLost` when the
        power went (whatever the predicate says), :class:`Killed` when the task has a fatal signal
        and the predicate is false (as wait_for_completion_killable, K6 kernel/sched/completion.c).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with task.fatal.waking(self.wake), self.lock:
            while True:
                self.check_power()
                if predicate():
                    return True
                if task.fatal.is_set():
                    raise Killed
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return False
                self.lock.wait(remaining)

    def wake(self) -> None:
        """Make every sleeper look at its predicate again."""
        with self.lock:
            self.lock.notify_all()

    def spawn(self, comm: str, work: Callable[[], None], *, task: Task | None = None) -> None:
        """Run ``work`` on a thread of its own for ``task``, by default a kernel thread.

        The thread ends quietly when the power goes or the task is killed.
        """

        def body() -> None:
            with suppress(PowerLost, Killed), running(task or Task.kernel(comm)):
                work()

        threading.Thread(target=body, name=comm, daemon=True).start()

    def check_power(self) -> None:
        """Raise :class:`PowerLost` if the power is gone."""
        if not self.powered:
            raise PowerLost

    def cut_power(self) -> None:
        """End every sleep with :class:`PowerLost`; later sleeps end at once."""
        with self.lock:
            self.powered = False
            self.lock.notify_all()
