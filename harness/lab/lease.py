"""Leases: one holder for each physical thing of a board, on one host, for all its users.

What is locked is the serial adapter, the SSH endpoint and the outlet, not the name of a board
file: two files that describe one board exclude each other. Who asks keeps a locked ticket that all
others see, in :mod:`harness.lab.lease_directory`; the oldest living one is next. It claims the
things, looks once more, and holds them if nobody else does: of two, one has seen the other. A
lease dies with its process whatever happened to it. Adapters are locked themselves, too, against
who keeps leases elsewhere.

What a holder starts may use the board, too: it finds the holder's token in its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from harness.errors import LabError
from harness.foreign import say
from harness.lab.adapter import is_gone, lock_node
from harness.lab.holder import Holder, digest, end, keepers, user_name
from harness.lab.lease_directory import (
    LEASES_ENVIRONMENT,
    LeaseDirectory,
    Ticket,
    default_directory,
)

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile

__all__ = ["LEASES_ENVIRONMENT", "TOKEN_ENVIRONMENT"]
TOKEN_ENVIRONMENT = "HIL_LEASE_TOKEN"
"""Where a process finds the token of the lease under which it was started."""
_POLL_SECONDS = 0.05
_CLAIM_SECONDS = 0.5
_TURN_SECONDS = 5.0
"""How long a free board waits for the first in the queue (who may be stopped) to take it."""


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
    token: str
    _desk: LeaseDesk
    _ticket: Ticket | None = None
    _nodes: list[int] = field(default_factory=list)
    _outer: Holder | None = None
    _released: threading.Event = field(default_factory=threading.Event)
    _unwatched: threading.Event = field(default_factory=threading.Event)
    _broken: LeaseBroken | None = None
    # Held while the main thread is interrupted: never once nobody watches any more.
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _was_ignored: bool = False

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
            try:
                why = self._lost()
            except Exception as error:  # whatever it is: nobody would tell us any more
                why = f"nobody can tell whether it is ours any more: {error}"
            if why is not None and not self._released.is_set():
                self._broken = LeaseBroken(
                    f"the lease was broken: {why}",
                    remedy="ask them, and wait for the board before you use it again",
                    board=self.holder.board,
                )
        return self._broken

    def _lost(self) -> str | None:
        if self._ticket is not None and self._ticket.removed:
            return "its file was removed: is somebody cleaning the directory of leases?"
        for holder in (self.holder, self._outer):
            if holder is not None and (who := self._desk.breaker(holder)) is not None:
                return who
        return None

    def check(self) -> None:
        """Raise :class:`LeaseBroken` if somebody took the board away."""
        if self.broken is not None:
            raise self.broken

    def watch(self, lost: Callable[[LeaseBroken], None], *, every: float = 0.25) -> None:
        """Call ``lost`` from a thread of its own, once, when the lease is broken; look every so
        many seconds."""

        def look() -> None:
            told = False
            while not self._released.wait(every):
                self._let_unplugged_go()
                if told or self._unwatched.is_set() or self.broken is None:
                    continue
                told = True
                try:
                    lost(self.broken)
                except BaseException:
                    # Who is not told must not go on.
                    os.kill(os.getpid(), signal.SIGTERM)
                    raise

        threading.Thread(target=look, name="lease watch", daemon=True).start()

    def _let_unplugged_go(self) -> None:
        """An adapter that is gone keeps its name taken, for when it comes back, while open."""
        for node in [one for one in self._nodes if is_gone(one)]:
            self._close(node)

    def _close(self, node: int) -> None:
        with contextlib.suppress(ValueError):  # the other thread has closed it
            self._nodes.remove(node)
            os.close(node)

    def stop_watching(self) -> None:
        """What is done from now on goes on even if the lease is broken: the breaker waits until
        the lease is released."""
        with self._telling:
            self._unwatched.set()

    def interrupt_when_broken(self) -> None:
        """Interrupt the main thread, which calls this, once the lease is broken: it sees a
        KeyboardInterrupt wherever it is, even where the process ignores ^C."""
        main = threading.get_ident()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt_if_broken)
            self._was_ignored = True

        def interrupt(broken: LeaseBroken) -> None:
            with self._telling:
                if not (self._unwatched.is_set() or self._released.is_set()):
                    signal.pthread_kill(main, signal.SIGINT)

        self.watch(interrupt)

    def _interrupt_if_broken(self, number: int, frame: FrameType | None) -> None:
        if self.broken is not None:
            raise KeyboardInterrupt

    def release(self) -> None:
        """Give the board back; a second call does nothing."""
        if self._released.is_set():
            return
        self._released.set()
        for node in [*self._nodes]:
            self._close(node)
        if self._ticket is not None:
            self._ticket.withdraw()
        if self._was_ignored and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class LeaseDesk:
    """The leases of one host, in a directory that all its users share.

    Everything raises :class:`harness.errors.HostError` where that directory cannot be used.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = LeaseDirectory(directory or default_directory())

    def acquire(
        self,
        things: Iterable[str],
        *,
        board: str,
        purpose: str,
        timeout: float,
        waiting: Callable[[Status], None] | None = None,
        nodes: Mapping[str, str] | None = None,
    ) -> Lease:
        """Hold all ``things``, after everybody who asked before for any of them. ``nodes`` are the
        device nodes of some of them, which are locked, too.

        Waits up to ``timeout`` seconds (0: not at all); ``waiting`` is called when the wait begins
        and whenever holder or queue change. Things that the lease covers under which this process
        was started are ours already. Raises :class:`BoardHeld`.
        """
        asked = {digest(thing): thing for thing in things}
        outer = self._inherited(asked)
        wanted = tuple(sorted(asked.keys() - (outer.things if outer else ())))
        token = f"{os.geteuid()}:{os.urandom(16).hex()}"
        holder = _ourselves(wanted, board, purpose, token)
        if not wanted:
            return Lease(holder, token, self, _outer=outer)
        ours = [node for thing, node in (nodes or {}).items() if digest(thing) in wanted]
        deadline = time.monotonic() + timeout
        free_since = time.monotonic()
        shown: Status | None = None
        with self._directory.ticket(holder) as ticket:
            while True:
                status = self._status_of(holder)
                if status.holders:
                    free_since = time.monotonic()
                elif status.position == 1 or time.monotonic() - free_since > _TURN_SECONDS:
                    if self._claim(ticket, holder):
                        try:
                            return Lease(holder, token, self, ticket, _locked(ours), outer)
                        except BlockingIOError:
                            status = Status((_elsewhere(holder),), status.queue, 1)
                            ticket.step_back()
                    else:
                        status = self._status_of(holder)
                if time.monotonic() >= deadline:
                    raise _held(board, status, timeout)
                if waiting is not None and status != shown:
                    waiting(status)
                shown = status
                threading.Event().wait(min(_POLL_SECONDS, max(0, deadline - time.monotonic())))

    def status(self, things: Iterable[str]) -> Status:
        """Who holds or waits for any of ``things``."""
        return _status(self._of(map(digest, things)))

    def all(self) -> Status:
        """Everything that is held or waited for on this host."""
        return _status(self._directory.holders())

    def break_lease(self, things: Iterable[str], *, reason: str, timeout: float) -> list[Holder]:
        """Take a board away from its holders: tell each (its run ends by itself), wait, and end
        the process of who does not react, if it is this user's or we are root. Returns the holders
        that were asked.

        Raises :class:`LabError` when one still holds it after ``timeout`` seconds.
        """
        victims = list(self.status(things).holders)
        for victim in victims:
            self._tell(victim, reason)
        deadline = time.monotonic() + timeout
        try:
            for number, step in (
                (signal.SIGINT, deadline - timeout / 2),
                (signal.SIGKILL, deadline - timeout / 6),
            ):
                if self._gone(victims, until=step):
                    return victims
                for victim in self._remaining(victims):
                    self._end(victim, number)
            if self._gone(victims, until=deadline + 1):
                return victims
        finally:
            for victim in victims:
                self._directory.unmark(victim)
        left = self._remaining(victims)
        owners = ", ".join(sorted({user_name(victim.uid) for victim in left}))
        raise LabError(
            f"still held by {', '.join(map(str, left))}",
            remedy=f"that process does not react and is not ours to end: only {owners} or root "
            "can, outside of containers that hide it",
        )

    def breaker(self, holder: Holder) -> str | None:
        """Who broke the lease of ``holder`` and why, if somebody did."""
        return next(self._directory.marks(holder.ticket), None)

    # --- helpers ------------------------------------------------------------------------------

    def _of(self, things: Iterable[str]) -> list[Holder]:
        wanted = set(things)
        return [one for one in self._directory.holders() if wanted.intersection(one.things)]

    def _others(self, asking: Holder) -> list[Holder]:
        return [one for one in self._of(asking.things) if one.ticket != asking.ticket]

    def _status_of(self, asking: Holder) -> Status:
        """What one who waits is told."""
        status = _status(self._others(asking))
        return Status(
            status.holders,
            status.queue,
            1 + sum(one.ticket < asking.ticket for one in status.queue),
        )

    def _claim(self, ticket: Ticket, asking: Holder) -> bool:
        """Whether nobody else holds, or claims, any of the things while our claim is seen by all.
        Of two that claim in one instant the younger steps back and the older waits for that."""
        ticket.hold()
        patience = time.monotonic() + _CLAIM_SECONDS
        while rivals := [one for one in self._others(asking) if one.held]:
            older = any(one.ticket < asking.ticket for one in rivals)
            if older or time.monotonic() >= patience:
                ticket.step_back()
                return False
            threading.Event().wait(_POLL_SECONDS / 10)
        return True

    def _inherited(self, things: Iterable[str]) -> Holder | None:
        """The holder of the lease under which this process was started, where it lives and covers
        one of ``things``."""
        token = os.environ.get(TOKEN_ENVIRONMENT, "")
        owner, proof = token.partition(":")[0], _proof(token)
        mine = [one for one in self._of(things) if (str(one.uid), one.proof) == (owner, proof)]
        return next((one for one in mine if one.held), None)

    def _tell(self, victim: Holder, reason: str) -> None:
        self._directory.mark(victim, reason)

    def _end(self, victim: Holder, number: int) -> None:
        with self._directory.folder_of(victim) as folder:
            if folder is not None:
                for process in keepers(folder, f"{victim.ticket}.held", victim.uid):
                    end(process, number)

    def _remaining(self, victims: Sequence[Holder]) -> list[Holder]:
        known = {(victim.uid, victim.ticket) for victim in victims}
        return [one for one in self._directory.holders() if (one.uid, one.ticket) in known]

    def _gone(self, victims: Sequence[Holder], *, until: float) -> bool:
        while self._remaining(victims):
            if time.monotonic() >= until:
                return False
            threading.Event().wait(_POLL_SECONDS)
        return True


