"""The tee-supplicant program: result codes of its RPMB transport (stack 1.7), its emulated RPMB,
and how it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emulation.userland.system import tee_supplicant
from emulation.userland.system.tee_supplicant import EmulatedRpmb, Refused, rpmb_request
from harness.formats.rpmb import (
    FRAME_SIZE,
    RpmbFrame,
    counter_request,
    key_request,
    mac,
    read_request,
    unpack_frames,
    write_request,
)

KEY = bytes(range(32))
NONCE = b"n" * 16
HEADER = bytes(6)
INFO = b"\x01\x00" + bytes(4)
BAD_PARAMETERS, GENERIC = tee_supplicant.BAD_PARAMETERS, tee_supplicant.GENERIC


class BrokenCard:
    """A card whose node cannot be opened."""

    def device_info(self, device: int) -> bytes:
        raise FileNotFoundError

    def transfer(self, device: int, kind: int, frames: bytes, replies: int) -> bytes:
        raise FileNotFoundError


WRITE = write_request(KEY, 0, 0, bytes(256))
TWO_WRITES = write_request(KEY, 0, 0, bytes(512))
COUNTER = counter_request(NONCE)
READ = read_request(0, NONCE)


@pytest.mark.parametrize(
    ("request_bytes", "reply_size", "expected"),
    [
        (b"\0" * 5, FRAME_SIZE, BAD_PARAMETERS),
        (INFO + b"\0", 19, BAD_PARAMETERS),
        (INFO, 18, BAD_PARAMETERS),
        (INFO, 20, BAD_PARAMETERS),
        (b"\x02" + bytes(5), 19, BAD_PARAMETERS),
        (HEADER + WRITE, 2 * FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + TWO_WRITES, FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + WRITE + READ, FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + COUNTER + COUNTER, FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + key_request(KEY), 0, BAD_PARAMETERS),
        (HEADER + key_request(KEY), 2 * FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + COUNTER, 2 * FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + READ, 0, BAD_PARAMETERS),
        (HEADER + READ + READ, FRAME_SIZE, BAD_PARAMETERS),
        (HEADER + RpmbFrame(kind=9).pack(), FRAME_SIZE, GENERIC),
        (HEADER + READ, FRAME_SIZE, GENERIC),
        (INFO, 19, GENERIC),
    ],
)
@pytest.mark.cases(56, 57, 58, 59, 60, 61, 62, 63, 64, 65)
@pytest.mark.pain(19)
def test_result_codes(request_bytes: bytes, reply_size: int, expected: int) -> None:
    with pytest.raises(Refused) as refused:
        rpmb_request(BrokenCard(), request_bytes, reply_size)
    assert refused.value.result == expected


def ask(rpmb: EmulatedRpmb, frames: bytes, replies: int = 1) -> RpmbFrame:
    """One request; its MAC is checked once there is a key; the last frame of the reply."""
    reply = rpmb_request(rpmb, HEADER + frames, replies * FRAME_SIZE)
    assert len(reply) == replies * FRAME_SIZE
    if rpmb.key is not None and frames[-1] != tee_supplicant.PROGRAM_KEY:
        assert unpack_frames(reply)[-1].mac == mac(rpmb.key, reply)
    return RpmbFrame.unpack(reply, len(reply) - FRAME_SIZE)


@pytest.mark.cases(2, 6, 17, 26, 55)
def test_emulated_rpmb_differs_from_silicon_as_upstreams_does() -> None:
    rpmb = EmulatedRpmb()
    info = rpmb_request(rpmb, INFO, 19)
    assert info == bytes.fromhex("fe014e4d4d4330344742c8f6552a6115") + bytes([2, 1, 0])
    assert ask(rpmb, COUNTER).result == 7
    assert ask(rpmb, READ).result == 0
    assert ask(rpmb, key_request(KEY)).result == 0
    assert ask(rpmb, key_request(KEY)).result == 1
    written = ask(rpmb, write_request(KEY, 77, 3, b"d" * 256))
    assert (written.result, written.write_counter, written.address) == (0, 1, 3)
    assert ask(rpmb, write_request(bytes(32), 1, 3, b"e" * 256)).result == 2
    assert ask(rpmb, write_request(KEY, 1, 2 * 512, bytes(256))).result == 4
    read = ask(rpmb, read_request(2, NONCE), replies=2)
    assert (read.data, read.nonce, read.result) == (b"d" * 256, NONCE, 0)
    assert ask(rpmb, read_request(60000, NONCE)).result == 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert tee_supplicant.__file__ is not None
    program = Path(tee_supplicant.__file__)
    return subprocess.run(
        [sys.executable, "-I", "-S", program, *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )


def test_without_a_device_it_says_so_and_fails() -> None:
    result = run("/nonexistent")
    assert result.returncode == 1
    assert "failed to find an OP-TEE supplicant device" in result.stderr


def test_usage() -> None:
    result = run("--nonsense")
    assert result.returncode == 1
    assert result.stderr.startswith("Usage: tee-supplicant")
