"""What a board can do, and how that is measured.

A capability is *measured* on the board once a boot, by one shell script for all of them. The
board file may pin a value (an assertion): pinned true and measured absent fails, unpinned and
absent skips. What the kernel series promises fails whenever it is absent.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self
from uuid import UUID

from harness.consents import Consent
from harness.errors import MissingCapability, TargetError
from harness.formats.rpmb import OPTEE_TEST_KEY
from harness.shell import Shell

EFIVARS_PATH = "/sys/firmware/efi/efivars"
STMM_DEVICE = "optee-ta-ed32d533-99e6-4209-9cc0-2d72cdd998a7"
STMM_DRIVER = "/sys/bus/tee/drivers/tee-stmm-efi"
VENDOR_GUID: Final = UUID("6f0e6f5c-2f43-4c0e-9b1f-5a4c8d7be2a1")
"""The vendor GUID of every variable that the harness and its tests create."""
LINUX_EFI_CRASH_GUID = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
"""The vendor GUID whose files the kernel never makes immutable (K6 fs/efivarfs/vars.c)."""

# The first line is enough for a message; more is noise.
_DETAIL_CHARS = 120
# A write that makes OP-TEE move its file takes half a minute on slow boards.
_WRITE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """How one capability is measured.

    ``script`` is a POSIX shell fragment run in a subshell of its own: status 0 means present,
    its first output line is kept as detail. ``series`` marks a promise of the kernel series
    (drivers/firmware/efi/stmm): its absence is a failure, never a skip. ``remedy`` says how a
    board gets the capability. ``consent`` is what the owner must allow before it may be measured;
    without it the capability counts as absent. ``of_the_boot`` marks what each boot may bring
    about or not; the others last as long as firmware, kernel and root file system do. ``wears``
    marks a script that writes a variable: it waits until somebody asks.
    """

    name: str
    meaning: str
    script: str
    remedy: str
    series: bool = False
    consent: Consent | None = None
    of_the_boot: bool = False
    wears: bool = False


def _tool(name: str, command: str, package: str) -> Measurement:
    return Measurement(
        name,
        f"the command {command} on the board",
        f"command -v {command}",
        f"install the package {package} on the board",
    )


def octal(content: bytes) -> str:
    """As printf(1) on the board takes any bytes."""
    return "".join(f"\\{byte:03o}" for byte in content)


# In the class below the names of these two are capabilities.
_BOUND = f"{STMM_DRIVER}/{STMM_DEVICE}"
# A file that is not immutable, so that rm needs no chattr; no variable of this name ever exists
# in RPMB, so that nothing is written there.
_SCRATCH = f"f={EFIVARS_PATH}/dump-hil-{LINUX_EFI_CRASH_GUID}; "


class Capability(StrEnum):
    """Names as the board file and ``@pytest.mark.needs`` spell them, each with its measurement."""

    measurement: Measurement

    # mypy takes Capability("name") for a call of this.
    def __new__(cls, measurement: Measurement | str) -> Self:
        assert isinstance(measurement, Measurement)
        made = str.__new__(cls, measurement.name)
        made._value_ = measurement.name
        made.measurement = measurement
        return made

    STMM_DEVICE = Measurement(
        "stmm_device",
        "the StandaloneMM partition is a device of the TEE bus",
        f"cd /sys/bus/tee/devices/{STMM_DEVICE} && echo {STMM_DEVICE}",
        "use an OP-TEE with CFG_STMM_PATH; start tee-supplicant, whose connection enumerates it",
        series=True,
        of_the_boot=True,
    )
    STMM_DRIVER = Measurement(
        "stmm_driver",
        "the kernel has the tee-stmm-efi driver",
        f"cd {STMM_DRIVER} && pwd",
        "build the kernel with CONFIG_TEE_STMM_EFI and load the module",
        series=True,
        of_the_boot=True,
    )
    DRIVER_BOUND = Measurement(
        "driver_bound",
        "the driver is bound to the StandaloneMM device",
        f"test -e {_BOUND}",
        "read the kernel log for tee-stmm-efi; bind it by hand with `hil shell`",
        series=True,
        of_the_boot=True,
    )
    EFIVARFS = Measurement(
        "efivarfs",
        "efivarfs is mounted",
        f"grep -E '^[^ ]+ {EFIVARS_PATH} efivarfs ' /proc/mounts",
        f"mount -t efivarfs efivarfs {EFIVARS_PATH}",
        series=True,
        of_the_boot=True,
    )
    WRITABLE = Measurement(
        "writable",
        "efivarfs is mounted read-write",
        f"grep -E '^[^ ]+ {EFIVARS_PATH} efivarfs rw[, ]' /proc/mounts",
        "bind the driver; a mount made ro by hand or by fstab stays ro: mount -o remount,rw",
        series=True,
        of_the_boot=True,
    )
    QUERY_VARIABLE_INFO = Measurement(
        "query_variable_info",
        "the firmware advertises QueryVariableInfo at run time, so df shows figures",
        f'set -- $(df -Pk {EFIVARS_PATH} | tail -n 1); test "$2" -gt 0 && echo "$2 KiB"',
        "use a firmware whose RTPROP table has EFI_RT_SUPPORTED_QUERY_VARIABLE_INFO",
    )
    SUPPLICANT_SERVICE = Measurement(
        "supplicant_service",
        "tee-supplicant runs and can be stopped and started",
        "for p in /proc/[0-9]*; do IFS= read -r n <$p/comm && case $n in tee-supplicant*) "
        'echo "pid ${p#/proc/}"; exit 0;; esac; done 2>/dev/null; exit 1',
        "start tee-supplicant; a kernel-routed board needs none",
        of_the_boot=True,
    )
    SUPPLICANT_ROUTED_RPMB = Measurement(
        "supplicant_routed_rpmb",
        "OP-TEE reaches the RPMB through tee-supplicant",
        "m=$(cat /sys/class/tee/tee0/rpmb_routing_model 2>/dev/null || echo user); "
        'echo "$m"; test "$m" = user',
        "this board routes RPMB requests in the kernel",
    )
    KERNEL_ROUTED_RPMB = Measurement(
        "kernel_routed_rpmb",
        "OP-TEE reaches the RPMB through the kernel",
        'm=$(cat /sys/class/tee/tee0/rpmb_routing_model 2>/dev/null); echo "$m"; '
        'test "$m" = kernel',
        "needs Linux 6.12 with CONFIG_RPMB and OP-TEE 4.4 or later",
    )
    RPMB_DEVICE = Measurement(
        "rpmb_device",
        "the eMMC has an RPMB device node",
        "ls /dev/mmcblk*rpmb",
        "the board needs an eMMC with an RPMB partition and CONFIG_MMC_BLOCK",
    )
    RPMB_ACCESS = Measurement(
        "rpmb_access",
        "the harness can send RPMB frames",
        "ls /dev/mmcblk*rpmb && { command -v mmc || command -v python3; }",
        "install mmc-utils or python3 on the board",
    )
    RPMB_TEST_KEY = Measurement(
        "rpmb_test_key",
        "the RPMB has OP-TEE's public test key, so that anybody with root can write it",
        # mmc checks the MAC of what it read.
        "command -v mmc >/dev/null && d=$(mktemp -d) || exit; "
        f"printf '{octal(OPTEE_TEST_KEY)}' >$d/key && "
        "mmc rpmb read-block $(ls /dev/mmcblk*rpmb | head -n 1) 0 1 $d/data $d/key 2>&1; r=$?; "
        "rm -rf $d; exit $r",
        "a product must not have it; without it the suite cannot forge RPMB writes",
    )
    KERNEL_LOG = Measurement(
        "kernel_log",
        "the kernel log can be read",
        "dmesg | tail -n 1",
        "log in as root, or set kernel.dmesg_restrict=0",
    )
    PYTHON3 = _tool("python3", "python3", "python3")
    CHATTR = _tool("chattr", "chattr", "e2fsprogs")
    SECOND_USER = Measurement(
        "second_user",
        "commands can run as a user other than root",
        "u=$(su -s /bin/sh nobody -c 'id -u' </dev/null 2>/dev/null || "
        "setpriv --reuid=65534 --clear-groups id -u 2>/dev/null); "
        'echo "uid $u"; test "${u:-0}" -gt 0',
        "the board needs a user nobody and su or setpriv; an emulated board needs the host's "
        "package uidmap",
    )
    EFI_PSTORE = Measurement(
        "efi_pstore",
        "the kernel has efi-pstore, loaded or as a module",
        "test -d /sys/module/efi_pstore || modprobe -n -q efi_pstore || "
        "modinfo efi_pstore >/dev/null 2>&1",  # busybox has no modprobe -n
        "build CONFIG_EFI_VARS_PSTORE",
    )
    SYSRQ = Measurement(
        "sysrq",
        "the kernel takes SysRq commands from /proc",
        'test "$(id -u)" = 0 && cat /proc/sys/kernel/sysrq',
        "build CONFIG_MAGIC_SYSRQ",
    )
    MMC_UTILS = _tool("mmc_utils", "mmc", "mmc-utils")
    EFIVAR = _tool("efivar", "efivar", "efivar")
    EFIBOOTMGR = _tool("efibootmgr", "efibootmgr", "efibootmgr")
    MOKUTIL = _tool("mokutil", "mokutil", "mokutil")
    EFITOOLS = _tool("efitools", "efi-readvar", "efitools")
    SYSTEMD = Measurement(
        "systemd",
        "systemd manages the services",
        "systemctl is-system-running 2>/dev/null | grep -E 'running|degraded|starting'",
        "the board uses another init",
    )
    # How boards differ that have the same parts:
    SFTP = Measurement(
        "sftp",
        "the SSH server offers SFTP",
        'test -n "$link_has_sftp"',
        "run the tests over ssh and install an sftp-server; files move by shell commands without",
    )
    UNCOMMITTED_FILES_STAY = Measurement(
        "uncommitted_files_stay",
        "a variable's file that was created and never written stays (Linux 6; 7: until its close)",
        f'{_SCRATCH} : >"$f" && test -e "$f" && rm "$f"',
        "this is how the board's kernel has efivarfs",
        consent=Consent.WRITE_RPMB,
    )
    STATFS_IS_LIVE = Measurement(
        "statfs_is_live",
        "statfs(2) shows the store's free bytes as they are (Linux 6; 7: from a cache)",
        # A mark must be seen at once although the cache has been asked more often than it asks the
        # firmware (5 times in 2 s, K7 fs/efivarfs/super.c). A write that moves OP-TEE's file takes
        # longer than that; the next one does not. Attributes without data delete.
        f"d={EFIVARS_PATH}; f=$d/hil-statfs-{VENDOR_GUID}; free() {{ stat -f -c %f $@; }}; "
        "for i in 1 2; do set -- $(free $d $d $d $d $d $d); "
        'test "${6:-0}" -gt 0 && exec 3>"$f" && read began x </proc/uptime || exit; '
        r"printf '\7\0\0\0%s' $i >&3; w=$?; now=$(free $d); read ended x </proc/uptime; "
        r"test $w = 0 && printf '\7\0\0\0' >&3; exec 3>&-; rm -f $f 2>/dev/null; "
        'test $w = 0 || exit; echo "$6, then $now"; test "$now" -ne "$6" || exit; '
        "test $((1${ended%.*}${ended#*.} - 1${began%.*}${began#*.})) -ge 100 || exit 0; done; "
        "exit 1",
        "this is how the board's kernel has efivarfs",
        consent=Consent.WRITE_RPMB,
        wears=True,
    )
    TRUNCATE_CHANGES_SIZE = Measurement(
        "truncate_changes_size",
        "truncate(2) changes the size that a variable's file shows (Linux 6; 7: nothing)",
        f'{_SCRATCH} exec 3>"$f" || exit; '
        '{ truncate -s 9 "$f" || dd of="$f" bs=9 seek=1 count=0 </dev/null; } 2>/dev/null; '
        'test -s "$f"; r=$?; exec 3>&-; rm -f "$f"; exit $r',
        "this is how the board's kernel has efivarfs",
        consent=Consent.WRITE_RPMB,
    )
    EXIT_BOOT_SERVICES_TOLD = Measurement(
        "exit_boot_services_told",
        "StandaloneMM was told ExitBootServices: volatile variables cannot be created any more",
        # Where it was not told the variable is in RAM, and gone again.
        f'{_SCRATCH} : >"$f" || exit; printf \'\\6\\0\\0\\0v\' >"$f"; r=$?; '
        'rm -f "$f"; test $r -ne 0',
        "use a U-Boot that keeps its variables in StandaloneMM (CONFIG_EFI_MM_COMM_TEE)",
        consent=Consent.WRITE_RPMB,
    )
    RELOCATION_KEEPS_TAIL = Measurement(
        "relocation_keeps_tail",
        "OP-TEE's RPMB file system keeps what lies behind a write that relocates a file",
        # optee_os 64c6d2917d12 (3.12) lost it, 15bbaa331 (4.10) mended that.
        "set -- $(dmesg | sed -n 's/.*optee: revision \\([0-9]*\\)\\.\\([0-9]*\\).*/\\1 \\2/p' "
        '| head -n 1); test $# = 2 || exit; echo "OP-TEE $1.$2"; v=$(($1 * 100 + $2)); '
        "test $v -ge 410 -o $v -lt 312",
        "use OP-TEE 4.10 or later; the release is read from the kernel log of this boot",
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """One capability as measured: present or not, and the first line the measurement printed."""

    capability: Capability
    present: bool
    detail: str


@dataclass(frozen=True)
class Capabilities:
    """All capabilities of one boot, with what the board file pinned. ``later`` measures what was
    put off."""

    findings: dict[Capability, Measured]
    pinned: Mapping[Capability, bool]
    board: str
    later: Callable[[Collection[Capability]], Mapping[Capability, Measured]] | None = None

    def lasting(self) -> Mapping[Capability, Measured]:
        """What holds in the next boot of the same software, too: nothing, unless this boot brought
        the board into its standard state, in which it was measured."""
        series = (name for name in Capability if name.measurement.series)
        if not all(self.findings[name].present for name in series):
            return {}
        return {
            name: found for name, found in self.findings.items() if not name.measurement.of_the_boot
        }

    def has(self, capability: Capability | str) -> bool:
        """Whether it was measured present. Raises the link's errors where it is measured now."""
        return self._measured(Capability(capability)).present

    def require(self, capability: Capability | str) -> None:
        """Return if present. Raises :class:`MissingCapability` (a skip) when an unpinned one is
        absent, :class:`TargetError` (a failure) when the board file or the kernel series
        promised it."""
        finding = self._measured(Capability(capability))
        if finding.present:
            return
        measurement = finding.capability.measurement
        what = f"no {finding.capability} on this board ({measurement.meaning})"
        what += f"; measured: {finding.detail}" if finding.detail else ""
        if self.pinned.get(finding.capability):
            raise TargetError(
                f"{what}; its board file says that it has",
                remedy=measurement.remedy,
                board=self.board,
            )
        if measurement.series:
            raise TargetError(
                f"{what}; the kernel series promises it",
                remedy=measurement.remedy,
                board=self.board,
            )
        raise MissingCapability(what, remedy=measurement.remedy, board=self.board)

    def contradictions(self) -> list[str]:
        """Each pinned value that the measurement disagrees with, as a sentence."""
        return [
            f"{capability} is pinned {str(value).lower()} and measured "
            f"{str(not value).lower()} ({self.findings[capability].detail or 'no output'})"
            for capability, value in self.pinned.items()
            if capability in self.findings and self.findings[capability].present != value
        ]

    def _measured(self, capability: Capability) -> Measured:
        if capability not in self.findings and self.later is not None:
            self.findings.update(self.later({capability}))
        return self.findings[capability]


