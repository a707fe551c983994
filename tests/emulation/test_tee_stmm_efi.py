"""The driver tee_stmm_efi against a secure world whose every answer the test chooses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from emulation.faults import PowerLost
from emulation.linux.efivars import Efivars, KernelSeries
from emulation.linux.firmware import EfiRuntime, FirmwareTables, RuntimeVariable
from emulation.linux.kernel import Kernel, Task
from emulation.linux.tee_stmm_efi import CMD_COMMUNICATE, DEVICE_NAME, DEVICE_UUID, TeeStmmEfi
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus
from harness.formats.mm import (
    AccessVariable,
    GetNextVariableName,
    Message,
    PayloadSize,
    QueryVariableInfo,
    VarCheckProperty,
    VariableFunction,
)
from harness.formats.tee import Param, ParamType, TeeError, TeeResult
from tests.emulation.efivars_memory import VENDOR

ROOT = Task(1)
GET, NEXT, SET, QUERY = 1, 2, 3, 4
PROPERTY = VariableFunction.VAR_CHECK_PROPERTY_GET
MAX_PAYLOAD = 10226

Answer = Callable[[Message], Message]


def status(code: int) -> Answer:
    return lambda message: replace(message, status=code)


@dataclass
class SecureWorld:
    """Answers each function as told; a function without an answer comes back untouched."""

    answers: dict[int, Answer] = field(default_factory=dict)
    requests: list[Message] = field(default_factory=list)
    spm_code: int = 0
    failure: BaseException | None = None
    payload_size: int = 10228
    sessions: int = 0

    def open_session(self, uuid: UUID) -> int:
        assert uuid == DEVICE_UUID
        if isinstance(self.failure, TeeError):
            raise self.failure
        self.sessions += 1
        return 7

    def close_session(self, session: int) -> None:
        assert session == 7
        self.sessions -= 1

    def invoke(self, session: int, command: int, params: list[Param]) -> None:
        assert (session, command) == (7, CMD_COMMUNICATE)
        if self.failure is not None:
            raise self.failure
        buffer, value = params
        assert (buffer.kind, value.kind) == (ParamType.MEMREF_INOUT, ParamType.VALUE_OUTPUT)
        assert buffer.memory is not None
        message = Message.unpack(buffer.memory)
        assert message.status == 0
        self.requests.append(message)
        if message.function == VariableFunction.GET_PAYLOAD_SIZE:
            message = replace(message, payload=PayloadSize(self.payload_size).pack())
        answer = self.answers.get(message.function)
        buffer.memory[:] = (answer(message) if answer else message).pack()
        value.a = self.spm_code

    def functions(self) -> list[int]:
        return [message.function for message in self.requests]


@dataclass
class Board:
    kernel: Kernel
    efivars: Efivars
    world: SecureWorld
    driver: TeeStmmEfi
    out_of_memory: list[bool]

    def probe(self) -> None:
        self.driver.probe(self.world, task=ROOT)
        self.world.requests.clear()

    def log(self) -> list[str]:
        return [record.text for record in self.kernel.log.records()]


def board(series: KernelSeries = KernelSeries.K6) -> Board:
    kernel = Kernel()
    efivars = Efivars(kernel)
    snapshot = [RuntimeVariable("BootOrder", GLOBAL_VARIABLE_GUID, 7, b"\0\0")]
    runtime = EfiRuntime(kernel, efivars, FirmwareTables.for_variant("mm", snapshot))
    runtime.register_generic(task=ROOT)
    out_of_memory = [False]
    driver = TeeStmmEfi(
        kernel, efivars, runtime, series=series, allocation_fails=lambda: out_of_memory[0]
    )
    return Board(kernel, efivars, SecureWorld(), driver, out_of_memory)


@pytest.fixture
def b() -> Board:
    probed = board()
    probed.world.answers[PROPERTY] = status(EfiStatus.NOT_FOUND)
    probed.probe()
    return probed


def get(b: Board, size: int = 0, name: str = "Ab", *, buffer: bool = True) -> object:
    with b.efivars.locked(ROOT) as operations:
        return operations.get_variable(name, VENDOR, size, buffer=buffer)


def set_variable(b: Board, data: bytes = b"x", name: str = "Ab") -> int:
    return b.efivars.set_variable(name, VENDOR, 7, data, task=ROOT)


def test_probe_takes_over_and_remove_gives_back() -> None:
    b = board()
    b.probe()
    assert b.log()[1:] == [
        "efivars: Unregistered efivars operations",
        "Using TEE-based EFI runtime variable services",
        "efivars: Registered efivars operations",
    ]
    assert b.efivars.supports_writes
    assert b.driver.bound
    b.driver.remove(task=ROOT)
    assert b.log()[-2:] == [
        "efivars: Unregistered efivars operations",
        "efivars: Registered efivars operations",
    ]
    assert not b.efivars.supports_writes
    assert b.world.sessions == 0


@pytest.mark.cases(316)
def test_probe_without_a_session() -> None:
    b = board()
    b.world.failure = TeeError(TeeResult.ITEM_NOT_FOUND)
    with pytest.raises(OSError, match="session") as failed:
        b.probe()
    assert failed.value.errno == errno.EINVAL
    assert b.log()[-1] == (
        f"tee-stmm-efi {DEVICE_NAME}: tee_client_open_session failed, err: ffff0008"
    )
    assert not b.driver.bound


@pytest.mark.parametrize("size", [0, 71])
@pytest.mark.cases(317)
def test_probe_with_a_useless_payload_size(size: int) -> None:
    b = board()
    b.world.payload_size = size
    with pytest.raises(OSError, match="small") as failed:
        b.probe()
    assert failed.value.errno == errno.EIO
    assert b.world.sessions == 0
    assert b.efivars.available


def test_a_power_cut_during_probe_passes_through() -> None:
    b = board()
    b.world.failure = PowerLost()
    with pytest.raises(PowerLost):
        b.probe()


# The status of a message


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, EfiStatus.SUCCESS),
        # What a 64-bit kernel sees of OP-TEE's 32-bit codes: none of the named cases.
        (0xFFFFFFFE, EfiStatus.ACCESS_DENIED),
        (0xFFFFFFFD, EfiStatus.ACCESS_DENIED),
        (0xFFFFFFFB, EfiStatus.ACCESS_DENIED),
        (0xFFFFFFFF, EfiStatus.ACCESS_DENIED),
        # What it would see of 64-bit codes.
        (0xFFFFFFFFFFFFFFFE, EfiStatus.INVALID_PARAMETER),
        (0xFFFFFFFFFFFFFFFD, EfiStatus.ACCESS_DENIED),
        (0xFFFFFFFFFFFFFFFB, EfiStatus.OUT_OF_RESOURCES),
        (0xFFFFFFFFFFFFFFFF, EfiStatus.ACCESS_DENIED),
    ],
)
@pytest.mark.cases(330)
@pytest.mark.pain(25)
def test_spm_codes_are_compared_as_64_bits(b: Board, code: int, expected: EfiStatus) -> None:
    b.world.spm_code = code
    with b.efivars.locked(ROOT) as operations:
        assert operations.query_variable_info(7).status == expected


@pytest.mark.cases(329)
def test_a_failed_invocation_is_a_device_error(b: Board) -> None:
    b.world.failure = TeeError(TeeResult.TARGET_DEAD)
    assert set_variable(b) == EfiStatus.DEVICE_ERROR
    prefix = f"tee-stmm-efi {DEVICE_NAME}: "
    assert b.log()[-3:] == [
        prefix + "PTA_STMM_CMD_COMMUNICATE invoke error: 0xffff3024",
        prefix + "mm_communicate failed!",
        prefix + "Getting variable property failed",
    ]


def test_an_unhandled_message_is_a_success(b: Board) -> None:
    assert set_variable(b) == EfiStatus.SUCCESS


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (KernelSeries.K6, EfiStatus.OUT_OF_RESOURCES),
        (KernelSeries.K7, EfiStatus.DEVICE_ERROR),
    ],
)
@pytest.mark.cases(332)
@pytest.mark.pain(15)
def test_a_failed_allocation(series: KernelSeries, expected: EfiStatus) -> None:
    b = board(series)
    b.probe()
    b.out_of_memory[0] = True
    assert set_variable(b) == expected
    assert b.world.requests == []


# GetVariable


def answer_get(attributes: int, data: bytes, code: int = 0) -> Answer:
    def fill(message: Message) -> Message:
        request = AccessVariable.unpack(message.payload)
        fits = data[: request.data_size]
        answer = replace(request, attributes=attributes, data_size=len(data), data=fits)
        packed = answer.pack()[: len(message.payload)].ljust(len(message.payload), b"\0")
        return replace(message, payload=packed, status=code)

    return fill


@pytest.mark.cases(326, 334)
def test_get_asks_for_the_property_only_after_a_success(b: Board) -> None:
    b.world.answers[GET] = answer_get(7, b"data", EfiStatus.BUFFER_TOO_SMALL)
    reply = get(b, 0, buffer=False)
    assert (reply.status, reply.size) == (EfiStatus.BUFFER_TOO_SMALL, 4)  # type: ignore[attr-defined]
    assert b.world.functions() == [GET]
    b.world.answers[GET] = answer_get(7, b"data")
    reply = get(b, 4)
    assert (reply.status, reply.attributes, reply.data) == (0, 7, b"data")  # type: ignore[attr-defined]
    assert b.world.functions() == [GET, GET, PROPERTY]


def test_get_fails_with_its_property(b: Board) -> None:
    b.world.answers[GET] = answer_get(7, b"data")
    b.world.answers[PROPERTY] = status(EfiStatus.ACCESS_DENIED)
    assert get(b, 4).status == EfiStatus.ACCESS_DENIED  # type: ignore[attr-defined]


@pytest.mark.cases(324)
def test_get_does_not_need_a_property(b: Board) -> None:
    b.world.answers[GET] = answer_get(7, b"data")
    b.world.answers[PROPERTY] = status(EfiStatus.NOT_FOUND)
    reply = get(b, 4)
    assert (reply.status, reply.data) == (EfiStatus.SUCCESS, b"data")  # type: ignore[attr-defined]


def test_get_without_a_buffer_of_an_empty_variable(b: Board) -> None:
    b.world.answers[GET] = answer_get(7, b"")
    assert get(b, 0, buffer=False).status == EfiStatus.INVALID_PARAMETER  # type: ignore[attr-defined]


@pytest.mark.cases(318, 325)
def test_get_trims_its_buffer_to_the_payload(b: Board) -> None:
    b.world.answers[GET] = status(EfiStatus.NOT_FOUND)
    get(b, 1 << 20)
    payload = b.world.requests[-1].payload
    assert len(payload) == MAX_PAYLOAD
    assert AccessVariable.unpack(payload).data_size == MAX_PAYLOAD - 40 - 6


# GetNextVariableName


def test_next_trims_and_checks_its_capacity(b: Board) -> None:
    answer = GetNextVariableName(GLOBAL_VARIABLE_GUID, "BootNext", 18)

    def fill(message: Message) -> Message:
        packed = answer.pack().ljust(len(message.payload), b"\0")
        return replace(message, payload=packed)

    b.world.answers[NEXT] = fill
    with b.efivars.locked(ROOT) as operations:
        found = operations.get_next_variable("Ab", VENDOR, 1 << 20)
        assert (found.name, found.guid, found.name_size) == (
            "BootNext",
            GLOBAL_VARIABLE_GUID,
            18,
        )
        assert len(b.world.requests[-1].payload) == MAX_PAYLOAD
        small = operations.get_next_variable("Ab", VENDOR, 5)
        assert small.status == EfiStatus.INVALID_PARAMETER
        assert len(b.world.requests) == 1


# SetVariable


@pytest.mark.cases(333)
def test_set_is_property_then_set_with_four_bytes_of_padding(b: Board) -> None:
    assert set_variable(b, b"data") == EfiStatus.SUCCESS
    assert b.world.functions() == [PROPERTY, SET]
    payload = b.world.requests[-1].payload
    assert len(payload) == 40 + 6 + 4
    assert AccessVariable.unpack(payload).data == b"data"


@pytest.mark.cases(328)
def test_set_of_a_read_only_variable_is_never_sent(b: Board) -> None:
    b.world.answers[PROPERTY] = lambda message: replace(
        message, payload=VarCheckProperty(VENDOR, "Ab", property=1).pack()
    )
    assert set_variable(b) == EfiStatus.WRITE_PROTECTED
    assert set_variable(b, b"") == EfiStatus.WRITE_PROTECTED
    assert SET not in b.world.functions()


@pytest.mark.cases(318, 327)
def test_set_size_limit(b: Board) -> None:
    largest = MAX_PAYLOAD - 40 - 6
    assert set_variable(b, bytes(largest)) == EfiStatus.SUCCESS
    sent = len(b.world.requests)
    assert set_variable(b, bytes(largest + 1)) == EfiStatus.INVALID_PARAMETER
    assert set_variable(b, b"x", name="") == EfiStatus.INVALID_PARAMETER
    assert len(b.world.requests) == sent


def test_set_fails_with_its_property(b: Board) -> None:
    b.world.answers[PROPERTY] = status(EfiStatus.OUT_OF_RESOURCES)
    assert set_variable(b) == EfiStatus.OUT_OF_RESOURCES
    assert SET not in b.world.functions()


@pytest.mark.cases(331)
def test_the_nonblocking_set_is_refused_without_a_message(b: Board) -> None:
    with b.efivars.locked(ROOT) as operations:
        refused = operations.set_variable_nonblocking("Ab", VENDOR, 7, b"x")
    assert refused == EfiStatus.UNSUPPORTED
    assert b.world.requests == []


def test_query_passes_figures_on_success_only(b: Board) -> None:
    figures = QueryVariableInfo(7, 16284, 15352, 8132).pack()
    b.world.answers[QUERY] = lambda message: replace(message, payload=figures)
    with b.efivars.locked(ROOT) as operations:
        space = operations.query_variable_info(7)
        assert (space.max_storage, space.remaining, space.max_variable) == (16284, 15352, 8132)
        b.world.answers[QUERY] = lambda message: replace(
            message, payload=figures, status=EfiStatus.INVALID_PARAMETER
        )
        assert operations.query_variable_info(7).max_storage == 0
