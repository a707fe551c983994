"""OP-TEE's side of the RPMB protocol: initialisation, verified reads, retried writes.

Source: stack 1.7, 1.8; OTH core/tee/tee_rpmb_fs.c (lower half); truth log-optee-boot1-fresh,
rpmb-011, p2c.
"""

import os
from collections.abc import Callable
from typing import Final

from emulation.optee import keys
from emulation.optee.config import OpTeeConfig, Trace
from emulation.optee.keys import BlockCipher
from harness.formats import rpmb
from harness.formats.rpmb import (
    DATA_SIZE,
    FRAME_SIZE,
    RESULT_MASK,
    DeviceInfo,
    RequestHeader,
    RpmbFrame,
    RpmbRequest,
    RpmbResult,
    SupplicantCommand,
    response_type,
)
from harness.formats.tee import TeeError, TeeResult

MAX_ATTEMPTS: Final = 10
"""RPMB_MAX_RETRIES."""
BLOCKS_PER_WRITE: Final = 1
"""rel_wr_blkcnt: 1 whatever the card can do, as RPMB_DRIVER_MULTIPLE_WRITE_FIXED is undefined."""

_PLAIN_HEADER: Final = RequestHeader(SupplicantCommand.DATA_REQUEST).pack()

Rpc = Callable[[bytes, int], bytes]
"""Request and size of the reply in bytes; raises TeeError."""