def measure(
    shell: Shell,
    *,
    board: str,
    pinned: Mapping[Capability, bool],
    may: Callable[[Consent], bool] = lambda consent: False,
    believe: bool = False,
    known: Mapping[Capability, Measured] | None = None,
    timeout: float = 20.0,
) -> Capabilities:
    """Measure everything in one round trip on a lane of its own (``df`` can block behind a hung
    writer), but for what wears the flash: that when it is first asked for. ``may`` tells what the
    board's owner allows; with ``believe`` what is ``pinned`` is not measured, nor is what is
    ``known`` from an earlier boot of the same software (:meth:`Capabilities.lasting`). Raises the
    link's errors, and :class:`TargetError` when the script did not end."""

    def ask(wanted: Collection[Capability]) -> Mapping[Capability, Measured]:
        slow = any(name.measurement.wears for name in wanted)
        script = _script(may, _offers_sftp(shell), wanted)
        result = shell.run_isolated(script, timeout=_WRITE_SECONDS if slow else timeout)
        found = dict(_answers(result.text))
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise TargetError(
                f"the capability script gave no answer for {', '.join(missing)}: "
                f"{result.error_text[-200:] or 'no message'}",
                remedy="run `hil shell` and see whether the board's /bin/sh works",
                board=board,
            )
        return found

    findings = dict(known or {})
    if believe:
        findings |= {name: Measured(name, value, "pinned") for name, value in pinned.items()}
    now = {name for name in Capability if not name.measurement.wears} - set(findings)
    if now:
        findings |= ask(now)
    return Capabilities(findings, dict(pinned), board, ask)


