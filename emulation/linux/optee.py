"""The kernel's OP-TEE driver: calls into the secure world, and the requests that come back.

A call into OP-TEE may need the normal world in its middle (RPMB).  Those requests go to the
supplicant, or, where the kernel routes RPMB itself, straight to the card.  Source: contract 1.8, 7
and 11; K6 drivers/tee/optee (core.c, smc_abi.c, rpc.c, supp.c, device.c); truth log-kill4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from emulation.linux.kernel import Kernel, Task, current_task
from emulation.linux.supplicant_queue import SupplicantQueue
from emulation.linux.tee_bus import TeeBus, TeeDevice
from emulation.linux.tee_core import PAGE_SIZE, SharedMemory, TeeContext
from emulation.optee.interface import NormalWorld, TeeError
from emulation.optee.interface import SharedMemory as SharedMemoryKind
from emulation.optee.optee import OpTee
from emulation.rpmb_transport import RpmbTransport
from harness.formats.rpmb import DeviceInfo
from harness.formats.tee import Param, TeeOrigin, TeeResult
from harness.formats.tee_ioctl import (
    PARAM_MEMREF_INPUT,
    PARAM_MEMREF_OUTPUT,
    PARAM_VALUE_INOUT,
    RPC_RPMB,
    RPC_SHM_ALLOC,
    RPC_SHM_FREE,
    RPC_SHM_TYPE_APPL,
    IoctlParam,
)

GET_DEVICES_SUPP: Final = 1
GET_DEVICES_RPMB: Final = 2


@dataclass(frozen=True)
class _Caller:
    """On whose behalf the secure world is working, for the requests it sends back."""

    task: Task
    nowait: bool


_caller: ContextVar[_Caller | None] = ContextVar("secure_world_caller", default=None)


class OpteeDriver(NormalWorld):
    """``optee``: the TEE the kernel and its users see.  It is OP-TEE's normal world."""

    def __init__(
        self,
        kernel: Kernel,
        optee: OpTee,
        *,
        revision: str,
        kernel_routing: RpmbTransport | None = None,
    ) -> None:
        self.kernel = kernel
        self.queue = SupplicantQueue(kernel)
        self.bus = TeeBus(kernel)
        self._optee = optee
        self._revision = revision
        self._kernel_routing = kernel_routing
        self._supplicant: TeeContext | None = None
        self._lent: dict[int, SharedMemory] = {}
        """Memory of the supplicant's that OP-TEE holds, by number."""
        self._probed = False
        self._scanned = False

    @property
    def routing_model(self) -> str:
        """The sysfs attribute ``rpmb_routing_model``."""
        return "kernel" if self._kernel_routing is not None else "user"

    def start(self) -> None:
        """The driver's initcall: from here on OP-TEE's requests come to Linux."""
        for line in (
            "probing for conduit method.",
            f"revision {self._revision}",
            "Asynchronous notifications enabled",
            "dynamic shared memory is enabled",
            "initialized driver",
        ):
            self.kernel.printk(f"optee: {line}")
        self._optee.normal_world = self
        if self._kernel_routing is not None:
            self._add_devices(GET_DEVICES_RPMB)

    # What OP-TEE asks for (NormalWorld)

    def allocate_shared(self, kind: SharedMemoryKind, size: int) -> int:
        """See NormalWorld: memory of the supplicant's, or the kernel's own.

        Without a supplicant OP-TEE runs out of memory here, which is why SetVariable is then
        ENOSPC and works again as soon as a supplicant is back (truth p2c).
        """
        self.kernel.check_power()
        if kind is SharedMemoryKind.KERNEL:
            return 0
        result, params = self._ask(
            RPC_SHM_ALLOC, IoctlParam(PARAM_VALUE_INOUT, RPC_SHM_TYPE_APPL, size)
        )
        with self.kernel.lock:
            found = None
            if result == TeeResult.SUCCESS and self._supplicant is not None:
                found = self._supplicant.borrow(params[0].c)
            if found is None:
                # optee_rpc_cmd_alloc_suppl knows this one failure only.
                raise TeeError(TeeResult.OUT_OF_MEMORY, TeeOrigin.COMMS)
            self._lent[found.number] = found
            return found.number

    def free_shared(self, kind: SharedMemoryKind, cookie: int) -> None:
        """See NormalWorld."""
        self.kernel.check_power()
        if kind is SharedMemoryKind.KERNEL:
            return
        # The reference goes before the request does: a supplicant that was killed is released by
        # it, and the request then fails at once.
        with self.kernel.lock:
            self._lent.pop(cookie).put()
        self._ask(RPC_SHM_FREE, IoctlParam(PARAM_VALUE_INOUT, RPC_SHM_TYPE_APPL, cookie))

    def rpmb_rpc(self, memory: int, request: bytes, reply_size: int) -> bytes:
        """See NormalWorld: sleeps until a supplicant answers.

        TeeError COMMUNICATION when there is none or the caller was killed, else what it said.
        """
        self.kernel.check_power()
        shared = self._lent[memory]
        reply_offset = (len(request) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
        shared.pages.write(0, request)
        result, params = self._ask(
            RPC_RPMB,
            IoctlParam(PARAM_MEMREF_INPUT, 0, len(request), memory),
            IoctlParam(PARAM_MEMREF_OUTPUT, reply_offset, reply_size, memory),
        )
        if result == TeeResult.SUCCESS and params[1].b != reply_size:
            result = TeeResult.GENERIC
        if result != TeeResult.SUCCESS:
            raise TeeError(TeeResult(result), TeeOrigin.COMMS)
        try:
            return shared.pages.read(reply_offset, reply_size)
        except OSError:
            raise TeeError(TeeResult.COMMUNICATION, TeeOrigin.COMMS) from None

    def rpmb_probe_reset(self) -> SharedMemoryKind:
        """See NormalWorld."""
        self._routed()
        self._probed = False
        return SharedMemoryKind.KERNEL

    def rpmb_probe_next(self) -> DeviceInfo:
        """See NormalWorld: this board has one card."""
        transport = self._routed()
        if self._probed:
            raise TeeError(TeeResult.ITEM_NOT_FOUND, TeeOrigin.COMMS)
        self._probed = True
        return transport.device_info()

    def rpmb_frames(self, memory: int, frames: bytes, reply_size: int) -> bytes:
        """See NormalWorld."""
        self.kernel.check_power()
        return self._routed().route(frames, reply_size)

    def _routed(self) -> RpmbTransport:
        if self._kernel_routing is None:
            raise TeeError(TeeResult.NOT_SUPPORTED, TeeOrigin.COMMS)
        return self._kernel_routing

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """See NormalWorld: optee_notif_wait, which no signal ends (truth log-kill4: df hangs)."""
        self.kernel.wait(condition, task=Task.kernel())

    def notify(self) -> None:
        """See NormalWorld."""
        self.kernel.wake()

    def _ask(self, func: int, *params: IoctlParam) -> tuple[int, list[IoctlParam]]:
        caller = _caller.get() or _Caller(current_task(), nowait=True)
        return self.queue.request(func, params, task=caller.task, nowait=caller.nowait)

    # Clients

    def client(self) -> KernelTeeClient:
        """A context for an in-kernel client (tee_client_open_context)."""
        return KernelTeeClient(self)

    def open_session(
        self, uuid: UUID, param_types: Sequence[int], *, nowait: bool, task: Task
    ) -> int:
        """Open a session; raises TeeError."""
        with self._calling(nowait=nowait, task=task):
            return self._optee.open_session(uuid, param_types)

    def invoke(
        self, session: int, command: int, params: list[Param], *, nowait: bool, task: Task
    ) -> None:
        """Invoke a command; raises TeeError."""
        with self._calling(nowait=nowait, task=task):
            self._optee.invoke(session, command, params)

    def close_session(self, session: int, *, nowait: bool, task: Task) -> None:
        """Close a session."""
        with self._calling(nowait=nowait, task=task):
            self._optee.close_session(session)

    @contextmanager
    def _calling(self, *, nowait: bool, task: Task) -> Iterator[None]:
        self.kernel.check_power()
        token = _caller.set(_Caller(task, nowait))
        try:
            yield
        finally:
            _caller.reset(token)

    # The supplicant's device

    def open_supplicant(self) -> TeeContext:
        """/dev/teepriv0 is opened: OSError EBUSY while another context lives.

        The first supplicant ever makes the driver look for devices that need one.
        """
        self.queue.attach()
        context = TeeContext(self.kernel, nowait=False, released=self._supplicant_released)
        self._supplicant = context
        if not self._scanned and self._kernel_routing is None:
            self._scanned = True
            self.kernel.spawn("kworker/optee_bus_scan", lambda: self._add_devices(GET_DEVICES_SUPP))
        return context

    def _supplicant_released(self) -> None:
        self._supplicant = None
        self.queue.release()

    def _add_devices(self, function: int) -> None:
        for uuid in self._optee.enumerate_devices(function):
            self.bus.add_device(TeeDevice(uuid, needs_supplicant=function == GET_DEVICES_SUPP))


class KernelTeeClient:
    """The kernel's own use of the TEE; requests to an absent supplicant fail at once."""

    def __init__(self, driver: OpteeDriver) -> None:
        self._driver = driver

    def open_session(self, uuid: UUID) -> int:
        """Open a session without parameters; raises TeeError."""
        return self._driver.open_session(uuid, (0, 0, 0, 0), nowait=True, task=current_task())

    def invoke(self, session: int, command: int, params: list[Param]) -> None:
        """Invoke a command; raises TeeError."""
        self._driver.invoke(session, command, params, nowait=True, task=current_task())

    def close_session(self, session: int) -> None:
        """Close a session; raises TeeError."""
        self._driver.close_session(session, nowait=True, task=current_task())
