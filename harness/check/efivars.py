"""EFI variables as Linux shows them: services, mount, space, a round trip, its latency."""

import contextlib
import errno
import os
import time
from threading import Event
from typing import Final

from harness.capabilities import EFIVARS_PATH, VENDOR_GUID
from harness.check import tee
from harness.check.finding import Finding, fail, not_looked_at, ok, warn
from harness.check.pitfalls import RPMB_EMU, RPMB_EMU_REMEDY, WRONG_KEY, WRONG_KEY_REMEDY
from harness.check.survey import Survey
from harness.check.target import Target
from harness.consents import Consent
from harness.errors import ConsentMissing, HilError, LinkTimeout
from harness.instruments.efivars import MountState

_VARIABLE: Final = "HilCheck"
_DATA_BYTES: Final = 16
_RECORD_BYTES: Final = 60 + 2 * (len(_VARIABLE) + 1) + _DATA_BYTES
"""Header of an authenticated variable store's record, name, data (stack 4.2)."""
_LIMIT: Final = "set_variable_ms"
_HANG_SECONDS: Final = 15.0
_QUIET_SECONDS: Final = 1.0
"""Without an RPMB write in between, nobody writes."""
_REMOUNT: Final = f"mount -o remount,rw {EFIVARS_PATH}"


def services(survey: Survey) -> Finding:
    """What EFI the kernel was booted with."""
    target = survey.target
    booted = [line.partition("efi: ")[2] for line in target.log(r"efi: EFI v")]
    if target.lines("efi") and not target.log("efi: UEFI not found"):
        shown = booted[0] if booted else "/sys/firmware/efi is there"
        if target.preempt_rt or "noruntime" in target.word("command line"):
            return ok(f"{shown}; without run-time services of its own")
        return ok(shown)
    return fail(
        "none: the kernel found no UEFI",
        cause="the firmware booted the kernel without EFI, or could not start its EFI services",
        evidence=[
            *survey.console_lines("Cannot initialize UEFI", "E/TC"),
            *target.log("efi: UEFI not found"),
        ],
        remedy="watch the firmware's console while it boots; boot by `bootefi` or the EFI boot "
        "manager",
    )


def mounted(survey: Survey) -> Finding:
    """efivarfs at its place."""
    target = survey.target
    if target.mount is not None:
        return ok(EFIVARS_PATH)
    command = target.word("command line").split()
    if target.preempt_rt and "efi=runtime" not in command:
        return fail(
            "not mounted",
            cause="a PREEMPT_RT kernel starts without EFI run-time services "
            "(CONFIG_EFI_DISABLE_RUNTIME), so mounting at boot failed with EOPNOTSUPP",
            evidence=[target.word("kernel"), *target.log("services will be disabled|efi=")],
            remedy="add efi=runtime to the kernel command line, or mount it once the driver is "
            f"bound: mount -t efivarfs efivarfs {EFIVARS_PATH}",
        )
    if "efi=noruntime" in command or "noefi" in command:
        return fail(
            "not mounted",
            cause="the kernel command line switches EFI run-time services off",
            evidence=[target.word("command line")],
            remedy="remove efi=noruntime and noefi from it",
        )
    return fail(
        "not mounted",
        cause="nobody mounted efivarfs",
        evidence=target.lines("fstab"),
        remedy=f"mount -t efivarfs efivarfs {EFIVARS_PATH}; systemd does so at boot where "
        f"{EFIVARS_PATH} exists by then",
    )


def writable(survey: Survey) -> Finding:
    """Read-write by itself: the superblock follows the driver, the mount's own flag does not."""
    target = survey.target
    state = target.mount
    assert state is not None
    if not state.writable and not state.mount_read_only:
        state, writes = _once_the_card_is_quiet(survey, state)
        if writes:
            return fail(
                "the file system is ro",
                cause="the firmware is still writing to the card: an empty store is formatted by "
                "thousands of RPMB writes before the driver's probe ends",
                evidence=[f"{writes} RPMB writes in the last {_QUIET_SECONDS:g} s"],
                remedy="wait and check again, or raise timeouts.ready in the board file "
                f"({survey.board.file.timeouts.ready:g} s)",
            )
    if state.writable:
        return ok("rw, without anybody's help")
    if state.mount_read_only:
        fstab = target.lines("fstab")
        entries = [line.split() for line in fstab]
        by_fstab = any("ro" in entry[3].split(",") for entry in entries if len(entry) > 3)
        return fail(
            "the mount is ro",
            cause="/etc/fstab mounts it ro: that flag stays when the driver binds"
            if by_fstab
            else "the mount was made ro by hand (or by an initramfs, before the driver): that "
            "flag stays when the driver binds",
            evidence=fstab if by_fstab else target.lines("mounts"),
            remedy=f"{_REMOUNT}; and for every boot "
            + ("mend" if by_fstab else "put into")
            + f" /etc/fstab: efivarfs {EFIVARS_PATH} efivarfs rw 0 0",
        )
    return fail(
        "the file system is ro",
        cause="efivarfs was mounted before the driver was bound, and this kernel does not make it "
        "rw then (before Linux 6.8; meta-iot2050 PR 426)",
        evidence=[target.word("kernel"), *target.lines("mounts")],
        remedy=f"{_REMOUNT} after the driver is bound, or build the driver in",
    )


