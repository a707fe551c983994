"""The kernel's OP-TEE driver: calls into the secure world, and the requests that come back.

A call into OP-TEE may need the normal world in its middle (RPMB).  Those requests go to the
supplicant, or, where the kernel routes RPMB itself, straight to the card.  Source: stack 1.8, 7
and 11; K6 drivers/tee/optee (core.c, smc_abi.c, rpc.c, supp.c, device.c); truth log-kill4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from uuid import UUID

from emulation.faults import Faults
from emulation.linux.kernel import KERN_ERR, Kernel, Task, current_task
from emulation.linux.supplicant_queue import SupplicantQueue
from emulation.linux.tee_bus import TeeBus, TeeDevice
from emulation.linux.tee_core import PAGE_SIZE, SharedMemory, TeeContext
from emulation.optee.optee import (
    DEVICE_ENUMERATION_UUID,
    GET_DEVICES,
    GET_DEVICES_RPMB,
    GET_DEVICES_SUPP,
    OpTee,
)
from emulation.rpmb_transport import RpmbTransport
from harness.formats.tee import Param, ParamType, TeeError, TeeOrigin, TeeResult
from harness.formats.tee_ioctl import (
    RPC_RPMB,
    RPC_SHM_ALLOC,
    RPC_SHM_FREE,
    RPC_SHM_TYPE_APPL,
    IoctlParam,
)

_REPLY_ALIGNMENT: Final = 8


class _SecureCall:
    """One call into OP-TEE, from the SMC to its return, and the requests that come out of it.

    OP-TEE keeps the memory it got for its requests until the call ends (its thread's cache of
    shared memory), so the supplicant is asked for memory once a call, not once a request.
    """

    def __init__(self, driver: OpteeDriver, *, nowait: bool, task: Task) -> None:
        self._driver = driver
        self._nowait = nowait
        self._task = task
        self._payload: SharedMemory | None = None

    def rpmb(self, request: bytes, reply_size: int) -> bytes:
        """Have the supplicant carry out one RPMB request; raises TeeError."""
        reply_offset = (len(request) + _REPLY_ALIGNMENT - 1) & ~(_REPLY_ALIGNMENT - 1)
        payload = self._allocate(reply_offset + reply_size)
        payload.pages.write(0, request)
        result, params = self._ask(
            RPC_RPMB,
            IoctlParam(ParamType.MEMREF_INPUT, 0, len(request), payload.number),
            IoctlParam(ParamType.MEMREF_OUTPUT, reply_offset, reply_size, payload.number),
        )
        if result != TeeResult.SUCCESS:
            raise TeeError(TeeResult(result), TeeOrigin.COMMS)
        if params[1].b != reply_size:
            raise TeeError(TeeResult.GENERIC, TeeOrigin.COMMS)
        try:
            return payload.pages.read(reply_offset, reply_size)
        except OSError:
            raise TeeError(TeeResult.COMMUNICATION, TeeOrigin.COMMS) from None

    def finish(self) -> None:
        """OP-TEE gives its memory back.

        The reference goes before the request does: a supplicant that was killed is released by
        it, and the request then fails at once.
        """
        payload, self._payload = self._payload, None
        if payload is not None:
            with self._driver.kernel.lock:
                payload.put()
            self._ask(
                RPC_SHM_FREE, IoctlParam(ParamType.VALUE_INOUT, RPC_SHM_TYPE_APPL, payload.number)
            )

    def _allocate(self, size: int) -> SharedMemory:
        if self._payload is not None and self._payload.size >= size:
            return self._payload
        self.finish()
        rounded = (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
        result, params = self._ask(
            RPC_SHM_ALLOC, IoctlParam(ParamType.VALUE_INOUT, RPC_SHM_TYPE_APPL, rounded)
        )
        if result == TeeResult.SUCCESS:
            self._payload = self._driver.borrow_from_supplicant(params[0].c)
        if self._payload is None or self._payload.size < size:
            # optee_rpc_cmd_alloc_suppl knows this failure only, which is why SetVariable without a
            # supplicant is ENOSPC and works again as soon as one is back (truth p2c).
            raise TeeError(TeeResult.OUT_OF_MEMORY, TeeOrigin.COMMS)
        return self._payload

    def _ask(self, func: int, *params: IoctlParam) -> tuple[int, list[IoctlParam]]:
        return self._driver.queue.request(func, params, task=self._task, nowait=self._nowait)


_current_call: ContextVar[_SecureCall | None] = ContextVar("secure_call", default=None)


class OpteeDriver:
    """``optee``: the TEE the kernel and its users see.  It is OP-TEE's normal world."""

    def __init__(
        self,
        kernel: Kernel,
        optee: OpTee,
        *,
        revision: str,
        kernel_routing: RpmbTransport | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.kernel = kernel
        self.queue = SupplicantQueue(kernel, faults or Faults())
        self.bus = TeeBus(kernel)
        self._optee = optee
        self._revision = revision
        self._kernel_routing = kernel_routing
        self._supplicant: TeeContext | None = None
        self._sessions: dict[int, UUID] = {}
        self._busy: set[UUID] = set()
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
        self._add_devices(GET_DEVICES)
        if self._kernel_routing is not None:
            self._add_devices(GET_DEVICES_RPMB)

    # What OP-TEE asks for

    def rpmb_rpc(self, request: bytes, reply_size: int) -> bytes:
        """NormalWorld: one RPMB request (stack 1.7); sleeps until a supplicant answers.

        TeeError OUT_OF_MEMORY when no supplicant is there to give memory, COMMUNICATION when the
        caller was killed while waiting, otherwise what the supplicant said.
        """
        self.kernel.check_power()
        if self._kernel_routing is not None:
            return self._kernel_routing.rpmb_rpc(request, reply_size)
        call = _current_call.get()
        if call is None:
            raise RuntimeError("OP-TEE sent a request outside a call")
        return call.rpmb(request, reply_size)

    def borrow_from_supplicant(self, number: int) -> SharedMemory | None:
        """The supplicant's shared memory by number, with a reference for OP-TEE."""
        with self.kernel.lock:
            return self._supplicant.borrow(number) if self._supplicant is not None else None

    # Clients

    def client(self) -> KernelTeeClient:
        """A context for an in-kernel client (tee_client_open_context)."""
        return KernelTeeClient(self)

    def open_session(
        self, uuid: UUID, param_types: Sequence[int], *, nowait: bool, task: Task
    ) -> int:
        """Open a session; raises TeeError."""
        with self._inside(uuid, nowait=nowait, task=task):
            session = self._optee.open_session(uuid, param_types)
        self._sessions[session] = uuid
        return session

    def invoke(
        self, session: int, command: int, params: list[Param], *, nowait: bool, task: Task
    ) -> None:
        """Invoke a command; raises TeeError."""
        with self._inside(self._sessions[session], nowait=nowait, task=task):
            self._optee.invoke(session, command, params)

    def close_session(self, session: int, *, nowait: bool, task: Task) -> None:
        """Close a session; raises TeeError."""
        with self._inside(self._sessions[session], nowait=nowait, task=task):
            self._optee.close_session(session)
        del self._sessions[session]

    @contextmanager
    def _inside(self, uuid: UUID, *, nowait: bool, task: Task) -> Iterator[None]:
        """Be inside the secure world, one caller per trusted application at a time.

        The wait for another caller is OP-TEE's own, served by optee_notif_wait: no signal ends it
        (truth log-kill4, where ``df`` hangs behind a writer).
        """

        def enter() -> bool:
            if uuid in self._busy:
                return False
            self._busy.add(uuid)
            return True

        self.kernel.wait(enter, task=Task.kernel())
        call = _SecureCall(self, nowait=nowait, task=task)
        token = _current_call.set(call)
        try:
            yield
        finally:
            try:
                # OP-TEE's thread runs to its end, so the memory goes back on failure too.
                call.finish()
            finally:
                _current_call.reset(token)
                self._busy.discard(uuid)
                self.kernel.wake()

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
        with self._inside(DEVICE_ENUMERATION_UUID, nowait=True, task=current_task()):
            try:
                found = self._optee.enumerate_devices(function)
            except TeeError as error:
                self.kernel.printk(
                    f"optee: device enumeration failed: 0x{error.result:x}", KERN_ERR
                )
                return
        for uuid in found:
            self.bus.add_device(TeeDevice(uuid, needs_supplicant=function == GET_DEVICES_SUPP))


class KernelTeeClient:
    """The kernel's own use of the TEE; requests to an absent supplicant fail at once."""

    def __init__(self, driver: OpteeDriver) -> None:
        self._driver = driver

    def open_session(self, uuid: UUID) -> int:
        """Open a session without parameters; raises TeeError."""
        return self._driver.open_session(uuid, (0, 0, 0, 0), nowait=True, task=current_task())

    def invoke(self, session: int, command: int, params: Sequence[Param]) -> None:
        """Invoke a command; raises TeeError."""
        self._driver.invoke(session, command, list(params), nowait=True, task=current_task())

    def close_session(self, session: int) -> None:
        """Close a session; raises TeeError."""
        self._driver.close_session(session, nowait=True, task=current_task())
