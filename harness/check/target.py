"""What a board tells of itself, read in one round trip and changing nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.capabilities import EFIVARS_PATH, STMM_DRIVER
from harness.errors import TargetError
from harness.instruments.efivars import MountState, mount_state
from harness.shell import Shell

_CONTAINER = (
    "{ tr '\\0' '\\n' </proc/1/environ | sed -n 's/^container=//p'; "
    "test -e /.dockerenv && echo docker; test -e /run/.containerenv && echo podman; } | head -n 1"
)
NO_EMMC: Final = "no eMMC"
MACHINE: Final = (
    "{ uname -srm; for f in /proc/device-tree/model /sys/class/dmi/id/product_name; do "
    "test -s $f && tr -d '\\0' <$f && echo; done; "
    f'c=$({_CONTAINER}); test -n "$c" && echo "in a container ($c)"; '
    f"cat /sys/class/mmc_host/mmc*/mmc*/cid >/dev/null || echo '{NO_EMMC}'; "
    "test -e /sys/firmware/efi || echo 'no EFI'; "
    "test -e /sys/class/tee/tee0 || echo 'no TEE'; } 2>/dev/null | sed '/^ *$/d'"
)
"""Prints, a line each, what a machine is that may be anything with a shell."""

_SECTION = "@hil "
_CONFIG = "OPTEE|TEE|TEE_STMM_EFI|EFIVAR_FS|EFI|EFI_DISABLE_RUNTIME|PREEMPT_RT|MMC_BLOCK|RPMB"
_LOG = (
    r"Linux version|Kernel command line|efi: |EFI|optee|OP-TEE|tee[-_]stmm|TEE-based|[IE]/TC|"
    r"efivars|mmcblk[0-9]*rpmb|rpmb|PREEMPT|Kernel panic|Oops|BUG:|Unable to handle|blocked for"
)
_JOURNAL = r"rpmb|RPMB|mmc|MAC|key|ERR|rror|ailed"
_UNITS = "tee-supplicant.service tee-supplicant@teepriv0.service"

_SCRIPTS: Mapping[str, str] = {
    "kernel": "uname -srvm",
    "user": "id -u",
    "container": _CONTAINER,
    "command line": "cat /proc/cmdline",
    "config": "{ zcat /proc/config.gz || gzip -dc /proc/config.gz || cat /boot/config-$(uname -r); "
    f"}} 2>/dev/null | grep -E '^(# )?CONFIG_({_CONFIG})[ =]'",
    "file systems": "cat /proc/filesystems",
    "modules": "ls /sys/module | grep -E '^(optee|tee|tee_stmm_efi|efivarfs)$'",
    # Slow, and of use only where the kernel does not tell its configuration.
    "loadable": "zcat /proc/config.gz >/dev/null || for m in optee tee_stmm_efi efivarfs; do "
    "{ modprobe -n -q $m || modinfo $m; } >/dev/null 2>&1 && echo $m; done",
    "log": f"dmesg | grep -E '{_LOG}'",
    "log readable": "dmesg >/dev/null && echo yes",
    "nodes": "ls -ln /dev/tee* /dev/mmcblk*rpmb",
    "tee class": "ls /sys/class/tee",
    "routing": "cat /sys/class/tee/tee0/rpmb_routing_model",
    "tee devices": "ls /sys/bus/tee/devices",
    "tee drivers": "ls /sys/bus/tee/drivers",
    "bound": f"ls {STMM_DRIVER}",
    "eMMC": "for d in /sys/class/mmc_host/mmc*/mmc*:*; do test -e $d/cid && "
    "echo ${d##*/} $(cat $d/cid $d/raw_rpmb_size_mult $d/rel_sectors); done",
    # Read as a whole: /proc/PID/status is not one of the supplicant's own promises.
    "supplicants": "for p in /proc/[0-9]*; do IFS= read -r n <$p/comm && case $n in "
    "tee-supplicant*) echo pid ${p#/proc/}; grep -E '^(State|Uid|Groups):' $p/status; "
    "ls -l $p/fd | sed -n 's/.* -> \\/dev/fd \\/dev/p'; "
    # A build with RPMB_EMU names no node of an RPMB (OC rpmb.c:mmc_rpmb_fd).
    "grep -aq 'mmcblk.*rpmb' $p/exe $(tr '\\0' '\\n' <$p/cmdline | grep '^/') && "
    "echo names rpmb;; esac; done",
    "unit": f"for u in {_UNITS}; do t=$(systemctl cat $u) && "
    '{ echo unit $u $(systemctl is-active $u); echo "$t"; break; }; done',
    "script": "for s in /etc/init.d/*tee-supplicant*; do test -f $s && "
    "{ echo script $s; cat $s; break; }; done",
    "journal": f"journalctl -q -o cat -n 50 -u {' -u '.join(_UNITS.split())} | "
    f"grep -E '{_JOURNAL}'",
    "efi": "ls /sys/firmware/efi",
    "mounts": f"grep -F ' {EFIVARS_PATH} ' /proc/self/mountinfo",
    "fstab": "grep -E '^[^#].*efivarfs' /etc/fstab",
    "sleeping": "grep -l '^State:.D' /proc/[0-9]*/status | while read f; do "
    "IFS= read -r n <${f%status}comm; echo $n; done",
}


@dataclass(frozen=True, slots=True)
class Process:
    """A running tee-supplicant: ``state`` as ps shows it, the device nodes it holds open, and
    whether its program names an RPMB node at all."""

    pid: int
    state: str
    uid: int
    groups: tuple[int, ...]
    devices: tuple[str, ...]
    names_rpmb: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A device node: type and permission as ``ls`` shows them."""

    path: str
    mode: str
    uid: int
    gid: int

    def opens_for(self, uid: int, groups: Sequence[int]) -> bool:
        """Whether a process of that user may open it for reading and writing (root always)."""
        bits = self.mode[1:4] if uid == self.uid else self.mode[7:10]
        if uid != self.uid and self.gid in groups:
            bits = self.mode[4:7]
        return uid == 0 or bits[:2] == "rw"


