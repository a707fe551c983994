"""Leases: one holder for each physical thing of a board, on one host, for all its users.

What is locked is the serial adapter, the SSH endpoint and the outlet, not the name of a board
file: two files that describe one board exclude each other. Each thing has a file that its holder
keeps locked (fcntl(2), open file description locks), so a lease dies with its process whatever
happened to it. Waiting users keep a locked ticket; the oldest living ticket is next.

What a holder starts may use the board, too: it finds the holder's token in its environment.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from harness.errors import HostError, LabError
from harness.foreign import say
from harness.lab.holder import Holder, holder_of, lock, write

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile

LEASES_ENVIRONMENT = "HIL_LEASES"
TOKEN_ENVIRONMENT = "HIL_LEASE_TOKEN"
"""Where a process finds the token of the lease under which it was started."""
_POLL_SECONDS = 0.05
_SHARED_DIRECTORY = 0o1777
_SHARED_FILE = 0o666
_READABLE_CHARS = 60


class BoardHeld(LabError):
    """Somebody else holds the board, and the time to wait for it is over."""


class LeaseBroken(LabError):
    """Somebody took the board away on purpose; this run must not touch it again."""


@dataclass(frozen=True, slots=True)
class Status:
    """Who holds any of a board's things, and who waits for one, first come first. ``position``
    is that of the one who asks while waiting: 1 is next."""

    holders: tuple[Holder, ...]
    queue: tuple[Holder, ...]
    position: int = 0


@dataclass
class Lease:
    """The right to use a board; a context manager that gives it back.

    ``_outer`` is the lease under which this process was started, where it covers some of the
    things.
    """

    holder: Holder
    _desk: LeaseDesk
    _locks: list[int]
    _outer: Holder | None = None
    _released: threading.Event = field(default_factory=threading.Event)
    _unwatched: threading.Event = field(default_factory=threading.Event)
    _broken: LeaseBroken | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def broken(self) -> LeaseBroken | None:
        """Why the board is not ours any more, once that is so."""
        if self._broken is None and not self._released.is_set():
            who = self._desk.breaker(self.holder)
            if who is None and self._outer is not None:
                who = self._desk.breaker(self._outer)
            if who is not None:
                self._broken = LeaseBroken(
                    f"the lease was broken: {who}",
                    remedy="ask them, and wait for the board before you use it again",
                    board=self.holder.board,
                )
        return self._broken

    def check(self) -> None:
        """Raise :class:`LeaseBroken` if somebody took the board away."""
        if self.broken is not None:
            raise self.broken

    def watch(self, lost: Callable[[LeaseBroken], None], *, every: float = 0.25) -> None:
        """Call ``lost`` from a thread of its own, once, when the lease is broken; look every so
        many seconds."""

        def look() -> None:
            while not self._unwatched.wait(every):
                if self.broken is not None:
                    lost(self.broken)
                    return

        threading.Thread(target=look, name="lease watch", daemon=True).start()

    def stop_watching(self) -> None:
        """What is done from now on goes on even if the lease is broken: the breaker waits until
        the lease is released."""
        self._unwatched.set()

    def interrupt_when_broken(self) -> None:
        """Interrupt the main thread, which calls this, once the lease is broken: it sees a
        KeyboardInterrupt wherever it is, even where the process ignores ^C."""
        main = threading.get_ident()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt_if_broken)
        self.watch(lambda broken: signal.pthread_kill(main, signal.SIGINT))

    def _interrupt_if_broken(self, number: int, frame: FrameType | None) -> None:
        if self.broken is not None:
            raise KeyboardInterrupt

    def release(self) -> None:
        """Give the board back; a second call does nothing."""
        if self._released.is_set():
            return
        self._released.set()
        self._unwatched.set()
        for descriptor in self._locks:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


class LeaseDesk:
    """The leases of one host, in a directory that all its users share.

    Raises :class:`HostError` where that directory cannot be used.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or default_directory()
        self._queue = self._directory / "queue"

    def acquire(
        self,
        things: Iterable[str],
        *,
        board: str,
        purpose: str,
        timeout: float,
        waiting: Callable[[Status], None] | None = None,
    ) -> Lease:
        """Hold all ``things``, after everybody who asked before for any of them.

        Waits up to ``timeout`` seconds (0: not at all); ``waiting`` is called when the wait begins
        and whenever holder or queue change. Things that the lease covers under which this process
        was started are ours already. Raises :class:`BoardHeld`.
        """
        outer = self._inherited(things := set(things))
        wanted = tuple(sorted(things - set(outer.things if outer else ())))
        holder = Holder(
            user=_user(),
            pid=os.getpid(),
            board=board,
            purpose=purpose,
            since=time.time(),
            things=wanted,
            token=os.urandom(8).hex(),
        )
        if not wanted:
            return Lease(holder, self, [], outer)
        deadline = time.monotonic() + timeout
        shown: Status | None = None
        self._make()
        with self._ticket(holder) as ticket:
            while True:
                locks = self._try(wanted, ticket, holder)
                if locks is not None:
                    return Lease(holder, self, locks, outer)
                status = self._status_of(holder, ticket)
                if time.monotonic() >= deadline:
                    raise _held(board, status, timeout)
                if waiting is not None and status != shown:
                    waiting(status)
                shown = status
                threading.Event().wait(min(_POLL_SECONDS, max(0, deadline - time.monotonic())))

    def status(self, things: Iterable[str]) -> Status:
        """Who holds or waits for any of ``things``."""
        wanted = set(things)
        queue = [other for _, other in self._tickets() if wanted & set(other.things)]
        return Status(self._holders(wanted), tuple(queue))

    def all(self) -> Status:
        """Everything that is held or waited for on this host."""
        held: dict[str, Holder] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._directory.glob("*.lock")):
                holder = holder_of(path)
                if holder is not None:
                    held[holder.token] = holder
        return Status(tuple(held.values()), tuple(other for _, other in self._tickets()))

    def break_lease(self, things: Iterable[str], *, reason: str, timeout: float) -> list[Holder]:
        """Take a board away from its holders: tell each (its run ends by itself), wait, and end
        the process of who does not react. Returns the holders that were asked.

        Raises :class:`LabError` when one still holds it after ``timeout`` seconds.
        """
        wanted = sorted(set(things))
        victims = list(self.status(wanted).holders)
        for victim in victims:
            self._tell(victim, f"by {_user()}: {reason}")
        deadline = time.monotonic() + timeout
        for number, step in ((signal.SIGINT, deadline - timeout / 3), (signal.SIGKILL, deadline)):
            if self._gone(wanted, victims, until=step - (timeout / 6)):
                return victims
            for victim in self._remaining(wanted, victims):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(victim.pid, number)
        if self._gone(wanted, victims, until=deadline + 1):
            return victims
        left = ", ".join(map(str, self._remaining(wanted, victims)))
        raise LabError(
            f"still held by {left}",
            remedy="that process does not react and is not ours to end: ask its owner or root",
        )

    def breaker(self, holder: Holder) -> str | None:
        """Who broke the lease of ``holder`` and why, if somebody did."""
        try:
            return self._break_path(holder).read_text("utf-8")
        except OSError:
            return None

    # --- helpers ------------------------------------------------------------------------------

    def _holders(self, things: Iterable[str]) -> tuple[Holder, ...]:
        holders = {}
        for thing in sorted(things):
            holder = holder_of(self._lock_path(thing))
            if holder is not None:
                holders[holder.token] = holder
        return tuple(holders.values())

    def _status_of(self, asking: Holder, ticket: str) -> Status:
        """What one who waits is told."""
        wanted = set(asking.things)
        others = [
            (name, other)
            for name, other in self._tickets()
            if other.token != asking.token and wanted & set(other.things)
        ]
        return Status(
            self._holders(wanted),
            tuple(other for _, other in others),
            1 + sum(name < ticket for name, _ in others),
        )

    def _inherited(self, things: Iterable[str]) -> Holder | None:
        """The holder of the lease under which this process was started, where it lives and covers
        one of ``things``."""
        token = os.environ.get(TOKEN_ENVIRONMENT)
        if token is None:
            return None
        return next((one for one in self._holders(things) if one.token == token), None)

    def _make(self) -> None:
        try:
            for directory in (self._directory, self._queue):
                if not directory.is_dir():
                    directory.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(PermissionError):
                        directory.chmod(_SHARED_DIRECTORY)
        except OSError as error:
            raise HostError(
                f"leases cannot be kept in {self._directory}: {error.strerror}",
                remedy=f"make it a directory of mode 1777, or set {LEASES_ENVIRONMENT}",
            ) from error

    def _lock_path(self, thing: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", thing)[:_READABLE_CHARS]
        return self._directory / f"{readable}-{sha256(thing.encode()).hexdigest()[:12]}.lock"

    def _break_path(self, holder: Holder) -> Path:
        return self._directory / f"{holder.token}.broken"

    def _open(self, path: Path) -> int:
        """An open lock file, made where it is missing.

        The kernel refuses O_CREAT on somebody else's file in a sticky directory
        (fs.protected_regular), so an existing one is opened without.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, flags)
            with contextlib.suppress(FileExistsError):
                made = os.open(path, flags | os.O_CREAT | os.O_EXCL, _SHARED_FILE)
                os.fchmod(made, _SHARED_FILE)
                return made
        raise HostError(
            f"the lock file {path} comes and goes",
            remedy="is somebody cleaning that directory? leases need it left alone",
        )

    def _try(self, wanted: Sequence[str], ticket: str, holder: Holder) -> list[int] | None:
        """Lock everything if nobody is in front and nothing is held; None otherwise."""
        for other, waiting in self._tickets():
            if other < ticket and set(waiting.things) & set(wanted):
                return None
        locks: list[int] = []
        try:
            for thing in wanted:
                locks.append(self._open(self._lock_path(thing)))
                lock(locks[-1])
            now = replace(holder, since=time.time())
            for descriptor in locks:
                write(descriptor, now)
        except BlockingIOError:
            _close(locks)
            return None
        except BaseException:
            _close(locks)
            raise
        return locks

    @contextlib.contextmanager
    def _ticket(self, holder: Holder) -> Iterator[str]:
        """A locked turn in the queue; names sort by the time of asking."""
        name = f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020d}-{holder.token}"
        path = self._queue / name
        # Under a name that nobody looks at until it is locked: an unlocked ticket counts as dead.
        hidden = path.with_suffix(".new")
        ticket = os.open(
            hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
        )
        try:
            lock(ticket)
            write(ticket, holder)
            hidden.rename(path)
            yield name
        finally:
            for left in (hidden, path):
                left.unlink(missing_ok=True)
            os.close(ticket)

    def _tickets(self) -> list[tuple[str, Holder]]:
        """The living tickets, oldest first; dead ones of ours are cleared away."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._queue.iterdir()):
                if path.suffix == ".new":
                    continue
                waiting = holder_of(path)
                if waiting is not None:
                    found.append((path.name, waiting))
                else:
                    # Not ours to clear where another user's process died.
                    with contextlib.suppress(OSError):
                        path.unlink()
        return found

    def _tell(self, victim: Holder, text: str) -> None:
        path = self._break_path(victim)
        with contextlib.suppress(FileExistsError):
            told = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
            with os.fdopen(told, "w", encoding="utf-8") as file:
                file.write(text)

    def _remaining(self, things: Sequence[str], victims: Sequence[Holder]) -> list[Holder]:
        tokens = {victim.token for victim in victims}
        return [holder for holder in self.status(things).holders if holder.token in tokens]

    def _gone(self, things: Sequence[str], victims: Sequence[Holder], *, until: float) -> bool:
        while self._remaining(things, victims):
            if time.monotonic() >= until:
                return False
            threading.Event().wait(_POLL_SECONDS)
        for victim in victims:
            with contextlib.suppress(OSError):
                self._break_path(victim).unlink()
        return True


def lease_board(
    file: BoardFile,
    *,
    purpose: str,
    timeout: float = 0.0,
    waiting: Callable[[Status], None] | None = None,
) -> Lease:
    """Hold the things of a board; see :meth:`LeaseDesk.acquire`."""
    from harness.lab.things import things_of

    return LeaseDesk().acquire(
        things_of(file), board=file.name, purpose=purpose, timeout=timeout, waiting=waiting
    )


@contextlib.contextmanager
def leased(file: BoardFile, *, purpose: str, timeout: float = 0.0) -> Iterator[Lease]:
    """Hold a board while the main thread does something with it. Waiting is told on stderr.

    Raises :class:`BoardHeld`, and :class:`LeaseBroken` out of whatever goes on inside once
    somebody takes the board away.
    """

    def tell(status: Status) -> None:
        say(waiting_line(file.name, status), file=sys.stderr)

    with lease_board(file, purpose=purpose, timeout=timeout, waiting=tell) as lease:
        lease.interrupt_when_broken()
        try:
            yield lease
        except KeyboardInterrupt:
            lease.check()
            raise


def waiting_line(board: str, status: Status) -> str:
    """What one who waits is shown."""
    holders = "; ".join(map(str, status.holders)) or "nobody, it is the next one's turn"
    others = f" of {1 + len(status.queue)}" if status.queue else ""
    return f"waiting for board {board}: place {status.position}{others}; held by {holders}"


def default_directory() -> Path:
    """Where all users of this host keep leases: ``$HIL_LEASES``, else ``/run/lock/stmm-hil``, else
    below ``/tmp``."""
    if override := os.environ.get(LEASES_ENVIRONMENT):
        return Path(override)
    shared = Path("/run/lock")
    if shared.is_dir() and os.access(shared, os.W_OK):
        return shared / "stmm-hil"
    return Path("/tmp/stmm-hil-leases")


def _held(board: str, status: Status, timeout: float) -> BoardHeld:
    by = "; ".join(map(str, status.holders)) or "a user in front in the queue"
    waiting = f"; {len(status.queue)} waiting" if status.queue else ""
    waited = f" (waited {timeout:g} s)" if timeout else ""
    return BoardHeld(
        f"the board is held by {by}{waiting}{waited}",
        remedy=f"wait for it (pytest --wait-for-board SECONDS, hil lease hold --wait SECONDS "
        f"{board}), or take it away: hil lease break {board}",
        board=board,
    )


def _close(locks: Iterable[int]) -> None:
    for descriptor in locks:
        os.close(descriptor)


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"uid {os.getuid()}@{socket.gethostname()}"
