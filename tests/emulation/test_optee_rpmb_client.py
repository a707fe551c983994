"""OP-TEE's RPMB protocol: keys, verification, retries, and when it gives up."""

from __future__ import annotations

import hmac
from collections.abc import Callable

import pytest

from emulation.emmc.card import QEMU_CID, EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.emmc.rpmb import PROFILES
from emulation.optee.config import OpTeeConfig
from emulation.optee.keys import rpmb_key
from harness.formats import rpmb
from harness.formats.rpmb import DeviceInfo, RpmbFrame
from harness.formats.tee import TeeError, TeeResult
from tests.emulation.optee_bench import Bench

ATTEMPTS = 10
"""RPMB_MAX_RETRIES, said again so that the client's own number is tested (stack 1.8)."""


def fails(result: TeeResult, call: Callable[[], object]) -> None:
    with pytest.raises(TeeError) as caught:
        call()
    assert caught.value.result == result


def block(text: str) -> bytes:
    return text.encode().ljust(256, b".")


def ready() -> Bench:
    """A card with a key and one block, verified by the boot."""
    bench = Bench()
    bench.rpmb.write(0, block("first"))
    # Right after writing the key the client would verify once more, and so learn the counter.
    bench.rpmb.initialise()
    return bench


@pytest.mark.cases(72)
def test_a_blank_part_gets_the_key_and_is_verified_again() -> None:
    bench = Bench(OpTeeConfig(log_level=3))
    bench.rpmb.initialise()
    bench.rpmb.initialise()
    bench.rpmb.initialise()
    kinds = [RpmbFrame.unpack(request, 6).kind for request in bench.wire.requests[1:]]
    assert kinds == [2, 1, 2, 2]
    assert bench.card.rpmb.write_counter == 0


@pytest.mark.cases(73)
def test_a_blank_part_stays_blank_without_write_key() -> None:
    bench = Bench(OpTeeConfig(write_key=False))
    fails(TeeResult.STORAGE_NOT_AVAILABLE, bench.rpmb.initialise)
    fails(TeeResult.STORAGE_NOT_AVAILABLE, lambda: bench.rpmb.read(0, 1))


@pytest.mark.cases(74)
@pytest.mark.pain(9)
def test_another_key_on_the_part_is_a_security_error_each_time() -> None:
    image = RpmbImage.in_memory()
    image.program_key(b"another key".ljust(32))
    bench = Bench(card=EmmcCard(image))
    fails(TeeResult.SECURITY, bench.rpmb.initialise)
    fails(TeeResult.SECURITY, lambda: bench.rpmb.write(0, block("x")))
    assert "E/TC:? 0 legacy_rpmb_init Make sure key here matches device key" in bench.log
    assert not bench.rpmb.dead


@pytest.mark.cases(429, 430)
def test_the_derived_key_ignores_revision_and_checksum() -> None:
    config = OpTeeConfig(test_key=False, huk=b"hardware unique key")
    stable = QEMU_CID[:9] + b"\0" + QEMU_CID[10:15] + b"\0"
    expected = hmac.digest(b"hardware unique key", stable, "sha256")
    assert rpmb_key(config, QEMU_CID) == expected
    assert rpmb_key(config, b"\0" + QEMU_CID[1:]) != expected
    bench = Bench(config)
    bench.rpmb.write(0, block("x"))
    assert bench.card.rpmb.write_counter == 1
    fails(TeeResult.SECURITY, bench.reboot(OpTeeConfig()).rpmb.initialise)


@pytest.mark.cases(69)
def test_no_size_is_a_generic_error() -> None:
    bench = Bench()
    bench.wire.after = lambda reply: DeviceInfo(QEMU_CID, 0, 1).pack()
    fails(TeeResult.GENERIC, bench.rpmb.initialise)
    bench.wire.after = lambda reply: DeviceInfo(QEMU_CID, 129, 1).pack()
    fails(TeeResult.BAD_PARAMETERS, bench.rpmb.initialise)
    bench.wire.after = lambda reply: DeviceInfo(QEMU_CID, 16, 1, status=1).pack()
    fails(TeeResult.GENERIC, bench.rpmb.initialise)
    bench.wire.after = lambda reply: reply[:5]
    fails(TeeResult.GENERIC, bench.rpmb.initialise)


