"""The emulated board without its userland: every layer from the flash up to efivarfs.

A power cut is the disappearance of every object but the flash.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from emulation import boot_log
from emulation.emmc.card import USER_SECTORS, EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.emmc.rpmb import PROFILES
from emulation.emmc.user_area import UserArea
from emulation.faults import Faults, PowerLost
from emulation.linux import sysfs_tree
from emulation.linux.devices import DeviceNode
from emulation.linux.efi_pstore import EfiPstore
from emulation.linux.efivarfs import Efivarfs
from emulation.linux.efivars import Efivars, KernelSeries
from emulation.linux.firmware import EfiRuntime, FirmwareTables, RuntimeService
from emulation.linux.kernel import KERN_EMERG, Kernel, LogRecord, Task, current_task
from emulation.linux.kernel_config import kernel_config
from emulation.linux.mmc_ioctl import RPMB, MmcBlock, MmcNode
from emulation.linux.modules import Module, ModuleLoader
from emulation.linux.optee import OpteeDriver
from emulation.linux.procfs import ProcFile, proc_files
from emulation.linux.sysfs import Sysfs
from emulation.linux.tee_bus import BusDriver, TeeDevice
from emulation.linux.tee_ioctl import TeeNode
from emulation.linux.tee_stmm_efi import DEVICE_UUID, DRIVER_NAME, TeeStmmEfi
from emulation.optee.config import HUK_SIZE, OpTeeConfig
from emulation.optee.optee import OpTee
from emulation.options import BoardOptions, DriverLoading
from emulation.rpmb_transport import RpmbTransport
from emulation.uboot.boot import Uboot
from emulation.uboot.variables import FileVariables, StmmVariables, VariableServices
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.formats.mmc import MMC_SECTOR, RPMB_UNIT

Console = Callable[[bytes], None]

UDEV_EVENT_TIMEOUT = 180.0
"""Seconds until udev kills a worker (event_timeout; truth log-file-variant4)."""
_DISK_GROUP: Final = 6
TEE_GROUP: Final = 900
"""Group ``tee`` of the board, and the user that a supplicant without privileges runs as."""
_TEST_PTA: Final = uuid.UUID("d96a5b40-c3e5-21e3-8794-1002a5d5c61b")
"""OP-TEE's self-test pseudo-application, part of the recorded kernel-routed build."""


@dataclass
class _Supply:
    """The power of one power-on, for firmware, which has no kernel to ask."""

    lost: bool = False

    def check(self) -> None:
        """Raise PowerLost once the power is gone."""
        if self.lost:
            raise PowerLost


@dataclass(frozen=True)
class System:
    """What exists from power-on to power cut."""

    secure_world: OpTee
    kernel: Kernel
    optee: OpteeDriver
    """The kernel's OP-TEE driver, with the tee bus."""
    efivarfs: Efivarfs
    pstore: EfiPstore
    modules: ModuleLoader
    mmc: MmcBlock
    sysfs: Sysfs
    proc_files: dict[str, ProcFile]
    """Files below /proc that differ from the host's."""
    boot_id: str
    """Random, new at every power-on."""


