"""Whether this machine has what work on a board takes: asked before the first write to it."""

from __future__ import annotations

import os
import threading
from typing import Final

from harness.errors import of_host

_DESCRIPTORS: Final = 48
_THREADS: Final = 8


def require_headroom() -> None:
    """Raises :class:`harness.errors.HostExhausted` unless so many descriptors and threads are
    to be had as a run with both links and their lanes takes."""
    opened: list[int] = []
    started: list[threading.Thread] = []
    enough = threading.Event()
    try:
        for _ in range(_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(_THREADS):
            thread = threading.Thread(target=enough.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (OSError, RuntimeError) as error:
        raise (of_host(error) or error) from error
    finally:
        enough.set()
        for descriptor in opened:
            os.close(descriptor)
        for thread in started:
            thread.join()
