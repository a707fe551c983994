"""Faults that reach through every layer of the model: the loss of power, and faults on demand.

A layer names the places where it can fail and asks :meth:`Faults.point` each time it passes one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_SPEC: Final = re.compile(
    r"(?P<point>[\w.-]+)(:(?P<nth>\d+)(?P<onwards>\+)?)?=(?P<action>[\w-]+)(:(?P<argument>.+))?"
)

POWER_CUT: Final = "power-cut"
"""The action that every point knows."""


class PowerLost(BaseException):
    """The power went: everything but the flash is gone.

    Not an ``Exception``, so that no layer's error handling catches it.
    """


class FaultSpecError(ValueError):
    """A fault specification that cannot be read; the text says what one looks like."""


@dataclass(frozen=True)
class Action:
    """What a layer shall do at a point; ``argument`` is what followed the action's colon."""

    name: str
    argument: str = ""


@dataclass
class _Armed:
    action: Action
    passages: int
    """How many more passages there are until the action happens."""
    onwards: bool


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

        With ``+`` also at every later one, until :meth:`disarm`.  Raises FaultSpecError.
        """
        match = _SPEC.fullmatch(spec)
        if match is None or match["nth"] == "0":
            raise FaultSpecError(
                f"{spec}: write POINT[:N[+]]=ACTION[:ARGUMENT], N from 1, e.g. rpmb.write:3=lost"
            )
        armed = _Armed(
            Action(match["action"], match["argument"] or ""),
            int(match["nth"] or 1),
            match["onwards"] is not None,
        )
        with self._lock:
            self._armed.setdefault(match["point"], []).append(armed)

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
                due = due or armed.action
                if not armed.onwards:
                    waiting.remove(armed)
            if not waiting:
                self._armed.pop(name, None)
        return due
