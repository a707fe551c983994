"""Requests OP-TEE sends to the supplicant, and the supplicant's answers.

Source: K6 drivers/tee/optee/supp.c (with the stable fix that keeps the number of a request whose
sender was killed); truth log-kill3, log-kill4, log-file-variant4.
"""

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from emulation.faults import Faults
from emulation.linux.kernel import Kernel, Killed, Task
from harness.formats.tee import ParamType, TeeResult
from harness.formats.tee_ioctl import (
    PARAM_META,
    IoctlParam,
)

META_PARAM = ParamType.VALUE_INOUT | PARAM_META


@dataclass(eq=False)
class _Request:
    func: int
    params: list[IoctlParam]
    result: int = TeeResult.COMMUNICATION
    done: bool = False
    number: int = 0


@dataclass(frozen=True)
class Delivery:
    """A request as the supplicant receives it."""

    number: int
    func: int
    params: list[IoctlParam]


@dataclass
class SupplicantQueue:
    """``struct optee_supp``: the queue between OP-TEE and the one supplicant.

    Fault point ``supplicant.request``.
    """

    kernel: Kernel
    faults: Faults = field(default_factory=Faults)
    attached: bool = field(default=False, init=False)
    attachments: int = field(default=0, init=False)
    """How often a supplicant has attached."""
    _waiting: deque[_Request] = field(default_factory=deque, init=False)
    _delivered: dict[int, _Request | None] = field(default_factory=dict, init=False)
    """By number; None once the sender was killed: the number stays taken until answered."""
    _synchronous: int | None = field(default=None, init=False)
    """The one request a supplicant without meta parameters is working on."""

    @property
    def unanswered(self) -> bool:
        """Whether the supplicant has a request that it did not answer yet."""
        return bool(self._delivered)

    def attach(self) -> None:
        """A supplicant opens the device; OSError EBUSY while there is one."""
        with self.kernel.lock:
            if self.attached:
                raise OSError(errno.EBUSY, "the supplicant device is in use")
            self.attached = True
            self.attachments += 1
            self.kernel.wake()

    def release(self) -> None:
        """optee_supp_release: the supplicant's context is gone; all its requests fail."""
        with self.kernel.lock:
            pending = [request for request in self._delivered.values() if request is not None]
            for request in [*pending, *self._waiting]:
                request.done = True
            self._delivered.clear()
            self._waiting.clear()
            self._synchronous = None
            self.attached = False
            self.kernel.wake()

    def request(
        self, func: int, params: Sequence[IoctlParam], *, task: Task, nowait: bool
    ) -> tuple[int, list[IoctlParam]]:
        """Send one request and sleep until it is answered; returns the result and the parameters.

        COMMUNICATION at once when there is no supplicant and the context must not wait for one;
        also when a fatal signal arrives.  Without ``nowait`` an absent supplicant is waited for.
        """
        request = _Request(func, list(params))
        with self.kernel.lock:
            if not self.attached and nowait:
                return TeeResult.COMMUNICATION, request.params
            self._waiting.append(request)
            self.kernel.wake()
        try:
            self.kernel.wait(lambda: request.done, task=task)
        except Killed:
            self._abandon(request)
        return request.result, request.params

    def _abandon(self, request: _Request) -> None:
        with self.kernel.lock:
            if request in self._waiting:
                self._waiting.remove(request)
            elif not request.done:
                self._delivered[request.number] = None

    def receive(self, room: int, *, meta: bool, task: Task, closed: Callable[[], bool]) -> Delivery:
        """Sleep until there is a request and take it; ``room`` is how many parameters fit.

        Raises OSError EINVAL when a request needs more room, or when a supplicant without meta
        parameters asks again before answering; EBADF when the file is closed meanwhile; Killed.
        """

        def ready() -> bool:
            return bool(self._waiting) or self._synchronous is not None or closed()

        while True:
            self.kernel.wait(ready, task=task)
            with self.kernel.lock:
                if closed():
                    raise OSError(errno.EBADF, "closed")
                if self._synchronous is not None:
                    raise OSError(errno.EINVAL, "the last request is not answered")
                # Another thread of the supplicant may have been quicker.
                if not self._waiting:
                    continue
                taken = self._take(room, meta=meta)
            if self.faults.point("supplicant.request") is not None:
                self.kernel.wait(closed, task=task)
                raise OSError(errno.EBADF, "closed")
            return taken

    def _take(self, room: int, *, meta: bool) -> Delivery:
        request = self._waiting[0]
        if room < len(request.params):
            raise OSError(errno.EINVAL, "no room for the parameters")
        self._waiting.popleft()
        request.number = next(n for n in range(1, 1 << 31) if n not in self._delivered)
        self._delivered[request.number] = request
        if not meta:
            self._synchronous = request.number
        return Delivery(request.number, request.func, request.params)

    def send(self, result: int, params: Sequence[IoctlParam]) -> tuple[int, list[IoctlParam]]:
        """Answer a request; returns its function and parameters as they were sent out.

        Raises OSError EINVAL for wrong parameters, ENOENT for an unknown number, EBADF when the
        sender of that request was killed.
        """
        with self.kernel.lock:
            number, answered = self._answered(params)
            if number not in self._delivered:
                raise OSError(errno.ENOENT, "no such request")
            request = self._delivered[number]
            if request is not None and len(answered) != len(request.params):
                raise OSError(errno.EINVAL, "wrong number of parameters")
            del self._delivered[number]
            self._synchronous = None
            if request is None:
                raise OSError(errno.EBADF, "the sender of the request is gone")
            sent = request.params
            request.params = [_merge(old, new) for old, new in zip(sent, answered, strict=True)]
            request.result = result
            request.done = True
            self.kernel.wake()
            return request.func, sent

    def _answered(self, params: Sequence[IoctlParam]) -> tuple[int, Sequence[IoctlParam]]:
        if self._synchronous is not None:
            return self._synchronous, params
        if not params or params[0].attr != META_PARAM:
            raise OSError(errno.EINVAL, "the first parameter must be the request's number")
        return params[0].a, params[1:]


def _merge(sent: IoctlParam, answered: IoctlParam) -> IoctlParam:
    """What of an answer counts: values of output values, sizes of output memory."""
    if sent.kind in (ParamType.VALUE_OUTPUT, ParamType.VALUE_INOUT):
        return replace(sent, a=answered.a, b=answered.b, c=answered.c)
    if sent.kind in (ParamType.MEMREF_OUTPUT, ParamType.MEMREF_INOUT):
        return replace(sent, b=answered.b)
    return sent
