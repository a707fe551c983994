"""The RPMB of an eMMC as a state machine: request frames in, result register, response frames out.

Source: JESD84-B51 6.6.22; stack 1.3, 1.4 and 1.7.  Where implementations differ (stack 10.1)
a :class:`Profile` says whose behaviour this is.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from emulation.emmc.image import RpmbImage
from emulation.faults import Action, Faults
from harness.formats import rpmb
from harness.formats.rpmb import (
    COUNTER_EXPIRED,
    COUNTER_MAX,
    DATA_SIZE,
    FRAME_SIZE,
    RpmbFrame,
    RpmbRequest,
    RpmbResult,
)


@dataclass(frozen=True)
class Profile:
    """What one implementation does where the standard leaves room or is not followed."""

    name: str
    rekey: RpmbResult
    """Answer to programming a key a second time."""
    single_write: bool = False
    """Only one frame a write, whatever the registers promise."""
    checks_address: bool = True
    """Addresses beyond the partition are refused; otherwise they reach what lies behind it."""
    checks_reliable: bool = True
    """Key programming and writes need reliable write (CMD23 bit 31)."""
    checks_frames: bool = True
    """All frames of a write carry the same counter, address and type, and the right count."""
    checks_counter: bool = True
    """The counter in the write request must be the current one."""
    counts_blocks: bool = False
    """The counter moves once a half sector instead of once a request."""
    answers_unkeyed_reads: bool = False
    """Reading data without a key is OK and carries a zero MAC."""
    ignores_bad_reads: bool = False
    """A read beyond the partition is OK and carries zeros."""
    swaps_block_count: bool = False
    """The block count of a response is little-endian."""


QEMU: Final = Profile(
    "qemu",
    RpmbResult.WRITE_FAILURE,
    single_write=True,
    checks_address=False,
    checks_reliable=False,
    checks_frames=False,
)
"""QEMU's emmc device, the recorded one (QE; truth rpmb)."""

SILICON: Final = Profile("silicon", RpmbResult.GENERAL_FAILURE)
"""The standard."""

SUPPLICANT_EMULATION: Final = Profile(
    "supplicant-emu",
    RpmbResult.GENERAL_FAILURE,
    checks_reliable=False,
    checks_frames=False,
    checks_counter=False,
    counts_blocks=True,
    answers_unkeyed_reads=True,
    ignores_bad_reads=True,
    swaps_block_count=True,
)
"""tee-supplicant built with RPMB_EMU (OC rpmb.c:ioctl_emu)."""

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {profile.name: profile for profile in (QEMU, SILICON, SUPPLICANT_EMULATION)}
)

_BLANK: Final = RpmbFrame()
_READ_RESPONSE: Final = rpmb.response_type(RpmbRequest.READ)


