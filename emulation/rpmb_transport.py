"""RPMB frames to the card and back, for whoever drives it: U-Boot, or the Linux kernel.

The supplicant does the same from user space (emulation/userland/system/tee_supplicant.py).
Source: stack 1.6 and 1.7, UB drivers/tee/optee/rpmb.c, K6 drivers/mmc/core/block.c
(mmc_route_rpmb_frames).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from emulation.emmc.card import EmmcCard
from harness.formats.mmc import (
    EXT_CSD_REL_WR_SEC_C,
    EXT_CSD_RPMB_SIZE_MULT,
    MMC_READ_MULTIPLE_BLOCK,
    MMC_WRITE_MULTIPLE_BLOCK,
    RELIABLE_WRITE,
)
from harness.formats.rpmb import (
    FRAME_SIZE,
    DeviceInfo,
    RequestHeader,
    RpmbRequest,
    SupplicantCommand,
    kind_of,
    result_request,
)
from harness.formats.tee import TeeError, TeeResult


class RpmbTransport:
    """Carries requests straight to the card; thread-safe. OP-TEE's normal world while U-Boot runs.

    ``check_power`` raises PowerLost once the caller's world has no power any more.  ``claim`` keeps
    other users of the card out of a sequence of commands.
    """

    def __init__(
        self,
        card: EmmcCard,
        check_power: Callable[[], None] = lambda: None,
        claim: threading.Lock | None = None,
    ) -> None:
        self._card = card
        self._check_power = check_power
        self._lock = claim or threading.Lock()

    def rpmb_rpc(self, request: bytes, reply_size: int) -> bytes:
        """Carry out one ``rpmb_req`` message; raises TeeError with the code the sender gets."""
        try:
            header = RequestHeader.unpack(request)
        except struct.error:
            raise TeeError(TeeResult.BAD_PARAMETERS) from None
        if header.command == SupplicantCommand.GET_DEVICE_INFO:
            if len(request) != RequestHeader.SIZE or reply_size != DeviceInfo.SIZE:
                raise TeeError(TeeResult.BAD_PARAMETERS)
            return self.device_info().pack()
        if header.command == SupplicantCommand.DATA_REQUEST:
            return self.route(request[RequestHeader.SIZE :], reply_size)
        raise TeeError(TeeResult.BAD_PARAMETERS)

    def device_info(self) -> DeviceInfo:
        """What OP-TEE wants to know of the card."""
        registers = self._card.ext_csd
        return DeviceInfo(
            self._card.cid, registers[EXT_CSD_RPMB_SIZE_MULT], registers[EXT_CSD_REL_WR_SEC_C]
        )

    def route(self, frames: bytes, reply_size: int) -> bytes:
        """Send request frames and read the response.

        TeeError BAD_PARAMETERS for wrong numbers, GENERIC when the card does not do its part.
        """
        replies = reply_size // FRAME_SIZE
        if not frames or len(frames) % FRAME_SIZE or not replies or reply_size % FRAME_SIZE:
            raise TeeError(TeeResult.BAD_PARAMETERS)
        try:
            return self._carry(frames, replies)
        except OSError:
            raise TeeError(TeeResult.GENERIC) from None

    def _carry(self, frames: bytes, replies: int) -> bytes:
        kind = kind_of(frames[:FRAME_SIZE])
        if kind in (RpmbRequest.PROGRAM_KEY, RpmbRequest.WRITE):
            if replies != 1:
                raise TeeError(TeeResult.BAD_PARAMETERS)
            with self._lock:
                self._write(frames, reliable=True)
                self._write(result_request(), reliable=False)
                return self._read(1)
        if len(frames) != FRAME_SIZE or (kind == RpmbRequest.READ_COUNTER and replies != 1):
            raise TeeError(TeeResult.BAD_PARAMETERS)
        if kind in (RpmbRequest.READ_COUNTER, RpmbRequest.READ):
            with self._lock:
                self._write(frames, reliable=False)
                return self._read(replies)
        raise TeeError(TeeResult.BAD_PARAMETERS)

    def _write(self, frames: bytes, *, reliable: bool) -> None:
        self._check_power()
        self._card.execute(
            MMC_WRITE_MULTIPLE_BLOCK,
            0,
            FRAME_SIZE,
            len(frames) // FRAME_SIZE,
            1 | (RELIABLE_WRITE if reliable else 0),
            frames,
            rpmb_selected=True,
        )

    def _read(self, count: int) -> bytes:
        data, _response = self._card.execute(
            MMC_READ_MULTIPLE_BLOCK, 0, FRAME_SIZE, count, 0, b"", rpmb_selected=True
        )
        return data
