"""/dev/tee0 and /dev/teepriv0, the supplicant's queue, and the life of a supplicant.

A small partition stands in StandaloneMM's place: one message, one RPMB access.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from uuid import UUID

import pytest

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.linux.devices import ReturnedFd
from emulation.linux.kernel import Kernel, Killed, Task, running
from emulation.linux.optee import OpteeDriver
from emulation.linux.tee_bus import BusDriver, TeeDevice
from emulation.linux.tee_ioctl import TeeFile, TeeNode
from emulation.optee.optee import OpTee
from emulation.optee.stmm_partition import STMM_UUID
from emulation.stmm.storage import SecureStorage
from harness.formats import tee_ioctl as abi
from harness.formats.tee import Param, ParamType, TeeError, TeeResult
from harness.formats.tee_ioctl import IoctlParam
from tests.emulation.supplicant_thread import LocalMemory, address_of
from tests.emulation.test_kernel import in_thread

ROOT = Task(1)
MEMORY = LocalMemory()
META = ParamType.VALUE_INOUT | abi.PARAM_META
FFA_INVALID_PARAMETERS = -2 & 0xFFFFFFFF
FFA_NO_MEMORY = -3 & 0xFFFFFFFF
EMPTY = [IoctlParam(abi.PARAM_META)] + [IoctlParam()] * 4


class OneWriter:
    """A partition that answers every message by a storage write; its code goes to x4."""

    def __init__(self, storage: SecureStorage) -> None:
        self._storage = storage

    def start(self) -> None:
        """Nothing to initialise."""

    def communicate(self, buffer: bytearray, size: int) -> int:
        return self._storage.write(0, bytes(buffer[:16]))


@pytest.fixture
def driver() -> Iterator[OpteeDriver]:
    kernel = Kernel()
    optee = OpTee(load=OneWriter)
    driver = OpteeDriver(kernel, optee, revision="4.10")
    driver.start()
    yield driver
    kernel.cut_power()


def open_node(driver: OpteeDriver, name: str) -> TeeFile:
    return TeeNode("tee0" if name == "tee0" else "teepriv0", driver).open(ROOT)


def call(file: TeeFile, request: int, data: bytes, task: Task = ROOT) -> bytearray:
    """An ioctl whose argument is one structure; the structure afterwards."""
    buffer = bytearray(data)
    file.ioctl(request, address_of(buffer), MEMORY, task)
    return buffer


def call_buffer(file: TeeFile, request: int, data: bytes, task: Task = ROOT) -> bytearray:
    """An ioctl whose argument is a tee_ioctl_buf_data; the buffer afterwards."""
    buffer = bytearray(data)
    argument = bytearray(abi.BUF_DATA.pack(address_of(buffer), len(buffer)))
    file.ioctl(request, address_of(argument), MEMORY, task)
    return buffer


def errno_of(work: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the errno is what is tested)
        work()
    return caught.value.errno


def packed(fixed: bytes, params: list[IoctlParam]) -> bytes:
    return fixed + b"".join(param.pack() for param in params)


def receive(file: TeeFile, task: Task = ROOT) -> tuple[int, list[IoctlParam]]:
    """SUPPL_RECV: the function and the parameters, the request's number first."""
    request = packed(abi.SUPP_RECV_ARG.pack(0, len(EMPTY)), EMPTY)
    buffer = call_buffer(file, abi.TEE_IOC_SUPPL_RECV, request, task)
    func, count = abi.SUPP_RECV_ARG.unpack_from(buffer)
    return func, IoctlParam.unpack_all(bytes(buffer), count, abi.SUPP_RECV_ARG.size)


def send(file: TeeFile, result: int, params: list[IoctlParam]) -> None:
    fixed = abi.SUPP_SEND_ARG.pack(result, len(params))
    call_buffer(file, abi.TEE_IOC_SUPPL_SEND, packed(fixed, params))


def allocate(file: TeeFile, size: int) -> tuple[int, int]:
    """SHM_ALLOC; the memory's number and descriptor."""
    buffer = bytearray(abi.SHM_ALLOC_DATA.pack(size, 0, 0))
    result = file.ioctl(abi.TEE_IOC_SHM_ALLOC, address_of(buffer), MEMORY, ROOT)
    assert isinstance(result, ReturnedFd)
    return abi.SHM_ALLOC_DATA.unpack(buffer)[2], result.fd


def ask_storage(driver: OpteeDriver, task: Task) -> Callable[[], object]:
    """Have StMM write to its storage for ``task`` on a thread; join gives x4 or an exception."""

    def work() -> int:
        with running(task):
            client = driver.client()
            session = client.open_session(STMM_UUID)
            value = Param.value_output()
            client.invoke(session, 0, [Param.memref_inout(bytearray(64)), value])
            client.close_session(session)
            return value.a

    return in_thread(work)