class Machine:
    """One board; ``state`` holds what survives: the RPMB image, the user area, U-Boot's file."""

    def __init__(self, options: BoardOptions, state: Path) -> None:
        self.options = options
        self.state = state
        self.faults = Faults(self.power_cut)
        for fault in options.fault:
            self.faults.arm(fault)
        self._image: RpmbImage | None = None
        self._card: EmmcCard | None = None
        self._supply = _Supply(lost=True)
        self._system: System | None = None

    @property
    def release(self) -> str:
        """uname -r."""
        return boot_log.RELEASES[self.options.efivarfs]

    @property
    def version(self) -> str:
        """uname -v."""
        return boot_log.version(preempt_rt=self.options.preempt_rt)

    @property
    def card(self) -> EmmcCard:
        """The eMMC, which outlives power cuts."""
        if self._card is None:
            options = self.options
            self.state.mkdir(parents=True, exist_ok=True)
            self._image = RpmbImage.open(self.state / "rpmb.img", options.rpmb_size_mult)
            if options.rpmb_key and self._image.key is None:
                self._image.program_key(bytes.fromhex(options.rpmb_key))
            self._card = EmmcCard(
                self._image,
                cid=bytes.fromhex(options.cid),
                rel_wr_sec_c=options.rpmb_rel_wr_sec_c,
                profile=PROFILES[options.rpmb_profile],
                faults=self.faults,
                user_area=UserArea.open(self.state / "mmcblk0.img", USER_SECTORS),
            )
        return self._card

    @property
    def running(self) -> System:
        """The system of the last power-on; RuntimeError before the first."""
        if self._system is None:
            raise RuntimeError("the board was never switched on")
        return self._system

    @property
    def nodes(self) -> tuple[DeviceNode, ...]:
        """The device nodes of the eMMC and the TEE."""
        rpmb = MmcNode(self.running.mmc, RPMB)
        rpmb_node = DeviceNode("/dev/mmcblk0rpmb", rpmb, sysfs_tree.RPMB_MAJOR, 0)
        served = self.options.supplicant_user == "tee"
        tee, privileged = (
            TeeNode("tee0", self.running.optee),
            TeeNode("teepriv0", self.running.optee),
        )
        tee_major = sysfs_tree.TEE_MAJOR
        minor = sysfs_tree.TEE_PRIVILEGED_MINOR
        disks = (
            DeviceNode(
                f"/dev/{disk.name}",
                MmcNode(self.running.mmc, disk.name),
                disk.major,
                disk.minor,
                storage=disk,
                mode=0o660,
                gid=_DISK_GROUP,
            )
            for disk in self.running.mmc.disks.values()
        )
        return (
            *disks,
            *([rpmb_node] if self.options.rpmb_node else []),
            DeviceNode("/dev/tee0", tee, tee_major, 0),
            DeviceNode(
                "/dev/teepriv0",
                privileged,
                tee_major,
                minor,
                mode=0o660 if served else 0o600,
                gid=TEE_GROUP if served else 0,
            ),
        )

    # Power

    def power_on(self, *, console: Console) -> None:
        """Run firmware and kernel boot; ``console`` gets the boot log, CR LF line ends.

        Raises PowerLost when an armed fault takes the power meanwhile.
        """
        self.power_cut()
        card = self.card
        card.power_cycle()
        optee = OpTee(
            self._optee_config(),
            log=lambda line: console(line.encode() + b"\r\n"),
            faults=self.faults,
        )
        supply = self._supply = _Supply()
        optee.normal_world = RpmbTransport(card, supply.check)
        tables = self._run_firmware(optee, console)
        self._start_linux(card, optee, tables, console)

    def power_cut(self) -> None:
        """Take the power away: every sleeping call ends with PowerLost; idempotent."""
        self._supply.lost = True
        if self._system is not None:
            self._system.kernel.cut_power()

    def close(self) -> None:
        """Cut the power and let go of the flash image."""
        self.power_cut()
        if self._card is not None:
            self._card.user_area.close()
        if self._image is not None:
            self._image.close()
        self._image = self._card = None

    # What root does

    def crash(self, reason: str = "sysrq triggered crash") -> None:
        """Panic: record the log by efi_pstore, then stand still until the power is cut."""
        kernel = self.running.kernel
        kernel.printk(f"Kernel panic - not syncing: {reason}", KERN_EMERG)
        log = "\n".join(str(record) for record in kernel.log.records(0))
        self.running.pstore.dump("Panic", log.encode(), task=Task.kernel("panic"))
        kernel.printk(f"---[ end Kernel panic - not syncing: {reason} ]---", KERN_EMERG)

    # Boot

    def _optee_config(self) -> OpTeeConfig:
        options = self.options
        routed = options.kernel_routed_rpmb
        config = OpTeeConfig(
            release=options.optee,
            test_key=options.rpmb_test_key,
            write_key=options.write_key,
            huk=bytes.fromhex(options.huk) or bytes(HUK_SIZE),
            huk_compat=options.huk_compat,
            stmm=options.stmm,
            announce_probe=routed,
            listed_devices=(_TEST_PTA,) if routed else (),
        )
        if not options.die_id:
            return config
        derived = options.die_id == "derived"
        return replace(config, die_id=None if derived else bytes.fromhex(options.die_id))

    def _run_firmware(self, optee: OpTee, console: Console) -> FirmwareTables:
        def say(line: str) -> None:
            console(line.encode() + b"\r\n")

        def say_all(lines: Iterable[str]) -> None:
            for line in lines:
                say(line)

        say_all(boot_log.TRUSTED_FIRMWARE)
        say_all(boot_log.uboot(self.options.optee))
        variables: VariableServices = (
            FileVariables(self.state / "ubootefi.var")
            if self.options.variant == "file"
            else StmmVariables(optee)
        )
        tables = Uboot(self.options.variant, variables, say).boot()
        say_all(boot_log.EFI_STUB)
        return tables

    def _start_linux(
        self, card: EmmcCard, optee: OpTee, tables: FirmwareTables, console: Console
    ) -> None:
        kernel = Kernel()
        kernel.log.listen(lambda record: _to_console(kernel, record, console))
        series = KernelSeries(self.options.efivarfs)
        efivars = Efivars(kernel)
        if self.options.preempt_rt:
            # efi.c:disable_runtime, by CONFIG_EFI_DISABLE_RUNTIME.
            inherited = replace(tables, services=RuntimeService(0))
        else:
            inherited = tables
        runtime = EfiRuntime(kernel, efivars, inherited)
        claim = threading.Lock()
        mmc = MmcBlock(kernel, card, claim, honour_postsleep=self.options.mmc_postsleep)
        driver = OpteeDriver(
            kernel,
            optee,
            revision=self.options.optee,
            kernel_routing=RpmbTransport(card, kernel.check_power, claim)
            if self.options.kernel_routed_rpmb
            else None,
            faults=self.faults,
        )
        efivarfs = Efivarfs(kernel, efivars, runtime, series=series)
        pstore = EfiPstore(kernel, efivars)
        stmm = TeeStmmEfi(
            kernel,
            efivars,
            runtime,
            series=series,
            allocation_fails=lambda: self.faults.point("driver.allocation") is not None,
        )
        modules = _modules(driver, efivarfs, pstore, stmm, built=self.options.driver)
        boot_id = str(uuid.uuid4())
        files = proc_files(
            kernel,
            modules,
            release=self.release,
            version=self.version,
            command_line=boot_log.COMMAND_LINE,
            boot_id=boot_id,
            configuration=kernel_config(self.options),
            disks=mmc.disks.values(),
            cid=card.cid,
        )
        sysfs = Sysfs(
            sysfs_tree.build(driver, card, tuple(mmc.disks.values()), modules), booted=time.time()
        )
        self._system = System(
            optee, kernel, driver, efivarfs, pstore, modules, mmc, sysfs, files, boot_id
        )
        self._boot_kernel(tables, runtime)

    def _boot_kernel(self, tables: FirmwareTables, runtime: EfiRuntime) -> None:
        kernel, card, options = self.running.kernel, self.card, self.options

        def log(lines: Iterable[str]) -> None:
            for line in lines:
                kernel.printk(line)

        boot = Task.kernel("swapper/0")
        secure = any(
            variable.name == "SecureBoot"
            and variable.guid == GLOBAL_VARIABLE_GUID
            and variable.data == b"\1"
            for variable in tables.variables
        )
        log(
            boot_log.early_kernel(
                self.release,
                self.version,
                efi=bool(tables.services),
                runtime=bool(runtime.services),
                secure_boot=secure,
            )
        )
        if runtime.services:
            runtime.register_generic(task=boot)
        if options.driver == "auto":
            self.running.optee.bus.on_added(self._uevent)
        if options.driver == "builtin":
            self.running.modules.available["tee_stmm_efi"].start(boot)
        self.running.optee.start()
        disks = self.running.mmc.disks.values()
        log(
            boot_log.card_found(
                card.cid[3:9].decode("ascii", "replace"),
                user_bytes=card.user_area.sectors * MMC_SECTOR,
                partitions=[disk.partition for disk in disks if disk.partition],
                rpmb_bytes=options.rpmb_size_mult * RPMB_UNIT,
            )
        )
        log(boot_log.LATE_KERNEL)
        self.running.modules.modprobe("efivarfs", task=boot)

    def _uevent(self, device: TeeDevice) -> None:
        """udev loads what the device's alias names, on a worker that it kills when it hangs."""
        modules, kernel = self.running.modules, self.running.kernel
        worker = Task(pid=0, comm="(udev-worker)")
        finished = threading.Event()

        def load() -> None:
            try:
                modules.load_by_alias(device.modalias, task=worker)
            finally:
                finished.set()
                kernel.wake()

        def watch() -> None:
            if not kernel.wait(finished.is_set, task=Task.kernel(), timeout=UDEV_EVENT_TIMEOUT):
                worker.fatal.set()

        kernel.spawn(worker.comm, load, task=worker)
        kernel.spawn("systemd-udevd", watch)


