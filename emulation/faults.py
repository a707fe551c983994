"""Faults that reach through every layer of the model: the loss of power, and faults on demand.

A layer names the places where it can fail and asks :meth:`Faults.point` each time it passes one.
:data:`POINTS` is the list of all of them; ``docs/faults.md`` shows it with the consequences.
"""

import difflib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

_SPEC: Final = re.compile(
    r"(?P<point>[\w.-]+)(:(?P<nth>\d+)(?P<onwards>\+)?)?=(?P<action>[\w-]+)(:(?P<argument>\w+))?"
)

POWER_CUT: Final = "power-cut"
"""The action that every point knows."""


@dataclass(frozen=True)
class Point:
    """A place where a layer can fail: when it is passed, and what can happen there.

    ``actions`` maps the action's name to its effect; ``result`` takes a number as its argument.
    """

    name: str
    passed: str
    actions: Mapping[str, str]


POINTS: Final = (
    Point(
        "rpmb.request",
        "request frames reach the card, before it looks at them",
        {
            "lost": "the card never sees them",
            "busy": "the card stays busy until its host gives up: ETIMEDOUT",
        },
    ),
    Point(
        "rpmb.read",
        "the card carries out an authenticated read",
        {"result": "it fails with RPMB result N"},
    ),
    Point(
        "rpmb.write",
        "an authenticated write was accepted, before it takes effect",
        {"result": "it fails with RPMB result N and changes nothing"},
    ),
    Point(
        "rpmb.written",
        "an authenticated write took effect",
        {"lost": "its answer is lost: the result register is clear"},
    ),
    Point(
        "rpmb.response",
        "response frames leave the card",
        {
            "lost": "zeros arrive instead",
            "mac": "one bit of the MAC is wrong",
            "result": "the result of the last frame is N",
        },
    ),
    Point(
        "storage.read",
        "StandaloneMM reads its file (the first time after power-on: all of it, at its start)",
        {"result": "OP-TEE's file system fails with TEE_Result N"},
    ),
    Point(
        "storage.write",
        "StandaloneMM writes to its file",
        {"result": "OP-TEE's file system fails with TEE_Result N"},
    ),
    Point(
        "stmm.start", "OP-TEE starts the StandaloneMM partition", {"panic": "the partition panics"}
    ),
    Point("stmm.call", "OP-TEE hands a message to StandaloneMM", {"panic": "the partition panics"}),
    Point(
        "supplicant.request",
        "tee-supplicant has taken a request",
        {"stuck": "it does not go on until it is killed"},
    ),
    Point(
        "driver.allocation",
        "tee_stmm_efi allocates a message buffer",
        {"fail": "there is no memory"},
    ),
)
_BY_NAME: Final = {point.name: point for point in POINTS}


class PowerLost(BaseException):
    """The power went: everything but the flash is gone.

    Not an ``Exception``, so that no layer's error handling catches it.
    """


class FaultSpecError(ValueError):
    """A fault specification that cannot be read; the text says what one looks like."""


@dataclass(frozen=True)
class Action:
    """What a layer shall do at a point; ``argument`` is the number that followed the colon."""

    name: str
    argument: int = 0


@dataclass(frozen=True)
class Fault:
    """An action at the ``nth`` passage of a point, ``onwards``: and at every later one."""

    point: str
    nth: int
    onwards: bool
    action: Action

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Read ``POINT[:N[+]]=ACTION[:ARGUMENT]``; FaultSpecError."""
        match = _SPEC.fullmatch(spec)
        if match is None or match["nth"] == "0":
            raise FaultSpecError(
                f"{spec}: write POINT[:N[+]]=ACTION[:ARGUMENT], N from 1, rpmb.write:3=result:5"
            )
        name, action = match["point"], match["action"]
        _need(name, _BY_NAME, f"{spec}: no point {name}")
        actions = (*_BY_NAME[name].actions, POWER_CUT)
        _need(action, actions, f"{spec}: no action {action} at {name}")
        return cls(
            name,
            int(match["nth"] or 1),
            match["onwards"] is not None,
            Action(action, _number(spec, action, match["argument"])),
        )


@dataclass
class _Armed:
    fault: Fault
    passages: int
    """How many more passages there are until it happens."""


class Faults:
    """The armed faults of one board; thread-safe.

    ``cut_power`` takes the power from the whole board; it runs in the thread that passes the
    point, just before that thread gets :class:`PowerLost`.
    """

    def __init__(self, cut_power: Callable[[], None] = lambda: None) -> None:
        self.cut_power = cut_power
        self._lock = threading.Lock()
        self._armed: dict[str, list[_Armed]] = {}

    def arm(self, spec: str) -> None:
        """Arm ``POINT[:N[+]]=ACTION[:ARGUMENT]``: at the N-th passage from now (1 is the next).

        With ``+`` also at every later one, until :meth:`disarm`.  Raises FaultSpecError, which
        names what is nearest to a point or an action that does not exist.
        """
        fault = Fault.parse(spec)
        with self._lock:
            self._armed.setdefault(fault.point, []).append(_Armed(fault, fault.nth))

    def disarm(self, point: str | None = None) -> None:
        """Forget the faults of ``point``, or all."""
        with self._lock:
            if point is None:
                self._armed.clear()
            else:
                self._armed.pop(point, None)

    def point(self, name: str) -> Action | None:
        """Pass the point ``name``; the action if one is due.  Raises PowerLost for a power cut."""
        if name not in self._armed:
            return None
        action = self._pass(name)
        if action is not None and action.name == POWER_CUT:
            self.cut_power()
            raise PowerLost
        return action

    def _pass(self, name: str) -> Action | None:
        due: Action | None = None
        with self._lock:
            waiting = self._armed.get(name, [])
            for armed in tuple(waiting):
                if armed.passages > 1:
                    armed.passages -= 1
                    continue
                due = due or armed.fault.action
                if not armed.fault.onwards:
                    waiting.remove(armed)
            if not waiting:
                self._armed.pop(name, None)
        return due


def _need(word: str, known: Mapping[str, Point] | tuple[str, ...], complaint: str) -> None:
    if word not in known:
        close = difflib.get_close_matches(word, list(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FaultSpecError(f"{complaint}{hint} (one of {', '.join(known)})")


def _number(spec: str, action: str, argument: str | None) -> int:
    if (action == "result") != (argument is not None):
        raise FaultSpecError(f"{spec}: result, and nothing else, takes a number: result:5")
    try:
        return int(argument or "0", 0)
    except ValueError:
        raise FaultSpecError(f"{spec}: {argument} is not a number") from None
