"""The RPMB of an eMMC on the wire: data frames, their MAC, and tee-supplicant's request header.

Sources: JESD84-B51 6.6.22; OC tee-supplicant/src/rpmb.c; stack 1.1 - 1.3, 1.7.  Frames are
big-endian, tee-supplicant's structures little-endian.
"""

import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final, NamedTuple, Self

FRAME_SIZE: Final = 512
DATA_SIZE: Final = 256
"""One half sector: what a frame carries and an address counts."""
MAC_OFFSET: Final = 196
MAC_SIZE: Final = 32
SIGNED_OFFSET: Final = 228
"""The MAC covers a frame from here to its end."""
NONCE_SIZE: Final = 16
COUNTER_MAX: Final = 0xFFFFFFFF
SIZE_UNIT: Final = 128 * 1024
"""Bytes for one step of EXT_CSD RPMB_SIZE_MULT."""

NO_MAC: Final = bytes(MAC_SIZE)
NO_DATA: Final = bytes(DATA_SIZE)
NO_NONCE: Final = bytes(NONCE_SIZE)

OPTEE_TEST_KEY: Final = bytes.fromhex(
    "d3eb3ec36e334c9f988ce2c0b85954610d2bcf8664844df2ab56e6c61bb701e4"
)
"""OP-TEE's public key, of a build with CFG_RPMB_TESTKEY (optee_os core/tee/tee_rpmb_fs.c)."""


class RpmbRequest(IntEnum):
    """Request types; the response to request ``n`` has type ``n << 8``."""

    PROGRAM_KEY = 1
    READ_COUNTER = 2
    WRITE = 3
    READ = 4
    READ_RESULT = 5
    WRITE_CONFIGURATION = 6
    READ_CONFIGURATION = 7


def response_type(request: int) -> int:
    """The type field of the response to ``request``."""
    return request << 8 & 0xFFFF


class RpmbResult(IntEnum):
    """Result codes, without the flag :data:`COUNTER_EXPIRED`."""

    OK = 0
    GENERAL_FAILURE = 1
    AUTHENTICATION_FAILURE = 2
    COUNTER_FAILURE = 3
    ADDRESS_FAILURE = 4
    WRITE_FAILURE = 5
    READ_FAILURE = 6
    KEY_NOT_PROGRAMMED = 7


COUNTER_EXPIRED: Final = 0x80
"""Or-ed into every result once the write counter is saturated."""
RESULT_MASK: Final = 0x3F
"""What OP-TEE looks at (stack 1.3)."""

_FRAME: Final = struct.Struct(
    ">"
    "196x"  # stuff bytes
    "32s"  # key or MAC
    "256s"  # data
    "16s"  # nonce
    "I"  # write counter
    "H"  # address, in half sectors
    "H"  # block count
    "H"  # result
    "H"  # request or response type
)


class RpmbFrame(NamedTuple):
    """One frame; ``address`` and ``block_count`` count half sectors of 256 bytes.

    ``mac`` holds the key in a key programming request.  A tuple, not a frozen dataclass: it is made
    three times as fast, and a change of one variable makes up to two thousand.
    """

    mac: bytes = NO_MAC
    data: bytes = NO_DATA
    nonce: bytes = NO_NONCE
    write_counter: int = 0
    address: int = 0
    block_count: int = 0
    result: int = 0
    kind: int = 0

    def pack(self) -> bytes:
        """The 512 bytes of the frame, stuff bytes zero."""
        return _FRAME.pack(*self)

    @classmethod
    def unpack(cls, raw: bytes | memoryview, offset: int = 0) -> Self:
        """The frame at ``offset`` bytes; ``struct.error`` if it is cut short."""
        return cls._make(_FRAME.unpack_from(raw, offset))


def kind_of(frames: bytes) -> int:
    """The type in the last of ``frames``, which must be whole; the others' should be the same."""
    return int.from_bytes(frames[-2:], "big")


