"""The emulated board without its userland: every layer from the flash up to efivarfs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from emulation.linux.kernel import Kernel
from emulation.options import BoardOptions

Console = Callable[[bytes], None]


class Machine:
    """One board: ``state`` holds its flash, everything else exists from power-on to power cut."""

    def __init__(self, options: BoardOptions, state: Path) -> None:
        self.options = options
        self.state = state
        self.boot_id = ""
        self._kernel: Kernel | None = None

    @property
    def hostname(self) -> str:
        """The board's host name."""
        return self.options.hostname

    @property
    def kernel(self) -> Kernel:
        """The running kernel; RuntimeError while the power is off."""
        if self._kernel is None:
            raise RuntimeError("the board is off")
        return self._kernel

    def power_on(self, *, console: Console) -> None:
        """Run firmware and kernel boot; ``console`` gets the boot log, CR LF line ends."""
        self.boot_id = str(uuid.uuid4())
        self._kernel = Kernel()
        self._kernel.log.listen(lambda record: console(f"{record}\r\n".encode()))

    def power_cut(self) -> None:
        """Take the power away: every sleeping call ends with PowerLost; idempotent."""
        if self._kernel is not None:
            self._kernel.cut_power()
            self._kernel = None
