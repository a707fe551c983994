"""The flash driver of the real stack, compiled for this machine: its storage obeys the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emulation.stmm.standalone_mm
from emulation.stmm.config import StmmConfig
from emulation.stmm.fvb import BLOCKS, FirmwareVolumeBlock
from emulation.stmm.storage import SecureStorage
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus
from harness.formats.variable_store import (
    BLOCK_SIZE,
    SPARE_OFFSET,
    SPARE_SIZE,
    VARIABLE_AREA_SIZE,
    VOLUME_ATTRIBUTES,
    VOLUME_SIZE,
    WORKING_OFFSET,
    WORKING_SIZE,
    StoreHeader,
    VolumeHeader,
)
from tests.emulation.flash_driver import (
    EFI_STATUS_OF_CODE,
    INVALID_PARAMETERS,
    STORAGE_READ,
    STORAGE_WRITE,
    FakeOpTee,
    FlashDriver,
    compile_driver,
    compiler,
    platform_pcds,
)
from tests.emulation.memory_storage import MemoryStorage
from tests.emulation.stmm_client import Partition, rpmb_writes

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler: install gcc")

GOLDEN_HEADERS = bytes.fromhex(
    "000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f50"
    "00c00000000000005f465648360e00004800fc29000000020c0000000010000000000000"
    "00000000"
    "782cf3aa7b949a43a1802e144ec37792b83f00005afe000000000000"
)
FORMATTED = GOLDEN_HEADERS.ljust(VOLUME_SIZE, b"\xff")
WHOLE = (0, VOLUME_SIZE)
HEADERS = (0, len(GOLDEN_HEADERS))
PAGES = 2 * VOLUME_SIZE // 4096


def file(content: bytes | bytearray = b"") -> FakeOpTee:
    """A storage whose file has this content; with none there is no file."""
    return FakeOpTee(MemoryStorage(bytes(content)))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("flash-driver"))


@pytest.fixture
def driver(library: Path) -> FlashDriver:
    """Started on a formatted storage whose calls are forgotten."""
    board = FlashDriver(library, file(FORMATTED))
    assert board.start() == EfiStatus.SUCCESS
    board.storage.calls.clear()
    return board


def test_platform_is_the_recorded_one() -> None:
    """tests/truth/README.md: store and FTW areas 0x4000, variables 0x2000, authenticated 0x2800"""
    config = StmmConfig()
    assert platform_pcds() | {"PcdStMmStackSize": 0} == {
        "PcdStMmStackSize": 0,
        "PcdFlashNvStorageVariableSize": VARIABLE_AREA_SIZE,
        "PcdFlashNvStorageFtwWorkingSize": WORKING_SIZE,
        "PcdFlashNvStorageFtwSpareSize": SPARE_SIZE,
        "PcdVariableStoreSize": config.volatile_store_size,
        "PcdMaxVariableSize": config.max_variable_size,
        "PcdMaxAuthVariableSize": config.max_auth_variable_size,
    }


# --- start ---------------------------------------------------------------------------------------


def test_first_start_formats_as_recorded(library: Path) -> None:
    """The first boot of the record: a read that fails, the whole file, then the headers alone."""
    storage = file()
    board = FlashDriver(library, storage)
    assert board.start() == EfiStatus.SUCCESS
    assert storage.calls == [
        (STORAGE_READ, *WHOLE),
        (STORAGE_WRITE, *WHOLE),
        (STORAGE_WRITE, *HEADERS),
    ]
    assert storage.content == FORMATTED
    assert board.image == FORMATTED


def test_headers_are_those_of_the_format() -> None:
    assert VolumeHeader().pack() + StoreHeader().pack() == GOLDEN_HEADERS


def test_later_start_only_reads(library: Path) -> None:
    content = bytearray(FORMATTED)
    content[0x1234:0x1240] = b"some variable"[:12]
    board = FlashDriver(library, file(content))
    assert board.start() == EfiStatus.SUCCESS
    assert board.storage.calls == [(STORAGE_READ, *WHOLE)]
    assert board.image == content


@pytest.mark.parametrize("byte", [0, 0x10, 0x20, 0x28, 0x2C, 0x30, 0x32, 0x37, 0x38, 0x48, 0x58])
def test_damaged_header_is_formatted(library: Path, byte: int) -> None:
    content = bytearray(FORMATTED)
    content[byte] ^= 1
    board = FlashDriver(library, file(content))
    assert board.start() == EfiStatus.SUCCESS
    assert board.storage.writes == [WHOLE, HEADERS]
    assert board.image == board.storage.content == FORMATTED


@pytest.mark.parametrize("byte", [0x5C, 0x5D])
def test_format_and_state_are_the_variable_drivers(library: Path, byte: int) -> None:
    content = bytearray(FORMATTED)
    content[byte] = 0
    board = FlashDriver(library, file(content))
    assert board.start() == EfiStatus.SUCCESS
    assert board.storage.writes == []
    assert board.image == content


@pytest.mark.parametrize("content", [FORMATTED[:-1], b"\xff" * VOLUME_SIZE, bytes(VOLUME_SIZE)])
def test_file_that_is_no_store_is_formatted(library: Path, content: bytes) -> None:
    board = FlashDriver(library, file(content))
    assert board.start() == EfiStatus.SUCCESS
    assert board.storage.content == FORMATTED


@pytest.mark.parametrize("code", sorted(EFI_STATUS_OF_CODE.keys() - {INVALID_PARAMETERS}))
def test_failing_read_does_not_cost_the_store(library: Path, code: int) -> None:
    """Nobody said that there is no file: it stays as it is, and the service stays away."""
    storage = file(FORMATTED)
    storage.answer = lambda service, offset, length: code
    board = FlashDriver(library, storage)
    assert board.start() == EFI_STATUS_OF_CODE[code]
    assert storage.writes == []
    assert not board.installed


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("code", sorted(EFI_STATUS_OF_CODE))
def test_failing_format_leaves_no_service(library: Path, failing: int, code: int) -> None:
    storage = file()
    storage.answer = lambda service, offset, length: (
        code if service == STORAGE_WRITE and len(storage.writes) > failing else None
    )
    board = FlashDriver(library, storage)
    assert board.start() == EFI_STATUS_OF_CODE[code]
    assert storage.writes == [WHOLE, HEADERS][: failing + 1]
    assert not board.installed


def test_undeliverable_message_leaves_no_service(library: Path) -> None:
    storage = file(FORMATTED)
    storage.message_status = EfiStatus.UNSUPPORTED
    board = FlashDriver(library, storage)
    assert board.start() == EfiStatus.UNSUPPORTED
    assert not board.installed


@pytest.mark.parametrize("pages", [0, PAGES // 2, PAGES - 1])
def test_no_memory_leaves_no_service(library: Path, pages: int) -> None:
    board = FlashDriver(library, file(FORMATTED))
    assert board.start(pages) == EfiStatus.OUT_OF_RESOURCES
    assert board.storage.calls == []
    assert not board.installed


def test_all_memory_is_taken_at_the_start(library: Path) -> None:
    board = FlashDriver(library, file())
    assert board.start(PAGES) == EfiStatus.SUCCESS
    assert board.erase((0, BLOCKS)) == EfiStatus.SUCCESS


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_power_cut_while_formatting(library: Path, cut: int) -> None:
    """Whatever was written of the first format, the next start has a formatted store."""
    storage = file()
    storage.answer = lambda service, offset, length: (
        INVALID_PARAMETERS if len(storage.writes) > cut else None
    )
    FlashDriver(library, storage).start()
    survivor = file(storage.content)
    assert FlashDriver(library, survivor).start() == EfiStatus.SUCCESS
    assert survivor.content == FORMATTED
    assert (survivor.writes == []) == (cut == 2)


# --- protocol ------------------------------------------------------------------------------------


def test_geometry(driver: FlashDriver) -> None:
    assert driver.attributes() == VOLUME_ATTRIBUTES
    assert driver.address % 4096 == 0
    assert driver.block_size(0) == (EfiStatus.SUCCESS, BLOCK_SIZE, BLOCKS)
    assert driver.block_size(BLOCKS - 1) == (EfiStatus.SUCCESS, BLOCK_SIZE, 1)
    assert driver.block_size(BLOCKS)[0] == EfiStatus.INVALID_PARAMETER


def test_attributes_cannot_be_changed(driver: FlashDriver) -> None:
    same = driver.set_attributes(VOLUME_ATTRIBUTES)
    assert same == (EfiStatus.SUCCESS, VOLUME_ATTRIBUTES)
    other = driver.set_attributes(VOLUME_ATTRIBUTES & ~0x20)
    assert other == (EfiStatus.INVALID_PARAMETER, VOLUME_ATTRIBUTES)


@pytest.mark.parametrize(
    ("name", "offset", "length"),
    [
        ("NvStorage", 0, VARIABLE_AREA_SIZE),
        ("FtwWorking", WORKING_OFFSET, WORKING_SIZE),
        ("FtwSpare", SPARE_OFFSET, SPARE_SIZE),
    ],
)
def test_areas(library: Path, driver: FlashDriver, name: str, offset: int, length: int) -> None:
    assert driver.area(name) == (EfiStatus.SUCCESS, offset, length)
    assert driver.area_without_answer(name) == EfiStatus.INVALID_PARAMETER
    without_memory = FlashDriver(library, file())
    assert without_memory.start(0) == EfiStatus.OUT_OF_RESOURCES
    assert without_memory.area(name)[0] == EfiStatus.NOT_FOUND


def test_write_goes_to_the_storage_first(driver: FlashDriver) -> None:
    seen: list[bytes] = []
    driver.storage.answer = lambda service, offset, length: seen.append(driver.image)
    assert driver.write(2, 0x10, b"variable") == (EfiStatus.SUCCESS, 8)
    assert seen == [FORMATTED]
    assert driver.storage.calls == [(STORAGE_WRITE, 0x2010, 8)]
    assert driver.image[0x2010:0x2018] == driver.storage.content[0x2010:0x2018] == b"variable"


def test_written_bits_are_stored_as_given(driver: FlashDriver) -> None:
    """A file has no bits that stick: a write over unerased bytes replaces them."""
    driver.write(0, 0x200, b"\x00\x0f")
    driver.write(0, 0x200, b"\xf0\xff")
    assert driver.image[0x200:0x202] == driver.storage.content[0x200:0x202] == b"\xf0\xff"


def test_read_asks_nobody(driver: FlashDriver) -> None:
    assert driver.read(0, 0, 100) == (EfiStatus.SUCCESS, GOLDEN_HEADERS)
    assert driver.read(BLOCKS - 1, BLOCK_SIZE - 1, 1) == (EfiStatus.SUCCESS, b"\xff")
    assert driver.storage.calls == []


def test_ranges_end_with_their_block(driver: FlashDriver) -> None:
    assert driver.write(3, BLOCK_SIZE - 3, b"abcdef") == (EfiStatus.BAD_BUFFER_SIZE, 3)
    assert driver.storage.writes == [(4 * BLOCK_SIZE - 3, 3)]
    assert driver.read(3, BLOCK_SIZE - 3, 6) == (EfiStatus.BAD_BUFFER_SIZE, b"abc")
    assert driver.image[4 * BLOCK_SIZE - 3 : 4 * BLOCK_SIZE + 3] == b"abc\xff\xff\xff"


@pytest.mark.parametrize(
    ("lba", "offset"),
    [(BLOCKS, 0), (2**52, 0), (2**64 - 1, 0), (0, BLOCK_SIZE), (BLOCKS - 1, 2**64 - 1)],
)
def test_ranges_outside_the_flash(driver: FlashDriver, lba: int, offset: int) -> None:
    assert driver.read(lba, offset, 4) == (EfiStatus.INVALID_PARAMETER, b"")
    assert driver.write(lba, offset, b"abcd") == (EfiStatus.INVALID_PARAMETER, 0)
    assert driver.storage.calls == []
    assert driver.image == FORMATTED


def test_erase_is_one_write_for_each_range(driver: FlashDriver) -> None:
    for lba in range(BLOCKS):
        driver.write(lba, 100, bytes(50))
    driver.storage.calls.clear()
    assert driver.erase((8, 4), (1, 1)) == EfiStatus.SUCCESS
    assert driver.storage.writes == [(8 * BLOCK_SIZE, 4 * BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE)]
    assert driver.image == driver.storage.content
    erased = {
        lba
        for lba in range(BLOCKS)
        if driver.image[lba * BLOCK_SIZE + 100 : lba * BLOCK_SIZE + 150] == b"\xff" * 50
    }
    assert erased == {1, 8, 9, 10, 11}


@pytest.mark.parametrize("wrong", [(BLOCKS, 1), (BLOCKS - 1, 2), (0, BLOCKS + 1), (1, 2**64 - 1)])
def test_erase_looks_at_all_ranges_first(driver: FlashDriver, wrong: tuple[int, int]) -> None:
    assert driver.erase((0, 1), wrong) == EfiStatus.INVALID_PARAMETER
    assert driver.storage.calls == []
    assert driver.image == FORMATTED


@pytest.mark.parametrize("code", sorted(EFI_STATUS_OF_CODE))
def test_storage_failure_changes_nothing(driver: FlashDriver, code: int) -> None:
    driver.storage.answer = lambda service, offset, length: code
    assert driver.write(1, 0, b"lost") == (EFI_STATUS_OF_CODE[code], 0)
    assert driver.erase((0, 2), (4, 1)) == EFI_STATUS_OF_CODE[code]
    assert driver.storage.writes == [(BLOCK_SIZE, 4), (0, 2 * BLOCK_SIZE)]
    assert driver.image == driver.storage.content == FORMATTED
    driver.storage.message_status = EfiStatus.INVALID_PARAMETER
    assert driver.write(1, 0, b"lost") == (EfiStatus.INVALID_PARAMETER, 0)
    assert driver.image == FORMATTED


def test_works_again_when_the_storage_does(driver: FlashDriver) -> None:
    driver.storage.answer = lambda service, offset, length: INVALID_PARAMETERS
    driver.write(1, 0, b"lost")
    driver.storage.answer = lambda service, offset, length: None
    assert driver.write(1, 0, b"kept") == (EfiStatus.SUCCESS, 4)
    assert driver.image == driver.storage.content


# --- beside the emulated board's model -----------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.integers(0, BLOCKS - 1),
            st.integers(0, BLOCK_SIZE - 1),
            st.binary(min_size=1, max_size=300),
        ),
        st.tuples(st.just("erase"), st.integers(0, BLOCKS + 1), st.integers(0, 5), st.just(b"")),
    ),
    max_size=20,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(OPERATIONS, st.one_of(st.none(), st.integers(0, 20)))
def test_same_storage_calls_as_the_model(
    library: Path, operations: list[tuple[str, int, int, bytes]], good_writes: int | None
) -> None:
    """Order, size and content of what is written, also with a storage that fails after a while."""

    class Model(MemoryStorage):
        def write(self, offset: int, data: bytes) -> int:
            if good_writes is not None and len(self.writes) >= good_writes:
                self.writes.append((offset, len(data)))
                return INVALID_PARAMETERS
            return super().write(offset, data)

    storage = file(FORMATTED)
    storage.answer = lambda service, offset, length: (
        INVALID_PARAMETERS
        if good_writes is not None and len(storage.writes) > good_writes
        else None
    )
    driver = FlashDriver(library, storage)
    assert driver.start() == EfiStatus.SUCCESS
    model_storage = Model(FORMATTED)
    model = FirmwareVolumeBlock(model_storage, StmmConfig())
    assert model.start() == EfiStatus.SUCCESS
    for name, lba, number, data in operations:
        if name == "erase":
            number = min(number, BLOCKS - lba) if lba < BLOCKS else number or 1
            if number:
                assert driver.erase((lba, number)) == model.erase(lba, number)
            continue
        data = data[: BLOCK_SIZE - number]
        status, _ = driver.write(lba, number, data)
        assert status == model.write(lba * BLOCK_SIZE + number, data)
    assert storage.writes == model_storage.writes
    assert storage.content == model_storage.content
    assert driver.image == bytes(model.image)


class DriverInModel(FirmwareVolumeBlock):
    """The model's flash with the compiled driver in it, for the model's drivers above."""

    library: Path

    def __init__(self, storage: SecureStorage, config: StmmConfig) -> None:
        super().__init__(storage, config)
        assert isinstance(storage, MemoryStorage)
        self._driver = FlashDriver(self.library, FakeOpTee(storage))

    def start(self) -> EfiStatus:
        status = EfiStatus(self._driver.start())
        self.image[:] = self._driver.image
        return status

    def write(self, offset: int, data: bytes) -> EfiStatus:
        status, _ = self._driver.write(*divmod(offset, BLOCK_SIZE), data)
        self.image[:] = self._driver.image
        return EfiStatus(status)

    def erase(self, lba: int, blocks: int) -> EfiStatus:
        status = EfiStatus(self._driver.erase((lba, blocks)))
        self.image[:] = self._driver.image
        return status


def test_variable_service_on_the_driver_costs_what_was_recorded(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter stood at 0xF2D after U-Boot's first start (truth log-p3-prep.txt)."""
    monkeypatch.setattr(DriverInModel, "library", library, raising=False)
    monkeypatch.setattr(emulation.stmm.standalone_mm, "FirmwareVolumeBlock", DriverInModel)
    board = Partition()
    for name, data in (
        ("PlatformLang", b"en-US\0"),
        ("Boot0000", bytes(104)),
        ("BootOrder", bytes(2)),
        ("Boot0001", bytes(156)),
        ("BootOrder", bytes(4)),
    ):
        assert board.set(name, data, 7, GLOBAL_VARIABLE_GUID) == EfiStatus.SUCCESS
    mount_and_create = 5
    assert mount_and_create + rpmb_writes(board.storage.writes) == 0xF2D
    board.boot()
    assert board.value("BootOrder", GLOBAL_VARIABLE_GUID) == bytes(4)