def _once_the_card_is_quiet(survey: Survey, state: MountState) -> tuple[MountState, int]:
    """How it is mounted after the driver's probe, and how many RPMB writes were seen last where
    that did not end: an empty store is formatted within the probe, when sysfs shows the driver as
    bound already."""
    board = survey.board
    deadline = time.monotonic() + board.file.timeouts.ready
    writes = 0
    with contextlib.suppress(HilError, OSError):
        counter, late = board.rpmb.counter(), False
        while not (state.writable or late):
            late = time.monotonic() >= deadline
            Event().wait(_QUIET_SECONDS)
            before, counter = counter, board.rpmb.counter()
            writes = counter - before
            state = board.efivars.mount_state() or state
            if not writes:
                break
    return state, 0 if state.writable else writes


def space(survey: Survey) -> Finding:
    """What statfs says; zeros mean that the firmware does not say, and are no error."""
    try:
        found = survey.board.efivars.space()
    except LinkTimeout as error:
        return _hung(survey, error, "statfs")
    except OSError as error:
        return fail(
            f"statfs: {error.strerror}",
            cause="QueryVariableInfo failed",
            evidence=survey.target.log("stmm")[-2:],
            remedy="read the kernel log",
        )
    if not found.total:
        return ok("not told (no QueryVariableInfo at run time: zeros are no error)")
    shown = f"{found.available} of {found.total} bytes free"
    if found.available < _RECORD_BYTES:
        return fail(
            shown,
            cause="the variable store is full: what was deleted is not reclaimed at run time",
            remedy="delete what is not needed, reboot, and set a variable in the firmware (U-Boot: "
            "setenv -e -nv x 1), which reclaims; Linux cannot",
        )
    return ok(shown)


def round_trip(survey: Survey) -> Finding:
    """One variable of ours: written, read back, deleted; the RPMB's counter must have moved."""
    board = survey.board
    try:
        board.require_consent(Consent.WRITE_RPMB)
    except ConsentMissing:
        return not_looked_at("not allowed: its board file does not consent to write_rpmb")
    if survey.key_programmed is not True:
        return not_looked_at("a write might let the firmware program the RPMB's key")
    data = os.urandom(_DATA_BYTES)
    before = board.rpmb.counter()
    started = time.monotonic()
    try:
        board.efivars.overwrite(_VARIABLE, data, timeout=_patience(survey))
        survey.set_variable_ms = (time.monotonic() - started) * 1000
        try:
            read = board.efivars.read(_VARIABLE).data
        finally:
            board.efivars.delete(_VARIABLE)
    except LinkTimeout as error:
        return _hung(survey, error, "SetVariable")
    except OSError as error:
        return _refused(survey, error, moved=board.rpmb.counter() - before)
    moved = board.rpmb.counter() - before
    if read != data:
        return fail(
            "what was read is not what was written",
            cause="the firmware, or something between, changed the variable",
            evidence=[f"wrote {data.hex()}", f"read  {read.hex()}"],
            remedy="run the conformance tests: pytest --board "
            f"{survey.file.name} tests/conformance/test_variables.py",
        )
    if not moved:
        return _not_stored(survey)
    return ok(f"{_VARIABLE}-{VENDOR_GUID}: written, read, deleted; {moved} RPMB writes")


def _patience(survey: Survey) -> float:
    """Seconds that one write may take: the board file may know of a slow board."""
    slowest = survey.file.limits.get("set_variable_longest_ms", 0.0) / 1000
    return max(_HANG_SECONDS, 2 * slowest)


