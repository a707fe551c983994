"""The board's journal: what units and their processes said, merged with the kernel log."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

CAPACITY: Final = 10_000
"""Entries kept; the journal is volatile, as with ``Storage=volatile``."""


@dataclass(frozen=True)
class Entry:
    """One line: ``when`` in seconds since the epoch, ``unit`` empty for none."""

    when: float
    identifier: str
    pid: int | None
    text: str
    unit: str = ""

    def render(self, hostname: str) -> str:
        """The ``short`` output format of journalctl."""
        stamp = time.strftime("%b %d %H:%M:%S", time.gmtime(self.when))
        pid = f"[{self.pid}]" if self.pid is not None else ""
        return f"{stamp} {hostname} {self.identifier}{pid}: {self.text}"


class Journal:
    """Thread-safe; lives for one power-on."""

    def __init__(self, hostname: str) -> None:
        self.hostname = hostname
        self._entries: deque[Entry] = deque(maxlen=CAPACITY)
        self._lock = threading.Lock()

    def add(self, identifier: str, text: str, *, pid: int | None = None, unit: str = "") -> None:
        with self._lock:
            self._entries.append(Entry(time.time(), identifier, pid, text, unit))

    def entries(self, *, unit: str = "", identifier: str = "") -> list[Entry]:
        """In the order they were made; of one unit or one identifier when named."""
        with self._lock:
            return [
                entry
                for entry in self._entries
                if (not unit or entry.unit == unit)
                and (not identifier or entry.identifier == identifier)
            ]
