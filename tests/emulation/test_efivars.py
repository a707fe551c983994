"""The efivars core: registration, notifier chain, semaphore, errno table, generic operations."""

from __future__ import annotations

import errno
import threading

import pytest

from emulation.faults import PowerLost
from emulation.linux.efi_pstore import EfiPstore
from emulation.linux.efivars import Efivars, OpsEvent, status_to_errno
from emulation.linux.firmware import (
    EfiRuntime,
    FirmwareTables,
    GenericOperations,
    RuntimeService,
    RuntimeVariable,
    advertised_services,
)
from emulation.linux.kernel import Kernel, Killed, Oops, Task
from harness.formats.efi import GLOBAL_VARIABLE_GUID, EfiStatus
from tests.emulation.efivars_memory import VENDOR, MemoryVariables

ROOT = Task(1)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def efivars(kernel: Kernel) -> Efivars:
    return Efivars(kernel)


def lines(kernel: Kernel) -> list[str]:
    return [record.text for record in kernel.log.records()]


def test_registration_tells_the_chain_and_the_log(kernel: Kernel, efivars: Efivars) -> None:
    events: list[OpsEvent] = []
    efivars.subscribe(events.append)
    read_only = MemoryVariables(supports_set=False)
    writable = MemoryVariables()
    efivars.register(read_only, task=ROOT)
    assert not efivars.supports_writes
    efivars.unregister(read_only, task=ROOT)
    efivars.register(writable, task=ROOT)
    assert efivars.supports_writes
    assert events == [OpsEvent.READ_ONLY, OpsEvent.READ_WRITE]
    assert lines(kernel) == [
        "efivars: Registered efivars operations",
        "efivars: Unregistered efivars operations",
        "efivars: Registered efivars operations",
    ]


@pytest.mark.cases(323)
def test_only_one_registration(efivars: Efivars) -> None:
    efivars.register(MemoryVariables(), task=ROOT)
    with pytest.raises(OSError, match="registered") as busy:
        efivars.register(MemoryVariables(), task=ROOT)
    assert busy.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="other") as invalid:
        efivars.unregister(MemoryVariables(), task=ROOT)
    assert invalid.value.errno == errno.EINVAL
    assert efivars.available


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (EfiStatus.SUCCESS, 0),
        (EfiStatus.OUT_OF_RESOURCES, errno.ENOSPC),
        (EfiStatus.DEVICE_ERROR, errno.EIO),
        (EfiStatus.WRITE_PROTECTED, errno.EROFS),
        (EfiStatus.SECURITY_VIOLATION, errno.EACCES),
        (EfiStatus.NOT_FOUND, errno.ENOENT),
        (EfiStatus.ABORTED, errno.EINTR),
        (EfiStatus.ACCESS_DENIED, errno.EINVAL),
        (EfiStatus.UNSUPPORTED, errno.EINVAL),
        (EfiStatus(77), errno.EINVAL),
    ],
)
@pytest.mark.cases(340)
def test_status_table(status: EfiStatus, expected: int) -> None:
    assert status_to_errno(status) == expected


class StuckFirmware:
    """A thread that holds the semaphore inside a firmware call until told to go on."""

    def __init__(self, kernel: Kernel, efivars: Efivars) -> None:
        self.inside = threading.Event()
        self._go = threading.Event()
        self._efivars = efivars
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()
        assert self.inside.wait(5)

    def _hold(self) -> None:
        with self._efivars.locked(Task(2)):
            self.inside.set()
            self._go.wait(5)

    def finish(self) -> None:
        self._go.set()
        self._thread.join(5)


