"""What is in the board's /sys: the tee bus, the eMMC, EFI, modules.

Paths are those of the recorded board, whose eMMC is a PCI function.  Source: truth p2a, p2c,
log-kernel-rpmb-y; K6 drivers/base, drivers/tee, drivers/mmc/core, drivers/firmware/efi/efi.c.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from emulation.emmc.card import EmmcCard
from emulation.linux import cpu, device_tree
from emulation.linux.kernel import Task
from emulation.linux.mmc_ioctl import Disk
from emulation.linux.modules import Module, ModuleLoader
from emulation.linux.optee import OpteeDriver
from emulation.linux.sysfs import Attribute, Directory, Link, Node, Tree, text
from emulation.linux.tee_bus import BusDriver, TeeDevice
from harness.formats.mmc import EXT_CSD_REL_WR_SEC_C, EXT_CSD_RPMB_SIZE_MULT

TEE_MAJOR: Final = 253
TEE_PRIVILEGED_MINOR: Final = 16
"""Privileged devices take the upper half of 32 minors (K6 drivers/tee/tee_core.c)."""
RPMB_MAJOR: Final = 252

_HOST_PARENT: Final = ("platform", "4010000000.pcie", "pci0000:00", "0000:00:04.0", "mmc_host")
_CARD: Final = "mmc0:0001"
_HOST_PATH: Final = "/".join(("devices", *_HOST_PARENT, "mmc0"))
_CARD_PATH: Final = f"{_HOST_PATH}/{_CARD}"
_DISK_PATH: Final = f"{_CARD_PATH}/block/mmcblk0"


def _up(directory: str, target: str) -> str:
    """A relative link from ``directory`` to ``target``, both counted from /sys."""
    return "../" * (directory.count("/") + 1) + target


def build(
    optee: OpteeDriver, card: EmmcCard, disks: Sequence[Disk], modules: ModuleLoader
) -> Directory:
    """The root of /sys; ``disks``: the whole eMMC first, then its partitions."""
    return _Tree(optee, card, disks, modules).root()


class _Tree:
    def __init__(
        self, optee: OpteeDriver, card: EmmcCard, disks: Sequence[Disk], modules: ModuleLoader
    ) -> None:
        self._optee = optee
        self._bus = optee.bus
        self._card = card
        self._whole, *self._partitions = disks
        self._modules = modules

    def root(self) -> Directory:
        return Directory.of(
            {
                "block": {self._whole.name: Link(f"../{_DISK_PATH}")},
                "bus": {
                    "mmc": self._mmc_bus(),
                    "mmc_rpmb": {
                        "devices": {"mmcblk0rpmb": Link(f"../../../{_CARD_PATH}/mmcblk0rpmb")}
                    },
                    "tee": self._tee_bus(),
                },
                "class": self._classes(),
                "dev": self._device_numbers(),
                "devices": self._devices(),
                "firmware": {
                    "devicetree": {"base": device_tree.tree(self._card.cid)},
                    "efi": {
                        "efivars": Directory.mount_point(),
                        "fw_platform_size": text("64"),
                        "systab": Attribute(lambda: "SMBIOS3=0xbe6fb000\n", mode=0o400),
                    },
                },
                "fs": {"cgroup": Directory.mount_point(), "pstore": Directory.mount_point()},
                "kernel": _kernel(),
                "module": Directory(
                    lambda: {module.name: self._module(module) for module in self._modules.loaded}
                ),
                "power": {"state": text("")},
            }
        )

    # tee

    def _tee_bus(self) -> Tree:
        def devices() -> Mapping[str, Node]:
            return {name: Link(f"../../../devices/{name}") for name in self._bus.devices}

        def drivers() -> Mapping[str, Node]:
            return {
                name: Directory(partial(self._tee_driver, driver))
                for name, driver in self._bus.drivers.items()
            }

        return {
            "devices": Directory(devices),
            "drivers": Directory(drivers),
            "drivers_autoprobe": text("1"),
            "uevent": Attribute(store=_ignore),
        }

    def _tee_driver(self, driver: BusDriver) -> Mapping[str, Node]:
        def bind(data: bytes, task: Task) -> None:
            self._bus.bind(driver.name, _word(data))

        def unbind(data: bytes, task: Task) -> None:
            self._bus.unbind(driver.name, _word(data))

        bound = [device.name for device in self._bus.devices.values() if device.driver is driver]
        return {
            "bind": Attribute(store=bind),
            **{name: Link(f"../../../../devices/{name}") for name in bound},
            "uevent": Attribute(store=_ignore),
            "unbind": Attribute(store=unbind),
        }

    @staticmethod
    def _tee_device(device: TeeDevice) -> Mapping[str, Node]:
        def uevent() -> str:
            driver = f"DRIVER={device.driver.name}\n" if device.driver else ""
            return f"{driver}MODALIAS={device.modalias}\n"

        content: dict[str, Node] = {
            "subsystem": Link("../../bus/tee"),
            "uevent": Attribute(uevent, _ignore),
        }
        if device.needs_supplicant:
            content["need_supplicant"] = Attribute(lambda: "")
        if device.driver is not None:
            content["driver"] = Link(f"../../bus/tee/drivers/{device.driver.name}")
        return content

    def _tee_nodes(self) -> Tree:
        def node(name: str, minor: int) -> dict[str, Node]:
            return {
                "dev": text(f"{TEE_MAJOR}:{minor}"),
                "implementation_id": text("1"),
                "subsystem": Link("../../../../class/tee"),
                "uevent": Attribute(
                    lambda: f"MAJOR={TEE_MAJOR}\nMINOR={minor}\nDEVNAME={name}\n", _ignore
                ),
            }

        tee0 = node("tee0", 0)
        tee0["rpmb_routing_model"] = Attribute(lambda: f"{self._optee.routing_model}\n")
        return {
            "tee0": tee0,
            "teepriv0": node("teepriv0", TEE_PRIVILEGED_MINOR),
        }

    # eMMC

    def _mmc_bus(self) -> Tree:
        driver = {_CARD: Link(f"../../../../{_CARD_PATH}")}
        return {
            "devices": {_CARD: Link(f"../../../{_CARD_PATH}")},
            "drivers": {"mmcblk": driver},
        }

    def _mmc_host(self) -> Tree:
        return {
            _CARD: self._mmc_card(),
            "subsystem": Link(_up(_HOST_PATH, "class/mmc_host")),
            "uevent": Attribute(lambda: "", _ignore),
        }

    def _mmc_card(self) -> Tree:
        cid = self._card.cid
        registers = self._card.ext_csd
        name = cid[3:9].decode("ascii", "replace")
        return {
            "block": {self._whole.name: self._block_device()},
            "cid": text(cid.hex()),
            "csd": text(self._card.csd.hex()),
            "date": text(f"{cid[14] >> 4:02d}/{1997 + (cid[14] & 0xF)}"),
            "driver": Link(_up(_CARD_PATH, "bus/mmc/drivers/mmcblk")),
            "enhanced_rpmb_supported": text("0"),
            "hwrev": text("0x0"),
            "manfid": text(f"0x{cid[0]:06x}"),
            "mmcblk0rpmb": Directory(self._rpmb_node),
            "name": text(name),
            "oemid": text(f"0x{int.from_bytes(cid[1:3], 'big'):04x}"),
            "prv": text(f"0x{cid[9]:x}"),
            "raw_rpmb_size_mult": text(_alternate_hex(registers[EXT_CSD_RPMB_SIZE_MULT])),
            "rel_sectors": text(_alternate_hex(registers[EXT_CSD_REL_WR_SEC_C])),
            "serial": text(f"0x{int.from_bytes(cid[10:14], 'big'):08x}"),
            "subsystem": Link(_up(_CARD_PATH, "bus/mmc")),
            "type": text("MMC"),
            "uevent": Attribute(
                lambda: f"DRIVER=mmcblk\nMMC_TYPE=MMC\nMMC_NAME={name}\nMODALIAS=mmc:block\n",
                _ignore,
            ),
        }

    def _block_device(self) -> Tree:
        return {
            **_block_attributes(self._whole, _DISK_PATH),
            **{part.name: _partition(part) for part in self._partitions},
            "device": Link(f"../../../{_CARD}"),
            "diskseq": text("1"),
            "ext_range": text("8"),
            "hidden": text("0"),
            "queue": {
                "discard_granularity": text("0"),
                "discard_max_bytes": text("0"),
                "logical_block_size": text("512"),
                "minimum_io_size": text("512"),
                "optimal_io_size": text("0"),
                "physical_block_size": text("512"),
                "rotational": text("0"),
                "scheduler": text("[none]"),
            },
            "range": text("8"),
            "removable": text("0"),
        }

    def _block_links(self, name: Callable[[Disk], str]) -> Mapping[str, Node]:
        """A link to every block device, for a directory two levels below /sys."""
        links: dict[str, Node] = {name(self._whole): Link(f"../../{_DISK_PATH}")}
        for part in self._partitions:
            links[name(part)] = Link(f"../../{_DISK_PATH}/{part.name}")
        return links

    def _rpmb_node(self) -> Mapping[str, Node]:
        content: dict[str, Node] = {
            "dev": text(f"{RPMB_MAJOR}:0"),
            "subsystem": Link(_up(f"{_CARD_PATH}/mmcblk0rpmb", "bus/mmc_rpmb")),
            "uevent": Attribute(
                lambda: f"MAJOR={RPMB_MAJOR}\nMINOR=0\nDEVNAME=mmcblk0rpmb\n", _ignore
            ),
        }
        if self._optee.routing_model == "kernel":
            rpmb0: dict[str, Node] = {
                "subsystem": Link(_up(f"{_CARD_PATH}/mmcblk0rpmb/rpmb/rpmb0", "class/rpmb")),
                "uevent": Attribute(lambda: "", _ignore),
            }
            content["rpmb"] = Directory.of({"rpmb0": Directory.of(rpmb0)})
        return content

    # the rest

    def _classes(self) -> Tree:
        classes: dict[str, Node | Tree] = {
            "block": self._block_links(lambda disk: disk.name),
            "mmc_host": {"mmc0": Link(f"../../{_HOST_PATH}")},
            "tee": {
                name: Link(f"../../devices/virtual/tee/{name}") for name in ("tee0", "teepriv0")
            },
        }
        if self._optee.routing_model == "kernel":
            rpmb0 = Link(f"../../{_CARD_PATH}/mmcblk0rpmb/rpmb/rpmb0")
            classes["rpmb"] = {"rpmb0": rpmb0}
        return classes

    def _device_numbers(self) -> Tree:
        tee = "../../devices/virtual/tee"
        return {
            "block": self._block_links(lambda disk: f"{disk.major}:{disk.minor}"),
            "char": {
                f"{TEE_MAJOR}:0": Link(f"{tee}/tee0"),
                f"{TEE_MAJOR}:{TEE_PRIVILEGED_MINOR}": Link(f"{tee}/teepriv0"),
                f"{RPMB_MAJOR}:0": Link(f"../../{_CARD_PATH}/mmcblk0rpmb"),
            },
        }

    def _devices(self) -> Directory:
        platform: Tree = {"mmc0": self._mmc_host()}
        for name in reversed(_HOST_PARENT):
            platform = {name: platform}
        fixed = Directory.of(
            {**platform, "system": {"cpu": cpu.tree()}, "virtual": {"tee": self._tee_nodes()}}
        )

        def content() -> Mapping[str, Node]:
            on_bus: dict[str, Node] = {
                device.name: Directory(partial(self._tee_device, device))
                for device in tuple(self._bus.devices.values())
            }
            return {**fixed.content(), **on_bus}

        return Directory(content)

    def _module(self, module: Module) -> Directory:
        return Directory.of(
            {
                "coresize": text(str(module.size)),
                "holders": Directory(
                    lambda: {
                        name: Link(f"../../{name}")
                        for name in self._modules.dependents(module.name)
                    }
                ),
                "initstate": text("live"),
                "refcnt": Attribute(lambda: f"{self._modules.users(module.name)}\n"),
                "taint": text(""),
            }
        )


def _block_attributes(disk: Disk, path: str) -> dict[str, Node]:
    """What disks and partitions have in common; ``path`` is the directory's, from /sys."""
    lines = [f"MAJOR={disk.major}", f"MINOR={disk.minor}", f"DEVNAME={disk.name}"]
    lines += [f"DEVTYPE={'partition' if disk.partition else 'disk'}", "DISKSEQ=1"]
    if disk.partition:
        lines += [f"PARTN={disk.partition}", f"PARTNAME={disk.label}"]
    return {
        "alignment_offset": text("0"),
        "dev": text(f"{disk.major}:{disk.minor}"),
        "discard_alignment": text("0"),
        "ro": text("0"),
        "size": text(str(disk.sectors)),
        "subsystem": Link(_up(path, "class/block")),
        "uevent": Attribute(lambda: "".join(f"{line}\n" for line in lines), _ignore),
    }


def _partition(disk: Disk) -> Mapping[str, Node]:
    return {
        **_block_attributes(disk, f"{_DISK_PATH}/{disk.name}"),
        "partition": text(str(disk.partition)),
        "start": text(str(disk.first)),
    }


def _kernel() -> Tree:
    return {
        "address_bits": text("64"),
        "config": {},
        "cpu_byteorder": text("little"),
        "debug": {},
        "kexec_loaded": text("0"),
        "profiling": text("0"),
        "security": {},
        "tracing": {},
    }


def _word(data: bytes) -> str:
    """What sysfs_streq compares: the text without one line end."""
    return data.decode("utf-8", "replace").removesuffix("\n")


def _ignore(data: bytes, task: Task) -> None:
    """A write to ``uevent`` asks for an event; nobody on this board listens for one."""


def _alternate_hex(value: int) -> str:
    """printf's %#x."""
    return f"{value:#x}" if value else "0"
