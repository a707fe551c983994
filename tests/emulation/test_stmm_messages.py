"""The message envelope and the function table, with honest and with hostile clients."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from emulation.stmm.config import StmmConfig
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus
from harness.formats.mm import (
    COMM_BUFFER_SIZE,
    END_OF_DXE_EVENT_GUID,
    EXIT_BOOT_SERVICES_EVENT_GUID,
    AccessVariable,
    GetNextVariableName,
    LockVariable,
    Message,
    PayloadSize,
    RuntimeCacheInfo,
    VarCheckProperty,
)
from harness.formats.mm import VariableFunction as Fn
from tests.emulation.stmm_client import VENDOR, Partition

SENTINEL = 0x1234


def raw_call(board: Partition, function: int, payload: bytes) -> int:
    """ReturnStatus after a call that starts with a sentinel there."""
    message = Message(function, payload, SENTINEL).pack()
    board.buffer[: len(message)] = message
    assert board.mm.communicate(board.buffer, len(message)) == 0
    return Message.unpack(board.buffer).status


@pytest.fixture
def board() -> Partition:
    return Partition()


@pytest.mark.cases(130)
def test_payload_size(board: Partition) -> None:
    answer = board.call(Fn.GET_PAYLOAD_SIZE, bytes(8))
    assert PayloadSize.unpack(answer.payload).size == 10228


@pytest.mark.parametrize(
    ("function", "shortest"),
    [
        (Fn.GET_VARIABLE, 36),
        (Fn.GET_NEXT_VARIABLE_NAME, 24),
        (Fn.SET_VARIABLE, 36),
        (Fn.QUERY_VARIABLE_INFO, 32),
        (Fn.VAR_CHECK_PROPERTY_GET, 48),
        (Fn.GET_PAYLOAD_SIZE, 8),
        (Fn.GET_RUNTIME_CACHE_INFO, 32),
    ],
)
@pytest.mark.cases(131, 132, 142)
def test_short_payload_is_not_answered(board: Partition, function: int, shortest: int) -> None:
    assert raw_call(board, function, bytes(shortest - 1)) == SENTINEL
    assert raw_call(board, function, bytes(shortest)) != SENTINEL


@pytest.mark.cases(125, 138, 139)
def test_long_payload_and_unknown_guid_are_not_answered(board: Partition) -> None:
    assert raw_call(board, Fn.GET_VARIABLE, bytes(10229)) == SENTINEL
    assert raw_call(board, Fn.GET_VARIABLE, bytes(10228)) != SENTINEL
    before = bytes(board.buffer)
    assert board.mm.communicate(board.buffer, 40) == 0
    board.call(1, bytes(100), UUID(int=7))
    assert before != bytes(board.buffer)
    assert Message.unpack(board.buffer).status == 0


@pytest.mark.cases(120)
def test_a_header_without_payload_is_not_answered(board: Partition) -> None:
    header = Message(Fn.GET_VARIABLE, b"").pack()[:24]
    board.buffer[:24] = header[:16] + bytes(8)
    before = bytes(board.buffer)
    assert board.mm.communicate(board.buffer, 24) == 0
    assert bytes(board.buffer) == before


@pytest.mark.cases(122, 123, 124)
@pytest.mark.parametrize(
    ("release", "length", "code"),
    [
        (202502, 0x4000 - 25, 0),
        (202502, 0x4000 - 24, None),
        # Header and length are added, and the sum wraps.
        (202502, (1 << 64) - 26, None),
        (202502, (1 << 64) - 25, 0),
        (202502, (1 << 64) - 1, 0),
        (202311, 0x4000 - 25, 0),
        (202311, 0x4000 - 24, -3 & (1 << 64) - 1),
        (202311, (1 << 64) - 1, -3 & (1 << 64) - 1),
    ],
)
def test_length_is_bounded_by_the_buffer_with_the_header_and_a_byte(
    release: int, length: int, code: int | None
) -> None:
    """As the image of that release did it. None: FFA_ERROR, and OP-TEE ends the partition."""
    board = Partition(config=StmmConfig(release=release))
    message = Message(Fn.GET_VARIABLE, bytes(100), SENTINEL).pack()
    board.buffer[: len(message)] = message
    struct.pack_into("<Q", board.buffer, 16, length)
    assert board.mm.communicate(board.buffer, 64) == code
    assert Message.unpack(board.buffer[:140]).status == SENTINEL


@pytest.mark.cases(121)
def test_lying_length_reads_the_previous_call(board: Partition) -> None:
    request = AccessVariable(VENDOR, "Stale", 4, 7, b"data").pack()
    board.call(Fn.GET_VARIABLE, request)
    head = Message(Fn.SET_VARIABLE, request).pack()[:40]
    board.buffer[:40] = head
    # The client passed 40 bytes only; name and data are those of the call before.
    assert board.mm.communicate(board.buffer, 40) == 0
    assert board.value("Stale") == b"data"


@pytest.mark.parametrize("function", [Fn.GET_VARIABLE, Fn.SET_VARIABLE])
@pytest.mark.parametrize(
    ("data_size", "name_size"),
    [(1 << 64 - 1, 4), (0, 1 << 63), (5, 4), (4, 5), (0, 0), (0, 1), (0, 2)],
)
@pytest.mark.cases(133, 134, 135, 136)
def test_access_sizes_and_termination(
    board: Partition, function: int, data_size: int, name_size: int
) -> None:
    payload = struct.pack("<16sQQI", bytes(16), data_size, name_size, 7) + b"A\0\0\0data"
    status = EfiStatus(raw_call(board, function, payload))
    assert status == EfiStatus.ACCESS_DENIED


@pytest.mark.cases(137)
def test_odd_name_size(board: Partition) -> None:
    """The last whole CHAR16 must be NUL; the data begins after the odd byte."""
    payload = struct.pack("<16sQQI", VENDOR.bytes_le, 3, 5, 7) + b"A\0\0\0?xyz"
    assert raw_call(board, Fn.SET_VARIABLE, payload) == EfiStatus.SUCCESS
    assert board.value("A") == b"xyz"


@pytest.mark.cases(140, 141, 168, 169, 170, 171)
def test_get_next_errors(board: Partition) -> None:
    def ask(name: str, capacity: int, guid: UUID = VENDOR) -> tuple[EfiStatus, int]:
        payload = GetNextVariableName(guid, name, capacity).pack().ljust(200, b"\0")
        answer = board.call(Fn.GET_NEXT_VARIABLE_NAME, payload)
        return EfiStatus(answer.status), GetNextVariableName.unpack(answer.payload).name_size

    assert ask("", 0)[0] == EfiStatus.INVALID_PARAMETER
    assert ask("Unknown", 100)[0] == EfiStatus.INVALID_PARAMETER
    assert ask("", 4) == (EfiStatus.BUFFER_TOO_SMALL, 20)
    assert ask("", 20) == (EfiStatus.SUCCESS, 20)
    assert ask("SetupMode", 100, GLOBAL_VARIABLE_GUID)[0] == EfiStatus.SUCCESS
    assert ask("SetupMode", 100)[0] == EfiStatus.INVALID_PARAMETER
    unterminated = GetNextVariableName(VENDOR, "ab", 4).pack()[:28]
    assert board.status(Fn.GET_NEXT_VARIABLE_NAME, unterminated) == EfiStatus.ACCESS_DENIED


@pytest.mark.cases(160, 161)
def test_buffer_too_small_answers_size_and_attributes(board: Partition) -> None:
    assert board.set("Big", b"x" * 100, 3) == EfiStatus.SUCCESS
    status, answer = board.get("Big", capacity=10)
    assert (status, answer.data_size, answer.attributes) == (EfiStatus.BUFFER_TOO_SMALL, 100, 3)
    assert answer.data == bytes(10)


@pytest.mark.cases(129, 152, 153, 155, 156, 157, 165)
def test_phases(board: Partition) -> None:
    lock = LockVariable(VENDOR, "Locked").pack()
    assert board.status(Fn.LOCK_VARIABLE, lock) == EfiStatus.NOT_READY
    board.call(6, guid=EXIT_BOOT_SERVICES_EVENT_GUID)
    assert board.set("BootOnly", b"x", 3) == EfiStatus.SUCCESS
    board.exit_boot_services()
    board.exit_boot_services()
    assert board.value("BootOnly") is None
    assert board.status(Fn.READY_TO_BOOT) == EfiStatus.UNSUPPORTED
    assert board.status(Fn.GET_STATISTICS) == EfiStatus.UNSUPPORTED
    assert board.status(Fn.INIT_RUNTIME_VARIABLE_CACHE) == EfiStatus.ACCESS_DENIED
    for unknown in (0, 15, 99, 0xFFFF):
        assert board.status(unknown) == EfiStatus.UNSUPPORTED
    info = RuntimeCacheInfo.unpack(board.call(Fn.GET_RUNTIME_CACHE_INFO, bytes(32)).payload)
    assert info == RuntimeCacheInfo(0, 0x3FB8, 0x4000, True)


@pytest.mark.cases(146)
def test_lock_with_the_policy_engine_works_after_end_of_dxe() -> None:
    board = Partition(config=StmmConfig(variable_policy=True))
    lock = LockVariable(VENDOR, "Locked").pack()
    assert board.status(Fn.LOCK_VARIABLE, lock) == EfiStatus.SUCCESS
    assert board.set("Locked", b"x") == EfiStatus.SUCCESS
    assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
    assert board.set("Locked", b"y") == EfiStatus.WRITE_PROTECTED
    assert board.status(Fn.LOCK_VARIABLE, lock) == EfiStatus.ACCESS_DENIED


@pytest.mark.cases(147, 148, 149, 150, 234)
def test_properties_answer_before_end_of_dxe(board: Partition) -> None:
    for name, guid, read_only in (
        ("SetupMode", GLOBAL_VARIABLE_GUID, 1),
        ("dbDefault", GLOBAL_VARIABLE_GUID, 1),
        ("BootOrder", GLOBAL_VARIABLE_GUID, 0),
        ("Boot00AF", GLOBAL_VARIABLE_GUID, 0),
        ("certdb", UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a"), 1),
        ("VarErrorFlag", UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa"), 1),
    ):
        status, answer = board.property_of(name, guid)
        assert (status, answer.property) == (EfiStatus.SUCCESS, read_only), name
    assert board.property_of("Boot00af", GLOBAL_VARIABLE_GUID)[0] == EfiStatus.NOT_FOUND
    assert board.property_of("Anything", VENDOR)[0] == EfiStatus.NOT_FOUND
    assert board.property_of("", VENDOR)[0] == EfiStatus.INVALID_PARAMETER
    # Nothing is enforced yet, so StandaloneMM itself takes the write.
    assert board.set("SetupMode", b"\0", 6, GLOBAL_VARIABLE_GUID) == EfiStatus.SUCCESS


@pytest.mark.cases(143, 144, 145, 154)
def test_property_set_and_end_of_dxe(board: Partition) -> None:
    def put(name: str, revision: int = 1) -> EfiStatus:
        prop = VarCheckProperty(VENDOR, name, revision, 1, 7, 1, 4)
        return board.status(Fn.VAR_CHECK_PROPERTY_SET, prop.pack())

    assert put("Mine", 2) == EfiStatus.INVALID_PARAMETER
    assert put("") == EfiStatus.INVALID_PARAMETER
    assert put("Mine") == EfiStatus.SUCCESS
    assert board.property_of("Mine", VENDOR)[1].max_size == 4
    assert board.set("Mine", b"12345") == EfiStatus.SUCCESS
    board.call(0, guid=END_OF_DXE_EVENT_GUID)
    assert put("Mine") == EfiStatus.ACCESS_DENIED
    assert board.set("Mine", b"") == EfiStatus.WRITE_PROTECTED
    board.boot()
    assert board.set("Mine", b"") == EfiStatus.SUCCESS


@pytest.mark.parametrize(
    ("name", "attributes", "data", "status"),
    [
        ("Timeout", 7, b"\5\0", EfiStatus.SUCCESS),
        ("Timeout", 7, b"\5", EfiStatus.INVALID_PARAMETER),
        ("Timeout", 3, b"\5\0", EfiStatus.INVALID_PARAMETER),
        ("NotInTheSpecification", 7, b"x", EfiStatus.INVALID_PARAMETER),
        ("SecureBoot", 6, b"\1", EfiStatus.WRITE_PROTECTED),
        ("BootOrder", 7, b"123", EfiStatus.INVALID_PARAMETER),
        ("PlatformLang", 7, b"en-US", EfiStatus.INVALID_PARAMETER),
        ("ConOut", 7, b"\x7f\xff\4\0", EfiStatus.SUCCESS),
        ("ConOut", 7, b"\x7f\xff\3\0", EfiStatus.INVALID_PARAMETER),
        ("Boot0001", 7, b"\1\0\0\0\4\0n\0\0\0\x7f\xff\4\0", EfiStatus.SUCCESS),
        ("Boot0001", 7, b"\1\0\0\0\4\0n\0n\0", EfiStatus.INVALID_PARAMETER),
        ("Key0001", 7, bytes(14 + 4), EfiStatus.SUCCESS),
        ("Key0001", 7, bytes(14 + 3), EfiStatus.INVALID_PARAMETER),
    ],
)
@pytest.mark.cases(231, 232, 233)
def test_checks_after_end_of_dxe(
    board: Partition, name: str, attributes: int, data: bytes, status: EfiStatus
) -> None:
    assert board.status(Fn.READY_TO_BOOT) == EfiStatus.SUCCESS
    assert board.set(name, data, attributes, GLOBAL_VARIABLE_GUID) == status


names = st.sampled_from([b"", b"PK", b"KEK", b"db", b"APriv", b"PlatformLang", b"LangCodes", b"X"])
guids = st.sampled_from([VENDOR.bytes_le, GLOBAL_VARIABLE_GUID.bytes_le, bytes(16)])
sizes = st.one_of(st.integers(0, 80), st.integers(0, (1 << 64) - 1))
payloads = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda guid, data, size, attributes, name, rest: (
            struct.pack("<16sQQI", guid, data, size, attributes)
            + b"".join(bytes([c, 0]) for c in name)
            + b"\0\0"
            + rest
        ),
        guids,
        sizes,
        sizes,
        st.integers(0, 0x7F) | st.integers(0, 0xFFFFFFFF),
        names,
        st.binary(max_size=80),
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 15) | st.integers(0, (1 << 64) - 1),
            payloads,
            st.none() | st.integers(0, (1 << 64) - 1),
        ),
        max_size=6,
    )
)
@example([(3, struct.pack("<16sQQI", VENDOR.bytes_le, 40, 4, 0x27) + b"A\0\0\0" + bytes(40), None)])
def test_hostile_messages_never_raise(calls: list[tuple[int, bytes, int | None]]) -> None:
    board = _shared()
    for function, payload, length in calls:
        if function == Fn.EXIT_BOOT_SERVICE:
            continue
        message = bytearray(Message(function, payload).pack())
        if length is not None:
            struct.pack_into("<Q", message, 16, length)
        board.buffer[: len(message)] = message
        code = board.mm.communicate(board.buffer, len(message))
        assert code is None or 0 <= code < 1 << 64
        assert len(board.buffer) == COMM_BUFFER_SIZE
    assert board.query()[0] == EfiStatus.SUCCESS


_BOARD: list[Partition] = []


def _shared() -> Partition:
    if not _BOARD:
        _BOARD.append(Partition())
    return _BOARD[0]
