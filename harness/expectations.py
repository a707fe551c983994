"""What a conformance test expects, with the recorded rows that say so.

``tests/truth`` holds what the real firmware did; ``tests/truth/test_expectations.py`` reads every
call of :func:`recorded` out of the conformance tests and compares its value with the rows.
"""

from __future__ import annotations

from typing import TypeVar

_Value = TypeVar("_Value")


def recorded(value: _Value, *rows: str) -> _Value:
    """``value``, which each of ``rows`` recorded on real firmware.

    ``value`` is a literal: ``errno.NAME`` for a refused call, a number, a bool, bytes for what was
    read. A row is ``"ID[N]"``, the outcome of its N-th step counted from 0, or ``"ID.FIELD"``, one
    of its other fields (tests/truth/README.md), as in
    ``recorded(errno.EINVAL, "attr-002[1]", "attr-004[1]")``. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("recorded() names the rows that say so")
    return value
