"""The RPMB partition: there, with a key or without, and its counter. Read, never written: looked
at before anything asks who serves it, because a firmware may program the key on first use."""

from typing import Final

from harness.capabilities import STMM_DEVICE
from harness.check.finding import Finding, fail, not_looked_at, ok, warn
from harness.check.pitfalls import (
    NO_KEY,
    NO_KEY_REMEDY,
    RPMB_EMU,
    RPMB_EMU_REMEDY,
    WRONG_KEY,
    WRONG_KEY_REMEDY,
    no_node,
)
from harness.check.survey import Survey
from harness.consents import Consent
from harness.errors import HilError, MissingCapability, TargetError
from harness.formats.rpmb import OPTEE_TEST_KEY, RpmbResult
from harness.instruments.rpmb import RpmbRefused

_NO_PARTITION: Final = (
    "the kernel found no eMMC with an RPMB partition",
    "look at the kernel log for mmc; CONFIG_MMC_BLOCK must be set, and an SD card has no RPMB",
)
_LAST_COUNTER: Final = 0xFFFFFFFF
_WORN_SHARE: Final = 0.9


def device(survey: Survey) -> Finding:
    """The node, the partition's size (EXT_CSD[168]) and the reliable-write count (EXT_CSD[222])."""
    target = survey.target
    nodes = [node.path for node in target.nodes if node.path.endswith("rpmb")]
    if not nodes:
        named = target.log(r"mmcblk\d+rpmb: ")
        cause, remedy = no_node(target) if named else _NO_PARTITION
        evidence = named or target.lines("eMMC")
        return fail("no /dev/mmcblk*rpmb", cause=cause, remedy=remedy, evidence=evidence)
    found = survey.board.rpmb.identity()
    if not found.rpmb_bytes:
        return fail(
            f"{nodes[0]}, 0 KiB",
            cause="the eMMC says that its RPMB partition has no size (RPMB_SIZE_MULT is 0)",
            remedy="use another part",
        )
    sectors = found.reliable_write_sectors
    return ok(f"{nodes[0]}, {found.rpmb_bytes >> 10} KiB, reliable write {sectors} sectors")


def key(survey: Survey) -> Finding:
    """Whether the partition has its authentication key; asked by reading the counter."""
    try:
        survey.board.rpmb.counter()
    except RpmbRefused as error:
        if error.result == RpmbResult.KEY_NOT_PROGRAMMED:
            return _no_key(survey)
        return fail("the counter cannot be read", cause=error.what, remedy=error.remedy)
    except MissingCapability as error:
        return not_looked_at(f"{error.what} ({error.remedy})")
    except HilError as error:
        return fail(
            "the partition does not answer",
            cause=error.what,
            remedy="does something else hold the card? read the kernel log for mmc",
            evidence=survey.target.log("mmc|rpmb"),
        )
    survey.key_programmed = True
    return ok(f"programmed; {_whose(survey)} (the firmware itself may have done so during boot)")


def _no_key(survey: Survey) -> Finding:
    survey.key_programmed = False
    if STMM_DEVICE in survey.target.lines("bound"):
        return fail(
            "NOT programmed, and yet variables are served",
            cause=f"OP-TEE has its storage elsewhere: {RPMB_EMU}",
            evidence=[f"{STMM_DEVICE} is bound", *survey.target.lines("journal")[-2:]],
            remedy=RPMB_EMU_REMEDY,
        )
    cause = "the RPMB has no authentication key: nothing can be stored"
    if survey.file.consents_to(Consent.PROGRAM_KEY):
        return warn(
            "NOT programmed; its owner allows programming, so the walk goes on",
            cause=cause,
            remedy="a firmware with CFG_RPMB_WRITE_KEY programs it on first use, for ever",
        )
    return fail(
        "NOT programmed; the walk stops here",
        cause=cause + "; whatever uses it now may program one, which cannot be undone",
        remedy="decide who programs it: an OP-TEE with CFG_RPMB_WRITE_KEY does so on its first "
        "use, which may be the next start of tee-supplicant, the next binding of the driver, or "
        "the next boot (U-Boot uses variables before Linux does).\n"
        "If its owner agrees: program_key = true in [consents]",
    )


def _whose(survey: Survey) -> str:
    if _has_test_key(survey):
        return "with OP-TEE's public test key, which no product must have"
    return "not with OP-TEE's public test key"


def _has_test_key(survey: Survey) -> bool:
    try:
        survey.board.rpmb.read_block(0, key=OPTEE_TEST_KEY)
    except (TargetError, MissingCapability, OSError):
        return False
    return True


def why_no_store(survey: Survey) -> tuple[str, str]:
    """Why StandaloneMM could not have its file, and what to do."""
    if survey.key_programmed is False:
        return NO_KEY, NO_KEY_REMEDY
    if survey.console_lines("Verify key failed") or not _has_test_key(survey):
        return WRONG_KEY, WRONG_KEY_REMEDY
    return (
        "OP-TEE could not reach the RPMB when StandaloneMM started, or was built for another key "
        "than its test key",
        "watch the secure world's console while it boots (E/TC lines)",
    )


def counter(survey: Survey) -> Finding:
    """The write counter: every SetVariable costs one to some hundreds, and it ends at 2**32 - 1."""
    if survey.key_programmed is False:
        return not_looked_at("there is no counter without a key")
    try:
        value = survey.board.rpmb.counter()
    except HilError as error:
        return fail("the counter cannot be read", cause=error.what, remedy=error.remedy)
    if value >= _LAST_COUNTER:
        return fail(
            f"{value}, its last value",
            cause="the write counter has expired: the partition can never be written again",
            remedy="replace the eMMC",
        )
    if value > _WORN_SHARE * _LAST_COUNTER:
        return warn(
            f"{value} of {_LAST_COUNTER}",
            cause="the write counter is near its end",
            remedy="spare this board, and set rpmb_write_budget in its board file",
        )
    return ok(str(value))