def lease_board(
    file: BoardFile,
    *,
    purpose: str,
    timeout: float = 0.0,
    waiting: Callable[[Status], None] | None = None,
) -> Lease:
    """Hold the things of a board; see :meth:`LeaseDesk.acquire`."""
    from harness.lab.things import nodes_of, things_of

    return LeaseDesk().acquire(
        things_of(file),
        board=file.name,
        purpose=purpose,
        timeout=timeout,
        waiting=waiting,
        nodes=nodes_of(file),
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
            try:
                yield lease
            finally:
                # Who comes later is not interrupted for what was over.
                lease.stop_watching()
        except KeyboardInterrupt:
            lease.check()
            raise


def waiting_line(board: str, status: Status) -> str:
    """What one who waits is shown."""
    holders = "; ".join(map(str, status.holders)) or "nobody, it is the next one's turn"
    others = f" of {1 + len(status.queue)}" if status.queue else ""
    return f"waiting for board {board}: place {status.position}{others}; held by {holders}"


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


def _status(holders: Sequence[Holder]) -> Status:
    return Status(
        tuple(one for one in holders if one.held), tuple(one for one in holders if not one.held)
    )


def _ourselves(things: Sequence[str], board: str, purpose: str, token: str) -> Holder:
    # Names of tickets sort by the time of asking.
    ticket = f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020d}-{os.urandom(8).hex()}"
    return Holder(
        user=_user(),
        pid=os.getpid(),
        board=board,
        purpose=purpose,
        since=time.time(),
        things=tuple(things),
        uid=os.geteuid(),
        ticket=ticket,
        held=False,
        proof=_proof(token),
    )


def _proof(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _elsewhere(asking: Holder) -> Holder:
    """Who has locked an adapter without a lease that is seen from here."""
    purpose = "has locked the serial adapter; its leases are kept elsewhere, by a container?"
    return replace(asking, user="somebody", pid=0, board="?", purpose=purpose, held=True, things=())


def _locked(nodes: Iterable[str]) -> list[int]:
    """Locks on device nodes, as far as they are there and ours to open. Raises BlockingIOError
    where somebody else has one."""
    locks: list[int] = []
    try:
        for node in nodes:
            if (descriptor := lock_node(node)) is not None:
                locks.append(descriptor)
    except BaseException:
        for descriptor in locks:
            os.close(descriptor)
        raise
    return locks


def _user() -> str:
    return f"{user_name(os.geteuid())}@{socket.gethostname()}"
