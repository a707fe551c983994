"""Text of the files below /proc in which the board's kernel differs from the host's.

Sources: K6 fs/proc, kernel/module/procfs.c, drivers/char/random.c; truth state-002.
"""

import gzip
from collections.abc import Callable, Iterable
from typing import Final

from emulation.linux import cpu, device_tree
from emulation.linux.kernel import Kernel, Task
from emulation.linux.mmc_ioctl import Disk
from emulation.linux.modules import ModuleLoader

ProcFile = Callable[[Task], bytes]

_FILESYSTEMS: Final = (
    ("nodev", "sysfs"),
    ("nodev", "tmpfs"),
    ("nodev", "bdev"),
    ("nodev", "proc"),
    ("nodev", "cgroup2"),
    ("nodev", "devtmpfs"),
    ("nodev", "configfs"),
    ("nodev", "debugfs"),
    ("nodev", "sockfs"),
    ("nodev", "pipefs"),
    ("nodev", "ramfs"),
    ("nodev", "devpts"),
    ("", "ext4"),
    ("", "vfat"),
    ("nodev", "pstore"),
    ("nodev", "overlay"),
)
_CHARACTER_DEVICES: Final = {
    1: "mem",
    4: "tty",
    5: "ptmx",
    10: "misc",
    136: "pts",
    204: "ttyAMA",
    252: "rpmb",
    253: "tee",
}


def proc_files(
    kernel: Kernel,
    modules: ModuleLoader,
    *,
    release: str,
    version: str,
    command_line: str,
    boot_id: str,
    configuration: str,
    disks: Iterable[Disk],
    cid: bytes,
) -> dict[str, ProcFile]:
    """Absolute path -> what is read there at this moment. ``configuration``: what the kernel was
    built with (CONFIG_IKCONFIG_PROC)."""
    packed = gzip.compress(configuration.encode(), mtime=0)

    def constant(text: str) -> ProcFile:
        return lambda task: text.encode()

    banner = (
        f"Linux version {release} (root@vm) (aarch64-linux-gnu-gcc (Debian 14.2.0-19) 14.2.0, "
        f"GNU ld (GNU Binutils for Debian) 2.44) {version}\n"
    )
    return {
        "/proc/cmdline": constant(f"{command_line}\n"),
        "/proc/config.gz": lambda task: packed,
        "/proc/cpuinfo": constant(cpu.cpuinfo()),
        **{
            f"/proc/device-tree/{name}": constant(value.decode("latin-1"))
            for name, value in device_tree.properties(cid).items()
        },
        "/proc/version": constant(banner),
        "/proc/sys/kernel/osrelease": constant(f"{release}\n"),
        "/proc/sys/kernel/version": constant(f"{version}\n"),
        "/proc/sys/kernel/ostype": constant("Linux\n"),
        "/proc/sys/kernel/random/boot_id": constant(f"{boot_id}\n"),
        "/proc/sys/kernel/tainted": constant("0\n"),
        "/proc/sys/kernel/sysrq": constant("1\n"),
        "/proc/sys/kernel/printk": lambda task: f"{kernel.console_loglevel}\t4\t1\t7\n".encode(),
        "/proc/uptime": lambda task: f"{kernel.uptime:.2f} {kernel.uptime:.2f}\n".encode(),
        "/proc/modules": lambda task: _modules(modules),
        "/proc/filesystems": lambda task: _filesystems(modules),
        "/proc/devices": constant(_devices()),
        "/proc/partitions": constant(_partitions(disks)),
    }


def _modules(modules: ModuleLoader) -> bytes:
    lines = []
    for module in modules.loaded:
        dependents = "".join(f"{name}," for name in modules.dependents(module.name)) or "-"
        lines.append(
            f"{module.name} {module.size} {modules.users(module.name)} {dependents} "
            "Live 0x0000000000000000\n"
        )
    return "".join(lines).encode()


def _filesystems(modules: ModuleLoader) -> bytes:
    known = list(_FILESYSTEMS)
    if any(module.name == "efivarfs" for module in modules.loaded):
        known.append(("nodev", "efivarfs"))
    return "".join(f"{nodev}\t{name}\n" for nodev, name in known).encode()


def _partitions(disks: Iterable[Disk]) -> str:
    lines = [
        f"{disk.major:4d}  {disk.minor:7d} {disk.sectors // 2:10d} {disk.name}\n" for disk in disks
    ]
    return f"major minor  #blocks  name\n\n{''.join(lines)}"


def _devices() -> str:
    characters = "".join(f"{major:3d} {name}\n" for major, name in _CHARACTER_DEVICES.items())
    blocks = "".join(f"{major:3d} {name}\n" for major, name in {179: "mmc", 259: "blkext"}.items())
    return f"Character devices:\n{characters}\nBlock devices:\n{blocks}"
