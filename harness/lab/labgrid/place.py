"""A labgrid place, as long as this process uses it: its power, its serial port, its SSH address.

What talks to labgrid is a process of its own (:mod:`harness.lab.labgrid.keeper`), which acquires
the place and releases it when this process closes it or dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigurationError, HilError, HostError, LabError, PowerError
from harness.foreign import say
from harness.lab.labgrid.offers import Wanted
from harness.lab.lease import BoardHeld, LeaseBroken
from harness.links.address import SerialAddress, SshAddress
from harness.power.driver import PowerState

if TYPE_CHECKING:
    from harness.boardfile.sections import LabgridSection

# To start it, to reach the coordinator, to wait for a run that was killed; each step has its own,
# shorter limit, which says more.
_START_SECONDS = 60.0
_ENDPOINT_SECONDS = 30.0
_RELEASE_SECONDS = 2.0
_ERRORS = {
    kind.__name__: kind
    for kind in (BoardHeld, ConfigurationError, HostError, LabError, LeaseBroken, PowerError)
}


def _tell(state: str) -> None:
    say(f"waiting: {state}", file=sys.stderr)


class LabgridPlace:
    """The place of a board file's ``[labgrid]``. Nothing happens before :meth:`hold`; ``waiting``
    is told who has the place whenever that changes during the wait for it."""

    def __init__(
        self, section: LabgridSection, *, board: str, waiting: Callable[[str], None] = _tell
    ) -> None:
        self._section = section
        self._board = board
        self._waiting = waiting
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self._unread = b""
        self._numbers = 0
        self._lost: HilError | None = None
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"labgrid place {self._section.place}"

    def hold(self) -> None:
        """Acquire the place unless we have it. Raises :class:`BoardHeld` when somebody else has,
        :class:`LabError`, and :class:`ConfigurationError` for a place that is not known."""
        with self._lock:
            if self._process is not None:
                return
            self._start()
            try:
                answer = self._answer(
                    lambda message: "held" in message or "error" in message,
                    _START_SECONDS + self._section.wait,
                )
                self._raise_error_of(answer)
            except BaseException:
                self._end()
                raise

    def check(self) -> None:
        """Raise :class:`LeaseBroken` if somebody took the place away. Asks nobody: fast."""
        with self._lock:
            if self._process is not None:
                self._answer(lambda message: False, 0.0)
            if self._lost is not None:
                raise self._lost

    def ssh(self) -> SshAddress | None:
        """Where the place's SSH server is; None where it has none."""
        end = self._ask("ssh", _ENDPOINT_SECONDS)["end"]
        return None if end is None else SshAddress(**end)

    def serial(self) -> SerialAddress | None:
        """Where the place's serial port is now; None where it has none."""
        end = self._ask("serial", _ENDPOINT_SECONDS)["end"]
        return None if end is None else SerialAddress(**end)

    def switch(self, on: bool, timeout: float) -> None:
        """Ask the place's power resource for on or off, within ``timeout`` seconds."""
        self._ask("switch", timeout, on=on)

    def power(self, timeout: float) -> PowerState:
        """What the place's power resource says; UNKNOWN where it cannot say."""
        on = self._ask("state", timeout)["on"]
        return PowerState.UNKNOWN if on is None else PowerState.ON if on else PowerState.OFF

    def close(self) -> None:
        """Release the place if it was not acquired before; never raises."""
        with self._lock:
            self._end()

    # --- helpers ------------------------------------------------------------------------------

    def _ask(self, what: str, timeout: float, **values: object) -> dict[str, Any]:
        self.hold()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._numbers += 1
            number = self._numbers
            self._send({"number": number, "ask": what, **values})
            answer = self._answer(lambda message: message.get("number") == number, timeout)
            if answer is None:
                raise PowerError(
                    f"{self}: no answer within {timeout:g} s ({what})",
                    remedy="try the same with labgrid-client; raise power.options.timeout if it "
                    "needs longer",
                    board=self._board,
                )
            self._raise_error_of(answer)
            return answer

    def _start(self) -> None:
        if importlib.util.find_spec("labgrid") is None:
            raise ConfigurationError(
                "the board file names a labgrid place, and labgrid is not installed",
                remedy="pip install 'stmm-hil[labgrid]'",
                board=self._board,
            )
        self._unread, self._lost = b"", None
        # In a session of its own: ^C is for us, who then release the place in order.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.lab.labgrid.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,
        )
        section = self._section
        self._send(
            asdict(
                Wanted(
                    **section.model_dump() | {"coordinator": section.address},
                    board=self._board,
                    parent=os.getpid(),
                )
            )
        )

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # A keeper that has ended is found out when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(
        self, wanted: Callable[[dict[str, Any]], bool], timeout: float
    ) -> dict[str, Any] | None:
        """The next ``wanted`` message; None if there is none within ``timeout`` seconds. News are
        taken note of on the way, answers that came too late passed over."""
        deadline = time.monotonic() + timeout
        while True:
            while b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                message = json.loads(line)
                if "waiting" in message:
                    self._waiting(message["waiting"])
                elif "lost" in message:
                    self._lost = self._error_of(message["lost"])
                elif wanted(message):
                    return dict(message)
            if self._lost is not None or not self._read(deadline - time.monotonic()):
                return None

    def _read(self, timeout: float) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(0.0, timeout))[0]:
            return False
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:
            self._lost = self._ended()
            return False
        self._unread += data
        return True

    def _raise_error_of(self, answer: dict[str, Any] | None) -> None:
        if self._lost is not None:
            raise self._lost
        if answer is None:
            raise LabError(
                f"{self}: labgrid did not come to an end of acquiring it",
                remedy=f"does `labgrid-client -p {self._section.place} show` answer?",
                board=self._board,
            )
        if "error" in answer:
            raise self._error_of(answer["error"])

    def _error_of(self, error: dict[str, str]) -> HilError:
        kind = _ERRORS.get(error["kind"], LabError)
        return kind(error["what"], remedy=error["remedy"], board=self._board)

    def _ended(self) -> LabError:
        self._complaints.seek(0)
        said = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        return LeaseBroken(
            f"the process that keeps {self} ended: {said[-1] if said else 'it said nothing'}",
            remedy=f"`labgrid-client -p {self._section.place} release` if nobody else needs what "
            "it left acquired; then run again",
            board=self._board,
        )

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        # It goes on releasing by itself; the next run of this user waits for it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_RELEASE_SECONDS)
        process.stdout.close()
