"""Instruments: what a test reads and does on a board, through a shell and a probe only."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


@contextlib.contextmanager
def refused(*expected: int) -> Iterator[None]:
    """Expect the enclosed operation to fail on the board with one of these errno values.

    >>> with refused(errno.EROFS):
    ...     raise OSError(errno.EROFS, "Read-only file system")
    """
    wanted = " or ".join(errno.errorcode[code] for code in expected)
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            seen = errno.errorcode.get(error.errno or 0, str(error))
            raise AssertionError(f"failed with {seen}, expected {wanted}: {error}") from error
        return
    raise AssertionError(f"succeeded, expected {wanted}")
