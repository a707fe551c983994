"""A board is given back as it was found: snapshot, restore, what may be written and by whom."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from harness.board import state_dir as place
from harness.board.board import Board
from harness.boardfile import loading
from harness.boardfile.sections import BoardFile
from harness.capabilities import EFIVARS_PATH, VENDOR_GUID
from harness.consents import Consent
from harness.errors import ConsentMissing, HostError, LabError, UndeclaredWrite, WrongBoard
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.instruments.efivars import NV_BS_RT, VariableName, name_of_file
from harness.instruments.guard import ANY
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.probe.steps import Step
from harness.safekeeping import snapshot
from harness.safekeeping.restore import Fate, judge, restore, restore_whatever_it_takes, table
from harness.safekeeping.snapshot import Snapshot
from harness.safekeeping.variables import Nature, Stored, nature, read_all

ROOT = Path(__file__).parents[2]
FOREIGN = UUID("3b9f4a52-1d60-4a7e-8f0e-0c9d2e7a6b15")


def emulated(**consents: bool) -> BoardFile:
    """The emulated board's file with other consents."""
    file = loading.load(ROOT / "boards" / "emulated.toml")
    given = {**file.consents, **{Consent(name): value for name, value in consents.items()}}
    return file.model_copy(update={"consents": given})


@pytest.fixture(scope="module")
def own_board() -> Iterator[Board]:
    """A board that no other module uses; every test leaves it as it was."""
    with Board(emulated()) as board:
        board.check_right_board()
        board.wait_until_ready()
        board.foreign_writes.allow(ANY)
        board.efivars.write("Own", b"own", NV_BS_RT)
        board.efivars.write("Foreign", b"somebody's", NV_BS_RT, FOREIGN)
        yield board


@pytest.fixture
def taken(own_board: Board) -> Iterator[Snapshot]:
    """A snapshot; afterwards the board is as it was."""
    kept = snapshot.take(own_board, ["BootNext", "New*", "Foreign"])
    yield kept
    restore(own_board, kept)


def digests(board: Board) -> dict[str, str]:
    """Name and SHA-256 of every variable, by the board's own tools."""
    lines = board.shell.run(f"cd {EFIVARS_PATH} && sha256sum *").check().text.splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def fates(board: Board, kept: Snapshot) -> dict[str, Fate]:
    """Restore; the fate of every variable that is not identical."""
    report = restore(board, kept)
    return {line.name.name: line.fate for line in report.notable}


# --- what comes back ----------------------------------------------------------------------------


def test_nothing_changed_costs_nothing(own_board: Board, taken: Snapshot) -> None:
    before = own_board.rpmb.counter()
    assert fates(own_board, taken) == {}
    assert own_board.rpmb.counter() == before