def test_versions_tell_the_privileged_device_apart(driver: OpteeDriver) -> None:
    for name, privileged in (("tee0", 0), ("teepriv0", abi.TEE_GEN_CAP_PRIVILEGED)):
        data = call(open_node(driver, name), abi.TEE_IOC_VERSION, bytes(12))
        implementation, capabilities, general = abi.VERSION_DATA.unpack(data)
        assert (implementation, capabilities) == (1, 1)
        assert general & abi.TEE_GEN_CAP_PRIVILEGED == privileged
        assert general & abi.TEE_GEN_CAP_REG_MEM


def test_shared_memory_is_the_same_for_both_sides(driver: OpteeDriver) -> None:
    file = open_node(driver, "tee0")
    number, fd = allocate(file, 100)
    assert os.fstat(fd).st_size == 4096
    os.pwrite(fd, b"hello", 10)
    shared = file._context.borrow(number)
    assert shared is not None
    assert shared.pages.read(10, 5) == b"hello"


def test_allocation_refuses_flags_and_nonsense(driver: OpteeDriver) -> None:
    file = open_node(driver, "tee0")
    for size, flags, expected in ((4096, 1, errno.EINVAL), (0, 0, errno.ENOMEM)):
        data = abi.SHM_ALLOC_DATA.pack(size, flags, 0)
        assert errno_of(partial(call, file, abi.TEE_IOC_SHM_ALLOC, data)) == expected


def test_requests_of_the_other_node_are_refused(driver: OpteeDriver) -> None:
    client, supplicant = open_node(driver, "tee0"), open_node(driver, "teepriv0")
    arguments = packed(abi.SUPP_RECV_ARG.pack(0, 5), EMPTY)
    for file, request in ((client, abi.TEE_IOC_SUPPL_RECV), (supplicant, abi.TEE_IOC_INVOKE)):
        assert errno_of(partial(call_buffer, file, request, arguments)) == errno.EINVAL


def open_arg(uuid: UUID, params: list[IoctlParam], login: int = 0) -> bytes:
    return packed(
        abi.OPEN_SESSION_ARG.pack(uuid.bytes, bytes(16), login, 0, 0, 0, 0, len(params)), params
    )


def test_open_session_and_invoke_as_libteec_does(driver: OpteeDriver) -> None:
    file = open_node(driver, "tee0")
    unknown = call_buffer(file, abi.TEE_IOC_OPEN_SESSION, open_arg(UUID(int=5), []))
    *_rest, _session, result, _origin, _count = abi.OPEN_SESSION_ARG.unpack_from(unknown)
    assert result == TeeResult.ITEM_NOT_FOUND
    opened = call_buffer(file, abi.TEE_IOC_OPEN_SESSION, open_arg(STMM_UUID, []))
    *_rest, session, result, _origin, _count = abi.OPEN_SESSION_ARG.unpack_from(opened)
    assert result == TeeResult.SUCCESS
    # A command StMM does not have: refused in the secure world, so ioctl succeeds.
    answer = call_buffer(file, abi.TEE_IOC_INVOKE, abi.INVOKE_ARG.pack(7, session, 0, 0, 0, 0))
    assert abi.INVOKE_ARG.unpack_from(answer)[3] == TeeResult.BAD_PARAMETERS
    call(file, abi.TEE_IOC_CLOSE_SESSION, abi.CLOSE_SESSION_ARG.pack(session))
    again = abi.CLOSE_SESSION_ARG.pack(session)
    assert errno_of(lambda: call(file, abi.TEE_IOC_CLOSE_SESSION, again)) == errno.EINVAL


def test_arguments_are_checked_before_the_secure_world(driver: OpteeDriver) -> None:
    file = open_node(driver, "tee0")
    good = open_arg(STMM_UUID, [])
    cases = {
        good + bytes(8): errno.EINVAL,
        good[:-4]: errno.EINVAL,
        good + bytes(1024): errno.EINVAL,
        open_arg(STMM_UUID, [IoctlParam(4)]): errno.EINVAL,
        open_arg(STMM_UUID, [IoctlParam(ParamType.MEMREF_INPUT, 0, 8, 99)]): errno.EINVAL,
        open_arg(STMM_UUID, [], login=abi.LOGIN_REE_KERNEL_MIN): errno.EPERM,
    }
    for data, expected in cases.items():
        work = partial(call_buffer, file, abi.TEE_IOC_OPEN_SESSION, data)
        assert errno_of(work) == expected


