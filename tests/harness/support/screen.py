"""A person's terminal: a program under a pseudo terminal of its own, typed at and read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Any

PATIENCE = 60.0  # seconds; only who fails waits so long


def _take_terminal() -> None:
    """Standard input becomes the controlling terminal of the new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """Close it. ``before`` are the terminal's attributes before the program was started."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._person, self._terminal = pty.openpty()
        self.before = self.attributes()
        self.text = ""
        self._seen = 0
        self.program = subprocess.Popen(
            command,
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._person, keys.encode())

    def expect(self, pattern: str) -> str:
        """Wait until a regular expression is shown after what was expected last."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text[self._seen :]!r}"
            self._read(0.1)
        self._seen = found.end()
        return found[0]

    def end(self) -> int:
        """The program's exit status, once it has ended; all it printed is in ``text``."""
        deadline = time.monotonic() + PATIENCE
        while self.program.poll() is None:
            assert time.monotonic() < deadline, f"it goes on; shown: {self.text!r}"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.program.returncode

    def attributes(self) -> list[Any]:
        """Of the terminal, as termios(3) tells them."""
        return termios.tcgetattr(self._terminal)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.program.kill()
        self.program.wait()
        os.close(self._person)
        os.close(self._terminal)

    def _read(self, timeout: float) -> bool:
        if not select.select([self._person], [], [], timeout)[0]:
            return False
        self.text += os.read(self._person, 65536).decode("utf-8", "replace")
        return True
