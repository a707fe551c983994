"""TEE result codes, origins and parameters, shared by OP-TEE, the Linux ABI and the supplicant.

Sources: GlobalPlatform TEE Client API 1.0 (4.4.2, 4.4.3), TEE Internal Core API 1.3 (3.3.1, 4.3.5);
K6 include/uapi/linux/tee.h (the numbers of the parameter types are the same).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Self


class TeeResult(IntEnum):
    """TEE_Result / TEEC_Result.

    A value that has no name here is kept as an ``UNKNOWN_…`` member, because a TEE may answer
    anything.
    """

    SUCCESS = 0
    CORRUPT_OBJECT = 0xF0100001
    CORRUPT_OBJECT_2 = 0xF0100002
    STORAGE_NOT_AVAILABLE = 0xF0100003
    STORAGE_NOT_AVAILABLE_2 = 0xF0100004
    GENERIC = 0xFFFF0000
    ACCESS_DENIED = 0xFFFF0001
    CANCEL = 0xFFFF0002
    ACCESS_CONFLICT = 0xFFFF0003
    EXCESS_DATA = 0xFFFF0004
    BAD_FORMAT = 0xFFFF0005
    BAD_PARAMETERS = 0xFFFF0006
    BAD_STATE = 0xFFFF0007
    ITEM_NOT_FOUND = 0xFFFF0008
    NOT_IMPLEMENTED = 0xFFFF0009
    NOT_SUPPORTED = 0xFFFF000A
    NO_DATA = 0xFFFF000B
    OUT_OF_MEMORY = 0xFFFF000C
    BUSY = 0xFFFF000D
    COMMUNICATION = 0xFFFF000E
    SECURITY = 0xFFFF000F
    SHORT_BUFFER = 0xFFFF0010
    EXTERNAL_CANCEL = 0xFFFF0011
    OVERFLOW = 0xFFFF300F
    TARGET_DEAD = 0xFFFF3024
    STORAGE_NO_SPACE = 0xFFFF3041
    MAC_INVALID = 0xFFFF3071
    SIGNATURE_INVALID = 0xFFFF3072

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or not 0 <= value < 1 << 32:
            return None
        unknown = int.__new__(cls, value)
        unknown._name_ = f"UNKNOWN_{value:08X}"
        unknown._value_ = value
        return unknown


class TeeOrigin(IntEnum):
    """Which part of the stack produced a result."""

    API = 1
    COMMS = 2
    TEE = 3
    TRUSTED_APP = 4


class TeeError(Exception):
    """A call ended with a result other than SUCCESS; ``origin`` tells who said so."""

    def __init__(self, result: TeeResult, origin: TeeOrigin = TeeOrigin.TEE) -> None:
        super().__init__(f"{result.name} from {origin.name}")
        self.result = result
        self.origin = origin


class ParamType(IntEnum):
    """Type of one parameter of a session or an invocation."""

    NONE = 0
    VALUE_INPUT = 1
    VALUE_OUTPUT = 2
    VALUE_INOUT = 3
    MEMREF_INPUT = 5
    MEMREF_OUTPUT = 6
    MEMREF_INOUT = 7


PARAMS = 4
"""Every call has this many parameters; missing ones are NONE."""


@dataclass(slots=True)
class Param:
    """One parameter; a call changes output values, memory contents and ``size`` in place.

    ``memory`` is the shared buffer of a memory reference, ``size`` its length in bytes as the
    callee sees and returns it; ``a``, ``b``, ``c`` are the words of a value.
    """

    kind: ParamType = ParamType.NONE
    memory: bytearray | memoryview | None = None
    size: int = 0
    a: int = 0
    b: int = 0
    c: int = 0

    @classmethod
    def none(cls) -> Self:
        """An unused parameter."""
        return cls()

    @classmethod
    def memref_inout(cls, memory: bytearray | memoryview) -> Self:
        """A reference to all of ``memory``, which the callee reads and writes."""
        return cls(ParamType.MEMREF_INOUT, memory, len(memory))

    @classmethod
    def value_output(cls) -> Self:
        """Two words that the callee fills."""
        return cls(ParamType.VALUE_OUTPUT)


def param_types(params: list[Param]) -> tuple[ParamType, ...]:
    """The types of ``params``, filled up with NONE to :data:`PARAMS`."""
    kinds = tuple(param.kind for param in params)
    return kinds + (ParamType.NONE,) * (PARAMS - len(kinds))
