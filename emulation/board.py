"""The running board: the machine's model, its userland and its servers, from power-on to power-off.

Everything here runs in one event loop; the machine's boot and the jail's construction run on worker
threads.  The serial line and the SSH port belong to the bench and outlive the power.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emulation.faults import PowerLost
from emulation.linux.efivarfs import EFIVARFS_MAGIC
from emulation.linux.kernel import Kernel, Task
from emulation.linux.sysfs import SYSFS_MAGIC
from emulation.linux.tee_stmm_efi import DEVICE_NAME, DRIVER_NAME
from emulation.machine import TEE_GROUP, Machine
from emulation.options import BoardOptions
from emulation.userland.access.console import BoardTty, SerialLine
from emulation.userland.handlers import KernelHandlers, KmsgReader, SysRq
from emulation.userland.jail.plan import (
    Bind,
    FuseMount,
    JailPlan,
    OpenHook,
    PlacedFile,
)
from emulation.userland.jail.spawner import Pty
from emulation.userland.system import rootfs
from emulation.userland.system.journal import Journal
from emulation.userland.system.manager import SOCKET_IN_BOARD, Manager
from emulation.userland.system.systemctl import Journalctl, Systemctl, UnitTable
from emulation.userland.system.units import ProcessUnit, SwitchUnit, Unit, UnitFile

if TYPE_CHECKING:
    from emulation.userland.access.ssh import ReservedPort, SshServer
    from emulation.userland.jail.jail import Jail

GETTY_RESTART: Final = 0.1
"""RestartSec= of serial-getty@.service, seconds (systemd's default)."""

START_TIMEOUT: Final = 5.0
"""Seconds a service may take to say that it serves."""

TERMINATION_TIMEOUT: Final = 2.0
"""Seconds that processes get between SIGTERM and the end at an orderly shutdown."""

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


def _drop_in_files(options: BoardOptions) -> tuple[PlacedFile, ...]:
    drop_ins = supplicant_unit(options).drop_ins
    return tuple(PlacedFile(path, text.encode()) for path, text in drop_ins)


_LAST_WORDS: Final = {
    "reboot": ("Rebooting.", "reboot: Restarting system"),
    "poweroff": ("Powering off.", "reboot: Power down"),
    "halt": ("Halting system.", "reboot: System halted"),
}
"""What systemd-shutdown and the kernel say last (truth log-uboot-session2)."""


class Userland:
    """Processes of one power-on: the jail, with a count of those it started."""

    def __init__(self, jail: Jail) -> None:
        self._jail = jail
        self._loop = asyncio.get_running_loop()
        self._alive = 0
        self.empty = asyncio.Event()
        self.empty.set()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        fds: Sequence[int],
        controlling_tty: bool,
        uid: int,
        gid: int,
        on_exit: Callable[[int], None],
    ) -> int:
        """See :class:`emulation.userland.jail.spawner.Spawner`."""

        def exited(status: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is interested
                on_exit(status)
                self._loop.call_soon_threadsafe(self._count, -1)

        self._loop.call_soon_threadsafe(self._count, 1)
        try:
            return self._jail.spawn(
                argv,
                env=env,
                cwd=cwd,
                fds=fds,
                controlling_tty=controlling_tty,
                uid=uid,
                gid=gid,
                on_exit=exited,
            )
        except BaseException:
            self._loop.call_soon_threadsafe(self._count, -1)
            raise

    def signal(self, pid: int, number: int) -> None:
        """See :class:`emulation.userland.jail.spawner.Spawner`."""
        self._jail.signal(pid, number)

    def open_pty(self) -> Pty:
        """See :class:`emulation.userland.jail.spawner.Spawner`."""
        return self._jail.open_pty()

    def _count(self, change: int) -> None:
        self._alive += change
        if self._alive:
            self.empty.clear()
        else:
            self.empty.set()


class _Serving:
    """tee-supplicant notifies systemd when it has /dev/teepriv0 (optee_client, tee-supplicant@)."""

    def __init__(self, machine: Machine) -> None:
        self._kernel = machine.kernel
        self._queue = machine.optee.queue
        self._before = 0

    def about_to_start(self) -> None:
        """See :class:`emulation.userland.system.units.Readiness`."""
        self._before = self._queue.attachments

    def wait(self, given_up: Callable[[], bool]) -> None:
        """See :class:`emulation.userland.system.units.Readiness`."""
        with contextlib.suppress(PowerLost):
            self._kernel.wait(
                lambda: self._queue.attachments > self._before or given_up(),
                task=Task.kernel("systemd"),
                timeout=START_TIMEOUT,
            )

    def wake(self) -> None:
        """See :class:`emulation.userland.system.units.Readiness`."""
        self._kernel.wake()


class Getty:
    """Keeps a login prompt on the serial terminal (serial-getty@.service, Restart=always)."""

    def __init__(self, userland: Userland, tty: BoardTty, environment: Mapping[str, str]) -> None:
        self._userland = userland
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
            self._userland.spawn(
                command,
                env=self._environment,
                cwd="/",
                fds=(self._tty.slave,) * 3,
                controlling_tty=True,
                uid=0,
                gid=0,
                on_exit=lambda status: self._ended(),
            )

    def _ended(self) -> None:
        self._loop.call_soon_threadsafe(self._again)

    def _again(self) -> None:
        if self._wanted:
            self._timer = self._loop.call_later(GETTY_RESTART, self.start)


def _text_hook(text: Callable[[Task], bytes]) -> OpenHook:
    return lambda task, flags: text(task)


@dataclass(frozen=True)
class _System:
    """Everything that exists only while a system is running."""

    jail: Jail
    userland: Userland
    tty: BoardTty
    getty: Getty
    manager: Manager
    supplicant: Unit
    sshd: Unit


class Board:
    """Power switch and glue. All methods belong to the event loop's thread."""

    def __init__(
        self, options: BoardOptions, state: Path, line: SerialLine, port: ReservedPort
    ) -> None:
        self._options = options
        self._state = state
        self._line = line
        self._port = port
        self._ssh: SshServer | None = None
        self._files = rootfs.build(
            rootfs.RootFsOptions(
                hostname=options.hostname,
                userland=options.userland,
                sftp=options.sftp,
                root_password=options.root_password,
                efivarfs_read_only=options.mount == "read-only",
                supplicant=options.supplicant_program,
            ),
            state,
        )
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
                    self._machine.kernel.printk(words, 5)
            self._drop(graceful=True)
            self.powered = action not in ("poweroff",)
            if action in ("reboot", "reset"):
                await self._boot()

    async def _stop_orderly(self, system: _System, action: str) -> None:
        """What the service manager does before it asks the kernel to end."""
        kernel = self._machine.kernel
        system.getty.stop()
        await system.supplicant.stop()
        await system.sshd.stop()
        self._shutdown_says(kernel, "Syncing filesystems and block devices.")
        self._shutdown_says(kernel, "Sending SIGTERM to remaining processes...")
        with contextlib.suppress(OSError, TimeoutError):
            system.userland.signal(-1, signal.SIGTERM)
            system.userland.signal(-1, signal.SIGHUP)  # interactive shells ignore SIGTERM
            await asyncio.wait_for(system.userland.empty.wait(), TERMINATION_TIMEOUT)
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
        journal = Journal(machine.hostname)
        machine.kernel.log.listen(lambda record: journal.add("kernel", record.text))
        units = UnitTable()
        manager = Manager(
            Systemctl(units, journal, self),
            Journalctl(units, journal),
            self,
            machine,
            machine.sysfs,
            release=machine.release,
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
        machine.efivarfs.on_read_only = jail.set_efivarfs_read_only
        userland = Userland(jail)
        tty = BoardTty(self._line, userland)
        emulating = self._options.supplicant == "emulation"
        argv = (rootfs.SUPPLICANT_PROGRAM, *(["--rpmb-emu"] if emulating else []))
        unit = supplicant_unit(self._options)
        supplicant = ProcessUnit(
            unit, journal, userland, argv, files.environment, _Serving(machine)
        )
        sshd = SwitchUnit(
            SSHD, journal, on=functools.partial(self._sshd_on, userland), off=self._sshd_off
        )
        units.load(supplicant, sshd)
        getty = Getty(userland, tty, files.environment)
        return _System(jail, userland, tty, getty, manager, supplicant, sshd)

    def _mount_efivarfs(self) -> bool:
        """What the service manager does at boot; False where it does not or the kernel refuses."""
        if self._options.mount == "none":
            return False
        try:
            self._machine.efivarfs.mount(task=Task.kernel("systemd"))
        except OSError:
            return False
        return True

    def _plan(self, control: Path, mounted: bool) -> JailPlan:
        machine, files = self._machine, self._files
        kernel = machine.kernel
        filesystems = (
            FuseMount("/sys", machine.sysfs, "sysfs", SYSFS_MAGIC),
            FuseMount(rootfs.EFIVARFS_AT, machine.efivarfs, "efivarfs", EFIVARFS_MAGIC),
        )
        return JailPlan(
            hostname=machine.hostname,
            filesystems=filesystems,
            nodes=machine.nodes,
            binds=(*files.binds, Bind(control, SOCKET_IN_BOARD, writable=True)),
            files=(*files.files, *_drop_in_files(self._options)),
            symlinks={**files.symlinks, f"/dev/{TTY}": "pts/0", "/dev/console": TTY},
            directories=files.directories,
            open_hooks={
                **{path: _text_hook(text) for path, text in machine.proc_files.items()},
                "/dev/kmsg": lambda task, flags: KmsgReader(kernel, self._poke),
                "/proc/sysrq-trigger": SysRq(machine, self._end_from_kernel).sink,
            },
            efivarfs_read_only=machine.efivarfs.read_only,
            efivarfs_at_boot=mounted,
            efivarfs_mount_read_only=self._options.mount == "read-only",
            host_programs=files.host_programs,
        )

    def _poke(self) -> None:
        if self._jail is not None:
            self._jail.poke()

    def _init_died(self) -> None:
        """Called from the jail thread, also after a power cut."""
        self._loop.call_soon_threadsafe(self._after_init)

    def _after_init(self) -> None:
        if self._system is not None and not self._switch.locked():
            self._machine.kernel.printk("Kernel panic - not syncing: Attempted to kill init!", 0)
            self._drop(graceful=True)

    async def _sshd_on(self, userland: Userland) -> None:
        assert self._ssh is not None
        await self._ssh.start(userland)

    def _sshd_off(self) -> None:
        if self._ssh is not None:
            self._ssh.refuse()

    def _firmware_says(self, data: bytes) -> None:
        """Boot log and kernel messages, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._line.transmit, data)
