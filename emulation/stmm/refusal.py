"""How a check, a full store or the flash ends a call of the variable service."""

from harness.formats.efi import EfiStatus


class Refused(Exception):
    """The call ends here and its caller gets ``status``, if nobody on the way knows better."""

    def __init__(self, status: EfiStatus) -> None:
        super().__init__(status.name)
        self.status = status


def refuse_if(refused: object, status: EfiStatus) -> None:
    """One check of a service: raise Refused with ``status`` if ``refused`` is true."""
    if refused:
        raise Refused(status)


def need(status: EfiStatus) -> None:
    """Pass a driver's failure on: raise Refused with an error status."""
    refuse_if(status.is_error, status)
