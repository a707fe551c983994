"""Recorded rows replayed in process against efivarfs over the whole modelled stack."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from emulation.faults import PowerLost
from emulation.linux.efi_pstore import EfiPstore
from emulation.linux.kernel import Task
from tests.emulation.stmm_board import ROOT, StmmBoard
from tests.emulation.truth_steps import Replay, rows
from tests.emulation.vfs import Vfs

# Group, configuration, how many of its rows are single system calls on files.
GROUPS = [
    ("basic", "mm-query", 38),
    ("attr", "mm-query", 80),
    ("attr-nofwebs", "file", 67),
    ("vol", "mm-query", 4),
    ("special", "mm-query", 31),
    ("names", "mm-query", 29),
    ("authA", "mm-query", 14),
    ("authB", "mm-query", 7),
]


def replay(group: str, variant: str, files: Path) -> Replay:
    board = StmmBoard.power_on(variant=variant, files=files)  # type: ignore[arg-type]
    board.bind()
    board.mount()
    result = Replay(board.vfs, lambda: board.card.rpmb.write_counter)
    result.run(rows(group))
    return result


@pytest.mark.parametrize(("group", "variant", "count"), GROUPS)
def test_recorded_rows(group: str, variant: str, count: int, tmp_path: Path) -> None:
    result = replay(group, variant, tmp_path)
    assert result.differences == [], "\n".join(map(str, result.differences))
    assert len(result.agreed) == count, result.skipped


def state_of(board: StmmBoard) -> tuple[bool, list[int]]:
    space = board.fs.statfs(board.vfs.task)
    return board.fs.read_only, [space.blocks, space.bfree, space.bavail]


def test_listing_as_recorded_at_boot() -> None:
    """truth state-002: lsattr's order, sizes and flags; p3-prep: read-only before the driver."""
    board = StmmBoard.power_on()
    board.mount()
    assert state_of(board) == (True, [0, 0, 0])
    board.bind()
    assert not board.fs.read_only
    listing = [
        (name.partition("-8be4")[0].partition("-d9be")[0], board.vfs.stat(name).size)
        for name in board.vfs.listing()
    ]
    assert listing == [
        ("PlatformLang", 10),
        ("BootOrder", 8),
        ("Boot0001", 160),
        ("Boot0000", 108),
        ("certdb", 8),
        ("OsIndicationsSupported", 12),
        ("PlatformLangCodes", 10),
        ("VendorKeys", 5),
        ("DeployedMode", 5),
        ("AuditMode", 5),
        ("certdbv", 8),
        ("SecureBoot", 5),
        ("SignatureSupport", 100),
        ("SetupMode", 5),
    ]
    assert [board.vfs.getflags(name) for name in board.vfs.listing()] == [0] * 4 + [16] * 10
    # truth basic-001 (15352 of 16284) is the same store with one more boot option's garbage.
    assert state_of(board)[1][0] == 16284


def test_unbind_and_rebind() -> None:
    """truth drv-001, -002, -003, -006, -007."""
    board = StmmBoard.power_on()
    board.mount()
    board.bind()
    name = "D1-12345678-1234-1234-1234-123456789abc"
    board.vfs.write_file(name, b"\7\0\0\0data")
    mark = board.kernel.log.next_sequence
    board.driver.remove(task=ROOT)
    assert [record.text for record in board.kernel.log.records(mark)] == [
        "efivars: Unregistered efivars operations",
        "efivars: Registered efivars operations",
    ]
    assert board.vfs.read_file(name) == b"", "U-Boot's RAM copy does not know it"
    assert state_of(board) == (True, [0, 0, 0])
    for refused in (
        lambda: board.vfs.setflags(name, 0),
        lambda: board.vfs.open(name, os.O_WRONLY),
        lambda: board.vfs.open(name.replace("D1", "D2"), os.O_WRONLY | os.O_CREAT),
        lambda: board.vfs.unlink(name),
    ):
        with pytest.raises(OSError, match="read-only"):
            refused()
    with pytest.raises(OSError, match="SetVariable"):
        board.fs.reconfigure(read_only=False)
    board.remount()
    assert not board.vfs.exists(name)
    board.bind()
    assert not board.fs.read_only
    assert board.vfs.write_file(name.replace("D1", "D3"), b"\7\0\0\0rebound") == 11
    board.remount()
    assert board.vfs.read_file(name) == b"\7\0\0\0data"


