"""The supervisor's handle of the process that forks boards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from emulation.userland.jail import wire

_ZYGOTE: Final = (
    "import sys; sys.path.insert(0, sys.argv[2]); "
    "from emulation.userland.jail.zygote_process import zygote; zygote(int(sys.argv[1]))"
)


class Zygote:
    """The process that forks boards. One serves the whole program; it starts in the background,
    so call :meth:`shared` early."""

    _shared: Zygote | None = None
    _shared_lock = threading.Lock()

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package_parent = Path(__file__).resolve().parents[3]
        fd = theirs.fileno()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _ZYGOTE, str(fd), str(package_parent)],
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                start_new_session=True,
            )

    @classmethod
    def shared(cls) -> Zygote:
        """The zygote of this process, started now if there is none."""
        with cls._shared_lock:
            if cls._shared is None or cls._shared._process.poll() is not None:
                cls._shared = cls()
            return cls._shared

    def start(self, plan: dict[str, Any]) -> socket.socket:
        """Begin a board; returns the socket over which its PID 1 reports and takes requests."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan_fd = wire.store(plan)
        try:
            wire.send(self._control, ("start",), (plan_fd, theirs.fileno()))
        finally:
            os.close(plan_fd)
            theirs.close()
        return ours
