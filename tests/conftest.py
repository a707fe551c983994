"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest

# A shell that starts pytest in the background has it ignore ^C; the boards, shells and servers that
# tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: run with HIL_SLOW=1 only (tox -e nightly)")
    config.addinivalue_line("markers", "long: mostly waits, for tens of seconds; starts first")
    config.addinivalue_line("markers", "fault(*ids): the faults seen once that the test is about")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longer than CI may is left to the nightly job. What takes long starts first, or
    it would be what several workers (-n) wait for at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if os.environ.get("HIL_SLOW"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