def test_a_second_supplicant_is_refused_until_the_first_is_gone(driver: OpteeDriver) -> None:
    first = open_node(driver, "teepriv0")
    assert errno_of(lambda: open_node(driver, "teepriv0")) == errno.EBUSY
    first.close()
    first.close()
    open_node(driver, "teepriv0").close()


def test_receive_ends_by_signal_and_by_closing(driver: OpteeDriver) -> None:
    file, task = open_node(driver, "teepriv0"), Task(9)
    join = in_thread(lambda: receive(file, task))
    task.fatal.set()
    assert isinstance(join(), Killed)
    join = in_thread(lambda: receive(file))
    file.close()
    error = join()
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF


def test_receive_wants_empty_parameters_and_room(driver: OpteeDriver) -> None:
    file = open_node(driver, "teepriv0")
    full = packed(abi.SUPP_RECV_ARG.pack(0, 1), [IoctlParam(ParamType.VALUE_INPUT)])
    assert errno_of(lambda: call_buffer(file, abi.TEE_IOC_SUPPL_RECV, full)) == errno.EINVAL
    join = ask_storage(driver, Task(8))
    narrow = packed(abi.SUPP_RECV_ARG.pack(0, 1), [IoctlParam(abi.PARAM_META)])
    assert errno_of(lambda: call_buffer(file, abi.TEE_IOC_SUPPL_RECV, narrow)) == errno.EINVAL
    file.close()
    assert join() == FFA_NO_MEMORY


def test_without_a_supplicant_opteedrivers_own_clients_fail_at_once(driver: OpteeDriver) -> None:
    # No memory for the request: FF-A's NO_MEMORY, which becomes ENOSPC in efivarfs.
    assert ask_storage(driver, Task(8))() == FFA_NO_MEMORY


def test_requests_go_out_with_memory_first_and_an_answer_needs_its_number(
    driver: OpteeDriver,
) -> None:
    file = open_node(driver, "teepriv0")
    join = ask_storage(driver, Task(8))
    func, params = receive(file)
    assert func == abi.RPC_SHM_ALLOC
    assert params[0].attr == META
    assert params[1].kind == ParamType.VALUE_INOUT
    wrong = IoctlParam(META, params[0].a + 1)
    assert errno_of(lambda: send(file, 0, [wrong, params[1]])) == errno.ENOENT
    assert errno_of(lambda: send(file, 0, [params[0]])) == errno.EINVAL
    number, _fd = allocate(file, params[1].b)
    send(file, 0, [params[0], IoctlParam(ParamType.VALUE_INOUT, 0, params[1].b, number)])
    func, params = receive(file)
    assert func == abi.RPC_RPMB
    assert [param.kind for param in params[1:]] == [
        ParamType.MEMREF_INPUT,
        ParamType.MEMREF_OUTPUT,
    ]
    assert params[1].c == params[2].c == number
    shared = file._context.borrow(number)
    assert shared is not None
    # The first thing OP-TEE wants to know is the device.
    assert shared.pages.read(params[1].a, params[1].b) == struct.pack("<HHH", 1, 0, 0)
    file._context.give_back(shared)
    send(file, TeeResult.GENERIC, [params[0], params[1], params[2]])
    func, params = receive(file)
    assert func == abi.RPC_SHM_FREE
    send(file, 0, params)
    assert isinstance(join(), int)
    assert file._context.borrow(number) is None


def serve_until_rpmb(file: TeeFile) -> list[IoctlParam]:
    """Give memory when asked and take the first RPMB request without answering it."""
    _func, params = receive(file)
    number, _fd = allocate(file, params[1].b)
    send(file, 0, [params[0], IoctlParam(ParamType.VALUE_INOUT, 0, params[1].b, number)])
    func, params = receive(file)
    assert func == abi.RPC_RPMB
    return params


def test_a_supplicant_killed_in_mid_request_leaves_its_caller_hanging(driver: OpteeDriver) -> None:
    writer = Task(8)
    file = open_node(driver, "teepriv0")
    join = ask_storage(driver, writer)
    serve_until_rpmb(file)
    file.close()
    # OP-TEE holds the dead process's memory, so its context lives and keeps the device busy.
    assert errno_of(lambda: open_node(driver, "teepriv0")) == errno.EBUSY
    second = ask_storage(driver, Task(10))
    writer.fatal.set()
    assert join() == FFA_INVALID_PARAMETERS
    assert second() == FFA_NO_MEMORY
    open_node(driver, "teepriv0").close()


