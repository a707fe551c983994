"""A run holds its board's lease from before it touches the board until the board is given back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from harness import interrupts
from harness.pytest_plugin.role import board_of_worker

if TYPE_CHECKING:
    from harness.boardfile.sections import BoardFile
    from harness.errors import LabError
    from harness.lab.lease import Lease

_PURPOSE_CHARS = 100


class RunLease:
    """The lease of one run. A board that somebody holds or takes away ends the run (exit status
    2 as after ^C, or ``status``) through :func:`pytest.exit`; why is kept in ``ended``.

    Broken on purpose, the run stops where it is, runs no further test, and gives the board back
    while it still holds it: whoever broke the lease waits for that.
    """

    def __init__(
        self,
        config: pytest.Config,
        tell: Callable[[str], None],
        status: int | None = None,
    ) -> None:
        self._config = config
        self._tell = tell
        self._status = status
        self._lease: Lease | None = None
        self._closing = False
        # What ^C does, while it does nothing.
        self._on_interrupt: Callable[[int, FrameType | None], object] | int | None = None
        self.ended: LabError | None = None

    def take(self, file: BoardFile) -> None:
        """Hold the board, after waiting as long as ``--wait-for-board`` says. Ends the run where
        somebody holds it; raises :class:`harness.errors.HostError` where leases cannot be kept."""
        from harness.lab.lease import BoardHeld, lease_board, waiting_line

        if board_of_worker(self._config) is None:
            # From here on there is something to give back.
            self._config.add_cleanup(interrupts.install())
        try:
            self._lease = lease_board(
                file,
                purpose=self._purpose(),
                timeout=self._config.getoption("wait_for_board"),
                waiting=lambda status: self._tell(waiting_line(file.name, status)),
            )
        except BoardHeld as held:
            self._end(held)
        else:
            self._lease.interrupt_when_broken()

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """What goes on inside ends the run, with the reason, when the lease is broken, or the
        labgrid place is somebody else's."""
        from harness.lab.lease import BoardHeld, LeaseBroken

        self.check()
        try:
            yield
        except (BoardHeld, LeaseBroken) as taken:
            self._end(taken)
        except KeyboardInterrupt:
            self.check()
            raise

    def check(self) -> None:
        """End the run if somebody took the board away."""
        if self._lease is not None and self._lease.broken is not None and not self._closing:
            self._end(self._lease.broken)

    def closing(self) -> None:
        """From now on the board is being given back, which whoever breaks the lease waits for; of
        an impatient one only SIGKILL ends it."""
        self._closing = True
        if self._lease is not None:
            self._lease.stop_watching()
        if self.ended is not None:
            self._on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def release(self) -> None:
        """Let the next one have the board."""
        if self._lease is not None:
            self._lease.release()
        if self._on_interrupt is not None:
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._on_interrupt = None

    def _end(self, why: LabError) -> None:
        self.ended = why
        raise pytest.exit.Exception(str(why), returncode=self._status) from None

    def _purpose(self) -> str:
        words = " ".join(["pytest", *map(str, self._config.invocation_params.args)])
        return words if len(words) <= _PURPOSE_CHARS else f"{words[: _PURPOSE_CHARS - 1]}…"
