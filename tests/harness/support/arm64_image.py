"""A small arm64 machine from Debian's packages: kernel and an initial RAM disk with a login on the
serial port and an SSH server. Made once, in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_KERNEL = "linux-image-cloud-arm64"
_PACKAGES = (
    "busybox-static",
    "dropbear-bin",
    "libc6",
    "libcrypt1",
    "libgmp10",
    "libtomcrypt1",
    "libtommath1",
    "zlib1g",
)
# In the order in which they need each other.
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)
_INIT = """#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp /var/run
/bin/busybox mkdir -p /root/.ssh /etc/dropbear
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
for module in %s; do test -e /modules/$module.ko && insmod /modules/$module.ko; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
hostname arm64
dropbear -R -E
exec init
"""
# A shell at once: with a getty, QEMU 7.2 was seen to pass no more input to the serial port.
_INITTAB = "ttyAMA0::respawn:-/bin/sh\n"


@dataclass(frozen=True)
class Arm64Image:
    kernel: Path
    initrd: Path


def image() -> Arm64Image:
    """The image, made where it is missing. Skips where a tool or Debian's archive is."""
    for tool in ("apt-get", "dpkg-deb", "busybox", "qemu-system-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: apt, dpkg, busybox-static, qemu-system-arm)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "stmm-hil", "arm64")
    made = Arm64Image(cache / "vmlinuz", cache / "initrd.gz")
    if not (made.kernel.exists() and made.initrd.exists()):
        _make(cache, made)
    return made


def _make(cache: Path, made: Arm64Image) -> None:
    root = cache / "root"
    shutil.rmtree(cache, ignore_errors=True)
    root.mkdir(parents=True)
    _download(cache)
    for package in cache.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    kernel.rename(made.kernel.with_suffix(".new"))
    (root / "modules").mkdir()
    for name in _MODULES:
        for module in (root / "lib" / "modules").rglob(f"{name}.ko"):
            module.rename(root / "modules" / module.name)
    for surplus in ("boot", "lib/modules", "usr/share"):
        shutil.rmtree(root / surplus, ignore_errors=True)
    (root / "bin" / "sh").symlink_to("busybox")
    _write(root / "init", _INIT % " ".join(_MODULES), 0o755)
    _write(root / "etc" / "inittab", _INITTAB)
    _write(root / "etc" / "passwd", "root::0:0:root:/root:/bin/sh\n")
    _write(root / "etc" / "shells", "/bin/sh\n")
    files = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        ["busybox", "cpio", "-o", "-H", "newc", "-R", "0:0"],
        cwd=root,
        input=files.encode(),
        capture_output=True,
        check=True,
    ).stdout
    packed = subprocess.run(["gzip", "-1"], input=archive, capture_output=True, check=True).stdout
    made.initrd.write_bytes(packed)
    made.kernel.with_suffix(".new").rename(made.kernel)
    shutil.rmtree(root)


def _download(cache: Path) -> None:
    """The packages, by an apt of our own that knows arm64 and needs no root."""
    state = cache / "apt"
    for place in ("lists/partial", "archives/partial"):
        (state / place).mkdir(parents=True)
    (state / "status").touch()
    apt = ["apt-get", "-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
    apt += ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state}"]
    apt += ["-o", f"Dir::State::status={state / 'status'}", "-o", "APT::Sandbox::User="]
    depends = ["apt-cache", *apt[2:], "depends", _KERNEL]
    try:
        subprocess.run([*apt, "update"], check=True, capture_output=True, timeout=120)
        shown = subprocess.run(depends, check=True, capture_output=True, timeout=60, text=True)
        kernel = shown.stdout.split("Depends: ")[1].split()[0]
        subprocess.run(
            [*apt, "download", kernel, *_PACKAGES],
            cwd=cache,
            check=True,
            capture_output=True,
            timeout=300,
        )
    except (subprocess.SubprocessError, IndexError) as error:
        pytest.skip(f"needs Debian's archive for arm64: {error}")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
