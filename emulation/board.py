"""The running board: the machine's model, its userland and its servers, from power-on to power-off.

Everything here runs in one event loop; the machine's boot and the jail's construction run on worker
threads.  The serial line and the SSH port belong to the bench and outlive the power.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emulation.faults import PowerLost
from emulation.linux.efivarfs import EFIVARFS_MAGIC
from emulation.linux.kernel import Kernel, Task
from emulation.linux.sysfs import SYSFS_MAGIC
from emulation.machine import Machine
from emulation.options import BoardOptions
from emulation.userland.access.console import BoardTty, SerialLine
from emulation.userland.handlers import KernelHandlers, KmsgReader, SysRq
from emulation.userland.jail.namespaces import to_board
from emulation.userland.jail.plan import Bind, FuseMount, JailPlan, Limits, OpenHook, PlacedFile
from emulation.userland.system import rootfs
from emulation.userland.system.board_units import (
    SSHD,
    TTY,
    Getty,
    SupplicantReadiness,
    supplicant_unit,
)
from emulation.userland.system.journal import Journal
from emulation.userland.system.journalctl import Journalctl
from emulation.userland.system.manager import SOCKET_IN_BOARD, Manager
from emulation.userland.system.systemctl import Systemctl, UnitTable
from emulation.userland.system.units import ProcessUnit, SwitchUnit, Unit

if TYPE_CHECKING:
    from emulation.userland.access.ssh import ReservedPort, SshServer
    from emulation.userland.jail.jail import Jail

TERMINATION_TIMEOUT: Final = 2.0
"""Seconds that processes get between SIGTERM and the end at an orderly shutdown."""

_LAST_WORDS: Final = {
    "reboot": ("Rebooting.", "reboot: Restarting system"),
    "poweroff": ("Powering off.", "reboot: Power down"),
    "halt": ("Halting system.", "reboot: System halted"),
}
"""What systemd-shutdown and the kernel say last (truth log-uboot-session2)."""


def _text_hook(text: Callable[[Task], bytes]) -> OpenHook:
    return lambda task, flags: text(task)


@dataclass(frozen=True)
class _System:
    """Everything that exists only while a system is running."""

    jail: Jail
    tty: BoardTty
    getty: Getty
    manager: Manager
    supplicant: Unit
    sshd: Unit


class RunningBoard:
    """Power switch and glue. All methods belong to the event loop's thread."""

    def __init__(
        self, options: BoardOptions, state: Path, line: SerialLine, port: ReservedPort
    ) -> None:
        self._options = options
        self._state = state
        self._line = line
        self._port = port
        self._ssh: SshServer | None = None
        self._files = rootfs.build(options, state)
        self._machine = Machine(options, state)
        self._machine.faults.cut_power = self._power_failed
        self._loop = asyncio.get_running_loop()
        self._switch = asyncio.Lock()
        self._system: _System | None = None
        self._jail: Jail | None = None
        self._ending: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.powered = False

    # ---------------------------------------------------------------- power

    async def power_on(self) -> None:
        """Boot; returns when SSH answers, or ``powered`` is false again because a fault took it.

        Nothing happens when the power is on already.
        Raises :class:`emulation.userland.jail.plan.JailError` where the host cannot run a board.
        """
        async with self._switch:
            if not self.powered:
                await self._boot()

    async def power_cut(self) -> None:
        """Take the power away, whatever is going on; idempotent."""
        self.powered = False
        if self._stopping is not None:
            self._stopping.cancel()
        async with self._switch:
            self.powered = False
            self._drop()

    def close(self) -> None:
        """Cut the power and give the SSH server back."""
        self.powered = False
        self._drop()
        if self._ssh is not None:
            self._ssh.close()

    def arm_fault(self, spec: str) -> None:
        """Raises :class:`emulation.faults.FaultSpecError`."""
        self._machine.faults.arm(spec)

    def disarm_faults(self) -> None:
        """Forget every armed fault."""
        self._machine.faults.disarm()

    def request(self, action: str, *, force: bool) -> None:
        """End the system from inside: reboot, poweroff or halt; returns at once."""
        if self._system is not None and (self._ending is None or self._ending.done()):
            self._ending = asyncio.create_task(self._end(action, orderly=not force))

    async def _end(self, action: str, *, orderly: bool) -> None:
        async with self._switch:
            system = self._system
            if system is None:
                return
            if orderly:
                self._stopping = asyncio.create_task(self._stop_orderly(system, action))
                await asyncio.wait([self._stopping])
            if not self.powered:  # cut meanwhile; the cutter drops the system
                return
            if action == "crash":
                await asyncio.to_thread(self._machine.crash)
            else:
                for words in _LAST_WORDS.get(action, ())[1:]:
                    self._machine.running.kernel.printk(words, 5)
            self._drop(graceful=True)
            self.powered = action not in ("poweroff",)
            if action in ("reboot", "reset"):
                await self._boot()

    async def _stop_orderly(self, system: _System, action: str) -> None:
        """What the service manager does before it asks the kernel to end."""
        kernel = self._machine.running.kernel
        system.getty.stop()
        await system.supplicant.stop()
        await system.sshd.stop()
        self._shutdown_says(kernel, "Syncing filesystems and block devices.")
        self._shutdown_says(kernel, "Sending SIGTERM to remaining processes...")
        with contextlib.suppress(OSError):
            system.jail.signal(-1, signal.SIGTERM)
            system.jail.signal(-1, signal.SIGHUP)  # interactive shells ignore SIGTERM
            await asyncio.to_thread(system.jail.wait_until_empty, TERMINATION_TIMEOUT)
        self._shutdown_says(kernel, "Sending SIGKILL to remaining processes...")
        self._shutdown_says(kernel, "Unmounting file systems.")
        self._shutdown_says(kernel, "All filesystems unmounted.")
        self._shutdown_says(kernel, _LAST_WORDS[action][0])

    @staticmethod
    def _shutdown_says(kernel: Kernel, text: str) -> None:
        kernel.printk(f"systemd-shutdown[1]: {text}", 6)

    def _end_from_kernel(self, action: str) -> None:
        """reboot(2) and SysRq end the system where it stands. Callable from any thread."""
        self._loop.call_soon_threadsafe(functools.partial(self.request, action, force=True))

    def _power_failed(self) -> None:
        """A fault took the power; called from any thread, which then sees PowerLost."""
        self._machine.power_cut()
        self._loop.call_soon_threadsafe(self._lose_power)

    def _lose_power(self) -> None:
        self.powered = False
        self._drop()

    def _drop(self, *, graceful: bool = False) -> None:
        """Let go of everything of this power-on; idempotent."""
        system, self._system, self._jail = self._system, None, None
        self._machine.power_cut()
        if system is None:
            return
        if self._ssh is not None and graceful:
            self._ssh.disconnect()
        elif self._ssh is not None:
            self._ssh.cut()
        system.getty.stop()
        system.manager.close()
        system.jail.kill()
        system.tty.close()
        if not graceful:
            self._line.silence()

    # ----------------------------------------------------------------- boot

    async def _boot(self) -> None:
        server = asyncio.create_task(asyncio.to_thread(self._make_ssh))
        try:
            await asyncio.to_thread(self._machine.power_on, console=self._firmware_says)
            self._system = system = await self._start_userland()
        except PowerLost:
            return
        except BaseException:
            self._machine.power_cut()
            raise
        finally:
            self._ssh = await server
        self.powered = True
        system.getty.start()
        if self._options.supplicant_autostart:
            await asyncio.gather(system.supplicant.start(), system.sshd.start())
        else:
            await system.sshd.start()

    def _make_ssh(self) -> SshServer:
        if self._ssh is not None:
            return self._ssh
        from emulation.userland.access.ssh import LoginPolicy, SshServer, prepare_keys

        files = self._files
        policy = LoginPolicy(files.accounts, files.path, files.sftp_server)
        return SshServer(self._port, prepare_keys(self._state, port=self._port.port), policy)

    async def _start_userland(self) -> _System:
        from emulation.userland.jail.jail import Jail

        machine, files = self._machine, self._files
        journal = Journal(machine.options.hostname)
        machine.running.kernel.log.listen(lambda record: journal.add("kernel", record.text))
        units = UnitTable()
        manager = Manager(
            Systemctl(units, journal, self),
            Journalctl(units, journal),
            self,
            machine,
            self._board_uid,
        )
        control = self._state / "manager.sock"
        await manager.listen(control)
        mounted = await asyncio.to_thread(self._mount_efivarfs)
        handlers = KernelHandlers(machine, self._end_from_kernel)
        start = functools.partial(Jail.start, self._plan(control, mounted), handlers)
        try:
            jail = await asyncio.to_thread(start, on_death=self._init_died)
        except BaseException:
            manager.close()
            raise
        self._jail = jail
        machine.running.efivarfs.on_read_only = jail.set_efivarfs_read_only
        tty = BoardTty(self._line, jail)
        emulating = self._options.supplicant == "emulation"
        argv = (rootfs.SUPPLICANT_PROGRAM, *(["--rpmb-emu"] if emulating else []))
        unit = supplicant_unit(self._options)
        supplicant = ProcessUnit(
            unit, journal, jail, argv, files.environment, SupplicantReadiness(machine)
        )
        sshd = SwitchUnit(
            SSHD, journal, on=functools.partial(self._sshd_on, jail), off=self._sshd_off
        )
        units.load(supplicant, sshd)
        getty = Getty(jail, tty, files.environment)
        return _System(jail, tty, getty, manager, supplicant, sshd)

    def _mount_efivarfs(self) -> bool:
        """What the service manager does at boot; False where it does not or the kernel refuses."""
        if self._options.mount == "none":
            return False
        try:
            self._machine.running.efivarfs.mount(task=Task.kernel("systemd"))
        except OSError:
            return False
        return True

    def _plan(self, control: Path, mounted: bool) -> JailPlan:
        machine, files, options = self._machine, self._files, self._options
        kernel = machine.running.kernel
        drop_ins = (
            PlacedFile(path, text.encode()) for path, text in supplicant_unit(options).drop_ins
        )
        filesystems = (
            FuseMount("/sys", machine.running.sysfs, "sysfs", SYSFS_MAGIC),
            FuseMount(rootfs.EFIVARFS_AT, machine.running.efivarfs, "efivarfs", EFIVARFS_MAGIC),
        )
        return JailPlan(
            hostname=machine.options.hostname,
            filesystems=filesystems,
            nodes=machine.nodes,
            binds=(*files.binds, Bind(control, SOCKET_IN_BOARD, writable=True)),
            files=(*files.files, *drop_ins),
            symlinks={**files.symlinks, f"/dev/{TTY}": "pts/0", "/dev/console": TTY},
            directories=files.directories,
            open_hooks={
                **{path: _text_hook(text) for path, text in machine.running.proc_files.items()},
                "/dev/kmsg": lambda task, flags: KmsgReader(kernel, self._poke),
                "/proc/sysrq-trigger": SysRq(machine, self._end_from_kernel).sink,
            },
            efivarfs_read_only=machine.running.efivarfs.read_only,
            efivarfs_at_boot=mounted,
            efivarfs_mount_read_only=options.mount == "read-only",
            host_programs=files.host_programs,
            limits=Limits(
                options.processes, options.descriptors, options.memory, options.tmpfs, options.file
            ),
        )

    def _board_uid(self, host_uid: int) -> int:
        return to_board(self._jail.maps.uids if self._jail else (), host_uid)

    def _poke(self) -> None:
        if self._jail is not None:
            self._jail.poke()

    def _init_died(self) -> None:
        """Called from the jail thread, also after a power cut."""
        self._loop.call_soon_threadsafe(self._after_init)

    def _after_init(self) -> None:
        if self._system is not None and not self._switch.locked():
            self._machine.running.kernel.printk(
                "Kernel panic - not syncing: Attempted to kill init!", 0
            )
            self._drop(graceful=True)

    async def _sshd_on(self, jail: Jail) -> None:
        assert self._ssh is not None
        await self._ssh.start(jail)

    def _sshd_off(self) -> None:
        if self._ssh is not None:
            self._ssh.refuse()

    def _firmware_says(self, data: bytes) -> None:
        """Boot log and kernel messages, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._line.transmit, data)
