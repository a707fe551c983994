"""The whole first boot on a blank card, real StandaloneMM included, against the recorded one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from emulation.emmc.card import EmmcCard
from emulation.emmc.image import RpmbImage
from emulation.optee.config import OpTeeConfig
from emulation.optee.optee import OpTee
from emulation.optee.stmm_partition import STMM_UUID
from tests.emulation.optee_bench import Wire

TRUTH = Path(__file__).parent.parent / "truth"
STEP = re.compile(r"(Read|Write) \d+ block|Need to|Updating|RPMB (read|write|INIT)|Trying|Found")


def steps(lines: list[str]) -> list[str]:
    texts = [re.sub(r"^D/TC:\? 0 \w+(:\d+)? ", "", line) for line in lines]
    return [text for text in texts if STEP.match(text)]


def test_every_recorded_rpmb_access_in_order() -> None:
    rows = [json.loads(line) for line in (TRUTH / "log.jsonl").read_text().splitlines()]
    recorded = next(row for row in rows if row["id"] == "log-optee-boot1-fresh.log")["output"]
    log: list[str] = []
    card = EmmcCard(RpmbImage.in_memory())
    optee = OpTee(OpTeeConfig(log_level=3), log=log.append)
    optee.normal_world = Wire(card)
    optee.open_session(STMM_UUID)
    # The record breaks off before the boot is over, so it is a beginning of what is seen.
    expected, seen = steps(recorded.splitlines()), steps(log)
    assert len(expected) > 200
    assert seen[: len(expected)] == expected