def test_changed_deleted_and_new_variables_come_back_to_the_byte(
    own_board: Board, taken: Snapshot
) -> None:
    before = digests(own_board)
    efivars = own_board.efivars
    efivars.overwrite("Own", b"changed")
    efivars.write("NewOwn", b"new")
    efivars.delete("Foreign", FOREIGN)
    efivars.write("BootNext", b"\1\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
    efivars.overwrite("BootOrder", b"\1\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
    assert fates(own_board, taken) == dict.fromkeys(
        ("Own", "NewOwn", "Foreign", "BootNext", "BootOrder"), Fate.RESTORED
    )
    assert digests(own_board) == before
    assert efivars.is_immutable("Foreign", FOREIGN)


def test_only_what_differs_is_written(own_board: Board, taken: Snapshot) -> None:
    own_board.efivars.write("BootNext", b"\1\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
    before = own_board.rpmb.counter()
    restore(own_board, taken)
    # A deletion clears one bit of the record's state byte (stack 4.12).
    assert own_board.rpmb.counter() == before + 1


def test_an_immutable_flag_comes_back_without_a_write(own_board: Board, taken: Snapshot) -> None:
    own_board.efivars.set_immutable("Foreign", False, FOREIGN)
    before = own_board.rpmb.counter()
    assert fates(own_board, taken) == {"Foreign": Fate.RESTORED}
    assert own_board.efivars.is_immutable("Foreign", FOREIGN)
    assert own_board.rpmb.counter() == before


def test_what_nobody_declared_and_appears_is_left_alone(own_board: Board, taken: Snapshot) -> None:
    own_board.efivars.write("Fwupd", b"update", NV_BS_RT, FOREIGN)
    try:
        assert fates(own_board, taken) == {"Fwupd": Fate.KEPT}
        assert own_board.efivars.read("Fwupd", FOREIGN).data == b"update"
    finally:
        own_board.efivars.delete("Fwupd", FOREIGN)


def test_restoring_some_leaves_the_others(own_board: Board, taken: Snapshot) -> None:
    own_board.efivars.delete("Foreign", FOREIGN)
    own_board.efivars.write("BootNext", b"\1\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
    report = restore(own_board, taken, only=["Boot*"])
    assert [str(line.name.name) for line in report.notable] == ["BootNext"]
    assert not own_board.efivars.exists("Foreign", FOREIGN)


def test_a_store_without_room_is_reclaimed(own_board: Board, taken: Snapshot) -> None:
    before = digests(own_board)
    own_board.efivars.delete("Own")
    fill(own_board)
    assert fates(own_board, taken) == {"Own": Fate.RESTORED, "Filler": Fate.RESTORED}
    assert digests(own_board) == before


def test_without_a_reboot_a_full_store_waits_and_says_why(
    own_board: Board, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_board.efivars.delete("Own")
    fill(own_board)
    with monkeypatch.context() as patch:
        patch.setattr(own_board, "file", emulated(power_cycle=False))
        report = restore(own_board, taken)
    (line,) = (line for line in report.notable if line.name.name == "Own")
    assert line.fate is Fate.WAITS
    assert "no room left in the store" in line.reason
    assert "reclaim" in line.reason
    assert not report.finished


def fill(board: Board) -> None:
    """Leave no room for the smallest record."""
    size = 4000
    while size:
        try:
            # Always another value: an identical one takes no room.
            board.efivars.overwrite("Filler", os.urandom(size))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size //= 2


def test_a_board_that_dies_is_recovered_first(own_board: Board, taken: Snapshot) -> None:
    before = digests(own_board)
    own_board.efivars.overwrite("Own", b"changed")
    own_board.power.off(5.0)
    report, did = restore_whatever_it_takes(own_board, taken)
    assert report.complete
    assert "power on" in " ".join(did)
    assert digests(own_board) == before


# --- what does not ------------------------------------------------------------------------------


def test_authenticated_variables_are_listed_as_lost(own_board: Board, taken: Snapshot) -> None:
    own = VariableName("db", FOREIGN)
    kept = replace(
        taken, variables={**taken.variables, own: Stored(own, b"\x27\0\0\0" + b"certificate")}
    )
    (line,) = judge(own_board, kept).notable
    assert (line.fate, line.reason) == (Fate.LOST, str(Nature.AUTHENTICATED))
    assert not restore(own_board, kept).complete


@pytest.mark.parametrize(
    ("name", "attributes", "why"),
    [
        ("SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c", 6, Nature.VOLATILE),
        ("certdb-d9bee56e-75dc-49d9-b4d7-b534210f637a", 0x27, Nature.FIRMWARE),
        ("MTC-eb704011-1402-11d3-8e77-00a0c969723b", 7, Nature.COUNTER),
        ("HwErrRec0001-414e6bdd-e47b-47cc-b244-bb61020cf516", 0xF, Nature.HARDWARE_ERROR),
        ("db-d719b2cb-3d3a-4596-a3bc-dad00e67656f", 0x27, Nature.AUTHENTICATED),
        ("BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c", 7, None),
    ],
)
def test_natures(name: str, attributes: int, why: Nature | None) -> None:
    parsed = name_of_file(name)
    assert parsed is not None
    assert nature(Stored(parsed, struct.pack("<I", attributes) + b"data")) is why


def test_without_the_consent_foreign_variables_are_not_touched(
    own_board: Board, taken: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_board.efivars.delete("Foreign", FOREIGN)
    own_board.efivars.delete("Own")
    monkeypatch.setattr(own_board, "file", emulated(foreign_variables=False))
    assert fates(own_board, replace(taken, foreign_consent=False)) == {
        "Own": Fate.RESTORED,
        "Foreign": Fate.KEPT,
    }
    # The run had it: whoever took it away since may give it again.
    assert fates(own_board, taken) == {"Foreign": Fate.WAITS}
    assert not own_board.efivars.exists("Foreign", FOREIGN)
    monkeypatch.undo()


def test_another_boards_snapshot_is_refused(own_board: Board, taken: Snapshot) -> None:
    with pytest.raises(WrongBoard, match="of the board with the CID"):
        restore(own_board, replace(taken, cid="0" * 32))


def test_data_is_never_shown(own_board: Board, taken: Snapshot) -> None:
    own_board.efivars.overwrite("Own", b"changed")
    shown = "\n".join([repr(taken), repr(taken.variables), *table(restore(own_board, taken))])
    assert "somebody" not in shown
    assert b"somebody".hex() not in shown


# --- the file -----------------------------------------------------------------------------------


def test_the_snapshot_on_disk_is_the_snapshot(taken: Snapshot, tmp_path: Path) -> None:
    odd = VariableName("\udcff'\n", FOREIGN)
    unread = VariableName("Unread", FOREIGN)
    never = VariableName("Never", FOREIGN)
    more = {odd: Stored(odd, b"\7\0\0\0x", True), unread: Stored(unread, None, None, "EIO"),
            never: Stored(never, b"", False)}  # fmt: skip
    kept = replace(taken, variables={**taken.variables, **more})
    path = snapshot.keep(kept, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["version"] == snapshot.VERSION
    assert snapshot.pending(tmp_path) == kept


def test_a_waiting_snapshot_is_never_overwritten(taken: Snapshot, tmp_path: Path) -> None:
    snapshot.keep(taken, tmp_path)
    with pytest.raises(HostError, match="never restored"):
        snapshot.keep(replace(taken, taken="later"), tmp_path)
    assert snapshot.pending(tmp_path) == taken
    snapshot.finish(tmp_path)
    assert snapshot.pending(tmp_path) is None
    snapshot.keep(replace(taken, taken="later"), tmp_path)
    assert [path.name for path in tmp_path.glob(".snapshot-*")] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}', b'{"version": 1}'])
def test_a_damaged_snapshot_is_said_and_kept(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "snapshot.json").write_bytes(content)
    with pytest.raises(HostError, match="is not a snapshot that this version reads"):
        snapshot.pending(tmp_path)
    assert (tmp_path / "snapshot.json").read_bytes() == content


def test_room_is_what_restoring_may_take(taken: Snapshot) -> None:
    def record(name: str, data: bytes) -> int:
        return (60 + 2 * (len(name) + 1) + len(data) + 3) // 4 * 4

    assert taken.room() == record("Own", b"own") + record("Foreign", b"somebody's")


def test_the_place_is_private_and_goes_with_the_flash(
    own_board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place.directory(own_board.power, own_board.file)
    assert directory.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(own_board.power, "keeps", lambda: None)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert (
        place.directory(own_board.power, own_board.file)
        == tmp_path / "stmm-hil" / own_board.file.emmc_cid
    )


def test_a_shell_alone_reads_the_same(own_board: Board, taken: Snapshot) -> None:
    with Probe(own_board.shell, backend="sh") as probe:
        assert read_all(probe) == taken.variables


def test_a_run_that_still_runs_keeps_others_away(own_board: Board) -> None:
    claim = place.Claim(own_board.power, own_board.file)
    with pytest.raises(LabError, match="another run is using this board"):
        place.Claim(own_board.power, own_board.file)
    claim.release()
    place.Claim(own_board.power, own_board.file).release()


# --- the guard ----------------------------------------------------------------------------------

BOOT_ORDER = f"{EFIVARS_PATH}/BootOrder-{GLOBAL_VARIABLE_GUID}"


@pytest.mark.parametrize(
    "step",
    [
        do.Open("f", BOOT_ORDER, "O_RDWR"),
        do.Open("f", BOOT_ORDER.replace("/efivars/", "/../efi/efivars//"), "O_WRONLY|O_CREAT"),
        do.Open("f", f"{EFIVARS_PATH}/New-{str(GLOBAL_VARIABLE_GUID).upper()}", "O_RDONLY|O_CREAT"),
        do.Unlink(BOOT_ORDER),
        do.Truncate(BOOT_ORDER, 4),
        do.Rename(f"{EFIVARS_PATH}/Own-{VENDOR_GUID}", BOOT_ORDER),
        do.Link(BOOT_ORDER, f"{EFIVARS_PATH}/Own-{VENDOR_GUID}"),
        do.Symlink("/etc", BOOT_ORDER),
        do.Mkdir(BOOT_ORDER),
        do.Rmdir(BOOT_ORDER),
        do.Mknod(BOOT_ORDER, 0o010644),
    ],
    ids=lambda step: type(step).__name__,
)
def test_no_step_writes_a_foreign_variable_undeclared(own_board: Board, step: Step) -> None:
    from harness.instruments.guard import ForeignWrites

    guard = ForeignWrites(own_board.require_consent, board="any")
    with pytest.raises(UndeclaredWrite, match="not a variable of this suite's own"):
        guard.check([step])
    with guard.allowing("BootOrder", "New"):
        guard.check([step])
    with pytest.raises(UndeclaredWrite):
        guard.check([step])


@pytest.mark.parametrize(
    "step",
    [
        do.Open("f", BOOT_ORDER),
        do.Stat(BOOT_ORDER),
        do.Open("f", f"{EFIVARS_PATH}/Own-{VENDOR_GUID}", "O_WRONLY|O_CREAT"),
        do.Open("f", f"{EFIVARS_PATH}/no-guid", "O_WRONLY|O_CREAT"),
        do.Unlink(f"/tmp/BootOrder-{GLOBAL_VARIABLE_GUID}"),
    ],
    ids=str,
)
def test_reading_and_our_own_need_nothing(own_board: Board, step: Step) -> None:
    from harness.instruments.guard import ForeignWrites

    ForeignWrites(own_board.require_consent, board="any").check([step])


def test_a_declared_write_needs_the_owners_consent(own_board: Board) -> None:
    from harness.instruments.guard import ForeignWrites

    def refuse(consent: Consent) -> None:
        raise ConsentMissing(f"no {consent}", remedy="none")

    guard = ForeignWrites(refuse, board="any")
    with guard.allowing("BootOrder"), pytest.raises(ConsentMissing, match="foreign_variables"):
        guard.check([do.Unlink(BOOT_ORDER)])


def test_the_boards_own_instruments_are_guarded(
    own_board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_board.foreign_writes, "_allowed", ())
    with pytest.raises(UndeclaredWrite):
        own_board.efivars.write("BootNext", b"\1\0", NV_BS_RT, GLOBAL_VARIABLE_GUID)
    with pytest.raises(UndeclaredWrite):
        own_board.efivars.delete("BootOrder", GLOBAL_VARIABLE_GUID)
    assert not own_board.efivars.exists("BootNext", GLOBAL_VARIABLE_GUID)
    assert own_board.efivars.exists("BootOrder", GLOBAL_VARIABLE_GUID)
