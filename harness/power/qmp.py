"""QEMU's machine protocol: one JSON object a line over a local socket (qemu docs, qmp-spec)."""

import json
import socket
import time
from pathlib import Path
from typing import Any

_CHUNK = 65536


class QmpError(Exception):
    """QEMU refused a command, or does not answer."""


class Monitor:
    """A connection to a running QEMU. Deadlines are of ``time.monotonic``."""

    def __init__(self, path: Path, deadline: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._read = b""
        try:
            self._wait_at_most(deadline)
            self._socket.connect(str(path))
            self._line(deadline)
            self.execute("qmp_capabilities", deadline)
        except (OSError, QmpError):
            self.close()
            raise

    def execute(self, command: str, deadline: float) -> Any:
        """What QEMU returns. Raises :class:`QmpError`, also when the deadline passes."""
        try:
            self._wait_at_most(deadline)
            self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
            while True:
                answer = self._line(deadline)
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise QmpError(f"{command}: {error or 'no answer'}") from error

    def close(self) -> None:
        self._socket.close()

    def _line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._read:
            self._wait_at_most(deadline)
            read = self._socket.recv(_CHUNK)
            if not read:
                raise QmpError("QEMU ended")
            self._read += read
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _wait_at_most(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left)