def test_a_stuck_writer_keeps_everyone_waiting_in_order(kernel: Kernel, efivars: Efivars) -> None:
    efivars.register(MemoryVariables(), task=ROOT)
    stuck = StuckFirmware(kernel, efivars)
    order: list[int] = []

    def reader(number: int) -> None:
        with efivars.locked(Task(number)):
            order.append(number)

    readers = []
    for number in range(3):
        thread = threading.Thread(target=reader, args=(number,))
        thread.start()
        readers.append(thread)
        kernel.wait(lambda: len(efivars._queue) == number + 1, task=ROOT, timeout=0.5)  # noqa: B023
    assert order == []
    assert not efivars.try_locked(ROOT)
    stuck.finish()
    for thread in readers:
        thread.join(5)
    assert order == [0, 1, 2]


@pytest.mark.cases(412)
def test_a_fatal_signal_releases_a_waiter(kernel: Kernel, efivars: Efivars) -> None:
    efivars.register(MemoryVariables(), task=ROOT)
    stuck = StuckFirmware(kernel, efivars)
    victim = Task(7)
    threading.Timer(0.05, victim.fatal.set).start()
    with pytest.raises(InterruptedError), efivars.locked(victim):
        pytest.fail("entered while another holds the semaphore")
    stuck.finish()
    with efivars.locked(ROOT):
        pass


def test_a_power_cut_ends_the_wait(kernel: Kernel, efivars: Efivars) -> None:
    efivars.register(MemoryVariables(), task=ROOT)
    stuck = StuckFirmware(kernel, efivars)
    threading.Timer(0.05, kernel.cut_power).start()
    with pytest.raises(PowerLost), efivars.locked(ROOT):
        pytest.fail("entered a dead machine")
    stuck.finish()


@pytest.mark.cases(321)
@pytest.mark.pain(22)
def test_without_operations_the_kernel_oopses(kernel: Kernel, efivars: Efivars) -> None:
    with pytest.raises(Killed), efivars.locked(ROOT):
        pytest.fail("no operations to give")
    assert "NULL pointer" in lines(kernel)[-1]
    assert not efivars.try_locked(ROOT), "the oopsed task never gives the semaphore back"


@pytest.mark.cases(321)
@pytest.mark.pain(22)
def test_a_write_by_operations_without_set_oopses(kernel: Kernel, efivars: Efivars) -> None:
    efivars.register(MemoryVariables(supports_set=False), task=ROOT)
    with pytest.raises(Oops):
        efivars.set_variable("V", GLOBAL_VARIABLE_GUID, 7, b"x", task=ROOT)
    assert "NULL pointer" in lines(kernel)[-1]
    assert not efivars.try_locked(ROOT), "the oopsed task never gives the semaphore back"


def test_room_is_checked_before_a_set_and_not_before_a_delete(efivars: Efivars) -> None:
    operations = MemoryVariables()
    efivars.register(operations, task=ROOT)
    assert efivars.set_variable("Ab", VENDOR, 7, b"xyz", task=ROOT) == EfiStatus.SUCCESS
    assert operations.calls == ["room 7", "set"]
    operations.room_answer = EfiStatus.UNSUPPORTED
    big = bytes((1 << 16) + 1)
    assert efivars.set_variable("Ab", VENDOR, 7, big, task=ROOT) == EfiStatus.OUT_OF_RESOURCES
    assert efivars.set_variable("Ab", VENDOR, 7, b"", task=ROOT) == EfiStatus.SUCCESS


# U-Boot's variable memory as recorded with the file variant: df showed 131048 / 130072.
FILE_VARIANT = (
    ("AuditMode", 1),
    ("Boot0000", 104),
    ("Boot0001", 156),
    ("BootOrder", 4),
    ("DeployedMode", 1),
    ("OsIndicationsSupported", 8),
    ("PlatformLang", 6),
    ("PlatformLangCodes", 6),
    ("SecureBoot", 1),
    ("SetupMode", 1),
    ("VendorKeys", 1),
)


def tables(variant: str) -> FirmwareTables:
    return FirmwareTables.for_variant(
        variant,  # type: ignore[arg-type]
        [RuntimeVariable(name, GLOBAL_VARIABLE_GUID, 7, bytes(n)) for name, n in FILE_VARIANT],
    )


