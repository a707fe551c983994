"""The recorded rows taken again on the emulated board: `hil truth emulated`."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.boardfile import loading
from harness.boardfile.sections import BoardFile
from harness.consents import Consent
from harness.truth import report
from harness.truth.results import Agreement, GroupResult
from harness.truth.rows import OWN_ROWS, load

AUTH = OWN_ROWS / "auth"
# What no board could repeat: its own recording ended at a timeout.
UNREPEATABLE = {"kill2-001"}
# Two boards at a time, about equally long.
HALVES = (
    ("attr-nofwebs", "authA", "authB", "basic", "drv", "imm", "kill2", "lat", "lat-rpmbk", "log"),
    ("attr", "fill", "fill2", "max", "mount", "names", "p2a", "p2c", "perm", "rpmb", "size",
     "special", "state", "vol"),
)  # fmt: skip


def emulated() -> BoardFile:
    return loading.load(loading.find("emulated"))


def silent(_: str) -> None:
    return


# CI replays the same rows by the README's command, `hil truth emulated`.
@pytest.mark.slow
def test_every_recorded_row_agrees() -> None:
    assert sorted(HALVES[0] + HALVES[1]) == sorted(load(OWN_ROWS))
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda groups: report.replay(emulated(), only=groups, say=silent), HALVES)
        results = [result for half in halves for result in half]
    counted = [one for result in results for one in result.results]
    differing = [f"{one.row.id} {d}" for one in counted for d in one.differences]
    assert differing == []
    skipped = {one.row.id for one in counted if one.verdict is Agreement.SKIPPED}
    assert skipped == UNREPEATABLE
    rows = [row for group in load(OWN_ROWS).values() for row in group if row.replay]
    assert len(counted) == len(rows)


Change = Callable[[dict[str, Any]], None]


def some_rows(folder: Path, group: str, ids: set[str], change: Change | None = None) -> Path:
    """A folder with a few rows of a group, each changed."""
    found = []
    for line in (OWN_ROWS / f"{group}.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["id"] in ids:
            if change is not None:
                change(row)
            found.append(json.dumps(row) + "\n")
    (folder / f"{group}.jsonl").write_text("".join(found))
    return folder


def verdicts(results: list[GroupResult]) -> dict[str, Agreement]:
    return {one.row.id: one.verdict for result in results for one in result.results}


def alter_size(row: dict[str, Any]) -> None:
    row["free_after"][1] -= 4


def alter_cost(row: dict[str, Any]) -> None:
    row["rpmb_writes"] += 1


def alter_outcome(row: dict[str, Any]) -> None:
    row["outcome"][1] = "-EINVAL" if isinstance(row["outcome"][1], int) else 5


@pytest.mark.parametrize("change", [alter_size, alter_cost, alter_outcome])
def test_altered_rows_are_differences(change: Change, tmp_path: Path) -> None:
    ids = {"size-002", "size-010", "size-020"}
    folder = some_rows(tmp_path, "size", ids, change)
    said: list[str] = []
    results = report.replay(emulated(), folder, say=said.append)
    assert verdicts(results) == dict.fromkeys(ids, Agreement.DIFFERED)
    assert not report.all_agree(results)
    assert said[-1] == "TRUTH agreed 0 of 3, skipped 0"


def test_rows_out_of_their_group_agree_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States that only missing rows left: a fill level, a creation's cost, an unlinked file."""
    monkeypatch.setattr(report, "OWN_ROWS", tmp_path / "none")
    ids = {"size-007", "size-014", "size-019", "size-024", "size-042"}
    results = report.replay(emulated(), some_rows(tmp_path, "size", ids), say=silent)
    assert verdicts(results) == dict.fromkeys(ids, Agreement.AGREED)


def test_what_nobody_tells_is_unknown_and_never_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "OWN_ROWS", tmp_path / "none")
    folder = some_rows(tmp_path, "authA", {"authA-005"})
    (folder / "auth").symlink_to(AUTH)
    said: list[str] = []
    results = report.replay(emulated(), folder, say=said.append)
    assert [one for one in said if "state unknown" in one]
    assert said[-1] == "TRUTH agreed 0 of 1, skipped 1"
    assert not report.all_agree(results)


def test_rows_without_their_consent_or_configuration_are_skipped(tmp_path: Path) -> None:
    file = emulated()
    refusing = dict.fromkeys(Consent, True) | {Consent.UNBIND_DRIVER: False}
    file = file.model_copy(update={"consents": refusing})
    said: list[str] = []
    report.replay(file, some_rows(tmp_path, "drv", {"drv-001"}), say=said.append)
    assert "needs the consent unbind_driver" in said[0]
    fixed = file.power.model_copy(update={"options": {}})
    file = file.model_copy(update={"power": fixed})
    said.clear()
    folder = some_rows(tmp_path, "drv", {"drv-001"}, lambda row: row.update(board="mm"))
    report.replay(file, folder, say=said.append)
    assert "recorded on configuration mm, this board is mm-query" in said[0]
    assert said[-1] == "TRUTH agreed 0 of 1, skipped 1"


def test_kernel_routed_rows_are_taken_on_that_configuration(tmp_path: Path) -> None:
    ids = {"basic-003", "basic-004"}
    folder = some_rows(tmp_path, "basic", ids, lambda row: row.update(board="mm-kernel-rpmb"))
    results = report.replay(emulated(), folder, say=silent)
    assert verdicts(results) == dict.fromkeys(ids, Agreement.AGREED)
