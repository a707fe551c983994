"""Variables live in RPMB and outlive reboot, power cuts at any moment, and each other.

Recorded rows: p2c-001, -006 (reboot). A power cut catches pain 21, too: an RPMB in the
supplicant's memory would lose everything.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from harness.board.board import Board
from harness.board.boot import PowerSwitch
from harness.expectations import recorded
from harness.formats.efi import Attributes
from harness.instruments.efivars import Efivars, VariableName, content_of
from harness.instruments.outcomes import errno_of
from harness.instruments.writer import WriterLoop
from harness.store import listing
from harness.store.records import record_size

pytestmark = [
    pytest.mark.needs("writable"),
    pytest.mark.consents("write_rpmb", "power_cycle"),
    pytest.mark.power,
]

ATTRIBUTES = b"\7\0\0\0"
MANY = 8


def _many(index: int) -> bytes:
    """Data of the index-th of many variables: sizes and bytes that nothing else has."""
    return bytes([index + 1]) * (3 * index + 1)


@dataclass(frozen=True)
class Boots:
    """What was there before and after an orderly reboot and a power cut."""

    names: list[VariableName]
    over_reboot: dict[str, bytes | None]
    names_over_reboot: list[VariableName]
    over_cut: dict[str, bytes | None]
    names_over_cut: list[VariableName]
    volatile: int | None
    immutable_over_reboot: bool
    read_after_delete: int | None


KEPT = (
    "Created",
    "Overwritten",
    "Shrunk",
    "Grown",
    "Appended",
    "Recreated",
    "Identical",
    "Zeros",
    *(f"Many{index}" for index in range(MANY)),
)
GONE = ("Deleted", "Emptied", "Refused", "Volatile")


@pytest.fixture(scope="session")
def boots(board: Board) -> Boots:
    """Every way in which a value comes about, then a reboot, then a power cut."""
    efivars = listing.of_the_store(board)
    efivars.write("Created", b"created")
    efivars.write("Overwritten", b"first")
    efivars.overwrite("Overwritten", b"other")
    efivars.write("Shrunk", b"s" * 60)
    efivars.overwrite("Shrunk", b"s")
    efivars.write("Grown", b"g")
    efivars.overwrite("Grown", b"g" * 60)
    efivars.write("Appended", b"one")
    efivars.append("Appended", b"two")
    efivars.write("Recreated", b"before")
    efivars.delete("Recreated")
    efivars.write("Recreated", b"after")
    efivars.write("Identical", b"same")
    efivars.overwrite("Identical", b"same")
    efivars.write("Zeros", bytes(9))
    efivars.write("Deleted", b"x")
    efivars.delete("Deleted")
    efivars.write("Emptied", b"x")
    efivars.overwrite("Emptied", b"")
    errno_of(lambda: efivars.write("Refused", b"x", attributes=0x5))
    volatile = errno_of(lambda: efivars.write("Volatile", b"lost", attributes=0x6))
    for index in range(MANY):
        efivars.write(f"Many{index}", _many(index))
    efivars.set_immutable("Created", False)
    names = [name for name in efivars.names() if name.name not in GONE]
    board.reboot()
    efivars = listing.of_the_store(board)
    over_reboot = {name: content_of(efivars, name) for name in KEPT}
    names_over_reboot = efivars.names()
    immutable = efivars.exists("Created") and efivars.is_immutable("Created")
    board.switch.cycle()
    efivars = listing.of_the_store(board)
    return Boots(
        names=names,
        over_reboot=over_reboot,
        names_over_reboot=names_over_reboot,
        over_cut={name: content_of(efivars, name) for name in KEPT},
        names_over_cut=efivars.names(),
        volatile=volatile,
        immutable_over_reboot=immutable,
        read_after_delete=errno_of(lambda: efivars.read_raw("Deleted")),
    )


@pytest.mark.cost(store_bytes=16 * 100 + MANY * 120, story="boots")
class TestOverRebootAndPowerCut:
    @pytest.mark.cases(223)
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            pytest.param("Created", b"created", id="created"),
            pytest.param("Overwritten", b"other", id="overwritten"),
            pytest.param("Shrunk", b"s", id="shrunk"),
            pytest.param("Grown", b"g" * 60, id="grown"),
            pytest.param("Appended", b"onetwo", id="appended"),
            pytest.param("Recreated", b"after", id="deleted and created again"),
            pytest.param("Identical", b"same", id="written twice"),
            pytest.param("Zeros", bytes(9), id="only zeros"),
        ],
    )
    def test_a_value_and_its_attributes_stay(self, boots: Boots, name: str, data: bytes) -> None:
        assert boots.over_reboot[name] == ATTRIBUTES + data
        assert boots.over_cut[name] == ATTRIBUTES + data

    def test_many_variables_stay_each_with_its_own_value(self, boots: Boots) -> None:
        expected = {f"Many{index}": ATTRIBUTES + _many(index) for index in range(MANY)}
        for seen in (boots.over_reboot, boots.over_cut):
            assert {name: seen[name] for name in expected} == expected

    def test_what_was_deleted_stays_deleted(self, boots: Boots) -> None:
        assert boots.read_after_delete == errno.ENOENT
        listed = {name.name for name in (*boots.names_over_reboot, *boots.names_over_cut)}
        assert not listed & {"Deleted", "Emptied"}

    def test_what_was_refused_never_appears(self, boots: Boots) -> None:
        assert "Refused" not in {name.name for name in boots.names_over_reboot}

    def test_nothing_else_comes_or_goes(self, boots: Boots) -> None:
        assert boots.names_over_reboot == boots.names
        assert boots.names_over_cut == boots.names

    @pytest.mark.cases(220, 224, 421)
    @pytest.mark.needs("exit_boot_services_told")
    def test_what_is_volatile_cannot_be_made_at_run_time(self, boots: Boots) -> None:
        assert boots.volatile == recorded(errno.EINVAL, "vol-001[1]", "vol-002[1]")

    @pytest.mark.cases(224)
    def test_what_is_volatile_is_gone(self, boots: Boots) -> None:
        assert "Volatile" not in {name.name for name in boots.names_over_reboot}

    @pytest.mark.cases(390)
    def test_the_immutable_flag_is_back(self, boots: Boots) -> None:
        assert boots.immutable_over_reboot


@dataclass(frozen=True)
class Cut:
    """What a writer was told before the power went in mid-write, and what was there after."""

    acknowledged: int
    value: bytes | None
    bystander: bytes | None
    set_after: int | None
    delete_after: int | None


ROUNDS = 3
WRITES = 8


def _in_flight(index: int) -> bytes:
    """The index-th value of the writer, counted from 1: its bytes tell which one it is."""
    return bytes([index]) * 100


@pytest.fixture(scope="session")
def cuts(board: Board) -> list[Cut]:
    """Cut the power under a writer, several times, each at another write."""
    return [_cut(board, after) for after in (1, 3, 5)]


def _cut(board: Board, after: int) -> Cut:
    efivars = board.efivars
    efivars.overwrite("Bystander", b"bystander")
    loop = WriterLoop.start(
        board.shell,
        efivars.file("InFlight"),
        [ATTRIBUTES + _in_flight(index) for index in range(1, WRITES + 1)],
        consent=board.require_consent,
    )
    acknowledged = loop.wait_until(after)
    board.switch.cycle()
    efivars = listing.of_the_store(board)
    value = content_of(efivars, "InFlight")
    set_after = errno_of(lambda: efivars.overwrite("InFlight", b"after"))
    return Cut(
        acknowledged=acknowledged,
        value=value,
        bystander=content_of(efivars, "Bystander"),
        set_after=set_after,
        delete_after=errno_of(lambda: efivars.delete("InFlight")),
    )


@pytest.mark.cases(35, 92, 93)
@pytest.mark.cost(
    store_bytes=ROUNDS * (WRITES * record_size("InFlight", 100) + 200), story="in flight"
)
class TestPowerCutUnderAWriter:
    def test_the_value_is_one_that_was_written_whole(self, cuts: list[Cut]) -> None:
        whole = [ATTRIBUTES + _in_flight(index) for index in range(1, WRITES + 1)]
        assert [cut.value in whole for cut in cuts] == [True] * ROUNDS

    def test_no_acknowledged_write_is_lost(self, cuts: list[Cut]) -> None:
        found = [cut.value[4] if cut.value else 0 for cut in cuts]
        told = [cut.acknowledged for cut in cuts]
        # It may have gone on between the look and the cut.
        assert [max(one, other) for one, other in zip(told, found, strict=True)] == found

    def test_a_variable_beside_it_is_untouched(self, cuts: list[Cut]) -> None:
        assert [cut.bystander for cut in cuts] == [ATTRIBUTES + b"bystander"] * ROUNDS

    @pytest.mark.cases(305)
    def test_the_variable_can_be_written_and_deleted_afterwards(self, cuts: list[Cut]) -> None:
        assert [(cut.set_after, cut.delete_after) for cut in cuts] == [(None, None)] * ROUNDS


@pytest.mark.wear
@pytest.mark.pain(6, 16)
@pytest.mark.cases(212, 94)
@pytest.mark.cost(store_bytes=record_size("Large", 8132 - 12) + 90, rpmb_writes=1500)
def test_the_largest_variable_outlives_a_power_cut_with_all_around_it(
    board: Board, efivars: Efivars, power: PowerSwitch
) -> None:
    """8132 bytes of name and data (stack 4.4), over three blocks of flash: an OP-TEE that loses
    what lies behind a long write would lose what is stored behind it."""
    data = bytes(range(256)) * 31 + bytes(8132 - 12 - 256 * 31)
    efivars.write("Large", data, timeout=120)
    efivars.write("Behind", b"behind")
    power.cycle()
    efivars = listing.of_the_store(board)
    found = efivars.read("Large")
    assert found.data == data
    assert found.attributes == Attributes(7)
    assert efivars.read("Behind").data == b"behind"


@pytest.mark.cost(store_bytes=84)
def test_a_variable_written_last_before_the_cut_is_there(
    board: Board, efivars: Efivars, power: PowerSwitch
) -> None:
    """write(2) returned, so it is in flash: nothing is kept back in a cache."""
    efivars.write("Last", b"last")
    power.off()
    power.on()
    assert listing.of_the_store(board).read("Last").data == b"last"
