"""What the service manager of this board runs: the supplicant, sshd, a getty."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from emulation.faults import PowerLost
from emulation.linux.kernel import Task
from emulation.linux.tee_stmm_efi import DEVICE_NAME, DRIVER_NAME
from emulation.machine import TEE_GROUP, Machine
from emulation.options import BoardOptions
from emulation.userland.access.console import BoardTty
from emulation.userland.jail.spawner import Program, Spawner
from emulation.userland.system import rootfs
from emulation.userland.system.units import UnitFile

GETTY_RESTART: Final = 0.1
"""RestartSec= of serial-getty@.service, seconds (systemd's default)."""

START_TIMEOUT: Final = 5.0
"""Seconds a service may take to say that it serves."""

TTY: Final = "ttyAMA0"
"""Name of the serial console."""

_SUPPLICANT_UNIT: Final = """\
[Unit]
Description=TEE Supplicant
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=notify
ExecStart=/usr/sbin/tee-supplicant

[Install]
WantedBy=sysinit.target
"""

SUPPLICANT: Final = UnitFile(
    "tee-supplicant.service",
    "TEE Supplicant",
    "/usr/lib/systemd/system/tee-supplicant.service",
    aliases=("tee-supplicant@teepriv0.service",),
    text=_SUPPLICANT_UNIT,
)

_UNBIND: Final = f"echo {DEVICE_NAME} > /sys/bus/tee/drivers/{DRIVER_NAME}/unbind"
_DROP_INS: Final = f"/etc/systemd/system/{SUPPLICANT.name}.d"

SSHD: Final = UnitFile(
    "ssh.service",
    "OpenBSD Secure Shell server",
    "/usr/lib/systemd/system/ssh.service",
    aliases=("sshd.service",),
)


def supplicant_unit(options: BoardOptions) -> UnitFile:
    """The unit of the supplicant with the drop-ins that ``options`` ask for."""
    file = SUPPLICANT
    if options.supplicant_unbinds:
        text = f"[Service]\nExecStop=-/bin/sh -c '{_UNBIND}'\n"
        drop_in = (f"{_DROP_INS}/unbind.conf", text)
        file = replace(file, drop_ins=(*file.drop_ins, drop_in))
    if options.supplicant_user == "tee":
        drop_in = (f"{_DROP_INS}/user.conf", "[Service]\nUser=tee\n")
        file = replace(file, uid=TEE_GROUP, drop_ins=(*file.drop_ins, drop_in))
    return file


class SupplicantReadiness:
    """tee-supplicant notifies systemd when it has /dev/teepriv0 (optee_client, tee-supplicant@)."""

    def __init__(self, machine: Machine) -> None:
        self._kernel = machine.running.kernel
        self._queue = machine.running.optee.queue
        self._before = 0

    def about_to_start(self) -> None:
        self._before = self._queue.attachments

    def wait(self, given_up: Callable[[], bool]) -> None:
        with contextlib.suppress(PowerLost):
            self._kernel.wait(
                lambda: self._queue.attachments > self._before or given_up(),
                task=Task.kernel("systemd"),
                timeout=START_TIMEOUT,
            )

    def wake(self) -> None:
        self._kernel.wake()


class Getty:
    """Keeps a login prompt on the serial terminal (serial-getty@.service, Restart=always)."""

    def __init__(self, spawner: Spawner, tty: BoardTty, environment: Mapping[str, str]) -> None:
        self._spawner = spawner
        self._tty = tty
        self._environment = {**environment, "TERM": "vt220"}
        self._loop = asyncio.get_running_loop()
        self._wanted = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Show the prompt now and after every logout."""
        self._wanted = True
        self._loop.run_in_executor(None, self._spawn)

    def stop(self) -> None:
        """No new prompt."""
        self._wanted = False
        if self._timer is not None:
            self._timer.cancel()

    def _spawn(self) -> None:
        command = [f"{rootfs.BOARD_LIBRARY}/agetty", "-IS", f"{rootfs.BOARD_LIBRARY}/getty.py", TTY]
        with contextlib.suppress(OSError):  # the power went meanwhile
            program = Program(command, self._environment, controlling_tty=True)
            self._spawner.spawn(program, (self._tty.slave,) * 3, lambda status: self._ended())

    def _ended(self) -> None:
        self._loop.call_soon_threadsafe(self._again)

    def _again(self) -> None:
        if self._wanted:
            self._timer = self._loop.call_later(GETTY_RESTART, self.start)