def test_uboot_memory_figures_match_the_record() -> None:
    space = GenericOperations(tables("file")).query_variable_info(7)
    assert (space.status, space.max_storage, space.remaining) == (0, 131048, 130072)


@pytest.mark.parametrize("variant", ["mm", "mm-query", "mm-kernel-rpmb"])
@pytest.mark.cases(236, 431)
@pytest.mark.pain(17)
def test_with_stmm_the_firmware_answers_no_query_at_runtime(variant: str) -> None:
    assert GenericOperations(tables(variant)).query_variable_info(7).status == EfiStatus.UNSUPPORTED


@pytest.mark.cases(431)
@pytest.mark.pain(14)
def test_who_advertises_query_variable_info() -> None:
    query = RuntimeService.QUERY_VARIABLE_INFO
    assert query in advertised_services("mm-query")
    assert query in advertised_services("file")
    assert query not in advertised_services("mm")
    assert advertised_services("mm") & 0x1B0 == 0x1B0
    assert RuntimeService.SET_VARIABLE not in advertised_services("file")


def test_generic_operations_walk_the_snapshot() -> None:
    generic = GenericOperations(tables("mm"))
    first = generic.get_next_variable("", VENDOR, 512)
    assert first.name == "AuditMode"
    assert generic.get_next_variable("AuditMode", GLOBAL_VARIABLE_GUID, 10).name_size == 18
    last = generic.get_next_variable("VendorKeys", GLOBAL_VARIABLE_GUID, 512)
    assert last.status == EfiStatus.NOT_FOUND
    unknown = generic.get_next_variable("Nope", GLOBAL_VARIABLE_GUID, 512)
    assert unknown.status == EfiStatus.INVALID_PARAMETER
    small = generic.get_variable("BootOrder", GLOBAL_VARIABLE_GUID, 0, buffer=False)
    assert (small.status, small.size) == (EfiStatus.BUFFER_TOO_SMALL, 4)
    assert generic.set_variable("X", VENDOR, 7, b"x") == EfiStatus.UNSUPPORTED


def test_generic_registration_needs_variable_services(kernel: Kernel, efivars: Efivars) -> None:
    runtime = EfiRuntime(kernel, efivars, FirmwareTables(RuntimeService.RESET_SYSTEM))
    runtime.register_generic(task=ROOT)
    assert not efivars.available
    runtime.unregister_generic(task=ROOT)
    assert lines(kernel) == []


def test_pstore_stays_out_where_variables_cannot_be_written(
    kernel: Kernel, efivars: Efivars
) -> None:
    efivars.register(MemoryVariables(supports_set=False), task=ROOT)
    pstore = EfiPstore(kernel, efivars)
    pstore.load()
    assert not pstore.registered
    assert pstore.dump("Panic", b"text", task=ROOT) == 0


@pytest.mark.cases(331)
def test_pstore_dump_is_refused_by_operations_that_sleep(kernel: Kernel, efivars: Efivars) -> None:
    operations = MemoryVariables()
    efivars.register(operations, task=ROOT)
    pstore = EfiPstore(kernel, efivars)
    pstore.load()
    assert lines(kernel)[-1] == "pstore: Registered efi_pstore as persistent store backend"
    assert pstore.dump("Panic", b"kernel log " * 400, task=ROOT) == 0
    assert "set" not in operations.calls
    assert "set-nonblocking" in operations.calls
    assert not operations.store
    assert efivars.try_locked(ROOT)


def test_a_dump_never_waits_for_the_semaphore(kernel: Kernel, efivars: Efivars) -> None:
    operations = MemoryVariables()
    operations.forced["set-nonblocking"] = EfiStatus.SUCCESS
    efivars.register(operations, task=ROOT)
    pstore = EfiPstore(kernel, efivars)
    pstore.load()
    assert pstore.dump("Panic", b"x" * 3000, task=ROOT) == 3
    stuck = StuckFirmware(kernel, efivars)
    assert pstore.dump("Panic", b"x", task=ROOT) == 0
    stuck.finish()