def test_a_supplicant_killed_before_it_gave_memory_hangs_nobody(driver: OpteeDriver) -> None:
    file = open_node(driver, "teepriv0")
    join = ask_storage(driver, Task(8))
    receive(file)
    file.close()
    assert join() == FFA_NO_MEMORY


def test_answering_a_killed_writer_is_a_bad_descriptor(driver: OpteeDriver) -> None:
    writer = Task(8)
    file = open_node(driver, "teepriv0")
    join = ask_storage(driver, writer)
    params = serve_until_rpmb(file)
    writer.fatal.set()
    join()
    assert errno_of(lambda: send(file, 0, params)) == errno.EBADF
    file.close()
    open_node(driver, "teepriv0").close()


def test_the_wait_behind_another_caller_hears_no_signal(driver: OpteeDriver) -> None:
    file = open_node(driver, "teepriv0")
    writer, reader = Task(8), Task(9)
    first = ask_storage(driver, writer)
    serve_until_rpmb(file)
    second = ask_storage(driver, reader)
    reader.fatal.set()
    finished = threading.Event()

    def watch() -> None:
        second()
        finished.set()

    threading.Thread(target=watch, daemon=True).start()
    assert not finished.wait(0.1)
    writer.fatal.set()
    first()
    file.close()
    assert finished.wait(5)


@pytest.mark.cases(423)
def test_devices_appear_with_the_first_supplicant_only(driver: OpteeDriver) -> None:
    added = threading.Event()
    devices: list[TeeDevice] = []

    def uevent(device: TeeDevice) -> None:
        devices.append(device)
        added.set()

    driver.bus.on_added(uevent)
    assert not driver.bus.devices
    open_node(driver, "teepriv0").close()
    assert added.wait(5)
    assert [device.name for device in devices] == [f"optee-ta-{STMM_UUID}"]
    assert devices[0].needs_supplicant
    open_node(driver, "teepriv0").close()
    assert len(devices) == 1


class Probe:
    """A driver that remembers; ``failure`` is raised by its probe."""

    def __init__(self, failure: OSError | None = None) -> None:
        self.failure = failure
        self.calls: list[str] = []
        self.driver = BusDriver("probe", frozenset([STMM_UUID]), self.probe, self.remove)

    def probe(self) -> None:
        self.calls.append("probe")
        if self.failure:
            raise self.failure

    def remove(self) -> None:
        self.calls.append("remove")


def test_bind_and_unbind_errors(driver: OpteeDriver) -> None:
    bus, probe, device = driver.bus, Probe(), TeeDevice(STMM_UUID, needs_supplicant=True)
    bus.add_device(device)
    bus.register_driver(probe.driver)
    assert device.driver is probe.driver
    assert errno_of(lambda: bus.bind("probe", device.name)) == errno.EBUSY
    assert errno_of(lambda: bus.bind("probe", "nonsense")) == errno.ENODEV
    bus.unbind("probe", device.name)
    assert errno_of(lambda: bus.unbind("probe", device.name)) == errno.ENODEV
    bus.bind("probe", device.name)
    bus.unregister_driver("probe")
    assert probe.calls == ["probe", "remove", "probe", "remove"]


def test_a_failing_probe_is_logged_and_reported_to_bind(driver: OpteeDriver) -> None:
    bus, probe = driver.bus, Probe(OSError(errno.EIO, "no"))
    device = TeeDevice(STMM_UUID, needs_supplicant=False)
    bus.register_driver(probe.driver)
    bus.add_device(device)
    assert device.driver is None
    assert errno_of(lambda: bus.bind("probe", device.name)) == errno.EIO
    lines = [record.text for record in driver.kernel.log.records(0)]
    assert lines.count(f"probe {device.name}: probe with driver probe failed with error -5") == 2


@pytest.mark.cases(425, 426)
def test_kernel_routing_needs_no_supplicant() -> None:
    from emulation.optee.config import OpTeeConfig
    from emulation.rpmb_transport import RpmbTransport

    kernel = Kernel()
    optee = OpTee(OpTeeConfig(announce_probe=True), load=OneWriter)
    card = EmmcCard(RpmbImage.in_memory())
    driver = OpteeDriver(
        kernel, optee, revision="4.10", kernel_routing=RpmbTransport(card, kernel.check_power)
    )
    driver.start()
    assert driver.routing_model == "kernel"
    assert list(driver.bus.devices) == [f"optee-ta-{STMM_UUID}"]
    assert ask_storage(driver, Task(8))() == 0
    assert card.rpmb.write_counter > 0


def test_an_unknown_session_is_an_error_of_the_tee(driver: OpteeDriver) -> None:
    with pytest.raises(TeeError):
        driver.client().open_session(UUID(int=1))
