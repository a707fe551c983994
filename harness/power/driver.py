"""Power: switch a board off and on.

A driver is one file: the section of a board file that chooses it, a class that switches, and one
:class:`Driver`, which :mod:`harness.power.registry` lists. Drivers report the state they
*verified*, or ``UNKNOWN`` where the hardware cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, get_args

if TYPE_CHECKING:
    from harness.links.address import SerialAddress, SshAddress
    from harness.power.section import Section

SectionT = TypeVar("SectionT", bound="Section")


class PowerState(StrEnum):
    """Power as the driver verified it; ``UNKNOWN`` where it cannot know."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Links that the power driver itself provides; None where the board file names them."""

    ssh: SshAddress | None = None
    serial: SerialAddress | None = None


class PowerDriver(Protocol):
    """Switches one board. Timeouts are seconds; every failure is a
    :class:`harness.errors.PowerError` (or :class:`~harness.errors.HostError` where this machine
    lacks something). What a driver does not say is as for an outlet that feeds a real board."""

    def on(self, timeout: float) -> None:
        """Power the board on; returns when power is on, not when the board has booted. A board
        that is on stays as it is."""
        ...

    def off(self, timeout: float) -> None:
        """Cut the power, as pulling the plug would. A board that is off stays so."""
        ...

    def cycle(self, timeout: float) -> None:
        """Off, then on."""
        self.off(timeout)
        self.on(timeout)

    def state(self) -> PowerState:
        """The verified state; never raises."""
        ...

    def verify(self) -> PowerState:
        """As :meth:`state`, but a hardware that could tell and does not raises
        :class:`harness.errors.PowerError`: UNKNOWN is left for one that cannot."""
        return self.state()

    def endpoints(self) -> Endpoints:
        """Where the board's links are now; valid after :meth:`on`."""
        return Endpoints()

    def keeps(self) -> Path | None:
        """The directory for what belongs to this board's flash and must live exactly as long;
        None where the flash is real and outlives everything here. Valid after :meth:`on`."""
        return None

    def hold(self) -> None:
        """Acquire what a lab's own reservation keeps until :meth:`close`; every other call that
        needs it does so, too. Raises :class:`harness.errors.LabError` when somebody has it."""
        return None  # noqa: RET501 - mypy takes an empty body of a protocol for a missing one

    def check(self) -> None:
        """Raise :class:`harness.errors.LabError` if somebody took that away. Asks nobody: fast."""
        return None  # noqa: RET501

    def close(self) -> None:
        """Give everything back; never raises, at most two seconds."""
        return None  # noqa: RET501


class Outlet(Protocol):
    """One switched outlet. Both calls take at most ``timeout`` seconds and raise
    :class:`harness.errors.PowerError`."""

    def switch(self, on: bool, timeout: float) -> None:
        """Ask for on or off."""
        ...

    def read(self, timeout: float) -> PowerState:
        """What the hardware says it is; UNKNOWN only where it has no means to say. An answer that
        says neither is an error: nothing was confirmed."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a driver is told beside its section: the board's name for errors, whether nobody will
    answer a question, and the outlet of the labgrid place that the board is in."""

    board: str
    assume_yes: bool = False
    place_outlet: Outlet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver(Generic[SectionT]):
    """All that is known of one kind of power driver."""

    section: type[SectionT]
    open: Callable[[SectionT, Context], PowerDriver]
    """Makes the driver; touches nothing yet."""
    things: Callable[[SectionT], Iterable[str]] = lambda section: ()
    """A word for each physical thing that nobody else may use meanwhile: ``outlet …``, ``image …``;
    the same for two board files that mean the same one."""
    offers_links: Callable[[SectionT], bool] = lambda section: False
    """Whether it has links of its own, so that the board file need not name one."""
    vary: Callable[[SectionT, str | None, bool, Path | None], SectionT | None] = lambda *_: None
    """For a board in software: its section for another configuration (None: as it is), with or
    without a supplicant that the userland starts, with its flash kept in a directory (None: as it
    is) or made afresh at each start. None where that cannot be chosen."""
    cannot_tell: Callable[[SectionT], str] = lambda section: ""
    """Why the hardware has no means to say whether it is on; empty where it has."""
    needs_place: bool = False
    """Whether the board must be in a labgrid place."""
    starts_by: str = ""
    """For a board that lives only as long as the process that emulates it: what starts one."""

    @property
    def name(self) -> str:
        """The word for it in a board file."""
        name: str = get_args(self.section.model_fields["driver"].annotation)[0]
        return name

    @property
    def description(self) -> str:
        """What it is, in one line."""
        return " ".join((self.section.__doc__ or "").split())