def test_bytes_are_read_and_written_anywhere() -> None:
    bench = ready()
    before = bench.counter
    bench.rpmb.write(500, b"across two borders" * 20)
    assert bench.counter == before + 3
    assert bench.rpmb.read(495, 370) == bytes(5) + b"across two borders" * 20 + bytes(5)
    fails(TeeResult.GENERIC, lambda: bench.rpmb.read(8192 * 256, 1))
    fails(TeeResult.GENERIC, lambda: bench.rpmb.write(8192 * 256, block("x")))
    assert not bench.rpmb.dead


def test_one_read_request_whatever_its_length() -> None:
    bench = ready()
    sent = len(bench.wire.requests)
    bench.rpmb.read(0, 0xC000)
    assert len(bench.wire.requests) == sent + 1
    assert bench.wire.requests[-1][:6] == bytes.fromhex("00000000c000")


def change(**fields: int | bytes) -> Callable[[bytes], bytes]:
    """A wire on which the fields of a reply's last frame change; the MAC is made anew."""

    def spoil(reply: bytes) -> bytes:
        last = RpmbFrame.unpack(reply, len(reply) - 512)
        values = {name: getattr(last, name) for name in RpmbFrame._fields} | fields
        return rpmb.sign(rpmb.OPTEE_TEST_KEY, reply[:-512] + RpmbFrame(**values).pack())

    return spoil


@pytest.mark.parametrize(
    ("spoil", "result"),
    [
        (change(result=6), TeeResult.GENERIC),
        (change(result=7), TeeResult.ITEM_NOT_FOUND),
        (change(kind=0x0300), TeeResult.GENERIC),
        (change(address=1), TeeResult.GENERIC),
        (change(nonce=b"another nonce..."), TeeResult.SECURITY),
        (lambda reply: reply[:-600] + b"!" + reply[-599:], TeeResult.SECURITY),
        (lambda reply: reply[:512], TeeResult.GENERIC),
    ],
)
@pytest.mark.cases(9, 76, 77, 78, 79, 82)
def test_what_is_wrong_with_a_read(spoil: Callable[[bytes], bytes], result: TeeResult) -> None:
    bench = ready()
    bench.wire.after = spoil
    fails(result, lambda: bench.rpmb.read(0, 512))
    assert not bench.rpmb.dead
    bench.wire.after = lambda reply: reply
    assert bench.rpmb.read(0, 256) == block("first")


@pytest.mark.cases(29)
def test_a_saturated_counter_does_not_spoil_reads() -> None:
    bench = ready()
    bench.wire.after = change(result=0x80)
    assert bench.rpmb.read(0, 5) == b"first"


def failing(times: int, bench: Bench) -> None:
    """Let the next ``times`` requests get no further than the normal world."""
    left = [times]

    def refuse(request: bytes) -> None:
        if left[0]:
            left[0] -= 1
            raise TeeError(TeeResult.GENERIC)

    bench.wire.before = refuse


@pytest.mark.cases(71, 80, 81)
def test_nine_failures_are_forgiven_the_tenth_is_not() -> None:
    bench = ready()
    failing(ATTEMPTS - 1, bench)
    bench.rpmb.write(256, block("at last"))
    assert bench.counter == 2
    failing(ATTEMPTS, bench)
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.write(256, block("never")))
    assert bench.rpmb.dead
    sent = len(bench.wire.requests)
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.read(0, 1))
    fails(TeeResult.COMMUNICATION, bench.rpmb.initialise)
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.max_block)
    assert len(bench.wire.requests) == sent
    again = bench.reboot()
    assert again.rpmb.read(256, 256) == block("at last")


