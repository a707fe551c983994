"""What an operation on the board came to: as a test expects it, or as a value for stories that
look first and judge later."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from harness.errors import MissingCapability, of_target
from harness.probe.steps import Outcome


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


@contextlib.contextmanager
def accepted() -> Iterator[None]:
    """Expect the enclosed operation to succeed on the board: an errno is a failed assertion.

    Also a decorator, of a test in which the board may refuse nothing.

    >>> with accepted():
    ...     pass
    """
    try:
        yield
    except OSError as error:
        seen = errno.errorcode.get(error.errno or 0, str(error))
        raise AssertionError(f"failed with {seen}, expected success: {error}") from error


def succeeded(outcome: Outcome) -> None:
    """Return if the step succeeded. Raises :class:`OSError` with the errno that the target saw,
    :class:`MissingCapability` (a skip) for a step that the probe's back-end cannot take."""
    if outcome.unsupported is not None:
        raise MissingCapability(
            f"this board cannot take the step {outcome.step}: {outcome.unsupported}",
            remedy="install python3 on the board",
        )
    if outcome.errno is not None:
        code = getattr(errno, outcome.errno)
        call = type(outcome.step).__name__.lower()
        path = getattr(outcome.step, "path", None)
        raise of_target(OSError(code, f"{os.strerror(code)} ({outcome.errno} in {call})", path))


def errno_of(action: Callable[[], object]) -> int | None:
    """The errno with which ``action`` failed on the board; None for success."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None
