"""Whose a failure looks like: firmware, kernel, lab or test. It is a first guess, by these rules:

1. an error of the harness says itself who can mend it (``harness.errors.Fault``); cable, host and
   configuration are the lab's; so is whatever this machine has run out of;
2. a bad line in the kernel log is the kernel's, a board that was lost, or that restarted without
   having been told to, is the lab's;
3. a measurement above its limit is the firmware's;
4. an assertion of the test, or a system call that the board refused, is the firmware's, or whose
   the test's marker ``blame`` says: what the VFS and efivarfs decide without asking the firmware
   is marked ``blame("kernel")``;
5. anything else is the test's.
"""

from __future__ import annotations

from enum import StrEnum

import pytest

from harness.errors import Fault, HilError, LinkError, of_host


class Whose(StrEnum):
    """Who should look at a failure first."""

    FIRMWARE = "firmware"
    KERNEL = "kernel"
    LAB = "lab"
    TEST = "test"


BLAME: pytest.StashKey[Whose] = pytest.StashKey()
"""Where an item keeps what is known better than by its exception."""

_OF_FAULT = {
    Fault.FIRMWARE: Whose.FIRMWARE,
    Fault.KERNEL: Whose.KERNEL,
    Fault.CABLE: Whose.LAB,
    Fault.LAB: Whose.LAB,
    Fault.HOST: Whose.LAB,
    Fault.CONFIGURATION: Whose.LAB,
    Fault.TEST: Whose.TEST,
}


def whose(item: pytest.Item, error: BaseException) -> Whose:
    """Whose a failure of a test looks like."""
    if isinstance(error, HilError):
        return _OF_FAULT[error.fault]
    if of_host(error) is not None:
        return Whose.LAB
    if BLAME in item.stash:
        return item.stash[BLAME]
    if isinstance(error, AssertionError | OSError):
        marker = item.get_closest_marker("blame")
        return Whose(marker.args[0]) if marker else Whose.FIRMWARE
    return Whose.TEST


def shorten(error: HilError) -> None:
    """Its text says what, where and what next: the report needs the test's line and not the way
    through the harness."""
    error.__cause__ = None
    error.__suppress_context__ = True
    last = step = error.__traceback__
    while step is not None:
        if not str(step.tb_frame.f_globals.get("__name__")).startswith("harness."):
            last = step
        step = step.tb_next
    if last is not None:
        last.tb_next = None


def link_error(error: BaseException) -> LinkError | None:
    """The broken link behind ``error``, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LinkError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
