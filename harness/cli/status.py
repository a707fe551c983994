"""How ``hil`` ends: the exit statuses, in one table."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """``run``, ``shell`` and ``lease hold`` pass on that of the command they ran."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Status:
        status = int.__new__(cls, value)
        status._value_ = value
        status.meaning = meaning
        return status

    GOOD = 0, "done; the verdict is good"
    BAD = 1, "the verdict is not good, or lab, host or board failed"
    USAGE = 4, "the command line or a board file is wrong"
    INTERRUPTED = 130, "^C; 143 for SIGTERM, 129 for SIGHUP"
