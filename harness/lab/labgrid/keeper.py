"""The process that holds a labgrid place: ``python -m harness.lab.labgrid.keeper``.

It is a process of its own for three reasons. A place that is acquired stays so when its holder dies
(labgrid has no leases): this one outlives its parent for as long as it takes to release the place.
labgrid brings gRPC, whose threads do not survive a fork. And some of labgrid's power backends wait
for ever.

The first line of its standard input is a :class:`~harness.lab.labgrid.offers.Wanted`, each further
one a request; its standard output has an answer to each, and news
(:class:`harness.lab.labgrid.place.LabgridPlace` reads them). One line is one JSON object. The end
of its input is the order to release the place and to end.

Only labgrid's wire protocol, ``ClientSession`` (which follows places and resources) and the drivers
of its library are used. Source: labgrid 26.0 ``remote/client.py``, ``remote/coordinator.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from harness.errors import ConfigurationError, HilError, LabError
from harness.lab.labgrid.offers import Offers, Wanted, reason
from harness.lab.lease import BoardHeld, LeaseBroken, LeaseDesk

_CONNECT_SECONDS = 5.0
_CALL_SECONDS = 10.0
# The keeper of a run that was killed may still be giving the place back.
_PREDECESSOR_SECONDS = 10.0
_POLL_SECONDS = 0.2
_ALLOCATED = 1  # Reservation.state: 0 waiting, 1 allocated, 2 acquired, 3 expired, 4 invalid

_Path = tuple[str, str, str, str]  # exporter, group, class, name


class Keeper:
    """One place of one coordinator; ``say`` sends a line to the parent."""

    def __init__(self, wanted: Wanted, say: Callable[[dict[str, Any]], None]) -> None:
        self._wanted = wanted
        self._say = say
        self._session: Any = None
        self._offers: Offers | None = None
        self._acquired = False
        self._holder = ""

    # --- taking and giving back ---------------------------------------------------------------

    async def hold(self) -> dict[str, Any]:
        """Acquire the place, or find that it is ours already. Raises :class:`LabError` and
        :class:`ConfigurationError`."""
        self._session = await self._connect()
        place = self._place()
        # One of this user's own runs would be let in by labgrid: it tells users apart, not runs.
        await asyncio.to_thread(self._exclude_own_runs)
        if not self._is_ours(place):
            if await self._is_free(place):
                await self._acquire(place)
            else:
                await self._wait_for(place)
        self._holder = place.acquired
        self._offers = Offers(self._wanted, self._session)
        return {"held": self._holder}

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request of the parent, once the place is held; raises :class:`HilError`."""
        assert self._offers is not None
        return await self._offers.answer(request)

    async def watch(self) -> None:
        """Tell the parent when the place is not ours any more; then end."""
        session, place = self._session, self._wanted.place
        while not session.stopping.is_set():
            known = session.places.get(place)
            if known is None or known.acquired != self._holder:
                taken = f"{known.acquired} has it now" if known and known.acquired else "it is free"
                self._lost(
                    f"labgrid place {place} was taken away from {self._holder}: {taken}",
                    "ask who did it (`labgrid-client release --kick` can); then run again",
                )
                return
            await asyncio.sleep(_POLL_SECONDS)
        self._lost(
            f"labgrid's coordinator {self._wanted.coordinator} went away; it forgets who has "
            "acquired what",
            "see why it ended, then run again",
        )

    async def release(self) -> None:
        """Give back what :meth:`hold` acquired, and only that."""
        session = self._session
        if not self._acquired or session.stopping.is_set():
            return
        from labgrid.remote.generated import labgrid_coordinator_pb2 as wire

        request = wire.ReleasePlaceRequest(placename=self._wanted.place, fromuser=self._me)
        with contextlib.suppress(LabError):
            await _call(session.stub.ReleasePlace, request)

    def _exclude_own_runs(self) -> None:
        wanted = self._wanted
        try:
            LeaseDesk().acquire(
                [f"keeper {self._me} {wanted.coordinator} {wanted.place}"],
                board=wanted.board,
                purpose=f"labgrid place {wanted.place} for process {wanted.parent}",
                timeout=max(wanted.wait, _PREDECESSOR_SECONDS),
            )
        except BoardHeld as error:
            raise BoardHeld(
                error.what, remedy="wait for that run, or end it; `wait` in [labgrid] waits longer"
            ) from None

    async def _connect(self) -> Any:
        """A session that knows all places and resources."""
        from labgrid.remote.client import ClientSession
        from labgrid.util.proxy import proxymanager

        # Through an SSH tunnel where LG_PROXY asks for one.
        address = proxymanager.get_grpc_address(self._wanted.coordinator)
        await asyncio.to_thread(self._knock, address)
        session = ClientSession(address, asyncio.get_running_loop())
        try:
            await asyncio.wait_for(session.start(), _CALL_SECONDS)
        except Exception as error:
            raise LabError(
                f"{address} does not answer as a labgrid coordinator ({reason(error)})",
                remedy="is it the coordinator's port, and is its labgrid 25 or later (gRPC)?",
            ) from error
        return session

    def _knock(self, address: str) -> None:
        """gRPC would try again for a long time, and say less."""
        end = urlsplit(f"//{address}")
        try:
            socket.create_connection((end.hostname, end.port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise LabError(
                f"labgrid's coordinator at {address} cannot be reached "
                f"({error.strerror or reason(error)})",
                remedy="is labgrid-coordinator running there? is coordinator in [labgrid] right?",
            ) from error

    @property
    def _me(self) -> str:
        return f"{self._session.gethostname()}/{self._session.getuser()}"

    def _place(self) -> Any:
        places, name = self._session.places, self._wanted.place
        if name in places:
            return places[name]
        near = difflib.get_close_matches(name, places, n=3, cutoff=0.5)
        known = "did you mean " + " or ".join(map(repr, near)) + "? " if near else ""
        raise ConfigurationError(
            f"the coordinator {self._wanted.coordinator} has no place {name!r}",
            remedy=f"{known}Known places: {', '.join(sorted(places)) or 'none'}; "
            "correct place in [labgrid]",
        )

    def _is_ours(self, place: Any) -> bool:
        """Acquired by this user on this host, e.g. with labgrid-client, or shared with us."""
        return bool(place.acquired) and (place.acquired == self._me or self._me in place.allowed)

    async def _is_free(self, place: Any) -> bool:
        """For us to acquire; it may be reserved for us, with labgrid-client."""
        if place.acquired:
            return False
        mine = {one.token for one in await self._reservations() if one.owner == self._me}
        return not place.reservation or place.reservation in mine

    async def _acquire(self, place: Any) -> None:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as wire

        self._check_exported(place)
        session = self._session
        # Before the call, which may succeed while we are being told to end.
        self._acquired = True
        try:
            await _call(session.stub.AcquirePlace, wire.AcquirePlaceRequest(placename=place.name))
        except LabError as error:
            self._acquired = False
            await session.sync_with_coordinator()
            if not await self._is_free(place):
                raise await self._held(place) from error
            raise LabError(
                f"labgrid place {place.name} cannot be acquired: "
                f"{self._in_use(place) or error.what}",
                remedy="the log of the exporter says why a resource is broken; one that another "
                "place has is free when that place is released",
            ) from error
        await session.sync_with_coordinator()

    def _exported(self) -> dict[_Path, Any]:
        """Every resource that is exported now."""
        return {
            (exporter, group, entry.data["cls"], name): entry
            for exporter, groups in self._session.resources.items()
            for group, resources in groups.items()
            for name, entry in resources.items()
            if entry.data.get("cls")
        }

    def _in_use(self, place: Any) -> str:
        """Which of its resources another place has, or is broken (for labgrid a holder, too)."""
        return ", ".join(
            f"{'/'.join(path)} is {'broken' if entry.acquired == '<broken>' else 'in use'}"
            f" ({entry.extra.get('broken') or entry.acquired})"
            for path, entry in self._exported().items()
            if entry.acquired and place.hasmatch(path)
        )

    def _check_exported(self, place: Any) -> None:
        """All that the place is made of is exported now."""
        missing = place.unmatched(list(self._exported()))
        if missing is not None:
            raise LabError(
                f"labgrid place {place.name}: nobody exports {missing!r}",
                remedy=f"is labgrid-exporter running on {missing.exporter!r}, with that resource "
                "in its file? `labgrid-client resources` lists what is exported",
            )

    # --- waiting ------------------------------------------------------------------------------

    async def _wait_for(self, place: Any) -> None:
        """Stand in labgrid's own queue, a reservation, until the place is allocated to us."""
        from labgrid.remote.generated import labgrid_coordinator_pb2 as wire

        stub, deadline = self._session.stub, time.monotonic() + self._wanted.wait
        if not self._wanted.wait:
            raise await self._held(place)
        filters = {"main": wire.Reservation.Filter(filter={"name": place.name})}
        request = wire.CreateReservationRequest(filters=filters, prio=0.0)
        mine = (await _call(stub.CreateReservation, request)).reservation
        shown = ""
        try:
            while mine.state != _ALLOCATED:
                if time.monotonic() >= deadline:
                    raise await self._held(place)
                state = await self._describe(place, before=mine.created)
                if state != shown:
                    self._say({"waiting": state})
                shown = state
                await asyncio.sleep(_POLL_SECONDS)
                request = wire.PollReservationRequest(token=mine.token)
                mine = (await _call(stub.PollReservation, request)).reservation
            await self._acquire(place)
        finally:
            with contextlib.suppress(LabError):
                request = wire.CancelReservationRequest(token=mine.token)
                await _call(stub.CancelReservation, request)

    async def _reservations(self) -> list[Any]:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as wire

        answer = await _call(self._session.stub.GetReservations, wire.GetReservationsRequest())
        return list(answer.reservations)

    async def _describe(self, place: Any, *, before: float = 0.0) -> str:
        """Who has the place, since when, and how many wait in front."""
        queue = await self._reservations()
        if place.acquired:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place.changed))
            text = f"is acquired by {place.acquired} since {clock}"
        else:
            owner = next((one.owner for one in queue if one.token == place.reservation), "somebody")
            text = f"is reserved for {owner}"
        ahead = sum(
            one.created < before and one.filters["main"].filter.get("name") == place.name
            for one in queue
        )
        return f"labgrid place {place.name} {text}" + (f", {ahead} wait before us" if ahead else "")

    async def _held(self, place: Any) -> BoardHeld:
        waited = f" (waited {self._wanted.wait:g} s)" if self._wanted.wait else ""
        remedy = "ask them; `wait` in [labgrid] waits for it"
        if place.acquired:
            remedy += (
                f"; {place.acquired.partition('/')[2]} can share it with "
                f"`labgrid-client -p {place.name} allow {self._me}`"
            )
        return BoardHeld(f"{await self._describe(place)}{waited}", remedy=remedy)

    def _lost(self, what: str, remedy: str) -> None:
        self._say({"lost": _as_message(LeaseBroken(what, remedy=remedy))})


