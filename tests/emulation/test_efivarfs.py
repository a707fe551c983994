"""efivarfs of both kernel series over variables in memory: stack 6, rule by rule."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from emulation.linux.efivarfs import Efivarfs
from emulation.linux.efivars import Efivars, KernelSeries
from emulation.linux.firmware import EfiRuntime, FirmwareTables, RuntimeService
from emulation.linux.kernel import Kernel, Task
from harness.formats.efi import GLOBAL_VARIABLE_GUID, LINUX_RANDOM_SEED_GUID, EfiStatus
from tests.emulation.efivars_memory import VENDOR, MemoryVariables
from tests.emulation.vfs import Vfs
from tests.pace import within

ROOT = Task(1)
K6, K7 = KernelSeries.K6, KernelSeries.K7


def name(variable: str, guid: object = VENDOR) -> str:
    return f"{variable}-{guid}"


@dataclass
class Board:
    kernel: Kernel
    efivars: Efivars
    operations: MemoryVariables
    fs: Efivarfs
    vfs: Vfs


def board(
    series: KernelSeries = K6,
    *,
    supports_set: bool = True,
    services: RuntimeService = RuntimeService.QUERY_VARIABLE_INFO,
    clock: Callable[[], float] = time.time,
    mount: bool = True,
) -> Board:
    kernel = Kernel()
    efivars = Efivars(kernel)
    operations = MemoryVariables(supports_set=supports_set)
    operations.store["Old", VENDOR] = (7, b"old")
    operations.store["Boot0000", GLOBAL_VARIABLE_GUID] = (7, b"12345")
    efivars.register(operations, task=ROOT)
    runtime = EfiRuntime(kernel, efivars, FirmwareTables(services))
    fs = Efivarfs(kernel, efivars, runtime, series=series, clock=clock)
    if mount:
        fs.mount(task=ROOT)
    return Board(kernel, efivars, operations, fs, Vfs(fs))


@contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is compared below
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


@pytest.fixture(params=[K6, K7], ids=lambda series: str(series.value))
def b(request: pytest.FixtureRequest) -> Board:
    return board(request.param)


# Mount and superblock


def test_the_directory_is_a_snapshot_newest_first(b: Board) -> None:
    b.operations.store["Later", VENDOR] = (7, b"x")
    b.vfs.write_file(name("New"), b"\7\0\0\0n")
    assert b.vfs.listing() == [name("New"), name("Boot0000", GLOBAL_VARIABLE_GUID), name("Old")]
    assert not b.vfs.exists(name("Later"))


def test_listed_files_and_root(b: Board) -> None:
    listed = b.vfs.stat(name("Old"))
    assert (stat.filemode(listed.mode), listed.size, listed.nlink) == ("-rw-r--r--", 7, 1)
    root = b.fs.getattr(ROOT, b.fs.root)
    assert (stat.filemode(root.mode), root.size, root.nlink) == ("drwxr-xr-x", 0, 2)


@pytest.mark.cases(342)
def test_mounts_share_one_superblock_until_the_last_umount() -> None:
    b = board()
    b.fs.mount("uid=5", task=ROOT)
    assert b.fs.getattr(ROOT, b.fs.root).uid == 0
    b.operations.store["Later", VENDOR] = (7, b"x")
    assert not b.vfs.exists(name("Later"))
    b.fs.unmount()
    b.fs.mount("uid=1000,gid=100", task=ROOT)
    attr = b.vfs.stat(name("Later"))
    assert (attr.uid, attr.gid) == (1000, 100)
    assert b.fs.options.shown() == ",uid=1000,gid=100"


def test_bad_mount_options() -> None:
    b = board(mount=False)
    for options in ("mode=0700", "uid=root", "uid"):
        with fails(errno.EINVAL):
            b.fs.mount(options, task=ROOT)
    assert not b.fs.mounted


@pytest.mark.cases(341)
@pytest.mark.pain(20)
def test_mount_without_variables() -> None:
    b = board(mount=False)
    b.operations.forced["next"] = EfiStatus.UNSUPPORTED
    with fails(errno.EOPNOTSUPP):
        b.fs.mount(task=ROOT)
    b.efivars.unregister(b.operations, task=ROOT)
    with fails(errno.EOPNOTSUPP):
        b.fs.mount(task=ROOT)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (EfiStatus.BUFFER_TOO_SMALL, "efivars: Variable name size exceeds maximum (600 > 512)"),
        (
            EfiStatus.ACCESS_DENIED,
            "efivars: get_next_variable: status=800000000000000f",
        ),
    ],
)
@pytest.mark.cases(409)
def test_a_failing_walk_still_mounts(status: int, line: str) -> None:
    b = board(mount=False)
    b.operations.forced["next"] = status
    b.fs.mount(task=ROOT)
    assert b.vfs.listing() == []
    assert b.kernel.log.records()[-1].text == line


@pytest.mark.cases(410)
def test_duplicates_end_the_walk(b: Board) -> None:
    b.fs.unmount()
    walk = b.operations.get_next_variable
    b.operations.get_next_variable = (  # type: ignore[method-assign]
        lambda name, guid, capacity: walk("", guid, capacity)
    )
    b.fs.mount(task=ROOT)
    assert b.vfs.listing() == [name("Old")]
    assert b.kernel.log.records()[-1].text == f"efivars: duplicate variable: Old-{VENDOR}"


@pytest.mark.cases(405, 406)
def test_the_random_seed_is_hidden_and_cannot_be_created(b: Board) -> None:
    b.fs.unmount()
    b.operations.store["RandomSeed", LINUX_RANDOM_SEED_GUID] = (6, b"s")
    b.fs.mount(task=ROOT)
    assert not b.vfs.exists(name("RandomSeed", LINUX_RANDOM_SEED_GUID))
    with fails(errno.EPERM):
        b.vfs.write_file(name("RandomSeed", LINUX_RANDOM_SEED_GUID), b"\7\0\0\0x")


def test_the_superblock_follows_the_registered_operations(b: Board) -> None:
    flips: list[bool] = []
    b.fs.on_read_only = flips.append
    b.efivars.unregister(b.operations, task=ROOT)
    assert not b.fs.read_only, "unregistering alone tells nobody"
    generic = MemoryVariables(supports_set=False)
    b.efivars.register(generic, task=ROOT)
    assert b.fs.read_only
    with fails(errno.EROFS):
        b.vfs.write_file(name("X"), b"\7\0\0\0x")
    with fails(errno.EROFS):
        b.vfs.setflags(name("Old"), 0)
    with fails(errno.EROFS):
        b.vfs.unlink(name("Old"))
    with fails(errno.EROFS):
        b.vfs.truncate(name("Old"), 0)
    with fails(errno.EROFS):
        b.vfs.open(name("Old"), os.O_WRONLY)
    b.efivars.unregister(generic, task=ROOT)
    b.efivars.register(b.operations, task=ROOT)
    assert flips == [True, False]


@pytest.mark.cases(344)
def test_remount_rw_needs_set_variable() -> None:
    b = board(supports_set=False)
    assert b.fs.read_only
    with fails(errno.EINVAL):
        b.fs.reconfigure(read_only=False)
    assert (
        b.kernel.log.records()[-1].text
        == "Firmware does not support SetVariableRT. Can not remount with rw"
    )
    b.fs.reconfigure(read_only=True)


def test_remount_ro_while_a_file_is_open_for_writing(b: Board) -> None:
    fd = b.vfs.open(name("W"), os.O_WRONLY | os.O_CREAT)
    with fails(errno.EBUSY):
        b.fs.reconfigure(read_only=True)
    b.vfs.close(fd)
    b.fs.reconfigure(read_only=True)
    assert b.fs.read_only
    b.fs.reconfigure(read_only=False)
    assert not b.fs.read_only


def test_an_unmounted_superblock_hears_nothing(b: Board) -> None:
    b.fs.unmount()
    b.fs.on_read_only = lambda read_only: pytest.fail("told after umount")
    b.efivars.unregister(b.operations, task=ROOT)
    b.efivars.register(MemoryVariables(supports_set=False), task=ROOT)


# Names


@pytest.mark.parametrize(
    "bad",
    [
        "NoGuid",
        f"-{VENDOR}",
        f"Under_{VENDOR}",
        f"Long-{VENDOR}d",
        "Bad-1234567g-1234-1234-1234-123456789abc",
        "NoDash-12345678x1234-1234-1234-123456789abc",
        f"Brace-{{{VENDOR}}}",
    ],
)
def test_names_that_cannot_be_created(b: Board, bad: str) -> None:
    with fails(errno.ENOENT):
        b.vfs.stat(bad)
    with fails(errno.EINVAL):
        b.vfs.open(bad, os.O_WRONLY | os.O_CREAT)


def test_name_length_limit(b: Board) -> None:
    b.vfs.write_file(name("n" * 218), b"\7\0\0\0x")
    with fails(errno.ENAMETOOLONG):
        b.vfs.write_file(name("n" * 219), b"\7\0\0\0x")


def test_guid_case_does_not_matter_but_the_name_s_does(b: Board) -> None:
    upper = f"Up-{str(VENDOR).upper()}"
    b.vfs.write_file(upper, b"\7\0\0\0x")
    assert b.vfs.read_file(name("Up")) == b"\7\0\0\0x"
    assert upper in b.vfs.listing()
    assert ("Up", VENDOR) in b.operations.store
    with fails(errno.ENOENT):
        b.vfs.stat(name("UP"))


@pytest.mark.cases(408)
def test_bytes_become_characters_one_by_one(b: Board) -> None:
    b.vfs.write_file(os.fsencode("ü") + b"\xff" + name("").encode(), b"\7\0\0\0x")
    assert ("\xc3\xbc\xff", VENDOR) in b.operations.store
    b.fs.unmount()
    b.fs.mount(task=ROOT)
    assert name("\u00c3\u00bc\u00ff") in b.vfs.listing()


@pytest.mark.cases(407)
def test_slash_is_listed_as_exclamation_mark(b: Board) -> None:
    b.operations.store["a/b", VENDOR] = (7, b"slash")
    b.operations.store["smile\U0001f600", VENDOR] = (7, b"pair")
    b.fs.unmount()
    b.fs.mount(task=ROOT)
    assert b.vfs.read_file(name("a!b")) == b"\7\0\0\0slash"
    surrogates = b"smile\xed\xa0\xbd\xed\xb8\x80-" + str(VENDOR).encode()
    assert b.vfs.read_file(surrogates) == b"\7\0\0\0pair"


# Immutable files


def test_unknown_names_are_immutable_known_ones_are_not(b: Board) -> None:
    assert b.vfs.getflags(name("Old")) == 0x10
    assert b.vfs.getflags(name("Boot0000", GLOBAL_VARIABLE_GUID)) == 0
    b.vfs.write_file(name("New"), b"\7\0\0\0n")
    assert b.vfs.getflags(name("New")) == 0x10
    for removable in ("BootOrder", "DriverOrder", "Timeout", "OsIndications", "BootX"):
        b.vfs.write_file(name(removable, GLOBAL_VARIABLE_GUID), b"\7\0\0\0n")
        assert b.vfs.getflags(name(removable, GLOBAL_VARIABLE_GUID)) == 0
    for other in ("TimeoutX", "OsIndicationsSupported", "PK"):
        b.vfs.write_file(name(other, GLOBAL_VARIABLE_GUID), b"\7\0\0\0n")
        assert b.vfs.getflags(name(other, GLOBAL_VARIABLE_GUID)) == 0x10


def test_immutable_stops_open_unlink_truncate_chmod(b: Board) -> None:
    for attempt in (
        lambda: b.vfs.open(name("Old"), os.O_WRONLY),
        lambda: b.vfs.open(name("Old"), os.O_RDWR),
        lambda: b.vfs.unlink(name("Old")),
        lambda: b.vfs.truncate(name("Old"), 0),
        lambda: b.fs.setattr(ROOT, b.vfs.stat(name("Old")).ino, mode=0o600),
        lambda: b.fs.setattr(ROOT, b.vfs.stat(name("Old")).ino, mtime=0.0),
    ):
        with fails(errno.EPERM):
            attempt()
    b.vfs.setflags(name("Old"), 0)
    b.vfs.write_file(name("Old"), b"\7\0\0\0new")
    b.vfs.unlink(name("Old"))
    assert not b.vfs.exists(name("Old"))


@pytest.mark.cases(386)
def test_flags_that_do_not_exist(b: Board) -> None:
    with fails(errno.EOPNOTSUPP):
        b.vfs.setflags(name("Old"), 0x10 | 0x20)
    with fails(errno.ENOTTY):
        b.fs.getflags(ROOT, b.fs.root)


@pytest.mark.cases(387)
def test_flags_need_owner_and_capability(b: Board) -> None:
    stranger = Vfs(b.fs, Task(5, uid=1000, gid=1000, capable=False))
    with fails(errno.EPERM):
        stranger.setflags(name("Old"), 0)
    b.fs.unmount()
    b.fs.mount("uid=1000", task=ROOT)
    with fails(errno.EPERM):
        stranger.setflags(name("Old"), 0)
    stranger.setflags(name("Old"), 0x10)


# Writing


def test_short_and_unknown_attributes(b: Board) -> None:
    fd = b.vfs.open(name("X"), os.O_WRONLY | os.O_CREAT)
    for content in (b"", b"\7", b"\7\0\0", b"\x87\0\0\0x", b"no attributes"):
        with fails(errno.EINVAL):
            b.vfs.write(fd, content)
    assert "set" not in b.operations.calls


def test_too_much_for_kmalloc(b: Board) -> None:
    fd = b.vfs.open(name("X"), os.O_WRONLY | os.O_CREAT)
    assert b.vfs.write(fd, b"\7\0\0\0" + bytes(4 << 20)) == 4 + (4 << 20)
    with fails(errno.ENOMEM):
        b.vfs.write(fd, b"\7\0\0\0" + bytes((4 << 20) + 1))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (EfiStatus.NOT_FOUND, errno.EIO),
        (EfiStatus.OUT_OF_RESOURCES, errno.ENOSPC),
        (EfiStatus.WRITE_PROTECTED, errno.EROFS),
        (EfiStatus.SECURITY_VIOLATION, errno.EACCES),
        (EfiStatus.ACCESS_DENIED, errno.EINVAL),
    ],
)
def test_a_failed_first_write(b: Board, status: int, expected: int) -> None:
    b.operations.forced["set"] = status
    with fails(expected):
        b.vfs.write_file(name("X"), b"\7\0\0\0x")
    if b.fs._k7:
        assert not b.vfs.exists(name("X"))
    else:
        assert b.vfs.stat(name("X")).size == 0
        assert b.vfs.read_file(name("X")) == b""


@pytest.mark.parametrize(
    ("status", "deleted"),
    [
        (EfiStatus.SUCCESS, True),
        (EfiStatus.NOT_FOUND, True),
        (EfiStatus.WRITE_PROTECTED, False),
        (EfiStatus.OUT_OF_RESOURCES, False),
        (EfiStatus.SECURITY_VIOLATION, False),
    ],
)
@pytest.mark.cases(400, 401, 402)
def test_unlink_knows_one_errno_only(b: Board, status: int, deleted: bool) -> None:
    b.vfs.setflags(name("Old"), 0)
    b.operations.forced["set"] = status
    if deleted:
        b.vfs.unlink(name("Old"))
    else:
        with fails(errno.EINVAL):
            b.vfs.unlink(name("Old"))
    assert b.vfs.exists(name("Old")) is not deleted


@pytest.mark.cases(411)
def test_size_after_a_write_comes_from_the_firmware(b: Board) -> None:
    fd = b.vfs.open(name("X"), os.O_RDWR | os.O_CREAT)
    b.vfs.write(fd, b"\7\0\0\0four")
    assert b.vfs.fstat(fd).size == 8
    b.operations.forced["get"] = EfiStatus.DEVICE_ERROR
    b.vfs.write(fd, b"\7\0\0\0other")
    assert b.vfs.fstat(fd).size == 4
    with fails(errno.EIO):
        b.vfs.read(fd, 10)


def test_delete_by_write_on_k6() -> None:
    b = board(K6)
    fd = b.vfs.open(name("X"), os.O_RDWR | os.O_CREAT)
    b.vfs.write(fd, b"\7\0\0\0data")
    assert b.vfs.write(fd, b"\7\0\0\0") == 4
    assert not b.vfs.exists(name("X"))
    assert (b.vfs.fstat(fd).size, b.vfs.fstat(fd).nlink) == (8, 0)
    assert b.vfs.read(fd, 10) == b""
    assert b.vfs.write(fd, b"\7\0\0\0again") == 9
    b.vfs.close(fd)
    assert not b.vfs.exists(name("X"))
    assert ("X", VENDOR) in b.operations.store


@pytest.mark.cases(370)
def test_delete_by_write_on_k7() -> None:
    b = board(K7)
    fd = b.vfs.open(name("X"), os.O_RDWR | os.O_CREAT)
    other = b.vfs.open(name("X"), os.O_RDONLY)
    b.vfs.write(fd, b"\7\0\0\0data")
    b.vfs.write(fd, b"\7\0\0\0")
    assert b.vfs.stat(name("X")).size == 0
    b.vfs.close(fd)
    assert b.vfs.exists(name("X")), "another descriptor is still open"
    b.vfs.close(other)
    assert not b.vfs.exists(name("X"))


@pytest.mark.cases(349, 368, 369)
@pytest.mark.pain(13)
def test_a_file_that_was_never_written() -> None:
    for series, stays in ((K6, True), (K7, False)):
        b = board(series)
        b.vfs.close(b.vfs.open(name("X"), os.O_WRONLY | os.O_CREAT))
        assert b.vfs.exists(name("X")) is stays


@pytest.mark.cases(367, 404)
def test_truncate_changes_only_what_is_shown() -> None:
    for series, shown in ((K6, 100), (K7, 7)):
        b = board(series)
        b.vfs.setflags(name("Old"), 0)
        b.vfs.truncate(name("Old"), 100)
        assert b.vfs.stat(name("Old")).size == shown
        assert b.vfs.read_file(name("Old")) == b"\7\0\0\0old"


def test_dates_are_of_the_mount_and_k7_moves_them_with_a_write() -> None:
    for series, written in ((K6, 100.0), (K7, 200.0)):
        now = [100.0]
        b = board(series, clock=lambda now=now: now[0])  # type: ignore[misc]
        b.vfs.setflags(name("Old"), 0)
        now[0] = 200.0
        b.vfs.write_file(name("Old"), b"\7\0\0\0x")
        assert b.vfs.stat(name("Old")).mtime == written
        b.vfs.write_file(name("New"), b"\7\0\0\0x")
        assert b.vfs.stat(name("New")).mtime == 200.0


def test_mode_of_a_created_file(b: Board) -> None:
    fd = b.vfs.open(name("X"), os.O_WRONLY | os.O_CREAT)
    assert stat.filemode(b.vfs.fstat(fd).mode) == "-rwxr-xr-x"


def test_direct_io_is_refused_after_the_file_was_made(b: Board) -> None:
    with fails(errno.EINVAL):
        b.vfs.open(name("X"), os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    assert b.vfs.exists(name("X"))


# Content the kernel checks

END = b"\x7f\xff\x04\0"


@pytest.mark.parametrize(
    ("variable", "data", "accepted"),
    [
        ("Boot0001", b"\1\0\0\0\4\0t\0\0\0" + END, True),
        ("Boot000a", b"\1\0\0\0\4\0t\0\0\0" + END, True),
        ("Boot0001", b"\1\0\0\0\4\0t\0\0\0" + END + b"optional", True),
        ("Boot0001", b"\1\0\0\0\0\0t\0\0\0", False),
        ("Boot0001", b"junk", False),
        ("Boot0001", b"", False),
        ("Boot00010", b"\1\0\0\0\4\0t\0\0\0" + END, False),
        ("Boot0001", b"\1\0\0\0\4\0t\0t\0" + END, False),
        ("Boot0001", b"\1\0\0\0\4\0t\0\0\0\x7f\xff\x05\0", False),
        ("Boot0001", b"\1\0\0\0\4\0t\0\0\0\x7f\xff\x03\0", False),
        ("Driver0001", b"junk", False),
        ("Boot12", b"junk", True),
        ("BootNext", b"\1\0\0", True),
        ("BootOrder", b"\1\0\0", True),
        ("DriverOrder", b"\1", True),
        ("Timeout", b"\1", True),
        ("ConIn", b"junk", True),
        ("Lang", b"no NUL", True),
    ],
)
@pytest.mark.cases(392, 393, 394, 395, 396, 397, 398, 399)
@pytest.mark.pain(24)
def test_load_options_are_checked_and_exact_names_are_not(
    b: Board, variable: str, data: bytes, accepted: bool
) -> None:
    b.operations.store[variable, GLOBAL_VARIABLE_GUID] = (7, b"before")
    b.fs.unmount()
    b.fs.mount(task=ROOT)
    content = b"\7\0\0\0" + data
    if accepted:
        assert b.vfs.write_file(name(variable, GLOBAL_VARIABLE_GUID), content) == len(content)
    else:
        with fails(errno.EINVAL):
            b.vfs.write_file(name(variable, GLOBAL_VARIABLE_GUID), content)
    assert ("set" in b.operations.calls) is accepted


def test_other_guids_are_not_checked(b: Board) -> None:
    b.vfs.write_file(name("Boot0001"), b"\7\0\0\0junk")
    assert b.operations.store["Boot0001", VENDOR] == (7, b"junk")


# Reading, space


def test_reading_in_pieces(b: Board) -> None:
    fd = b.vfs.open(name("Old"), os.O_RDONLY)
    assert [b.vfs.read(fd, 1), b.vfs.read(fd, 4), b.vfs.read(fd, 9)] == [b"\7", b"\0\0\0o", b"ld"]
    assert b.vfs.read(fd, 9) == b""
    assert b.vfs.pread(fd, 3, 4) == b"old"


@pytest.mark.cases(382)
def test_ordinary_users_read_a_hundred_times_a_second(b: Board) -> None:
    user = Vfs(b.fs, Task(9, uid=1000, gid=1000, capable=False))
    fd = user.open(name("Old"), os.O_RDONLY)
    start = time.monotonic()
    with within(0.9):
        for _ in range(100):
            user.pread(fd, 1, 0)
    with within(1.5, waiting=1.0):
        user.pread(fd, 1, 0)
    assert time.monotonic() - start >= 1.0
    root_fd = b.vfs.open(name("Old"), os.O_RDONLY)
    with within(0.5):
        for _ in range(300):
            b.vfs.pread(root_fd, 1, 0)


@pytest.mark.cases(346, 347)
@pytest.mark.pain(14)
def test_statfs_asks_only_where_the_firmware_promises_an_answer() -> None:
    silent = board(services=RuntimeService.GET_VARIABLE)
    assert silent.fs.statfs(ROOT).blocks == 0
    assert "query" not in silent.operations.calls
    b = board()
    space = b.fs.statfs(ROOT)
    assert (space.blocks, space.bfree, space.bavail, space.files) == (1000, 800, 800, 0)
    assert (space.type, space.bsize, space.frsize, space.namelen) == (0xDE5E81E4, 1, 1, 255)


def test_statfs_failures() -> None:
    b = board()
    b.operations.forced["query"] = EfiStatus.UNSUPPORTED
    assert b.fs.statfs(ROOT).blocks == 0
    assert not any("query_variable_info" in r.text for r in b.kernel.log.records())
    b.operations.forced["query"] = EfiStatus.DEVICE_ERROR
    assert b.fs.statfs(ROOT).blocks == 0
    last = b.kernel.log.records()[-1].text
    assert last == "query_variable_info() failed: 0x8000000000000007"


def test_k7_repeats_itself_when_asked_too_often() -> None:
    for series, calls in ((K6, 20), (K7, 5)):
        b = board(series)
        for _ in range(20):
            assert b.fs.statfs(ROOT).blocks == 1000
        assert b.operations.calls.count("query") == calls


@pytest.mark.cases(413)
def test_thaw_resyncs_on_k7_only() -> None:
    with fails(errno.EOPNOTSUPP):
        board(K6).fs.thaw(task=ROOT)
    b = board(K7)
    del b.operations.store["Old", VENDOR]
    b.operations.store["Other", VENDOR] = (7, b"other")
    b.operations.store["Boot0000", GLOBAL_VARIABLE_GUID] = (7, b"longer than before")
    b.fs.thaw(task=ROOT)
    assert b.vfs.listing() == [name("Other"), name("Boot0000", GLOBAL_VARIABLE_GUID)]
    assert b.vfs.stat(name("Boot0000", GLOBAL_VARIABLE_GUID)).size == 22
    assert [record.text for record in b.kernel.log.records()][-4:] == [
        "efivarfs: resyncing variable state",
        f"efivarfs: removing variable Old-{VENDOR}",
        f"efivarfs: creating variable Other-{VENDOR}",
        "efivarfs: finished resyncing variable state",
    ]
