"""How long the far end may take to answer: measured, as targets differ a thousandfold."""

from __future__ import annotations

FIRST = 0.5
LEAST, MOST = 0.15, 8.0


class Patience:
    """The time beyond that on the wire until an answer is given up, from those measured before
    (RFC 6298: smoothed, plus four times the deviation, doubled by every one that failed)."""

    def __init__(self) -> None:
        self._typical: float | None = None
        self._deviation = 0.0
        self._backed_off = 0.0

    @property
    def seconds(self) -> float:
        """For the answer that is waited for now."""
        usual = FIRST if self._typical is None else self._typical + 4 * self._deviation
        return min(max(usual, self._backed_off, LEAST), MOST)

    def learn(self, seconds: float) -> None:
        """An answer took so long; only of a question that was asked once."""
        seconds = max(seconds, 0.0)
        self._backed_off = 0.0
        if self._typical is None:
            self._typical, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._typical) - self._deviation) / 4
        self._typical += (seconds - self._typical) / 8

    def failed(self) -> None:
        """No answer came in time: it was lost, or needs longer."""
        self._backed_off = 2 * self.seconds