class RpmbClient:
    """The RPMB as OP-TEE knows it from one boot to the next.

    After a write that failed :data:`MAX_ATTEMPTS` times nobody knows what is on the card, so the
    client is *dead*: every call raises TeeError COMMUNICATION until the next boot.  A failed read
    does no such harm, and without a supplicant OP-TEE fails to get memory for its first request,
    a read; that is why SetVariable works again as soon as a supplicant is back (stack 11).
    """

    def __init__(self, config: OpTeeConfig, rpc: Rpc, trace: Trace) -> None:
        self._config = config
        self._rpc = rpc
        self._trace = trace
        self.dead = False
        """Whether the RPMB is given up until the next boot."""
        self._device: DeviceInfo | None = None
        self._key = b""
        self._verified = False
        self._counter = 0

    def initialise(self) -> None:
        """tee_rpmb_init: find the card, have a key and check that it is the card's.

        Raises TeeError: COMMUNICATION when dead, STORAGE_NOT_AVAILABLE on a blank part whose key
        must not be written, otherwise what the exchange gave.
        """
        if self.dead:
            raise TeeError(TeeResult.COMMUNICATION)
        if self._verified:
            return
        self._trace.debug("legacy_rpmb_init", "Trying legacy RPMB init")
        if self._device is None:
            self._device = self._read_device_info()
        if not self._key:
            self._trace.debug("legacy_rpmb_init", "RPMB INIT: Deriving key")
            self._key = self._make_key(self._device)
        self._trace.debug("legacy_rpmb_init", "RPMB INIT: Verifying Key")
        try:
            self._counter = self._read_counter()
        except TeeError as error:
            if error.result != TeeResult.ITEM_NOT_FOUND:
                self._trace.error("legacy_rpmb_init", f"Verify key failed! {error.result:#x}")
                self._trace.error("legacy_rpmb_init", "Make sure key here matches device key")
                raise
            # The next call verifies once more: writing the key is not yet trusting it.
            self._write_key()
            return
        self._trace.debug("legacy_rpmb_init", "Found working RPMB device")
        self._verified = True

    @property
    def max_block(self) -> int:
        """Number of the last half sector; may initialise, so raises TeeError as that does."""
        if self.dead:
            raise TeeError(TeeResult.COMMUNICATION)
        if self._device is None:
            self.initialise()
        return self._last_block()

    def read(self, address: int, size: int, cipher: BlockCipher | None = None) -> bytes:
        """``size`` bytes from byte ``address`` on, in one request; TeeError."""
        first, offset = divmod(address, DATA_SIZE)
        count = -(-(offset + size) // DATA_SIZE)
        self.initialise()
        self._check_block(first)
        if self._trace.debugging:
            self._trace.debug("tee_rpmb_read", f"Read {_blocks(count)} at index {first}")
        nonce = os.urandom(rpmb.NONCE_SIZE)
        header = RequestHeader(SupplicantCommand.DATA_REQUEST, block_count=count).pack()
        reply = self._exchange(header + rpmb.read_request(first, nonce), count)
        last = _check_reply(reply, RpmbRequest.READ, first)
        if last.nonce != nonce:
            raise TeeError(TeeResult.SECURITY)
        self._check_mac(reply, last)
        blocks = [
            reply[start + rpmb.SIGNED_OFFSET : start + rpmb.SIGNED_OFFSET + DATA_SIZE]
            for start in range(0, len(reply), FRAME_SIZE)
        ]
        if cipher is not None:
            blocks = [cipher.decrypt(first + index, block) for index, block in enumerate(blocks)]
        return b"".join(blocks)[offset : offset + size]

    def write(self, address: int, data: bytes, cipher: BlockCipher | None = None) -> None:
        """Write ``data`` at byte ``address``; half sectors it covers partly are read first.

        Raises TeeError; COMMUNICATION after the last attempt, and then the client is dead.
        """
        first, offset = divmod(address, DATA_SIZE)
        count = -(-(offset + len(data)) // DATA_SIZE)
        if offset or len(data) % DATA_SIZE:
            whole = bytearray(self.read(first * DATA_SIZE, count * DATA_SIZE, cipher))
            whole[offset : offset + len(data)] = data
            data = bytes(whole)
        if self._trace.debugging:
            self._trace.debug("tee_rpmb_write_blk", f"Write {_blocks(count)} at index {first}")
        self.initialise()
        for index in range(count):
            block = data[index * DATA_SIZE : (index + 1) * DATA_SIZE]
            if cipher is not None:
                block = cipher.encrypt(first + index, block)
            self._write_block(first + index, block)

    @staticmethod
    def writes_atomically(address: int, size: int) -> bool:
        """Whether ``size`` bytes at byte ``address`` are one write request."""
        return -(-(address % DATA_SIZE + size) // DATA_SIZE) <= BLOCKS_PER_WRITE

    def _write_block(self, block: int, data: bytes) -> None:
        """write_req: one half sector, with retries."""
        self._check_block(block)
        counter = self._counter
        for _attempt in range(MAX_ATTEMPTS):
            request = _PLAIN_HEADER + rpmb.write_request(self._key, counter, block, data)
            try:
                reply = self._exchange(request, 1)
            except TeeError as error:
                # Getting memory for the request is part of the RPC here; OP-TEE has it before it
                # counts attempts.
                if error.result == TeeResult.OUT_OF_MEMORY:
                    raise
                self._trace.debug("write_req", "Write invoke failed, retrying")
                continue
            try:
                answer = _check_reply(reply, RpmbRequest.WRITE, block)
                expected, counter = counter + 1, answer.write_counter
                if counter != expected:
                    raise TeeError(TeeResult.SECURITY)
                # Before the MAC is looked at, so an answer spoilt on its way makes the next
                # attempt a second write, which succeeds.
                self._counter += 1
                self._check_mac(reply, answer)
            except TeeError:
                self._trace.debug("write_req", "Write resp unpack verify failed, retrying")
                continue
            return
        self.dead = True
        raise TeeError(TeeResult.COMMUNICATION)

    def _read_device_info(self) -> DeviceInfo:
        header = RequestHeader(SupplicantCommand.GET_DEVICE_INFO).pack()
        # OP-TEE presets the status, so a reply cut short is an error.
        info = DeviceInfo.unpack(self._rpc(header, DeviceInfo.SIZE).ljust(DeviceInfo.SIZE, b"\xff"))
        if info.status != 0:
            raise TeeError(TeeResult.GENERIC)
        debug = self._trace.debug
        debug("rpmb_set_dev_info", "RPMB: Syncing device information")
        debug("rpmb_set_dev_info", f"RPMB: RPMB size is {info.size_mult}*128 KB")
        debug("rpmb_set_dev_info", f"RPMB: Reliable Write Sector Count is {info.rel_wr_sec_c}")
        debug("rpmb_set_dev_info", f"RPMB: CID {info.cid.hex(' ')}")
        if info.size_mult == 0:
            raise TeeError(TeeResult.GENERIC)
        if info.size_mult * rpmb.SIZE_UNIT // DATA_SIZE > 1 << 16:
            raise TeeError(TeeResult.BAD_PARAMETERS)
        return info

    def _make_key(self, device: DeviceInfo) -> bytes:
        if self._config.test_key:
            self._trace.debug("tee_rpmb_key_gen", "RPMB: Using test key")
        else:
            self._trace.info("tee_rpmb_key_gen", "RPMB: Using generated key")
        return keys.rpmb_key(self._config, device.cid)

    def _write_key(self) -> None:
        self._trace.debug("legacy_rpmb_init", "RPMB INIT: Auth key not yet written")
        if not self._config.write_key:
            self._trace.debug(
                "tee_rpmb_write_and_verify_key", "RPMB INIT: CFG_RPMB_WRITE_KEY is not set"
            )
            raise TeeError(TeeResult.STORAGE_NOT_AVAILABLE)
        self._trace.debug("tee_rpmb_write_and_verify_key", "RPMB INIT: Writing Key value:")
        self._trace.debug("tee_rpmb_write_and_verify_key", self._key.hex(" "))
        reply = self._exchange(_PLAIN_HEADER + rpmb.key_request(self._key), 1)
        _check_reply(reply, RpmbRequest.PROGRAM_KEY)
        self._trace.debug("tee_rpmb_write_and_verify_key", "RPMB INIT: Verifying Key")
        self._counter = self._read_counter()

    def _read_counter(self) -> int:
        nonce = os.urandom(rpmb.NONCE_SIZE)
        reply = self._exchange(_PLAIN_HEADER + rpmb.counter_request(nonce), 1)
        answer = _check_reply(reply, RpmbRequest.READ_COUNTER)
        if answer.nonce != nonce:
            raise TeeError(TeeResult.SECURITY)
        self._check_mac(reply, answer)
        return answer.write_counter

    def _exchange(self, request: bytes, frames: int) -> bytes:
        size = frames * FRAME_SIZE
        # The reply lies in memory of that size, so what the normal world left out reads as zeros.
        return self._rpc(request, size)[:size].ljust(size, b"\0")

    def _check_mac(self, frames: bytes, last: RpmbFrame) -> None:
        if last.mac != rpmb.mac(self._key, frames):
            self._trace.debug("tee_rpmb_resp_unpack_verify", "MAC mismatched:")
            raise TeeError(TeeResult.SECURITY)

    def _check_block(self, block: int) -> None:
        if block > self._last_block():
            raise TeeError(TeeResult.GENERIC)

    def _last_block(self) -> int:
        if self._device is None:
            raise TeeError(TeeResult.GENERIC)
        return self._device.size_mult * rpmb.SIZE_UNIT // DATA_SIZE - 1


def _check_reply(frames: bytes, request: RpmbRequest, block: int | None = None) -> RpmbFrame:
    """The last frame of a reply if its result, type and address are right (stack 1.8)."""
    last = RpmbFrame.unpack(frames, len(frames) - FRAME_SIZE)
    result = last.result & RESULT_MASK
    if result == RpmbResult.KEY_NOT_PROGRAMMED:
        raise TeeError(TeeResult.ITEM_NOT_FOUND)
    if result != RpmbResult.OK or last.kind != response_type(request):
        raise TeeError(TeeResult.GENERIC)
    if block is not None and last.address != block:
        raise TeeError(TeeResult.GENERIC)
    return last


def _blocks(count: int) -> str:
    return f"{count} block" if count == 1 else f"{count} blocks"
