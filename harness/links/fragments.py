"""What commands have in common with earlier ones, so that it crosses a slow line once."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

SHORTEST = 24  # characters that are worth a reference
LONGEST = 2048
EARLIER = 24  # commands that a new one is compared with


class Fragments:
    """Beginnings and ends of commands, kept by the receiver in ``slots`` numbered places.

    A text is worth a place when it is met for the second time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._kept: OrderedDict[int, str] = OrderedDict()  # the one used last at the end
        self._earlier: deque[str] = deque(maxlen=EARLIER)

    def clear(self) -> None:
        """The receiver was started afresh."""
        self._kept.clear()

    def new_in(self, text: str) -> list[str]:
        """Beginnings and ends of ``text`` that should be kept before it is sent: none or one of
        each."""
        if len(text) < SHORTEST:
            return []
        before, _, after = self._around(text)
        new = []
        start = _common_start(text, self._earlier)
        if start >= len(before) + SHORTEST:
            new.append(text[:start])
        else:
            start = len(before)
        room = len(text) - start
        end = min(_common_start(text[::-1], (other[::-1] for other in self._earlier)), room)
        if end >= min(len(after), room) + SHORTEST:
            new.append(text[len(text) - end :])
        if text not in self._earlier:
            self._earlier.append(text)
        return new

    def free_place(self) -> int:
        """A place for one more; what was there, used longest ago, is given up."""
        if len(self._kept) >= self._slots:
            self._kept.popitem(last=False)
        return next(number for number in range(self._slots) if number not in self._kept)

    def keep(self, place: int, fragment: str) -> None:
        """The receiver has confirmed that it keeps ``fragment`` there."""
        self._kept[place] = fragment

    def split(self, text: str) -> tuple[str, str, str]:
        """``text`` as a place (or ""), what stands between, and another place (or "")."""
        before, rest, after = self._around(text)
        return self._name(before), rest, self._name(after)

    def _around(self, text: str) -> tuple[str, str, str]:
        """The longest kept beginning, the rest, and the longest kept end of it."""
        kept = self._kept.values()
        before = max((one for one in kept if text.startswith(one)), key=len, default="")
        rest = text[len(before) :]
        after = max((one for one in kept if rest.endswith(one)), key=len, default="")
        return before, rest[: len(rest) - len(after)], after

    def _name(self, fragment: str) -> str:
        if not fragment:
            return ""
        number = next(number for number, text in self._kept.items() if text == fragment)
        self._kept.move_to_end(number)
        return str(number)


def _common_start(text: str, others: Iterable[str]) -> int:
    """How many characters ``text`` has in common with the start of the most similar other."""
    longest = 0
    limit = min(len(text), LONGEST)
    for other in others:
        if other[: longest + 1] != text[: longest + 1]:
            continue
        low, high = longest, min(limit, len(other))
        while low < high:
            middle = (low + high + 1) // 2
            if text.startswith(other[:middle]):
                low = middle
            else:
                high = middle - 1
        longest = max(longest, low)
    return longest