def test_without_memory_for_a_request_nothing_is_given_up() -> None:
    """No supplicant: stack 11."""
    bench = ready()

    def refuse(request: bytes) -> None:
        raise TeeError(TeeResult.OUT_OF_MEMORY)

    bench.wire.before = refuse
    for _ in range(3):
        fails(TeeResult.OUT_OF_MEMORY, lambda: bench.rpmb.read(0, 1))
        fails(TeeResult.OUT_OF_MEMORY, lambda: bench.rpmb.write(0, block("x")))
    bench.wire.before = lambda request: None
    bench.rpmb.write(0, block("works again"))
    assert bench.rpmb.read(0, 256) == block("works again")


def test_a_foreign_write_makes_the_counter_stale_until_reboot() -> None:
    """Truth rpmb-011."""
    bench = ready()
    foreign = rpmb.write_request(rpmb.OPTEE_TEST_KEY, bench.counter, 100, block("foreign"))
    bench.card.rpmb.write_frames(foreign, reliable=True)
    assert bench.rpmb.read(0, 256) == block("first")
    sent = len(bench.wire.requests)
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.write(0, block("stale")))
    assert len(bench.wire.requests) == sent + ATTEMPTS
    assert bench.rpmb.dead
    again = bench.reboot()
    again.rpmb.write(0, block("fresh"))
    assert again.rpmb.read(0, 256) == block("fresh")


def test_an_answer_lost_after_the_write_took_effect_is_fatal() -> None:
    """Stack 9: the retry carries the old counter."""
    bench = ready()
    bench.faults.arm("rpmb.response=lost")
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.write(0, block("new")))
    assert bench.reboot().rpmb.read(0, 256) == block("new")


@pytest.mark.cases(77)
def test_an_answer_with_a_wrong_mac_costs_a_second_write() -> None:
    bench = ready()
    before = bench.counter
    bench.faults.arm("rpmb.response=mac")
    bench.rpmb.write(0, block("twice"))
    assert bench.counter == before + 2
    bench.rpmb.write(0, block("in step"))
    assert bench.counter == before + 3


@pytest.mark.cases(75)
def test_an_answer_that_shows_the_old_counter_is_not_believed() -> None:
    bench = ready()
    old = bench.counter
    bench.wire.after = change(write_counter=old)
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.write(0, block("new")))
    assert bench.rpmb.dead
    assert bench.reboot().rpmb.read(0, 256) == block("new")


@pytest.mark.parametrize("code", [1, 2, 4, 5])
def test_a_passing_write_error_is_retried(code: int) -> None:
    bench = ready()
    bench.faults.arm(f"rpmb.write=result:{code}")
    bench.rpmb.write(0, block("retried"))
    assert bench.rpmb.read(0, 256) == block("retried")
    bench.faults.arm(f"rpmb.write:1+=result:{code}")
    fails(TeeResult.COMMUNICATION, lambda: bench.rpmb.write(0, block("never")))


def test_a_request_the_card_never_saw_is_retried() -> None:
    bench = ready()
    bench.faults.arm("rpmb.request=lost")
    bench.rpmb.write(0, block("retried"))
    assert bench.rpmb.read(0, 256) == block("retried")


def test_a_supplicant_that_emulates_the_rpmb_is_not_believed() -> None:
    """Truth log-debian-emu-supplicant: SECURITY, so EINVAL, and the real card untouched."""
    bench = ready()
    real = bench.optee.normal_world
    emulated = EmmcCard(RpmbImage.in_memory(2), profile=PROFILES["supplicant-emu"])
    bench.optee.normal_world = Bench(card=emulated).wire
    fails(TeeResult.SECURITY, lambda: bench.rpmb.read(0, 256))
    assert not bench.rpmb.dead
    bench.optee.normal_world = real
    assert bench.rpmb.read(0, 256) == block("first")
    assert bench.counter == 1
