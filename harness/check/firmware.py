"""Firmware and kernel: who booted, which versions, and what the kernel was built with."""

import re
from typing import Final

from harness.check.finding import Finding, fail, not_looked_at, ok, warn
from harness.check.survey import Survey
from harness.check.target import Target

_BANNERS: Final = (
    ("{}", r"(U-Boot (?:SPL )?\d{4}\.\S+|EDK ?II? \S+)"),
    ("TF-A {}", r"BL31: (v[\d.]+)"),
    ("{}", r"efi: (EFI v\S+ by .*\S)"),
)

_PARTS: Final = {
    "OPTEE": ("driver of OP-TEE", "optee"),
    "TEE_STMM_EFI": ("driver of StandaloneMM's variables", "tee_stmm_efi"),
    "EFIVAR_FS": ("efivarfs", "efivarfs"),
}


def firmware(survey: Survey) -> Finding:
    """Banners of firmware, OP-TEE and StandaloneMM in the boot log and the kernel log."""
    target = survey.target
    if target.config("OPTEE") == "n":
        return not_looked_at("kernel config failed")
    if not target.lines("log readable"):
        return warn(
            "the kernel log cannot be read",
            cause="kernel.dmesg_restrict is set and this user may not",
            remedy="log in as root, or set kernel.dmesg_restrict=0",
        )
    text = "\n".join((survey.console_text, *target.lines("log")))
    named = [
        shown.format(match[1])
        for shown, pattern in _BANNERS
        if (match := re.search(pattern, text)) is not None
    ]
    optee = re.search(r"(?:optee: revision |OP-TEE: revision |OP-TEE version: )(\d\S*)", text)
    if optee is None:
        return fail(
            ", ".join(named) or "no banner in any log",
            cause="the kernel found no OP-TEE: the device tree has no /firmware/optee node, the "
            "firmware starts no OP-TEE, or the kernel has no driver for it",
            remedy="look for `optee` in /sys/firmware/devicetree/base/firmware and for "
            "CONFIG_OPTEE in the kernel",
            evidence=target.log("optee|TEE"),
        )
    stmm = re.search(r"(?i)(?:standalonemm|stmm)[^\n]*?version:? *(\S+)", text)
    named += [f"OP-TEE {optee[1]}", f"StandaloneMM {stmm[1]}" if stmm else ""]
    shown = ", ".join(part for part in named if part)
    return ok(shown if stmm else f"{shown}; no log tells StandaloneMM's version")


def kernel(survey: Survey) -> Finding:
    """CONFIG_OPTEE, CONFIG_TEE_STMM_EFI, CONFIG_EFIVAR_FS: from the configuration, or else by
    what the kernel shows."""
    target = survey.target
    known = {option: _state(target, option) for option in _PARTS}
    missing = [option for option, state in known.items() if state == "n"]
    release = " ".join(target.word("kernel").split()[:2])
    if missing:
        what = "; ".join(f"no {_PARTS[option][0]} (CONFIG_{option})" for option in missing)
        return fail(
            f"{release}: {what}",
            cause="the kernel was built without it",
            evidence=[line for line in target.lines("config") if _names(line, missing)],
            remedy="build the kernel with " + " ".join(f"CONFIG_{option}=y" for option in missing),
        )
    shown = ", ".join(f"CONFIG_{option}={state}" for option, state in known.items())
    if "?" in known.values():
        return warn(
            f"{release}: {shown}",
            cause="the kernel tells its configuration nowhere, and shows no trace of what is `?`",
            remedy="build it with CONFIG_IKCONFIG_PROC, or install /boot/config-RELEASE",
        )
    if target.preempt_rt:
        return ok(f"{release}, PREEMPT_RT: {shown}")
    return ok(f"{release}: {shown}")


def _state(target: Target, option: str) -> str:
    configured = target.config(option)
    if configured is not None:
        return configured
    module = _PARTS[option][1]
    if module in target.lines("modules"):
        return "yes"
    if module in target.lines("loadable"):
        return "m"
    shown = {
        "OPTEE": bool(target.lines("tee class")),
        "TEE_STMM_EFI": "tee-stmm-efi" in target.lines("tee drivers"),
        "EFIVAR_FS": any(line.endswith("\tefivarfs") for line in target.lines("file systems")),
    }
    return "yes" if shown[option] else "?"


def _names(line: str, options: list[str]) -> bool:
    return any(f"CONFIG_{option} " in line for option in options)
