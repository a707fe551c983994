"""``[power]`` of a board file: one section for each driver.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.tables import Port, Seconds, Table


class EmulatedPowerSection(Table):
    """The board that exists only in software; ``[power.options]`` goes to the emulator as
    ``key=value``."""

    driver: Literal["emulated"]
    state: Path | None = Field(
        default=None,
        description="directory that keeps the eMMC between runs; without it a fresh one",
    )
    options: dict[str, str | int | bool] = Field(
        default={}, description="options of the emulated board; `hil emulate --help` lists them"
    )


class CommandPowerOptions(Table):
    """Shell commands that switch the power."""

    on: str = Field(min_length=1)
    off: str = Field(min_length=1)
    cycle: str | None = Field(default=None, description="default: off, a pause, on")
    status: str | None = Field(
        default=None, description="prints `on` or `off`; without it the state is unknown"
    )
    off_seconds: Seconds = Field(default=1.0, description="how long the power stays off in a cycle")
    timeout: Seconds = Field(default=30.0, description="for each command")


class CommandPowerSection(Table):
    """Any command: a PDU's client, uhubctl, a relay."""

    driver: Literal["command"]
    options: CommandPowerOptions


class ManualPowerOptions(Table):
    """The manual driver needs none."""


class ManualPowerSection(Table):
    """A person switches when asked."""

    driver: Literal["manual"]
    options: ManualPowerOptions = ManualPowerOptions()


class _OutletOptions(Table):
    """What drivers of single outlets share."""

    off_seconds: Seconds = Field(default=1.0, description="how long the power stays off in a cycle")
    timeout: Seconds = Field(default=10.0, description="for each request")


class HttpPowerOptions(_OutletOptions):
    """One outlet of a plug or strip that is switched over HTTP."""

    kind: Literal["tasmota", "shelly", "shelly-gen1"] = Field(
        description="`shelly` is generation 2 and later (RPC)"
    )
    host: str = Field(min_length=1, description="name or address, with :PORT where it is not 80")
    outlet: int = Field(
        default=0, ge=0, le=31, description="relay number, from 0 (Tasmota shows it from 1)"
    )
    user: str = "admin"
    password: str | None = None


class HttpPowerSection(Table):
    """A Tasmota or Shelly plug."""

    driver: Literal["http"]
    options: HttpPowerOptions


class SnmpPowerOptions(_OutletOptions):
    """One outlet of a PDU that is switched over SNMP: the object that controls it."""

    host: str = Field(min_length=1)
    port: Port = 161
    version: Literal["1", "2c"] = "1"
    community: str = "private"
    oid: str = Field(
        pattern=r"^\.?\d+(\.\d+)+$",
        description="e.g. 1.3.6.1.4.1.318.1.1.4.4.2.1.3.4: APC sPDUOutletCtl of outlet 4",
    )
    on: int = Field(default=1, description="the value that means on")
    off: int = Field(default=2, description="the value that means off")


class SnmpPowerSection(Table):
    """An outlet of a PDU with SNMP."""

    driver: Literal["snmp"]
    options: SnmpPowerOptions


class UsbHubPowerOptions(_OutletOptions):
    """A port of a USB hub that can switch its power."""

    location: str = Field(pattern=r"^\d+(-\d+(\.\d+)*)?$", description="as uhubctl shows it: 1-1.4")
    port: int = Field(ge=1, le=32)


class UsbHubPowerSection(Table):
    """A board that is fed by a USB port, switched by uhubctl."""

    driver: Literal["usb-hub"]
    options: UsbHubPowerOptions


class RelayPowerOptions(_OutletOptions):
    """One channel of an LCUS relay board on a serial port."""

    port: str = Field(min_length=1, description="device path, e.g. /dev/serial/by-path/...")
    channel: int = Field(default=1, ge=1, le=8)
    normally_closed: bool = Field(
        default=False, description="the board is fed through the contact that opens when energised"
    )


class RelayPowerSection(Table):
    """A relay board on a serial port."""

    driver: Literal["relay"]
    options: RelayPowerOptions


class QemuPowerOptions(Table):
    """A machine that qemu-system-aarch64 emulates, from images that anyone built. Paths are
    relative to the board file."""

    images: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="a configuration that `hil qemu build` made, e.g. mm-query: options that are "
        "not named here are those of its images",
    )
    program: str = "qemu-system-aarch64"
    machine: str = Field(default="virt", description="-M, e.g. `virt,secure=on`")
    cpu: str = "cortex-a57"
    cpus: int = Field(default=2, ge=1, le=64)
    memory_mib: int = Field(default=1024, ge=64)
    flash: tuple[Path, ...] = Field(default=(), description="firmware images, pflash in order")
    bios: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disks: tuple[Path, ...] = Field(default=(), description="raw or qcow2, as virtio disks")
    emmc: Path | None = Field(
        default=None,
        description="image of an eMMC: boot partitions, RPMB, user area (QEMU 10.2 or later)",
    )
    snapshot: bool = Field(
        default=False,
        description="disks and eMMC stay as they are: what the board writes is forgotten when "
        "the harness ends",
    )
    boot_partition_kib: int = Field(default=1024, ge=0)
    rpmb_kib: int = Field(default=2048, ge=128, le=16384)
    ssh_port: int = Field(
        default=0, ge=0, le=65535, description="loopback port that reaches the guest's 22; 0: any"
    )
    serial_port: int = Field(
        default=0, ge=0, le=65535, description="loopback port of the console; 0: any"
    )
    extra: tuple[str, ...] = Field(default=(), description="further arguments, as they are")


class QemuPowerSection(Table):
    """QEMU: switching on starts it, switching off ends it as pulling the plug would."""

    driver: Literal["qemu"]
    options: QemuPowerOptions


class LabgridPowerOptions(_OutletOptions):
    """Nothing but times: the place and its power resource are named in ``[labgrid]``."""


class LabgridPowerSection(Table):
    """The power resource of the board's labgrid place."""

    driver: Literal["labgrid"]
    options: LabgridPowerOptions = LabgridPowerOptions()


OutletSection = HttpPowerSection | SnmpPowerSection | UsbHubPowerSection | RelayPowerSection
PowerSection = (
    EmulatedPowerSection
    | CommandPowerSection
    | ManualPowerSection
    | QemuPowerSection
    | LabgridPowerSection
    | OutletSection
)
