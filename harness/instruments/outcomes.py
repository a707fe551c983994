"""What an operation on the board came to, as a value: for stories that look first and judge
later."""

from __future__ import annotations

from collections.abc import Callable

from harness.instruments.efivars import Efivars


def errno_of(action: Callable[[], object]) -> int | None:
    """The errno with which ``action`` failed on the board; None for success."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def content_of(efivars: Efivars, name: str) -> bytes | None:
    """Attributes and data of one of our own variables; None for one that cannot be read, empty for
    one without a value."""
    try:
        return efivars.read_raw(name)
    except OSError:
        return None
