"""``/dev/tee0`` and ``/dev/teepriv0``: the TEE subsystem's user ABI.

Exact enough for libteec and the upstream tee-supplicant.  Source: K6 drivers/tee/tee_core.c,
include/uapi/linux/tee.h; layouts in harness/formats/tee_ioctl.py.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal
from uuid import UUID

from emulation.linux.devices import ReturnedFd, UserMemory
from emulation.linux.kernel import Task
from emulation.linux.optee import OpteeDriver
from emulation.linux.supplicant_queue import META_PARAM
from emulation.linux.tee_core import (
    PAGE_SIZE,
    MemfdPages,
    RegisteredPages,
    SharedMemory,
    TeeContext,
)
from harness.formats.tee import Param, ParamType, TeeError, TeeOrigin, TeeResult
from harness.formats.tee_ioctl import (
    BUF_DATA,
    CANCEL_ARG,
    CLOSE_SESSION_ARG,
    INVOKE_ARG,
    LOGIN_REE_KERNEL_MAX,
    LOGIN_REE_KERNEL_MIN,
    OPEN_SESSION_ARG,
    PARAM,
    PARAM_META,
    PARAM_TYPE_MASK,
    RPC_SHM_FREE,
    SHM_ALLOC_DATA,
    SHM_REGISTER_DATA,
    SUPP_RECV_ARG,
    SUPP_SEND_ARG,
    TEE_GEN_CAP_GP,
    TEE_GEN_CAP_MEMREF_NULL,
    TEE_GEN_CAP_PRIVILEGED,
    TEE_GEN_CAP_REG_MEM,
    TEE_IMPL_ID_OPTEE,
    TEE_IOC_CANCEL,
    TEE_IOC_CLOSE_SESSION,
    TEE_IOC_INVOKE,
    TEE_IOC_OPEN_SESSION,
    TEE_IOC_SHM_ALLOC,
    TEE_IOC_SHM_REGISTER,
    TEE_IOC_SUPPL_RECV,
    TEE_IOC_SUPPL_SEND,
    TEE_IOC_VERSION,
    TEE_MAX_ARG_SIZE,
    TEE_MEMREF_NULL,
    TEE_OPTEE_CAP_TZ,
    VERSION_DATA,
    IoctlParam,
)

NodeName = Literal["tee0", "teepriv0"]

_KNOWN_KINDS: Final = tuple(ParamType)
_AT_ONCE: Final = (
    TEE_IOC_VERSION,
    TEE_IOC_SHM_ALLOC,
    TEE_IOC_SHM_REGISTER,
    TEE_IOC_SUPPL_SEND,
)
_SHM_MAX: Final = 64 << 20
"""Largest allocation granted; more is ENOMEM, as on a board of 2 GiB it would be for contiguous
pages."""


class TeeNode:
    """A TEE device node."""

    def __init__(self, name: NodeName, driver: OpteeDriver) -> None:
        self.name = name
        self._driver = driver

    def open(self, task: Task, flags: int = 0) -> TeeFile:
        """Open the node for ``task``; OSError EBUSY for a second supplicant."""
        if self.name == "teepriv0":
            return SupplicantFile(self._driver, self._driver.open_supplicant())
        context = TeeContext(self._driver.kernel, nowait=False)
        return ClientFile(self._driver, context)

    def may_sleep(self, request: int) -> bool:
        """Whether ``request`` may wait for the supplicant or for work."""
        return request not in _AT_ONCE


class TeeFile:
    """An open TEE device: what both nodes have in common."""

    gen_caps = TEE_GEN_CAP_GP | TEE_GEN_CAP_REG_MEM | TEE_GEN_CAP_MEMREF_NULL

    def __init__(self, driver: OpteeDriver, context: TeeContext) -> None:
        self._driver = driver
        self._context = context
        self._closed = False

    def ioctl(
        self, request: int, argument: int, memory: UserMemory, task: Task
    ) -> int | ReturnedFd:
        """Carry out one ioctl; raises OSError; SUPPL_RECV, OPEN_SESSION and INVOKE may sleep."""
        if request == TEE_IOC_VERSION:
            version = VERSION_DATA.pack(TEE_IMPL_ID_OPTEE, TEE_OPTEE_CAP_TZ, self.gen_caps)
            memory.write(argument, version)
            return 0
        if request == TEE_IOC_SHM_ALLOC:
            return self._allocate(argument, memory)
        if request == TEE_IOC_SHM_REGISTER:
            return self._register(argument, memory)
        return self._specific(request, argument, memory, task)

    def _specific(self, request: int, arg: int, memory: UserMemory, task: Task) -> int:
        raise OSError(errno.EINVAL, "not a request of this node")

    def close(self) -> None:
        """The last descriptor is closed, or its process is gone; idempotent."""
        self._closed = True
        self._context.close()
        self._driver.kernel.wake()

    def _allocate(self, arg: int, memory: UserMemory) -> ReturnedFd:
        size, flags, _number = SHM_ALLOC_DATA.unpack(memory.read(arg, SHM_ALLOC_DATA.size))
        if flags:
            raise OSError(errno.EINVAL, "flags must be 0")
        if not 0 < size <= _SHM_MAX:
            raise OSError(errno.ENOMEM, "no such amount of shared memory")
        size = (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
        pages = MemfdPages(size)
        shared = self._context.share(size, pages)
        memory.write(arg, SHM_ALLOC_DATA.pack(size, 0, shared.number))
        return ReturnedFd(pages.descriptor, close_after=False)

    def _register(self, arg: int, memory: UserMemory) -> ReturnedFd:
        address, length, flags, _number = SHM_REGISTER_DATA.unpack(
            memory.read(arg, SHM_REGISTER_DATA.size)
        )
        if flags or not length:
            raise OSError(errno.EINVAL, "flags must be 0 and the length must not")
        memory.read(address + length - 1, 1)
        shared = self._context.share(length, RegisteredPages(memory, address))
        memory.write(arg, SHM_REGISTER_DATA.pack(address, length, 0, shared.number))
        # The descriptor only stands for the registration; there is nothing to map behind it.
        return ReturnedFd(os.memfd_create("tee-shm", os.MFD_CLOEXEC))

    def _argument(
        self, arg: int, memory: UserMemory, layout: struct.Struct
    ) -> tuple[int, bytes, list[IoctlParam]]:
        """Read a ``tee_ioctl_buf_data`` argument: its address, fixed part and parameters.

        The last field of every layout is the number of parameters.
        """
        address, length = BUF_DATA.unpack(memory.read(arg, BUF_DATA.size))
        if not layout.size <= length <= TEE_MAX_ARG_SIZE:
            raise OSError(errno.EINVAL, "bad argument size")
        data = memory.read(address, length)
        count = layout.unpack_from(data)[-1]
        if layout.size + count * PARAM.size != length:
            raise OSError(errno.EINVAL, "the size does not match the number of parameters")
        params = IoctlParam.unpack_all(data, count, layout.size)
        for param in params:
            if param.attr & ~(PARAM_TYPE_MASK | PARAM_META) or param.kind not in _KNOWN_KINDS:
                raise OSError(errno.EINVAL, "unknown parameter type")
        return address, data[: layout.size], params


class SupplicantFile(TeeFile):
    """/dev/teepriv0."""

    gen_caps = TeeFile.gen_caps | TEE_GEN_CAP_PRIVILEGED

    def _specific(self, request: int, arg: int, memory: UserMemory, task: Task) -> int:
        if request == TEE_IOC_SUPPL_RECV:
            return self._receive(arg, memory, task)
        if request == TEE_IOC_SUPPL_SEND:
            return self._send(arg, memory)
        return super()._specific(request, arg, memory, task)

    def _receive(self, arg: int, memory: UserMemory, task: Task) -> int:
        address, _fixed, params = self._argument(arg, memory, SUPP_RECV_ARG)
        if not params or any(param.attr not in (ParamType.NONE, PARAM_META) for param in params):
            raise OSError(errno.EINVAL, "parameters must be empty")
        meta = params[0].attr == PARAM_META
        delivery = self._driver.queue.receive(
            len(params) - meta, meta=meta, task=task, closed=lambda: self._closed
        )
        out = [IoctlParam(META_PARAM, delivery.number)] if meta else []
        out += delivery.params
        packed = SUPP_RECV_ARG.pack(delivery.func, len(out))
        memory.write(address, packed + b"".join(param.pack() for param in out))
        return 0

    def _send(self, arg: int, memory: UserMemory) -> int:
        _address, fixed, params = self._argument(arg, memory, SUPP_SEND_ARG)
        result, _count = SUPP_SEND_ARG.unpack(fixed)
        func, sent = self._driver.queue.send(result, params)
        if func == RPC_SHM_FREE and result == TeeResult.SUCCESS:
            # The supplicant closed its descriptor of that memory before it answered; a descriptor
            # of another process closes unseen.
            self._context.descriptor_closed(sent[0].b)
        return 0


class ClientFile(TeeFile):
    """/dev/tee0."""

    def __init__(self, driver: OpteeDriver, context: TeeContext) -> None:
        super().__init__(driver, context)
        self._sessions: set[int] = set()

    def close(self) -> None:
        """See :class:`TeeFile`; open sessions are closed on a thread of the kernel."""
        if self._sessions:
            sessions, self._sessions = tuple(self._sessions), set()
            self._driver.kernel.spawn("tee_close", lambda: self._close_sessions(sessions))
        super().close()

    def _close_sessions(self, sessions: Sequence[int]) -> None:
        for session in sessions:
            self._driver.close_session(session, nowait=True, task=Task.kernel())

    def _specific(self, request: int, arg: int, memory: UserMemory, task: Task) -> int:
        if request == TEE_IOC_OPEN_SESSION:
            return self._open_session(arg, memory, task)
        if request == TEE_IOC_INVOKE:
            return self._invoke(arg, memory, task)
        if request == TEE_IOC_CLOSE_SESSION:
            (session,) = CLOSE_SESSION_ARG.unpack(memory.read(arg, CLOSE_SESSION_ARG.size))
            self._check_session(session)
            self._sessions.discard(session)
            self._driver.close_session(session, nowait=self._context.nowait, task=task)
            return 0
        if request == TEE_IOC_CANCEL:
            _cancel, session = CANCEL_ARG.unpack(memory.read(arg, CANCEL_ARG.size))
            self._check_session(session)
            # StMM and the pseudo TAs of OP-TEE do not look at cancellation.
            return 0
        return super()._specific(request, arg, memory, task)

    def _check_session(self, session: int) -> None:
        if session not in self._sessions:
            raise OSError(errno.EINVAL, "no such session")

    def _open_session(self, arg: int, memory: UserMemory, task: Task) -> int:
        address, fixed, params = self._argument(arg, memory, OPEN_SESSION_ARG)
        uuid, client, login, cancel, *_rest = OPEN_SESSION_ARG.unpack(fixed)
        if LOGIN_REE_KERNEL_MIN <= login <= LOGIN_REE_KERNEL_MAX:
            raise OSError(errno.EPERM, "this login is the kernel's own")
        opened = 0

        def call(_converted: list[Param]) -> None:
            nonlocal opened
            opened = self._driver.open_session(
                UUID(bytes=uuid),
                [*(param.kind for param in params), 0, 0, 0, 0][:4],
                nowait=self._context.nowait,
                task=task,
            )
            self._sessions.add(opened)

        result, origin = self._call(call, params, memory, address + OPEN_SESSION_ARG.size)
        memory.write(
            address,
            OPEN_SESSION_ARG.pack(uuid, client, login, cancel, opened, result, origin, len(params)),
        )
        return 0

    def _invoke(self, arg: int, memory: UserMemory, task: Task) -> int:
        address, fixed, params = self._argument(arg, memory, INVOKE_ARG)
        func, session, cancel, *_rest = INVOKE_ARG.unpack(fixed)
        self._check_session(session)

        def call(converted: list[Param]) -> None:
            self._driver.invoke(session, func, converted, nowait=self._context.nowait, task=task)

        result, origin = self._call(call, params, memory, address + INVOKE_ARG.size)
        memory.write(address, INVOKE_ARG.pack(func, session, cancel, result, origin, len(params)))
        return 0

    def _call(
        self,
        call: Callable[[list[Param]], None],
        params: list[IoctlParam],
        memory: UserMemory,
        address: int,
    ) -> tuple[TeeResult, TeeOrigin]:
        """Call with the user's parameters; output comes back whatever the result; (ret, origin)."""
        borrowed: list[SharedMemory | None] = []
        try:
            for param in params:
                borrowed.append(self._borrow(param))
            converted = [_to_param(p, shared) for p, shared in zip(params, borrowed, strict=True)]
            result, origin = TeeResult.SUCCESS, TeeOrigin.TRUSTED_APP
            try:
                call(converted)
            except TeeError as error:
                result, origin = error.result, error.origin
            for index, (param, shared, value) in enumerate(
                zip(params, borrowed, converted, strict=True)
            ):
                changed = _copy_out(param, shared, value)
                memory.write(address + index * PARAM.size, changed.pack())
            return result, origin
        finally:
            for shared in borrowed:
                if shared is not None:
                    self._context.give_back(shared)

    def _borrow(self, param: IoctlParam) -> SharedMemory | None:
        """The memory of a memory reference (params_from_user); OSError EINVAL when it is none."""
        if not param.is_memref or param.c == TEE_MEMREF_NULL:
            return None
        shared = self._context.borrow(param.c)
        if shared is None:
            raise OSError(errno.EINVAL, "unknown shared memory")
        if param.a + param.b > shared.size:
            self._context.give_back(shared)
            raise OSError(errno.EINVAL, "outside the shared memory")
        return shared


def _to_param(param: IoctlParam, shared: SharedMemory | None) -> Param:
    """A parameter as OP-TEE sees it: its own view of the memory."""
    kind = ParamType(param.kind)
    if not param.is_memref:
        return Param(kind, a=param.a, b=param.b, c=param.c)
    if shared is None:
        return Param(kind)
    return Param(kind, bytearray(shared.pages.read(param.a, param.b)), param.b)


def _copy_out(param: IoctlParam, shared: SharedMemory | None, value: Param) -> IoctlParam:
    """Bring output back to the caller's memory; returns the parameter with its new words."""
    if param.kind in (ParamType.VALUE_OUTPUT, ParamType.VALUE_INOUT):
        return replace(param, a=value.a, b=value.b, c=value.c)
    if param.kind not in (ParamType.MEMREF_OUTPUT, ParamType.MEMREF_INOUT):
        return param
    if shared is not None and value.memory is not None:
        shared.pages.write(param.a, bytes(value.memory))
    return replace(param, b=value.size)
