"""The board's processors: two Cortex-A57, as the boot log has them.

Source: K6 arch/arm64/kernel/cpuinfo.c, drivers/base/cpu.c, Documentation/arch/arm64/elf_hwcaps.rst.
"""

from typing import Final

from emulation.linux.sysfs import Tree, text

CPUS: Final = 2
_MIDR: Final = 0x411FD070
"""Implementer, variant, architecture, part, revision: what "Booting Linux on" shows."""
_FEATURES: Final = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"


def cpuinfo() -> str:
    """/proc/cpuinfo."""
    return "".join(
        f"processor\t: {number}\nBogoMIPS\t: 125.00\nFeatures\t: {_FEATURES}\n"
        f"CPU implementer\t: 0x{_MIDR >> 24:02x}\nCPU architecture: 8\n"
        f"CPU variant\t: 0x{_MIDR >> 20 & 0xF:x}\nCPU part\t: 0x{_MIDR >> 4 & 0xFFF:03x}\n"
        f"CPU revision\t: {_MIDR & 0xF}\n\n"
        for number in range(CPUS)
    )


def tree() -> Tree:
    """/sys/devices/system/cpu."""
    every = f"0-{CPUS - 1}"
    return {
        **{f"cpu{number}": _cpu(number, every) for number in range(CPUS)},
        "isolated": text(""),
        "kernel_max": text("511"),
        "modalias": text("cpu:type:aarch64:feature:,0000,0001,0002,0003,0004,0005,0006,0007,000B"),
        "offline": text(""),
        "online": text(every),
        "possible": text(every),
        "present": text(every),
    }


def _cpu(number: int, every: str) -> Tree:
    return {
        "online": text("1"),
        "regs": {
            "identification": {
                "midr_el1": text(f"0x{_MIDR:016x}"),
                "revidr_el1": text("0x" + "0" * 16),
            }
        },
        "topology": {
            "core_cpus_list": text(f"{number}"),
            "core_id": text(f"{number}"),
            "package_cpus_list": text(every),
            "physical_package_id": text("0"),
            "thread_siblings_list": text(f"{number}"),
        },
    }
