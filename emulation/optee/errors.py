"""How a call into OP-TEE, or a request out of it, fails."""

from harness.formats.tee import TeeOrigin, TeeResult


class TeeError(Exception):
    """A call ended with a result other than SUCCESS; ``origin`` tells who said so."""

    def __init__(self, result: TeeResult, origin: TeeOrigin = TeeOrigin.TEE) -> None:
        super().__init__(f"{result.name} from {origin.name}")
        self.result = result
        self.origin = origin
