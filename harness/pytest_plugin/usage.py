"""What is wrong with board file, board or command line, as pytest tells it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness.errors import HilError, of_host


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn an error of the harness into one paragraph and exit status 4."""
    try:
        yield
    except HilError as error:
        raise pytest.UsageError(str(error)) from None
    except (OSError, RuntimeError, MemoryError) as error:
        if (host := of_host(error)) is None:
            raise
        raise pytest.UsageError(str(host)) from None