def mac(key: bytes, frames: bytes) -> bytes:
    """HMAC-SHA-256 over bytes 228..511 of every frame in ``frames``."""
    if len(frames) == FRAME_SIZE:
        return hmac.digest(key, frames[SIGNED_OFFSET:], "sha256")
    starts = range(0, len(frames), FRAME_SIZE)
    signed = [frames[start + SIGNED_OFFSET : start + FRAME_SIZE] for start in starts]
    return hmac.digest(key, b"".join(signed), "sha256")


def sign(key: bytes, frames: bytes) -> bytes:
    """``frames`` with the MAC over all of them in the last one."""
    place = len(frames) - FRAME_SIZE + MAC_OFFSET
    return frames[:place] + mac(key, frames) + frames[place + MAC_SIZE :]


def key_request(key: bytes) -> bytes:
    """Program the authentication key, 32 bytes, for ever."""
    return RpmbFrame(mac=key, kind=RpmbRequest.PROGRAM_KEY).pack()


def counter_request(nonce: bytes) -> bytes:
    """Read the write counter."""
    return RpmbFrame(nonce=nonce, kind=RpmbRequest.READ_COUNTER).pack()


def read_request(address: int, nonce: bytes) -> bytes:
    """Read from half sector ``address``; how many is told by CMD23, not by the frame."""
    return RpmbFrame(nonce=nonce, address=address, kind=RpmbRequest.READ).pack()


@cache
def result_request() -> bytes:
    """Ask for the result register after key programming or a write."""
    return RpmbFrame(kind=RpmbRequest.READ_RESULT).pack()


def write_request(key: bytes, counter: int, address: int, data: bytes) -> bytes:
    """Authenticated write of ``data`` (whole half sectors) from half sector ``address`` on."""
    count = len(data) // DATA_SIZE
    if count == 0 or len(data) % DATA_SIZE:
        raise ValueError(f"{len(data)} bytes are not whole half sectors of {DATA_SIZE}")
    numbers = (counter, address, count, RpmbResult.OK, RpmbRequest.WRITE)
    frames = [
        RpmbFrame(NO_MAC, data[start : start + DATA_SIZE], NO_NONCE, *numbers).pack()
        for start in range(0, len(data), DATA_SIZE)
    ]
    return sign(key, b"".join(frames))


def unpack_frames(frames: bytes) -> list[RpmbFrame]:
    """All frames in ``frames``; ``ValueError`` if they are not whole."""
    if len(frames) % FRAME_SIZE:
        raise ValueError(f"{len(frames)} bytes are not whole frames of {FRAME_SIZE}")
    return [RpmbFrame.unpack(frames, start) for start in range(0, len(frames), FRAME_SIZE)]


def join(frames: Iterable[RpmbFrame]) -> bytes:
    """The bytes of ``frames`` in a row."""
    return b"".join(frame.pack() for frame in frames)


class SupplicantCommand(IntEnum):
    """What OP-TEE asks the supplicant (stack 1.7)."""

    DATA_REQUEST = 0
    GET_DEVICE_INFO = 1


_REQUEST_HEADER: Final = struct.Struct("<HHH")


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """``struct rpmb_req``: 6 bytes in front of the request frames.

    ``block_count`` is how many half sectors a read returns.
    """

    command: int
    device: int = 0
    block_count: int = 0

    SIZE = _REQUEST_HEADER.size

    def pack(self) -> bytes:
        """The 6 bytes."""
        return _REQUEST_HEADER.pack(self.command, self.device, self.block_count)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The header in front of ``raw``; ``struct.error`` if it is cut short."""
        return cls(*_REQUEST_HEADER.unpack_from(raw))


_DEVICE_INFO: Final = struct.Struct("<16sBBB")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """``struct rpmb_dev_info``: 19 bytes; ``status`` 0 is OK, anything else an error."""

    cid: bytes
    size_mult: int
    rel_wr_sec_c: int
    status: int = 0

    SIZE = _DEVICE_INFO.size

    def pack(self) -> bytes:
        """The 19 bytes."""
        return _DEVICE_INFO.pack(self.cid, self.size_mult, self.rel_wr_sec_c, self.status)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The record in front of ``raw``; ``struct.error`` if it is cut short."""
        return cls(*_DEVICE_INFO.unpack_from(raw))
