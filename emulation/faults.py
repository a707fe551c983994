"""Faults that reach through every layer of the model."""

from __future__ import annotations


class PowerLost(BaseException):
    """The power went: everything but the flash is gone.

    Not an ``Exception``, so that no layer's error handling catches it.
    """
