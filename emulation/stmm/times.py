"""Comparison of time stamps of authenticated variables."""

from harness.formats.efi import EfiTime


def is_not_later(first: bytes, second: bytes) -> bool:
    """True if EFI_TIME ``first`` is before or equal to ``second``, by date and time of day only.

    Source: EDK2 SecurityPkg AuthService.c:AuthServiceInternalCompareTimeStamp.
    """
    return _key(first) <= _key(second)


def _key(raw: bytes) -> tuple[int, ...]:
    time = EfiTime.unpack(raw)
    return (time.year, time.month, time.day, time.hour, time.minute, time.second)
