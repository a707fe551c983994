"""What a board says on its console before user space, shortened from the recorded boot.

Source: truth log-console-boot1-fresh, log-kernel-rpmb-y.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

RELEASES: Final[Mapping[str, str]] = {"K6": "6.12.107-stmm", "K7": "7.3.0-stmm"}
_BUILT: Final = "Mon Nov 23 10:08:14 UTC 2026"
COMMAND_LINE: Final = (
    "console=ttyAMA0 root=/dev/vda2 rw rootwait loglevel=7 net.ifnames=0 systemd.show_status=0"
)


def version(*, preempt_rt: bool) -> str:
    """uname -v."""
    return f"#1 SMP {'PREEMPT_RT ' if preempt_rt else ''}{_BUILT}"


TRUSTED_FIRMWARE: Final = (
    "NOTICE:  Booting Trusted Firmware",
    "NOTICE:  BL1: v2.12.1(release):",
    "NOTICE:  BL1: Built : 10:23:24, Nov 23 2026",
    "NOTICE:  BL1: Booting BL2",
    "NOTICE:  BL2: v2.12.1(release):",
    "NOTICE:  BL2: Built : 10:23:26, Nov 23 2026",
    "NOTICE:  BL1: Booting BL31",
    "NOTICE:  BL31: v2.12.1(release):",
    "NOTICE:  BL31: Built : 10:23:27, Nov 23 2026",
    "",
    "",
)


def uboot(optee_revision: str) -> tuple[str, ...]:
    """U-Boot up to the end of its countdown."""
    return (
        "U-Boot 2025.01 (Nov 23 2026 - 10:16:44 +0000)",
        "",
        "DRAM:  2 GiB",
        f"optee optee: OP-TEE: revision {optee_revision}",
        "Core:  51 devices, 14 uclasses, devicetree: board",
        "MMC:   ",
        "Loading Environment from nowhere... OK",
        "In:    serial,usbkbd",
        "Out:   serial,vidconsole",
        "Err:   serial,vidconsole",
        "No USB controllers found",
        "Net:   eth0: virtio-net#33",
        "",
        "Hit any key to stop autoboot:  0 ",
        "12720640 bytes read in 15 ms (808.8 MiB/s)",
        "99 bytes read in 0 ms",
        "Booting /Image",
    )


EFI_STUB: Final = (
    "EFI stub: Booting Linux Kernel...",
    "",
    "EFI stub: Using DTB from configuration table",
    "",
    "EFI stub: Exiting boot services...",
    "",
)


def early_kernel(
    release: str, version: str, *, efi: bool, runtime: bool, secure_boot: bool
) -> Iterable[str]:
    """Kernel lines before the first driver. ``efi``: it was booted through EFI; ``runtime``: it
    uses EFI's run-time services."""
    yield "Booting Linux on physical CPU 0x0000000000 [0x411fd070]"
    yield (
        f"Linux version {release} (root@vm) (aarch64-linux-gnu-gcc (Debian 14.2.0-19) 14.2.0, "
        f"GNU ld (GNU Binutils for Debian) 2.44) {version}"
    )
    yield "Machine model: linux,dummy-virt"
    if efi:
        yield "efi: EFI v2.10 by Das U-Boot"
        yield ("efi: RTPROP=0xbd6a9040 SMBIOS 3.0=0xbe6fb000 RNG=0xbd699040 MEMRESERVE=0xbd698040 ")
        yield "random: crng init done"
        yield f"secureboot: Secure boot {'enabled' if secure_boot else 'disabled'}"
    else:
        yield "efi: UEFI not found."
    yield (
        "OF: reserved mem: 0x000000000e100000..0x000000000effffff (15360 KiB) nomap non-reusable "
        "optee_core@e100000"
    )
    yield (
        "OF: reserved mem: 0x0000000042000000..0x00000000421fffff (2048 KiB) nomap non-reusable "
        "optee_shm@42000000"
    )
    yield "psci: PSCIv1.1 detected in firmware."
    yield "psci: SMC Calling Convention v1.5"
    yield f"Kernel command line: {COMMAND_LINE}"
    if efi:
        enabled = "Remapping and enabling EFI services."
        yield enabled if runtime else "EFI runtime services will be disabled."
    yield "smp: Brought up 1 node, 2 CPUs"
    yield "CPU: All CPU(s) started at EL1"
    yield "SMBIOS 3.0.0 present."
    yield "DMI: QEMU QEMU Virtual Machine, BIOS  "
    yield "9000000.pl011: ttyAMA0 at MMIO 0x9000000 (irq = 13, base_baud = 0) is a PL011 rev1"
    yield "printk: legacy console [ttyAMA0] enabled"


def card_found(
    name: str, *, user_bytes: int, partitions: Sequence[int], rpmb_bytes: int
) -> Iterable[str]:
    """Lines of the MMC core and block driver; ``partitions``: their numbers."""
    mebi = 1 << 20
    yield "mmc0: SDHCI controller on PCI [0000:00:04.0] using ADMA 64-bit"
    yield "mmc0: new high speed MMC card at address 0001"
    yield f"mmcblk0: mmc0:0001 {name} {user_bytes / mebi:.0f}.0 MiB"
    if partitions:
        yield f" mmcblk0: {' '.join(f'p{number}' for number in partitions)}"
    yield f"mmcblk0rpmb: mmc0:0001 {name} {rpmb_bytes / mebi:.2f} MiB, chardev (252:0)"


LATE_KERNEL: Final = (
    "virtio_blk virtio2: [vda] 4194304 512-byte logical blocks (2.15 GB/2.00 GiB)",
    "EXT4-fs (vda2): mounted filesystem 9cb98041-4ba3-4c89-a5eb-cf2b415f2aeb r/w with ordered "
    "data mode. Quota mode: disabled.",
    "VFS: Mounted root (ext4 filesystem) on device 254:2.",
    "devtmpfs: mounted",
    "Freeing unused kernel memory: 1984K",
    "Run /sbin/init as init process",
)