def _modules(
    driver: OpteeDriver,
    efivarfs: Efivarfs,
    pstore: EfiPstore,
    stmm: TeeStmmEfi,
    *,
    built: DriverLoading,
) -> ModuleLoader:
    client = driver.client()
    stmm_driver = BusDriver(
        DRIVER_NAME,
        frozenset([DEVICE_UUID]),
        probe=lambda: stmm.probe(client, task=current_task()),
        remove=lambda: stmm.remove(task=current_task()),
    )
    modules = [
        Module("efivarfs", 16384, users=lambda: int(efivarfs.mounted)),
        Module("efi_pstore", 12288, lambda task: pstore.load(), lambda task: pstore.unload()),
        Module(
            "tee_stmm_efi",
            12288,
            lambda task: driver.bus.register_driver(stmm_driver),
            lambda task: driver.bus.unregister_driver(stmm_driver.name),
            aliases=frozenset([f"tee:{DEVICE_UUID}"]),
        ),
    ]
    if built == "absent":
        modules = [module for module in modules if module.name != "tee_stmm_efi"]
    part_of_kernel = frozenset(["tee_stmm_efi"]) if built == "builtin" else frozenset()
    return ModuleLoader({module.name: module for module in modules}, part_of_kernel)


def _to_console(kernel: Kernel, record: LogRecord, console: Console) -> None:
    if record.level < kernel.console_loglevel:
        console(f"{record}\r\n".encode())