def _not_stored(survey: Survey) -> Finding:
    return fail(
        "written, read and deleted, and the RPMB's counter stood still",
        cause=f"the variable is not persistent: {RPMB_EMU}; or OP-TEE uses another card",
        evidence=survey.again().lines("journal")[-2:],
        remedy=f"{RPMB_EMU_REMEDY}; with several eMMCs: tee-supplicant --rpmb-cid",
    )


def _refused(survey: Survey, error: OSError, *, moved: int) -> Finding:
    name = errno.errorcode.get(error.errno or 0, "?")
    target = survey.again()
    cause, following = _why_refused(survey, error.errno or 0)
    return fail(
        f"SetVariable: {name}, {moved} RPMB writes",
        cause=cause,
        evidence=[*target.lines("journal")[-2:], *target.log(r"tee[-_]stmm|E/TC")[-2:]],
        remedy=following,
    )


def _why_refused(survey: Survey, number: int) -> tuple[str, str]:
    target = survey.target
    unopened = [line for line in target.lines("journal") if "Could not open" in line]
    match number:
        case errno.ENOSPC:
            return (
                "the store is full, or OP-TEE got no memory from the supplicant (it is gone)",
                "look at the space above; reboot and set a variable in the firmware to reclaim",
            )
        case errno.EIO:
            return "StandaloneMM panicked: every call fails until the next boot", "power-cycle it"
        case errno.EROFS:
            return "a read-only variable, or the mount became ro", _REMOUNT
        case errno.EINVAL if tee.emulation_log(target):
            return RPMB_EMU, RPMB_EMU_REMEDY
        case errno.EINVAL if unopened:
            return (
                "tee-supplicant cannot open the RPMB: no node, or missing permission",
                "see the node and the user of the service; install optee_client's udev rules",
            )
        case errno.EINVAL if not _store_was_read(survey):
            return WRONG_KEY, WRONG_KEY_REMEDY
        case errno.EINVAL:
            return (
                "OP-TEE has given the RPMB up until the next boot (rpmb_dead): its writes were "
                "refused ten times, or somebody else wrote and its counter is stale",
                "power-cycle it; if it comes back, read the secure world's console",
            )
    return "not one of the known pitfalls", "read dmesg and the service's log"


def _store_was_read(survey: Survey) -> bool:
    """Whether StandaloneMM has what the firmware listed at boot: it read its store then, so the
    key was right."""
    efivars = survey.board.efivars
    for name in efivars.names():
        if name.name in {"BootOrder", "Boot0000", "PlatformLang"}:
            try:
                return bool(efivars.read_raw(name.name, name.guid))
            except OSError:
                return False
    return True


def _hung(survey: Survey, error: HilError, call: str) -> Finding:
    sleeping = ", ".join(survey.again().lines("sleeping")) or "none"
    return fail(
        f"{call} did not return",
        cause="tee-supplicant took the request and does not answer: whoever uses variables sleeps",
        evidence=[error.what, f"uninterruptible: {sleeping}"],
        remedy="restart tee-supplicant; a writer that still sleeps must be killed (kill -9) before "
        "another supplicant can register",
    )


def latency(survey: Survey) -> Finding:
    """How long the SetVariable of the round trip took, the link's own time included."""
    taken = survey.set_variable_ms
    if taken is None:
        return not_looked_at("no SetVariable was made")
    limit = survey.file.limits.get(_LIMIT)
    if limit is None:
        return ok(f"{taken:.0f} ms (the board file sets no limit: {_LIMIT} in [limits])")
    if taken <= limit:
        return ok(f"{taken:.0f} ms, limit {limit:g} ms")
    return fail(
        f"{taken:.0f} ms, limit {limit:g} ms",
        cause="SetVariable is slower than the board file allows",
        remedy="a slow link counts, too; else look for RPMB retries on the secure world's console",
    )


def kernel_log(target: Target) -> tuple[str, ...]:
    """Lines of a crash."""
    return target.log(r"Kernel panic|Oops|BUG:|Unable to handle|blocked for more")


def crashes(survey: Survey) -> Finding:
    """No crash in the kernel log of this boot."""
    lines = kernel_log(survey.target)
    if not lines:
        return ok("no crash in this boot")
    return warn(
        f"{len(lines)} lines of a crash",
        cause="the kernel crashed in this boot; what follows it proves nothing",
        evidence=lines[:3],
        remedy="power-cycle the board, and report the crash",
    )
