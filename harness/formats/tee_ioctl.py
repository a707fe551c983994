"""The user ABI of the kernel's TEE subsystem: ioctl numbers and structures.

Source: K6 include/uapi/linux/tee.h.  Everything is in native byte order; all hosts and boards of
this project are little-endian.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from harness.formats.ioctl import ior, iowr
from harness.formats.tee import ParamType

TEE_IOC_MAGIC: Final = 0xA4
TEE_MAX_ARG_SIZE: Final = 1024
"""Largest buffer, in bytes, that OPEN_SESSION, INVOKE, SUPPL_RECV and SUPPL_SEND take."""

TEE_GEN_CAP_GP: Final = 1 << 0
TEE_GEN_CAP_PRIVILEGED: Final = 1 << 1
TEE_GEN_CAP_REG_MEM: Final = 1 << 2
TEE_GEN_CAP_MEMREF_NULL: Final = 1 << 3
TEE_MEMREF_NULL: Final = (1 << 64) - 1
TEE_IMPL_ID_OPTEE: Final = 1
TEE_OPTEE_CAP_TZ: Final = 1 << 0

PARAM_TYPE_MASK: Final = 0xFF
PARAM_META: Final = 0x100

LOGIN_REE_KERNEL_MIN: Final = 0x8000_0000
LOGIN_REE_KERNEL_MAX: Final = 0xBFFF_FFFF

VERSION_DATA: Final = struct.Struct("<III")
"""impl_id, impl_caps, gen_caps."""
SHM_ALLOC_DATA: Final = struct.Struct("<QIi")
"""size, flags, id."""
SHM_REGISTER_DATA: Final = struct.Struct("<QQIi")
"""addr, length, flags, id."""
BUF_DATA: Final = struct.Struct("<QQ")
"""buf_ptr, buf_len."""
PARAM: Final = struct.Struct("<QQQQ")
"""attr, a, b, c; for a memory reference a is the offset, b the size, c the id of the memory."""
OPEN_SESSION_ARG: Final = struct.Struct("<16s16sIIIIII")
"""uuid, client uuid, client login, cancel id, session, ret, ret_origin, number of params."""
INVOKE_ARG: Final = struct.Struct("<IIIIII")
"""func, session, cancel id, ret, ret_origin, number of params."""
CANCEL_ARG: Final = struct.Struct("<II")
"""cancel id, session."""
CLOSE_SESSION_ARG: Final = struct.Struct("<I")
SUPP_RECV_ARG: Final = struct.Struct("<II")
"""func, number of params."""
SUPP_SEND_ARG: Final = struct.Struct("<II")
"""ret, number of params."""

TEE_IOC_VERSION: Final = ior(TEE_IOC_MAGIC, 0, VERSION_DATA.size)
TEE_IOC_SHM_ALLOC: Final = iowr(TEE_IOC_MAGIC, 1, SHM_ALLOC_DATA.size)
TEE_IOC_OPEN_SESSION: Final = ior(TEE_IOC_MAGIC, 2, BUF_DATA.size)
TEE_IOC_INVOKE: Final = ior(TEE_IOC_MAGIC, 3, BUF_DATA.size)
TEE_IOC_CANCEL: Final = ior(TEE_IOC_MAGIC, 4, CANCEL_ARG.size)
TEE_IOC_CLOSE_SESSION: Final = ior(TEE_IOC_MAGIC, 5, CLOSE_SESSION_ARG.size)
TEE_IOC_SUPPL_RECV: Final = ior(TEE_IOC_MAGIC, 6, BUF_DATA.size)
TEE_IOC_SUPPL_SEND: Final = ior(TEE_IOC_MAGIC, 7, BUF_DATA.size)
TEE_IOC_SHM_REGISTER: Final = iowr(TEE_IOC_MAGIC, 9, SHM_REGISTER_DATA.size)

# Requests OP-TEE sends to the supplicant (optee_os core/include/optee_rpc_cmd.h).
RPC_LOAD_TA: Final = 0
RPC_RPMB: Final = 1
RPC_SHM_ALLOC: Final = 6
RPC_SHM_FREE: Final = 7
RPC_SHM_TYPE_APPL: Final = 0


@dataclass(frozen=True)
class IoctlParam:
    """One ``struct tee_ioctl_param``."""

    attr: int = ParamType.NONE
    a: int = 0
    b: int = 0
    c: int = 0

    @property
    def kind(self) -> int:
        """The type without the meta bit: one of :class:`ParamType`."""
        return self.attr & PARAM_TYPE_MASK

    @property
    def is_memref(self) -> bool:
        """Whether the parameter refers to shared memory."""
        return self.kind in (
            ParamType.MEMREF_INPUT,
            ParamType.MEMREF_OUTPUT,
            ParamType.MEMREF_INOUT,
        )

    def pack(self) -> bytes:
        """The 32 bytes of the structure."""
        return PARAM.pack(self.attr, self.a, self.b, self.c)

    @classmethod
    def unpack_all(cls, data: bytes, count: int, offset: int = 0) -> list[Self]:
        """``count`` structures from ``data``; struct.error when it is shorter."""
        return [
            cls(*PARAM.unpack_from(data, offset + index * PARAM.size)) for index in range(count)
        ]
