"""A board from the flash to efivarfs in one process: no userland, RPMB routed to the card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.linux.efivarfs import Efivarfs
from emulation.linux.efivars import Efivars, KernelSeries
from emulation.linux.firmware import EfiRuntime
from emulation.linux.kernel import Kernel, Task
from emulation.linux.optee import OpteeDriver
from emulation.linux.tee_stmm_efi import TeeStmmEfi
from emulation.optee.optee import OpTee
from emulation.options import Variant
from emulation.rpmb_transport import RpmbTransport
from emulation.uboot.boot import Uboot
from emulation.uboot.variables import FileVariables, StmmVariables, VariableServices
from tests.emulation.vfs import Vfs

ROOT = Task(1)


@dataclass
class StmmBoard:
    """A powered board before the driver binds; :meth:`reboot` keeps only the card."""

    card: EmmcCard
    variant: Variant
    kernel: Kernel
    efivars: Efivars
    driver: TeeStmmEfi
    optee: OpteeDriver
    fs: Efivarfs
    vfs: Vfs

    @classmethod
    def power_on(
        cls,
        card: EmmcCard | None = None,
        *,
        variant: Variant = "mm-query",
        series: KernelSeries = KernelSeries.K6,
        supplicant: bool = False,
        files: Path = Path(),
    ) -> StmmBoard:
        """Run U-Boot and the kernel's start.

        ``files`` is where the U-Boot of variant ``file`` keeps its variables.
        ``supplicant``: Linux asks a supplicant for RPMB instead of the card itself.
        """
        card = card or EmmcCard(RpmbImage.in_memory())
        kernel = Kernel()
        secure_world = OpTee()
        secure_world.normal_world = RpmbTransport(card)
        tables = Uboot(variant, _variables(variant, secure_world, files), lambda text: None).boot()
        routing = None if supplicant else RpmbTransport(card)
        optee = OpteeDriver(kernel, secure_world, revision="4.10", kernel_routing=routing)
        secure_world.normal_world = optee
        efivars = Efivars(kernel)
        runtime = EfiRuntime(kernel, efivars, tables)
        runtime.register_generic(task=ROOT)
        fs = Efivarfs(kernel, efivars, runtime, series=series)
        driver = TeeStmmEfi(kernel, efivars, runtime, series=series)
        return cls(card, variant, kernel, efivars, driver, optee, fs, Vfs(fs))

    def bind(self) -> None:
        """Bind tee_stmm_efi."""
        self.driver.probe(self.optee.client(), task=ROOT)

    def mount(self) -> None:
        """Mount efivarfs."""
        self.fs.mount(task=ROOT)

    def remount(self) -> None:
        """Unmount and mount efivarfs."""
        self.fs.unmount()
        self.fs.mount(task=ROOT)

    def reboot(self) -> StmmBoard:
        """Cut the power and power the same card on again."""
        self.kernel.cut_power()
        self.card.power_cycle()
        return StmmBoard.power_on(self.card, variant=self.variant)


def _variables(variant: Variant, secure_world: OpTee, files: Path) -> VariableServices:
    if variant == "file":
        return FileVariables(files / "ubootefi.var")
    return StmmVariables(secure_world)