def test_variables_survive_a_power_cut_and_volatile_ones_do_not() -> None:
    board = StmmBoard.power_on()
    board.mount()
    board.bind()
    name = "Persist-12345678-1234-1234-1234-123456789abc"
    board.vfs.write_file(name, b"\7\0\0\0hello")
    after = board.reboot()
    after.mount()
    assert after.vfs.read_file(name) == b"\7\0\0\0hello"
    with pytest.raises(PowerLost):
        board.vfs.read_file(name)


def test_a_stopped_supplicant_as_seen_from_efivarfs() -> None:
    """truth p2c-011 to -017: reads go on, set is ENOSPC, unlink EINVAL, no kernel line."""
    board = StmmBoard.power_on(supplicant=True)
    board.mount()
    board.bind()
    order = "BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    name = "C2-12345678-1234-1234-1234-123456789abc"
    mark = board.kernel.log.next_sequence
    assert board.vfs.read_file(order) == b"\7\0\0\0\0\0\1\0"
    for attributes, expected in ((b"\7\0\0\0", errno.ENOSPC), (b"\6\0\0\0", errno.EINVAL)):
        with pytest.raises(OSError, match="SetVariable") as failed:
            board.vfs.write_file(name, attributes + b"b")
        assert failed.value.errno == expected
        board.vfs.setflags(name, 0)
    assert board.vfs.stat(name).size == 0
    with pytest.raises(OSError, match="SetVariable") as failed:
        board.vfs.write_file(order, b"\7\0\0\0\1\0")
    assert failed.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="delete") as failed:
        board.vfs.unlink(order)
    assert failed.value.errno == errno.EINVAL
    assert not board.fs.read_only
    assert board.kernel.log.records(mark) == []


class Caller(threading.Thread):
    """A process in one system call; ``result`` is what it returned or raised."""

    def __init__(self, board: StmmBoard, call: Callable[[Vfs], object]) -> None:
        super().__init__(daemon=True)
        self.task = Task(200)
        self._vfs = Vfs(board.fs, self.task)
        self._call = call
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call(self._vfs)
        except OSError as error:
            self.result = errno.errorcode[error.errno or 0]

    def finish(self) -> object:
        self.join(5)
        assert not self.is_alive()
        return self.result


def test_a_writer_stuck_in_the_firmware_blocks_the_others() -> None:
    """truth log-kill2-hang, log-kill3, log-kill4: cat and df hang, ls works, a kill releases."""
    board = StmmBoard.power_on(supplicant=True)
    board.mount()
    board.bind()
    board.optee.queue.attach()  # a supplicant that never answers
    order = "BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    vendor = "12345678-1234-1234-1234-123456789abc"
    writer = Caller(board, lambda vfs: vfs.write_file(f"K0-{vendor}", b"\7\0\0\0kkk"))
    requested = lambda: bool(board.optee.queue._waiting)  # noqa: E731
    assert board.kernel.wait(requested, task=ROOT, timeout=5)
    reader = Caller(board, lambda vfs: vfs.read_file(order))
    creator = Caller(board, lambda vfs: vfs.write_file(f"K1-{vendor}", b"\6\0\0\0v"))
    df = Caller(board, lambda vfs: vfs.fs.statfs(vfs.task).blocks)
    killed = Caller(board, lambda vfs: vfs.read_file(order))
    assert f"K0-{vendor}" in board.vfs.listing()
    assert board.vfs.stat(order).size == 8
    killed.task.fatal.set()
    df.task.fatal.set()
    assert killed.finish() == "EINTR"
    for blocked in (writer, reader, creator, df):
        blocked.join(0.1)
        assert blocked.is_alive()
    writer.task.fatal.set()
    assert writer.finish() in ("ENOSPC", "EINVAL")
    assert reader.finish() == b"\7\0\0\0\0\0\1\0"
    assert creator.finish() == "EINVAL"
    assert df.finish() == 16284


def test_a_crash_dump_is_refused_by_the_real_driver() -> None:
    board = StmmBoard.power_on()
    board.bind()
    pstore = EfiPstore(board.kernel, board.efivars)
    pstore.load()
    writes = board.card.rpmb.write_counter
    assert pstore.registered
    assert pstore.dump("Panic", b"kernel log", task=ROOT) == 0
    board.mount()
    assert not [name for name in board.vfs.listing() if name.startswith("dump-")]
    assert board.card.rpmb.write_counter == writes
