"""What the power driver reads of a build: a file for each configuration, ``images/NAME.toml``."""

import os
from collections.abc import Mapping
from pathlib import Path

from emulation.qemu.catalogue import CONFIGURATIONS, Configuration
from emulation.qemu.engine import Built

# Sizes of the record: 2 GiB of memory (TF-A wants BL33 512 MiB above its start), an RPMB of 2 MiB.
_MACHINE = """\
# `hil qemu build` wrote this; options of harness.power.qemu.QemuPowerOptions.
machine = "virt,secure=on,gic-version=3"
cpu = "cortex-a57"
cpus = 2
memory_mib = 2048
boot_partition_kib = 1024
rpmb_kib = 2048
snapshot = true
extra = ["-device", "virtio-rng-pci"]
"""


def publish(cache: Path, built: Mapping[str, Built]) -> list[Path]:
    """Write the file of each configuration, where all that it needs was built."""
    if not {"qemu", "firmware", "disk", "root"} <= built.keys():
        return []
    place = cache / "images"
    place.mkdir(exist_ok=True)
    return [_write(place, one, built) for one in CONFIGURATIONS]


def _write(place: Path, configuration: Configuration, built: Mapping[str, Built]) -> Path:
    def found(piece: str, name: str) -> str:
        return os.path.relpath(built[piece].out / name, place)

    fingerprint = (built["root"].out / "host_key.fingerprint").read_text().strip()
    text = _MACHINE
    text += f'program = "{found("qemu", "qemu-system-aarch64")}"\n'
    text += f'bios = "{found("firmware", f"{configuration.name}.bin")}"\n'
    text += f'disks = ["{found("disk", f"{configuration.routing}.img")}"]\n'
    text += f'emmc = "{found("firmware", "emmc.img")}"\n'
    text += f'\n[login]\nuser = "root"\nkey = "{found("root", "login_key")}"\n'
    text += f'host_key_fingerprint = "{fingerprint}"\n'
    path = place / f"{configuration.name}.toml"
    if not path.exists() or path.read_text("utf-8") != text:
        partial = path.with_suffix(".partial")
        partial.write_text(text, "utf-8")
        partial.replace(path)
    return path
