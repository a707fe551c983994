"""Sessions and invocations of the StMM partition, and the device list."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from uuid import UUID

import pytest

from emulation.optee.config import OpTeeConfig
from emulation.optee.optee import GET_DEVICES, GET_DEVICES_RPMB, GET_DEVICES_SUPP
from emulation.optee.stmm_partition import STMM_UUID, storage_code
from harness.formats.tee import Param, ParamType, TeeError, TeeOrigin, TeeResult
from tests.emulation.optee_bench import Bench
from tests.emulation.test_optee_rpmb_client import fails

PTA = UUID("d96a5b40-c3e5-21e3-8794-1002a5d5c61b")


def message(buffer: bytearray) -> list[Param]:
    return [Param.memref_inout(buffer), Param.value_output(), Param.none(), Param.none()]


@pytest.mark.cases(115)
def test_the_first_session_starts_the_partition_the_last_leaves_it() -> None:
    bench = Bench()
    assert bench.loaded == []
    first, second = bench.optee.open_session(STMM_UUID), bench.optee.open_session(STMM_UUID)
    bench.optee.close_session(first)
    bench.optee.close_session(second)
    bench.optee.open_session(STMM_UUID)
    assert [partition.started for partition in bench.loaded] == [1]


@pytest.mark.cases(128)
def test_a_message_goes_in_and_out() -> None:
    bench = Bench()
    session = bench.optee.open_session(STMM_UUID)
    bench.loaded[0].answer = -3
    buffer = bytearray(b"abc")
    params = message(buffer)
    bench.optee.invoke(session, 0, params)
    assert buffer == b"cba"
    # The low half of x4 in a 64-bit word (stack 3).
    assert params[1].a == 0xFFFFFFFD


@pytest.mark.cases(121)
def test_stale_bytes_stay_in_the_partitions_buffer() -> None:
    bench = Bench()
    session = bench.optee.open_session(STMM_UUID)
    seen: list[bytes] = []

    def peek(buffer: bytearray, size: int) -> int:
        seen.append(bytes(buffer[:6]))
        return 0

    bench.loaded[0].communicate = peek  # type: ignore[method-assign]
    bench.optee.invoke(session, 0, message(bytearray(b"secret")))
    bench.optee.invoke(session, 0, message(bytearray(b"...")))
    assert seen == [b"secret", b"...ret"]


@pytest.mark.cases(114)
def test_open_session_checks() -> None:
    bench = Bench()
    fails(TeeResult.ITEM_NOT_FOUND, lambda: bench.optee.open_session(PTA))
    for kinds in ((1, 0, 0, 0), (0, 0, 0, 7)):
        fails(TeeResult.BAD_PARAMETERS, lambda: bench.optee.open_session(STMM_UUID, kinds))  # noqa: B023
    fails(TeeResult.BAD_PARAMETERS, lambda: bench.optee.close_session(99))
    fails(TeeResult.BAD_PARAMETERS, lambda: bench.optee.invoke(99, 0, []))


@pytest.mark.cases(127)
def test_a_session_while_the_partition_starts() -> None:
    bench = Bench()
    context = bench.optee._stmm_context()
    context._partition = None
    with pytest.raises(TeeError) as caught:
        bench.optee.open_session(STMM_UUID)
    assert (caught.value.result, caught.value.origin) == (TeeResult.BAD_STATE, TeeOrigin.TEE)


@pytest.mark.parametrize(
    ("command", "params"),
    [
        (1, message(bytearray(24))),
        (0, []),
        (0, [Param(ParamType.MEMREF_INPUT, bytearray(24), 24), Param.value_output()]),
        (0, [Param.memref_inout(bytearray(24)), Param(ParamType.VALUE_INOUT)]),
        (0, [*message(bytearray(24))[:3], Param.value_output()]),
        (0, [Param(ParamType.MEMREF_INOUT, None, 24), Param.value_output()]),
    ],
)
@pytest.mark.cases(116, 117)
def test_invoke_checks(command: int, params: Sequence[Param]) -> None:
    bench = Bench()
    session = bench.optee.open_session(STMM_UUID)
    fails(TeeResult.BAD_PARAMETERS, lambda: bench.optee.invoke(session, command, list(params)))


@pytest.mark.cases(118, 119)
def test_the_buffer_has_a_limit() -> None:
    bench = Bench()
    session = bench.optee.open_session(STMM_UUID)
    bench.optee.invoke(session, 0, message(bytearray(16384)))
    too_long = message(bytearray(16385))
    fails(TeeResult.EXCESS_DATA, lambda: bench.optee.invoke(session, 0, too_long))
    assert too_long[0].size == 16384


@pytest.mark.cases(126)
def test_a_panic_is_the_end_until_all_sessions_are_closed() -> None:
    bench = Bench()
    session, other = bench.optee.open_session(STMM_UUID), bench.optee.open_session(STMM_UUID)
    bench.faults.arm("stmm.call:2=panic")
    bench.optee.invoke(session, 0, message(bytearray(4)))
    for victim in (session, session, other):
        fails(
            TeeResult.TARGET_DEAD,
            lambda: bench.optee.invoke(victim, 0, message(bytearray(4))),  # noqa: B023
        )
    fails(TeeResult.TARGET_DEAD, lambda: bench.optee.open_session(STMM_UUID))
    bench.optee.close_session(session)
    bench.optee.close_session(other)
    again = bench.optee.open_session(STMM_UUID)
    bench.optee.invoke(again, 0, message(bytearray(4)))
    assert len(bench.loaded) == 2


@pytest.mark.cases(126)
def test_a_partition_that_answers_an_error_has_panicked() -> None:
    bench = Bench()
    session = bench.optee.open_session(STMM_UUID)
    bench.loaded[0].answer = None
    for _ in range(2):
        fails(TeeResult.TARGET_DEAD, lambda: bench.optee.invoke(session, 0, message(bytearray(4))))
        bench.loaded[0].answer = 0
    bench.optee.close_session(session)
    bench.optee.invoke(bench.optee.open_session(STMM_UUID), 0, message(bytearray(4)))
    assert len(bench.loaded) == 2


def test_a_panic_at_the_start() -> None:
    bench = Bench()
    bench.faults.arm("stmm.start=panic")
    fails(TeeResult.TARGET_DEAD, lambda: bench.optee.open_session(STMM_UUID))
    bench.optee.open_session(STMM_UUID)


@pytest.mark.parametrize(
    ("result", "spm", "ffa"),
    [
        (TeeResult.SUCCESS, 0, 0),
        (TeeResult.NOT_SUPPORTED, -1, -1),
        (TeeResult.NOT_IMPLEMENTED, -2, -1),
        (TeeResult.ACCESS_DENIED, -3, -6),
        (TeeResult.OUT_OF_MEMORY, -5, -3),
        (TeeResult.NO_DATA, -2, -9),
        (TeeResult.STORAGE_NO_SPACE, -2, -2),
        (TeeResult.COMMUNICATION, -2, -2),
        (TeeResult.ITEM_NOT_FOUND, -2, -2),
        (TeeResult.CORRUPT_OBJECT, -2, -2),
        (TeeResult.SECURITY, -2, -2),
        (TeeResult.GENERIC, -2, -2),
    ],
)
def test_storage_codes(result: TeeResult, spm: int, ffa: int) -> None:
    assert storage_code(result, "4.1") == spm & 0xFFFFFFFF
    assert storage_code(result, "4.10") == ffa & 0xFFFFFFFF


def test_the_storage_tells_a_missing_supplicant_from_a_dead_rpmb() -> None:
    """Truth p2c: ENOSPC and it works again; rpmb-011: EINVAL until reboot."""
    bench = Bench()
    storage = bench.storage()
    assert storage.write(0, b"old") == 0

    def refuse(request: bytes) -> None:
        raise TeeError(TeeResult.OUT_OF_MEMORY)

    bench.wire.before = refuse
    assert storage.write(0, b"new") == 0xFFFFFFFD
    bench.wire.before = lambda request: None
    assert storage.write(0, b"new") == 0
    bench.faults.arm("rpmb.write:1+=result:3")
    assert storage.write(0, b"lost") == 0xFFFFFFFE
    bench.faults.disarm()
    assert storage.write(0, b"lost") == 0xFFFFFFFE
    assert bench.reboot().storage().read(0, 3) == (0, b"new")


@pytest.mark.cases(423, 426)
@pytest.mark.pain(12)
def test_device_list() -> None:
    supplicant = Bench(OpTeeConfig(listed_devices=(PTA,))).optee
    assert supplicant.enumerate_devices(GET_DEVICES) == [PTA]
    assert supplicant.enumerate_devices(GET_DEVICES_SUPP) == [STMM_UUID]
    kernel = Bench(OpTeeConfig(announce_probe=True)).optee
    assert kernel.enumerate_devices(GET_DEVICES_SUPP) == []
    assert kernel.enumerate_devices(GET_DEVICES_RPMB) == [STMM_UUID]
    old = Bench(OpTeeConfig(release="4.1")).optee
    fails(TeeResult.NOT_IMPLEMENTED, lambda: old.enumerate_devices(GET_DEVICES_RPMB))
    fails(TeeResult.NOT_IMPLEMENTED, lambda: kernel.enumerate_devices(7))


def test_no_rpmb_no_devices_that_need_it() -> None:
    bench = Bench(OpTeeConfig(announce_probe=True, write_key=False))
    fails(TeeResult.STORAGE_NOT_AVAILABLE, lambda: bench.optee.enumerate_devices(GET_DEVICES_RPMB))


def test_callers_take_turns() -> None:
    bench = Bench()
    session = bench.optee.open_session(STMM_UUID)
    inside, together = [0], [0]

    def slow(buffer: bytearray, size: int) -> int:
        inside[0] += 1
        together[0] = max(together[0], inside[0])
        bench.loaded[0].storage.write(0, bytes(buffer[:size]))
        inside[0] -= 1
        return 0

    bench.loaded[0].communicate = slow  # type: ignore[method-assign]

    def call() -> None:
        for _ in range(20):
            bench.optee.invoke(session, 0, message(bytearray(300)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == [1]
