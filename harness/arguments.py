"""Words of the command lines of ``hil`` and pytest, refused where they are read: a type for each
kind of value. Imports nothing, as every ``hil`` pays for it."""

from __future__ import annotations

import argparse

LONGEST = 7 * 86400.0
"""Seconds: beyond is a slip, and some weeks more are an overflow in poll(2)."""
BAUDS = (300, 4_000_000)


def seconds(text: str) -> float:
    """How long to wait: from 0, for not at all, to :data:`LONGEST`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST:  # nan is not either
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 0 to {LONGEST:.0f} seconds")
    return value


def some_seconds(text: str) -> float:
    """As :func:`seconds`, for what cannot be done in no time."""
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} leaves no time")
    return value


def baud(text: str) -> int:
    """A rate in bit/s."""
    lowest, highest = BAUDS
    # Longer ones are not even looked at: int() takes a second for a million digits, or refuses.
    value = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate from {lowest} to {highest} baud")
    return value