@dataclass(frozen=True)
class Target:
    """The board's answers, by section."""

    sections: Mapping[str, tuple[str, ...]]

    def lines(self, section: str) -> tuple[str, ...]:
        """All lines of a section; empty where the board had nothing to say."""
        return self.sections.get(section, ())

    def word(self, section: str) -> str:
        """The first line of a section."""
        return next(iter(self.lines(section)), "")

    def log(self, pattern: str) -> tuple[str, ...]:
        """Lines of the kernel log that match."""
        return tuple(line for line in self.lines("log") if re.search(pattern, line))

    def config(self, option: str) -> str | None:
        """``y``, ``m``, ``n`` or None where the kernel does not tell its configuration."""
        if not self.lines("config"):
            return None
        for line in self.lines("config"):
            if line.startswith(f"CONFIG_{option}="):
                return line.partition("=")[2]
        return "n"

    @property
    def preempt_rt(self) -> bool:
        """Whether this is a PREEMPT_RT kernel (uname -v says so since the first RT patches)."""
        return "PREEMPT_RT" in self.word("kernel")

    @property
    def kernel_routed(self) -> bool:
        """Whether Linux carries RPMB requests itself."""
        return self.word("routing") == "kernel"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The TEE's and the RPMB's device nodes."""
        found = []
        for line in self.lines("nodes"):
            fields = line.split()
            if len(fields) > 4 and fields[0][0] in "cb":
                found.append(Node(fields[-1], fields[0], int(fields[2]), int(fields[3])))
        return tuple(found)

    @property
    def mount(self) -> MountState | None:
        """The topmost mount of efivarfs."""
        lines = self.lines("mounts")
        return mount_state(lines[-1]) if lines else None

    @property
    def supplicants(self) -> tuple[Process, ...]:
        """The running supplicants."""
        found = []
        blocks = "\n".join(self.lines("supplicants")).split("pid ")[1:]
        for block in blocks:
            pid, *lines = block.splitlines()
            words = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
            found.append(
                Process(
                    int(pid),
                    (words.get("State") or ["?"])[0],
                    int((words.get("Uid") or ["0", "0"])[1]),
                    tuple(map(int, words.get("Groups", []))),
                    tuple(line[3:] for line in lines if line.startswith("fd ")),
                    "names rpmb" in lines,
                )
            )
        return tuple(found)


def look(shell: Shell, *, timeout: float = 30.0) -> Target:
    """Ask everything in one round trip on a lane of its own. Raises the link's errors, and
    :class:`TargetError` when the script did not come to its end."""
    script = "".join(
        f"echo '{_SECTION}{name}'\n( {fragment}; ) 2>/dev/null\n"
        for name, fragment in _SCRIPTS.items()
    )
    result = shell.run_isolated(f"{script}echo '{_SECTION}end'", timeout=timeout)
    sections: dict[str, list[str]] = {}
    name = ""
    for line in result.text.splitlines():
        if line.startswith(_SECTION):
            name = line.removeprefix(_SECTION)
            sections[name] = []
        elif name:
            sections[name].append(line)
    if "end" not in sections:
        raise TargetError(
            f"the board did not answer to the end: {result.error_text[-200:] or 'no message'}",
            remedy="run `hil shell` and see whether the board's /bin/sh works",
        )
    return Target({name: tuple(lines) for name, lines in sections.items()})