async def _call(method: Callable[..., Awaitable[Any]], request: object) -> Any:
    """One call of the coordinator; raises :class:`LabError` with its own words."""
    from grpc.aio import AioRpcError

    try:
        return await method(request, timeout=_CALL_SECONDS)
    except AioRpcError as error:
        raise LabError(
            f"the coordinator says: {error.details()}", remedy="see the coordinator's log"
        ) from error


# --- the process --------------------------------------------------------------------------------


def _as_message(error: HilError) -> dict[str, str]:
    return {"kind": type(error).__name__, "what": error.what, "remedy": error.remedy}


async def _attempt(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The answer, or the error as an answer."""
    try:
        return await work
    except HilError as error:
        return {"error": _as_message(error)}
    except Exception as error:
        return {"error": _as_message(LabError(f"labgrid: {reason(error)}", remedy=_REMEDY))}


_REMEDY = "try the same with labgrid-client; is this labgrid as new as the coordinator's?"


async def _serve(say: Callable[[dict[str, Any]], None]) -> None:
    requests = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(requests), sys.stdin
    )
    keeper = Keeper(Wanted(**json.loads(await requests.readline())), say)
    tasks = {asyncio.create_task(_hold(keeper, say))}

    async def reply(request: dict[str, Any]) -> None:
        say({"number": request["number"], **await _attempt(keeper.answer(request))})

    while line := await requests.readline():
        tasks.add(asyncio.create_task(reply(json.loads(line))))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_CALL_SECONDS)
    await keeper.release()


async def _serve_to_the_end(say: Callable[[dict[str, Any]], None]) -> NoReturn:
    """:func:`_serve`, and the end of the process: at once, as a power backend may hang in a thread
    that nothing else ends."""
    status = 1
    try:
        await _serve(say)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


async def _hold(keeper: Keeper, say: Callable[[dict[str, Any]], None]) -> None:
    answer = await _attempt(keeper.hold())
    say(answer)
    if "error" not in answer:
        await keeper.watch()


def main() -> None:
    """Serve until the end of standard input."""
    # labgrid prints to standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        # The parent may be dead: the place is to be released all the same.
        with contextlib.suppress(OSError):
            print(json.dumps(message), file=answers, flush=True)

    asyncio.run(_serve_to_the_end(say))


if __name__ == "__main__":
    main()
