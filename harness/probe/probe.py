"""Chooses a back-end for raw system calls on the target by trying what the target has."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from harness.probe.steps import Outcome, Step
from harness.shell import Shell


class Probe:
    """Raw system calls on the board behind ``shell``.

    Descriptors opened by one :meth:`steps` call stay open for the next. ``backend`` forces
    ``"python3"`` or ``"sh"``; None takes the first that works on the target.
    """

    def __init__(self, shell: Shell, *, backend: str | None = None) -> None:
        self.shell = shell
        self.backend = backend

    def steps(self, steps: Sequence[Step], *, timeout: float = 10.0) -> list[Outcome]:
        """Take the steps in order and return one outcome each; an error does not stop the rest.

        Raises the shell's ``LinkError`` classes.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the process on the target and all its descriptors; never raises."""

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
