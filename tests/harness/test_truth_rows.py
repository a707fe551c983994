"""Recorded rows: parsing, and what a row tells about the board before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.consents import Consent
from harness.errors import ConfigurationError
from harness.probe import steps as do
from harness.store.records import RECORDED, record_size
from harness.truth import needs, space
from harness.truth.needs import FileNeed, Phase
from harness.truth.rows import OWN_ROWS, Row, load, with_own
from harness.truth.steps import (
    CannotTake,
    NotUnderstood,
    Written,
    named_file,
    own_file,
    path,
    plan,
)

AUTH = [OWN_ROWS / "auth"]


def row(op: list[str], outcome: Any, **facts: Any) -> Row:
    kept = {key: facts.pop(key) for key in ("desc", "id") if key in facts}
    return Row(
        id=kept.get("id", "group-002"),
        group="group",
        desc=kept.get("desc", ""),
        op=tuple(op),
        outcome=outcome,
        board="mm-query",
        replay=True,
        facts=facts,
    )


def need(one: Row) -> FileNeed | None:
    file = named_file(one) or own_file("Other")
    return needs.of(one, plan(one, file, AUTH)).files.get(file)


def test_every_given_row_is_understood() -> None:
    file = own_file("Other")
    for rows in load(OWN_ROWS).values():
        for one in rows:
            if one.replay and not one.is_command and "counter" not in one.op[0]:
                file = named_file(one) or file
                assert len(plan(one, file, AUTH).actions) == len(one.op)


def test_a_folder_without_rows_and_a_broken_line_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no recorded groups"):
        load(tmp_path)
    (tmp_path / "g.jsonl").write_text('{"id": "g-1", "op": ["stat"], "outcome": 0}\n{"id"\n')
    with pytest.raises(ConfigurationError, match=r"g\.jsonl:2"):
        load(tmp_path)


def test_own_rows_fill_the_gaps_uncounted(tmp_path: Path) -> None:
    lines = [{"id": f"g-00{n}", "op": ["stat"], "outcome": 0} for n in range(1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "g.jsonl").write_text(text)
    own = load(tmp_path)["g"]
    merged = with_own([own[2]], own)
    assert [(one.id, one.given) for one in merged] == [
        ("g-001", False),
        ("g-002", False),
        ("g-003", True),
    ]


def test_steps_become_single_system_calls() -> None:
    one = row(
        [
            "fd=open('X-12345678-1234-1234-1234-123456789abc',O_WRONLY|O_CREAT)",
            "write(fd,0700000061)",
        ],
        ["ok", 5],
    )
    made = plan(one, named_file(one) or "", AUTH)
    where = path(own_file("X"))
    assert made.actions[0].steps == (do.Open("fd", where, "O_WRONLY|O_CREAT"),)
    assert made.actions[1].steps == (do.Write("fd", b"\7\0\0\0a"),)
    assert made.writes == [Written(own_file("X"), 7, b"a", 1)]


def test_the_flag_is_cleared_unless_it_is_to_refuse() -> None:
    for outcome, hidden in ((0, 3), ("-EINVAL", 3), ("-EPERM", 0)):
        made = plan(row(["unlink"], outcome), own_file("X"), AUTH)
        assert len(made.actions[0].hidden) == hidden


def test_a_name_that_was_cut_short_is_taken_from_the_description() -> None:
    one = row(["fd=open('nnnnnnnn"], ["ok"], desc="name of 100 characters (file name 137)")
    assert named_file(one) == own_file("n" * 100)


def test_signed_updates_come_from_the_first_folder_that_has_them(tmp_path: Path) -> None:
    one = row(["write(fd,0x27+priv1.auth (1217 bytes))"], [1221])
    assert len(plan(one, own_file("X"), [tmp_path, *AUTH]).writes[0].data) == 1217
    with pytest.raises(CannotTake, match=r"priv1\.auth"):
        plan(one, own_file("X"), [tmp_path])


def test_what_is_no_step_is_not_guessed() -> None:
    with pytest.raises(NotUnderstood):
        plan(row(["dance(fd)"], [0]), own_file("X"), AUTH)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (row(["unlink"], 0, rpmb_writes=1), FileNeed(True, committed=True)),
        (row(["stat"], 7), FileNeed(True, size=7)),
        (row(["unlink"], "-ENOENT"), FileNeed(present=False)),
        (
            row(["set"], 8, before="0700000061"),
            FileNeed(True, b"\7\0\0\0a", certain=True),
        ),
        (row(["set"], 8, before=None), FileNeed(present=False, certain=True)),
    ],
)
def test_what_a_row_tells_of_its_file(one: Row, expected: FileNeed) -> None:
    assert need(one) == expected


def test_cost_tells_a_creation_from_an_overwrite() -> None:
    assert need(row(["set"], 8, rpmb_writes=194)) == FileNeed(present=False)
    assert need(row(["set"], 8, rpmb_writes=196)) == FileNeed(True, committed=True)


def command(line: str, output: str) -> needs.Needs:
    return needs.of(row([line], "rc=0", output=output), None)


def test_phases_told_by_commands() -> None:
    bus = "ls /sys/bus/tee/devices"
    assert command(bus, "").phase is Phase.COLD
    assert command(bus, "optee-ta-ed32d533-99e6-4209-9cc0-2d72cdd998a7").phase is None
    assert command("dmesg", "[ 1.0] Using TEE-based EFI runtime").phase is Phase.LIVE


def test_consents_told_by_commands() -> None:
    assert command("systemctl stop tee-supplicant", "").consents == {Consent.STOP_SUPPLICANT}
    assert Consent.FOREIGN_RPMB_WRITE in command("mmc rpmb write-block a 0 b c", "").consents


def test_listed_files_with_their_sizes_and_dumped_contents() -> None:
    name = own_file("B2")
    listed = f"-rw-r--r-- 1 root root   7 Apr 13 19:44 {name}"
    files = command("ls -la /sys/firmware/efi/efivars | grep B2", listed).files
    assert files[name].size == 7
    dump = "00000000: 0700 0000 6865 6c6c 6f                   ....hello"
    files = command(f"cat {path(name)} | xxd", dump).files
    assert files[name].content == b"\7\0\0\0hello"


def test_space_as_recorded() -> None:
    """truth size-002 and -010, fill2-002, authA-001, -010."""
    assert record_size("S1", 1) == 6124 - 6056
    assert record_size("S1", 256) == 5580 - 5256
    assert record_size("F000", 1000) == 14776 - 13704
    update = (AUTH[0] / "priv1.auth").read_bytes()
    made = Written(own_file("APriv"), 0x27, update, 0)
    assert space.taken(made, None, certdb=4) == 9136 - 8904
    deletion = Written(own_file("APriv"), 0x27, (AUTH[0] / "priv-del.auth").read_bytes(), 0)
    assert space.taken(deletion, b"\x27\0\0\0x", certdb=74) == 9216 - 9136


def test_relocations_as_recorded() -> None:
    """truth size-002 (2 writes), -010 (194), -014 (195: cut at a block), authB-002 (387)."""
    assert RECORDED.relocations(6124, 6124 - 6056) == 0
    assert RECORDED.relocations(5580, 5580 - 5256) == 1
    assert (RECORDED.relocations(4932, 1092), RECORDED.pieces(4932, 1092)) == (1, 2)
    assert RECORDED.relocations(8592, 888) == 2
