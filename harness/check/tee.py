"""OP-TEE as Linux has it: devices, supplicant, the StandaloneMM device and its driver."""

import re
from typing import Final

from harness.capabilities import STMM_DEVICE, STMM_DRIVER
from harness.check import rpmb
from harness.check.finding import Finding, fail, ok, warn
from harness.check.pitfalls import RPMB_EMU, RPMB_EMU_REMEDY, no_node
from harness.check.survey import Survey
from harness.check.target import Process, Target

_UNIT: Final = "tee-supplicant.service"
_ERRORS: Final = {
    "ffff3024": "StandaloneMM panicked (TEE_ERROR_TARGET_DEAD)",
    "ffff0008": "this OP-TEE has no StandaloneMM (TEE_ERROR_ITEM_NOT_FOUND)",
    "ffff000e": "OP-TEE could not reach its storage (TEE_ERROR_COMMUNICATION)",
    "ffff000c": "OP-TEE has too little memory for it (TEE_ERROR_OUT_OF_MEMORY)",
}
"""What tee_client_open_session says when the driver's probe fails (GlobalPlatform TEE API)."""
_UNBINDS: Final = re.compile(
    r"tee[-_]stmm[-_]efi\S*/unbind|(?:modprobe +(?:-\S+ +)*(?:-r|--remove)|rmmod)\b.*tee_stmm_efi"
)


def devices(survey: Survey) -> Finding:
    """/dev/tee0 for clients, /dev/teepriv0 for the supplicant, and the driver of OP-TEE."""
    target = survey.target
    nodes = [node.path for node in target.nodes if node.path.startswith("/dev/tee")]
    if not target.lines("tee class"):
        return fail(
            "no TEE device",
            cause="the kernel's optee driver did not initialise",
            evidence=target.log("optee|TEE"),
            remedy="modprobe optee; then read the kernel log for optee",
        )
    missing = sorted({"/dev/tee0", "/dev/teepriv0"} - set(nodes))
    if missing:
        cause, remedy = no_node(target)
        return fail(f"no {' and no '.join(missing)}", cause=cause, remedy=remedy)
    return ok(f"{', '.join(nodes)}; RPMB routed by {target.word('routing') or 'user'} space")


def supplicant(survey: Survey) -> Finding:
    """One tee-supplicant that runs, neither stopped by a signal nor restarted again and again."""
    target = survey.target
    if target.kernel_routed:
        return ok("not needed: the kernel carries RPMB requests")
    found = target.supplicants
    if not found:
        return fail(
            "not running",
            cause="tee-supplicant does not run, and OP-TEE reaches the RPMB only through it",
            evidence=[target.word("unit"), *target.lines("journal")][-4:],
            remedy=_how_to_start(target),
        )
    first = found[0]
    if first.state in "Tt":
        return fail(
            f"process {first.pid} is stopped (state {first.state})",
            cause="tee-supplicant hangs: a signal (SIGSTOP) or a debugger stopped it, so whoever "
            "asks OP-TEE for storage sleeps",
            remedy=f"kill -CONT {first.pid}",
        )
    if len(found) > 1:
        pids = ", ".join(str(process.pid) for process in found)
        return warn(
            f"{len(found)} run: processes {pids}",
            cause="the kernel lets one serve; the others are left from elsewhere",
            remedy="stop them, and start the service",
        )
    return ok(f"process {first.pid} runs")


def _how_to_start(target: Target) -> str:
    unit, script = target.word("unit").split(), target.word("script").split()
    if unit:
        return f"systemctl start {unit[1]}; and for every boot: systemctl enable {unit[1]}"
    if script:
        return f"{script[1]} start"
    return "install tee-supplicant (optee_client), its unit and its udev rules, and start it"


def access(survey: Survey) -> Finding:
    """Whether the supplicant can reach the RPMB: its build, and permission on the node."""
    target = survey.target
    if target.kernel_routed:
        return ok("the kernel's own")
    process = target.supplicants[0]
    emulating = _emulates(target, process)
    if emulating is not None:
        return emulating
    for node in target.nodes:
        if node.path.endswith("rpmb") and not node.opens_for(process.uid, process.groups):
            return fail(
                f"process {process.pid} of uid {process.uid} may not open {node.path}",
                cause=f"missing permission: {node.path} is {node.mode}, owner {node.uid}, group "
                f"{node.gid}",
                evidence=[line for line in target.lines("journal") if "rpmb" in line][-2:],
                remedy="install optee_client's udev rule for mmcblk*rpmb, or let the service's "
                "user be in the node's group",
            )
    return ok(f"uid {process.uid} may open the RPMB node")