class RpmbPartition:
    """One RPMB from power-on to power-off; everything that outlives the power is in ``image``.

    ``rel_wr_sec_c`` is EXT_CSD[222]; ``enhanced`` is EN_RPMB_REL_WR (EXT_CSD[166] bit 4).  Fault
    points (emulation.faults.POINTS), each passed once a request or response: ``rpmb.request``,
    ``rpmb.read``, ``rpmb.write``, ``rpmb.written``, ``rpmb.response``.
    """

    def __init__(
        self,
        image: RpmbImage,
        *,
        rel_wr_sec_c: int = 1,
        enhanced: bool = False,
        profile: Profile = QEMU,
        faults: Faults | None = None,
    ) -> None:
        self._image = image
        self._profile = profile
        self._faults = faults or Faults()
        self._frame_counts = _allowed_frames(profile, rel_wr_sec_c, enhanced)
        self._register = _BLANK

    @property
    def write_counter(self) -> int:
        """The write counter."""
        return self._image.write_counter

    def power_cycle(self) -> None:
        """The power went and came back: the result register is clear."""
        self._register = _BLANK

    def write_frames(self, frames: bytes, *, reliable: bool) -> None:
        """CMD25 with ``frames`` (whole frames of 512 bytes); ``reliable`` is CMD23's bit 31.

        The outcome goes to the result register; see :meth:`read_frames`.  OSError ETIMEDOUT when
        the card stays busy.
        """
        if not frames or len(frames) % FRAME_SIZE:
            raise ValueError(f"{len(frames)} bytes are not whole frames of {FRAME_SIZE}")
        fault = self._faults.point("rpmb.request")
        if fault is not None and fault.name == "busy":
            raise OSError(errno.ETIMEDOUT, "the card stays busy")
        if fault is not None:
            return
        if rpmb.kind_of(frames) == RpmbRequest.READ_RESULT:
            return
        last = RpmbFrame.unpack(frames, len(frames) - FRAME_SIZE)
        self._register = self._execute(last, frames, reliable)

    def read_frames(self, count: int) -> bytes:
        """CMD18: the result register as ``count`` response frames.

        After a read request the frames carry data; otherwise each is the register itself.
        """
        if count < 1:
            raise ValueError("at least one frame is read")
        fault = self._faults.point("rpmb.response")
        register = self._register
        if register.kind == _READ_RESPONSE and register.result == RpmbResult.OK:
            frames = self._data_frames(register, count)
        else:
            if self.write_counter == COUNTER_MAX:
                register = register._replace(result=self._flag(register.result))
            frames = self._sign(register.pack()) * count
        return frames if fault is None else _spoil(frames, fault)

    def _execute(self, request: RpmbFrame, frames: bytes, reliable: bool) -> RpmbFrame:
        """Carry out one request; what the result register holds after it."""
        result: int
        kind = rpmb.response_type(request.kind)
        if request.kind == RpmbRequest.PROGRAM_KEY:
            result = self._program_key(request, frames, reliable)
            return RpmbFrame(nonce=request.nonce, result=result, kind=kind)
        unkeyed_read = request.kind == RpmbRequest.READ and self._profile.answers_unkeyed_reads
        if self._image.key is None and not unkeyed_read:
            result = RpmbResult.KEY_NOT_PROGRAMMED
            return RpmbFrame(nonce=request.nonce, result=result, kind=kind)
        if request.kind == RpmbRequest.READ_COUNTER:
            return RpmbFrame(nonce=request.nonce, write_counter=self.write_counter, kind=kind)
        if request.kind == RpmbRequest.READ:
            fault = self._faults.point("rpmb.read")
            result = fault.argument if fault is not None else RpmbResult.OK
            return RpmbFrame(nonce=request.nonce, address=request.address, result=result, kind=kind)
        if request.kind == RpmbRequest.WRITE:
            return self._write(request, frames, reliable)
        return RpmbFrame(nonce=request.nonce, result=RpmbResult.GENERAL_FAILURE, kind=kind)

    def _program_key(self, request: RpmbFrame, frames: bytes, reliable: bool) -> RpmbResult:
        if self._image.key is not None:
            return self._profile.rekey
        if len(frames) != FRAME_SIZE or (self._profile.checks_reliable and not reliable):
            return RpmbResult.GENERAL_FAILURE
        self._image.program_key(request.mac)
        return RpmbResult.OK

    def _write(self, request: RpmbFrame, frames: bytes, reliable: bool) -> RpmbFrame:
        kind = rpmb.response_type(request.kind)
        result: int | None = self._refusal(request, frames, reliable)
        if result is not None:
            return RpmbFrame(nonce=request.nonce, result=result, kind=kind)
        fault = self._faults.point("rpmb.write")
        if fault is not None:
            result = fault.argument
        else:
            result = RpmbResult.OK
            self._commit(request.address, frames)
            if self._faults.point("rpmb.written") is not None:
                return _BLANK
        return RpmbFrame(
            nonce=request.nonce,
            write_counter=self.write_counter,
            address=request.address,
            result=result,
            kind=kind,
        )

    def _refusal(self, request: RpmbFrame, frames: bytes, reliable: bool) -> RpmbResult | None:
        """Why a write is not carried out; the order of the checks is stack 1.4's."""
        key = self._image.key
        count = len(frames) // FRAME_SIZE
        profile = self._profile
        if count not in self._frame_counts or (profile.checks_reliable and not reliable):
            return RpmbResult.GENERAL_FAILURE
        if profile.checks_frames and not _frames_agree(frames, count):
            return RpmbResult.GENERAL_FAILURE
        if self.write_counter == COUNTER_MAX:
            return RpmbResult.WRITE_FAILURE
        if profile.checks_address and request.address + count > self._image.blocks:
            return RpmbResult.ADDRESS_FAILURE
        if key is None or request.mac != rpmb.mac(key, frames):
            return RpmbResult.AUTHENTICATION_FAILURE
        if profile.checks_counter and request.write_counter != self.write_counter:
            return RpmbResult.COUNTER_FAILURE
        return None

    def _commit(self, address: int, frames: bytes) -> None:
        start = rpmb.SIGNED_OFFSET
        count = len(frames) // FRAME_SIZE
        blocks = [
            frames[offset + start : offset + start + DATA_SIZE]
            for offset in range(0, len(frames), FRAME_SIZE)
        ]
        step = count if self._profile.counts_blocks else 1
        self._image.commit(min(self.write_counter + step, COUNTER_MAX), address, b"".join(blocks))

    def _data_frames(self, register: RpmbFrame, count: int) -> bytes:
        outside = register.address + count > self._image.blocks
        block_count = int.from_bytes(count.to_bytes(2, "little"), "big")
        answer = RpmbFrame(
            nonce=register.nonce,
            address=register.address,
            block_count=block_count if self._profile.swaps_block_count else count,
            result=self._flag(RpmbResult.OK),
            kind=register.kind,
        )
        if outside and self._profile.checks_address:
            if not self._profile.ignores_bad_reads:
                answer = answer._replace(result=self._flag(RpmbResult.ADDRESS_FAILURE))
            return self._sign(answer.pack() * count)
        data = self._image.read(register.address, count)
        # All frames but their data are alike, so the template is packed once.
        template = answer.pack()
        head, tail = template[: rpmb.SIGNED_OFFSET], template[rpmb.SIGNED_OFFSET + DATA_SIZE :]
        starts = range(0, len(data), DATA_SIZE)
        frames = [head + data[start : start + DATA_SIZE] + tail for start in starts]
        return self._sign(b"".join(frames))

    def _sign(self, frames: bytes) -> bytes:
        """``frames`` with a MAC; without a key it is made with a key of zeros, as QEMU does."""
        if self._image.key is None and self._profile.answers_unkeyed_reads:
            return frames
        return rpmb.sign(self._image.key or rpmb.NO_MAC, frames)

    def _flag(self, result: int) -> int:
        return result | COUNTER_EXPIRED if self.write_counter == COUNTER_MAX else result


def _allowed_frames(profile: Profile, rel_wr_sec_c: int, enhanced: bool) -> frozenset[int]:
    """How many frames a write may have (stack 1.4)."""
    if profile.single_write:
        return frozenset({1})
    if enhanced:
        return frozenset({1, 2, 32})
    return frozenset(range(1, min(rel_wr_sec_c * 2, 32) + 1))


def _frames_agree(frames: bytes, count: int) -> bool:
    headers = {
        (frame.write_counter, frame.address, frame.block_count, frame.kind)
        for frame in rpmb.unpack_frames(frames)
    }
    return len(headers) == 1 and next(iter(headers))[2] == count


def _spoil(frames: bytes, fault: Action) -> bytes:
    place = len(frames) - FRAME_SIZE
    if fault.name == "lost":
        return bytes(len(frames))
    if fault.name == "mac":
        spoilt = bytearray(frames)
        spoilt[place + rpmb.MAC_OFFSET] ^= 1
        return bytes(spoilt)
    if fault.name == "result":
        last = RpmbFrame.unpack(frames, place)._replace(result=fault.argument)
        return frames[:place] + last.pack()
    return frames
