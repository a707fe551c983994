"""A limit that grows with the host's other load is a limit all the same."""

from __future__ import annotations

import time

import pytest

from tests.pace import until, within


def test_what_takes_too_long_fails() -> None:
    with pytest.raises(AssertionError, match="times slower"), within(0.001):
        time.sleep(1)
    with within(2, waiting=1):
        time.sleep(0.5)


def test_what_never_comes_fails() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s"):
        until(lambda: False, 0.05)