def _answers(text: str) -> Iterator[tuple[Capability, Measured]]:
    for line in text.splitlines():
        name, _, rest = line.partition("=")
        answer, _, detail = rest.partition(":")
        if name in Capability.__members__.values() and answer in {"yes", "no"}:
            capability = Capability(name)
            yield capability, Measured(capability, answer == "yes", detail[:_DETAIL_CHARS])


def _offers_sftp(shell: Shell) -> bool:
    """What only the link can tell; a link that has no such question has no SFTP."""
    ask: Callable[[], bool] | None = getattr(shell, "offers_sftp", None)
    return ask is not None and ask()


def _script(may: Callable[[Consent], bool], sftp: bool, wanted: Collection[Capability]) -> str:
    lines = [
        # Built-in commands only: a process costs a millisecond.
        "n='\n'",
        # No fragment sees the variables of the loop, or the detail of the one before.
        'm() { if d=$( (unset a d n; eval "$2") 2>&1 ); then a=yes; else a=no; fi; '
        'printf \'%s=%s:%s\\n\' "$1" $a "${d%%"$n"*}"; }',
        f"link_has_sftp={'yes' if sftp else ''}",
    ]
    for capability in Capability:
        if capability not in wanted:
            continue
        measurement = capability.measurement
        script = measurement.script
        if measurement.consent is not None and not may(measurement.consent):
            script = f"echo not measured without the consent {measurement.consent}; exit 1"
        quoted = script.replace("'", "'\\''")
        lines.append(f"m {capability} '{quoted}'")
    return "\n".join(lines)