def _emulates(target: Target, process: Process) -> Finding | None:
    said = emulation_log(target)
    if process.names_rpmb and not said:
        return None
    return fail(
        f"process {process.pid} has no use for the RPMB",
        cause=RPMB_EMU,
        evidence=said[-2:] or ["its program names no /dev/mmcblk*rpmb"],
        remedy=RPMB_EMU_REMEDY,
    )


def emulation_log(target: Target) -> list[str]:
    """What a build with RPMB_EMU says of its RPMB in memory (OC rpmb.c)."""
    said = re.compile(
        r"Cannot (?:check|compute) MAC|Invalid MAC|Key already set|emulated memory|Emulating"
    )
    return [line for line in target.lines("journal") if said.search(line)]


def stmm_device(survey: Survey) -> Finding:
    """StandaloneMM on the TEE bus, which appears when the supplicant connects."""
    target = survey.target
    if STMM_DEVICE in target.lines("tee devices"):
        return ok(STMM_DEVICE)
    return fail(
        f"no {STMM_DEVICE} on the TEE bus",
        cause="OP-TEE announces no StandaloneMM: it was built without it (CFG_STMM_PATH), or "
        "without what its announcement depends on (CFG_RPMB_FS; optee_os PR 7220)",
        evidence=target.log("enumeration") or [f"on the bus: {target.lines('tee devices')}"],
        remedy="build OP-TEE with CFG_STMM_PATH=.../BL32_AP_MM.fd CFG_RPMB_FS=y CFG_CORE_DYN_SHM=y",
    )


def driver(survey: Survey) -> Finding:
    """tee-stmm-efi: loaded, and bound to the device."""
    target = survey.target
    if STMM_DEVICE in target.lines("bound"):
        return ok(f"{STMM_DRIVER.rpartition('/')[2]} is bound")
    said = target.log(r"tee[-_]stmm|panic|E/TC")
    if "tee-stmm-efi" not in target.lines("tee drivers"):
        built = target.config("TEE_STMM_EFI")
        return fail(
            "not loaded",
            cause="the driver tee_stmm_efi is not loaded: nobody loads the module by its alias "
            f"(CONFIG_TEE_STMM_EFI={built or '?'})",
            evidence=said,
            remedy="modprobe tee_stmm_efi; for every boot: udev, or a line `tee_stmm_efi` in "
            "/etc/modules-load.d/, or build it in",
        )
    for code, meaning in _ERRORS.items():
        if any(f"err: {code}" in line for line in said):
            return fail(
                "loaded, and its probe failed",
                cause=meaning,
                evidence=said[-3:],
                remedy="read the secure world's console (E/TC lines); power-cycle the board",
            )
    if any("failed with error -5" in line for line in said):
        cause, following = rpmb.why_no_store(survey)
        return fail(
            "loaded, and its probe failed",
            cause=f"StandaloneMM has no variable store: {cause}",
            evidence=[*survey.console_lines("E/TC"), *said][-3:],
            remedy=following,
        )
    return fail(
        "loaded, and not bound",
        cause="the driver was unbound by hand, or its probe failed"
        + (" as the kernel log says" if said else ""),
        evidence=said[-3:],
        remedy=f"echo {STMM_DEVICE} > {STMM_DRIVER}/bind; then read dmesg",
    )


def service_stop(survey: Survey) -> Finding:
    """Whether stopping the supplicant's service unbinds the driver first; read, not tried."""
    target = survey.target
    if target.kernel_routed:
        return ok("no supplicant to stop")
    stops = [line for line in target.lines("unit") if re.match(r"\s*ExecStop\w*=", line)]
    if any(_UNBINDS.search(line) for line in (*stops, *target.lines("script"))):
        return ok("the service unbinds the driver first")
    unit = (target.word("unit").split() or ["", _UNIT])[1]
    return warn(
        "stopping the service leaves the driver bound",
        cause="without its supplicant every SetVariable fails, and a shutdown may hang on one",
        evidence=stops or ["its unit has no ExecStop="] if target.lines("unit") else (),
        remedy=_drop_in(unit),
    )


def _drop_in(unit: str) -> str:
    return (
        f"/etc/systemd/system/{unit}.d/unbind.conf:\n"
        "[Service]\n"
        f"ExecStop=-/bin/sh -c 'echo {STMM_DEVICE} > {STMM_DRIVER}/unbind'\n"
        "then: systemctl daemon-reload"
    )
