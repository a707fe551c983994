"""Record devices and sinks (/dev/kmsg, /proc/sysrq-trigger): descriptors that are sockets to us."""

from __future__ import annotations

import select
import socket
from typing import Final

from emulation.userland.jail.plan import MessageSource, WriteSink
from emulation.userland.jail.supervisor import Supervisor

_RECORD_BUFFER: Final = 1 << 20
"""Bytes asked for; the host grants net.core.wmem_max, which is some 500 short records."""


class Records:
    """One open descriptor of a record device or a sink."""

    def __init__(
        self,
        supervisor: Supervisor,
        sock: socket.socket,
        target: WriteSink | MessageSource,
        registry: list[Records],
    ) -> None:
        self._supervisor = supervisor
        self._sock = sock
        self._target = target
        self._registry = registry
        self._pending: bytes | None = None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _RECORD_BUFFER)
        registry.append(self)
        supervisor.on_ready(sock.fileno(), select.EPOLLIN, self._ready)

    @property
    def behind(self) -> bool:
        """Whether records wait for room in the reader's buffer."""
        return self._pending is not None

    def pump(self) -> None:
        """Send records until the reader has caught up or its buffer is full."""
        if isinstance(self._target, WriteSink):
            return
        events = select.EPOLLIN
        try:
            while True:
                if self._pending is None:
                    self._pending = self._target.next_message()
                if self._pending is None:
                    break
                self._sock.send(self._pending)
                self._pending = None
        except BlockingIOError:
            events |= select.EPOLLOUT
        except OSError:
            return  # the reader is going; EPOLLHUP follows
        self._supervisor.on_ready(self._sock.fileno(), events, self._ready)

    def close(self) -> None:
        """Forget the descriptor."""
        if self in self._registry:
            self._registry.remove(self)
            self._supervisor.on_ready(self._sock.fileno(), 0, self._ready)
            self._sock.close()
            if not isinstance(self._target, WriteSink):
                self._target.closed()

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self.pump()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self.drain()

    def drain(self) -> None:
        """Take everything that was written so far."""
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # closed with records unread; what it wrote is still queued
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            if isinstance(self._target, WriteSink):
                self._target.received(data)
            else:
                self._target.written(data)
