"""Mounting efivarfs: one superblock for all mounts, two read-only flags, a listing that is a
snapshot, and owners as mount options.

Recorded rows: mount-001 to -004, drv-004, state-001, -002, imm-003, p2c-019.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.board.board import Board
from harness.errors import CommandFailed
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.instruments.efivars import Efivars, MountState
from harness.instruments.outcomes import refused, succeeded
from harness.instruments.tee import Tee
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell

pytestmark = [
    pytest.mark.needs("efivarfs", "writable"),
    pytest.mark.consents("write_rpmb"),
    pytest.mark.disturbs,
]

ONE_RECORD = pytest.mark.cost(store_bytes=68)
"""One variable with a one-letter name and up to four bytes."""
EFIVARFS_MAGIC = 0xDE5E81E4
SECOND = "/tmp/hil-efivars"


@dataclass(frozen=True)
class SecondMount:
    """Another mount of efivarfs, at :data:`SECOND`."""

    shell: Shell
    efivars: Efivars

    def mount(self, options: str = "rw") -> None:
        command = f"mkdir -p {SECOND} && mount -t efivarfs -o {options} none {SECOND}"
        self.shell.run_isolated(command).check()

    def unmount(self) -> None:
        self.shell.run_isolated(f"umount {SECOND}; rmdir {SECOND}")


@pytest.fixture
def second(shell: Shell, board: Board) -> Iterator[SecondMount]:
    """Makes a second mount, and takes it away after the test."""
    other = Efivars(shell, board.probe, consent=board.require_consent, path=SECOND)
    mount = SecondMount(shell, other)
    yield mount
    mount.unmount()


@pytest.fixture
def fresh(efivars: Efivars) -> Iterator[Efivars]:
    """The only mount is gone, and after the test one with the usual options is back."""
    efivars.unmount()
    yield efivars
    if efivars.mount_state() is not None:
        efivars.unmount()
    efivars.mount()


def _state(efivars: Efivars) -> MountState:
    state = efivars.mount_state()
    assert state is not None, f"nothing is mounted at {efivars.path}"
    return state


def _info(shell: Shell, path: str) -> list[str]:
    """Fields of the topmost mount of ``path`` in mountinfo."""
    lines = shell.run("cat /proc/self/mountinfo").check().text.splitlines()
    return [line.split() for line in lines if line.split()[4] == path][-1]


class TestType:
    def test_proc_filesystems_lists_it_as_one_without_a_device(self, shell: Shell) -> None:
        assert "nodev\tefivarfs" in shell.run("cat /proc/filesystems").check().text.splitlines()

    def test_proc_mounts_shows_the_type(self, shell: Shell, efivars: Efivars) -> None:
        # state-002; the kernel's own self-test and efitools look here
        lines = [line.split() for line in shell.run("cat /proc/mounts").check().text.splitlines()]
        assert [line[2] for line in lines if line[1] == efivars.path][-1:] == ["efivarfs"]

    def test_mount_lists_the_type(self, shell: Shell, efivars: Efivars) -> None:
        # p2a-001
        assert f" on {efivars.path} type efivarfs (rw" in shell.run("mount").check().text

    @pytest.mark.cases(345)
    def test_statfs_has_the_magic_number(self, efivars: Efivars, probe: Probe) -> None:
        (found,) = probe.steps([do.StatFs(efivars.path)])
        succeeded(found)
        assert found.value is not None
        assert found.value & 0xFFFFFFFF == EFIVARFS_MAGIC

    def test_statfs_counts_bytes_and_no_inodes(self, efivars: Efivars, probe: Probe) -> None:
        # state-001
        (found,) = probe.steps([do.StatFs(efivars.path)])
        succeeded(found)
        assert [found.field(name) for name in ("bsize", "files", "namelen")] == [1, 0, 255]

    @pytest.mark.cases(345)
    def test_statfs_of_a_variable_is_that_of_the_mount(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        outcomes = probe.steps(
            [
                do.StatFs(efivars.path),
                do.StatFs(efivars.file("SecureBoot", GLOBAL_VARIABLE_GUID)),
            ]
        )
        for outcome in outcomes:
            succeeded(outcome)
        mount, file = outcomes
        assert (mount.value, mount.fields) == (file.value, file.fields)


class TestListing:
    @ONE_RECORD
    def test_a_fresh_mount_lists_what_is_stored(self, efivars: Efivars) -> None:
        efivars.unmount()
        efivars.mount()
        before = efivars.names()
        efivars.write("L", b"L")
        efivars.unmount()
        efivars.mount()
        assert set(efivars.names()) - set(before) == set(efivars.own())
        assert efivars.read("L").data == b"L"

    @ONE_RECORD
    def test_what_was_deleted_is_not_listed_again(self, efivars: Efivars) -> None:
        efivars.write("L", b"L")
        efivars.delete("L")
        efivars.unmount()
        efivars.mount()
        assert not efivars.exists("L")

    @ONE_RECORD
    def test_listed_files_have_the_usual_permissions_and_their_size(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        # state-002: -rw-r--r-- root root
        efivars.write("L", b"size")
        efivars.unmount()
        efivars.mount()
        root, file = probe.steps([do.Stat(efivars.path), do.Stat(efivars.file("L"))])
        succeeded(root)
        succeeded(file)
        shown = [file.field(name) for name in ("mode", "nlink", "uid", "gid", "size")]
        assert shown == [0o100644, 1, 0, 0, 4 + len(b"size")]
        assert [root.field(name) for name in ("mode", "uid", "gid")] == [0o040755, 0, 0]

    @ONE_RECORD
    def test_every_listed_size_is_what_a_read_returns(self, efivars: Efivars) -> None:
        efivars.write("L", b"L")
        efivars.unmount()
        efivars.mount()
        for name in efivars.names():
            content = efivars.read_raw(name.name, name.guid)
            assert efivars.size(name.name, name.guid) == len(content), str(name)

    @pytest.mark.cases(414)
    @pytest.mark.pain(2)
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    @pytest.mark.cost(store_bytes=72)
    def test_a_mount_older_than_the_driver_lists_what_the_firmware_knew(
        self, fresh: Efivars, tee: Tee
    ) -> None:
        """The directory is a snapshot: binding makes it writable and adds nothing to it."""
        fresh.mount()
        fresh.write("Late", b"L")
        fresh.unmount()
        tee.unbind()
        fresh.mount()
        tee.bind()
        assert _state(fresh).writable
        assert not fresh.exists("Late")
        fresh.unmount()
        fresh.mount()
        assert fresh.read("Late").data == b"L"


class TestSeveralMounts:
    @pytest.mark.cases(342)
    def test_they_are_one_superblock(
        self, shell: Shell, efivars: Efivars, second: SecondMount, probe: Probe
    ) -> None:
        second.mount()
        assert _info(shell, SECOND)[2] == _info(shell, efivars.path)[2]
        steps = [
            do.Stat(mount.file("SecureBoot", GLOBAL_VARIABLE_GUID))
            for mount in (efivars, second.efivars)
        ]
        first, other = probe.steps(steps)
        succeeded(first)
        succeeded(other)
        assert first.field("ino") == other.field("ino")

    @pytest.mark.cases(342)
    @ONE_RECORD
    def test_what_is_created_and_deleted_in_one_is_so_in_the_other(
        self, efivars: Efivars, second: SecondMount
    ) -> None:
        # mount-004
        second.mount()
        second.efivars.write("S", b"S")
        assert efivars.read("S").data == b"S"
        efivars.delete("S")
        assert not second.efivars.exists("S")

    @ONE_RECORD
    def test_the_immutable_flag_is_one_for_both(
        self, efivars: Efivars, second: SecondMount
    ) -> None:
        # mount-004: rm in the second mount is EPERM
        second.mount()
        efivars.write("S", b"S")
        with refused(errno.EPERM):
            second.efivars.unlink("S")
        efivars.set_immutable("S", False)
        second.efivars.unlink("S")
        assert not efivars.exists("S")

    @ONE_RECORD
    def test_a_read_only_one_leaves_the_other_writable(
        self, efivars: Efivars, second: SecondMount
    ) -> None:
        second.mount("ro")
        with refused(errno.EROFS):
            second.efivars.write("S", b"S")
        efivars.write("S", b"S")
        assert second.efivars.read("S").data == b"S"

    @pytest.mark.cases(343)
    def test_owners_of_the_first_hold_for_all(
        self, efivars: Efivars, second: SecondMount, probe: Probe
    ) -> None:
        second.mount("uid=1000,gid=100")
        (found,) = probe.steps([do.Stat(second.efivars.file("SecureBoot", GLOBAL_VARIABLE_GUID))])
        succeeded(found)
        assert (found.field("uid"), found.field("gid")) == (0, 0)

    @pytest.mark.cases(320)
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    @ONE_RECORD
    def test_unbind_and_bind_change_all_of_them(
        self, efivars: Efivars, second: SecondMount, tee: Tee
    ) -> None:
        second.mount()
        tee.unbind()
        assert _state(efivars).superblock_read_only
        assert _state(second.efivars).superblock_read_only
        tee.bind()
        assert _state(second.efivars).writable
        second.efivars.write("S", b"S")
        assert efivars.read("S").data == b"S"

    def test_the_last_unmount_ends_the_superblock(
        self, fresh: Efivars, second: SecondMount
    ) -> None:
        """A mount made after all are gone takes its own options; one made before does not."""
        fresh.mount("uid=1000")
        second.mount()
        fresh.unmount()
        fresh.mount()
        assert "uid=1000" in _info(second.shell, fresh.path)[-1]
        fresh.unmount()
        second.unmount()
        fresh.mount()
        assert "uid=1000" not in _info(second.shell, fresh.path)[-1]


class TestOptions:
    @pytest.mark.cases(343)
    def test_uid_and_gid_own_every_file_and_the_root(self, fresh: Efivars, probe: Probe) -> None:
        fresh.mount("uid=1000,gid=100")
        files = [fresh.file(name.name, name.guid) for name in fresh.names()]
        for found in probe.steps([do.Stat(path) for path in (fresh.path, *files)]):
            succeeded(found)
            assert (found.field("uid"), found.field("gid")) == (1000, 100)

    @pytest.mark.cases(343)
    def test_uid_and_gid_are_shown(self, fresh: Efivars, shell: Shell) -> None:
        fresh.mount("uid=1000,gid=100")
        assert _info(shell, fresh.path)[-1] == "rw,uid=1000,gid=100"

    @pytest.mark.cases(343)
    def test_root_s_own_ids_are_not_shown(self, fresh: Efivars, shell: Shell) -> None:
        fresh.mount("uid=0,gid=0")
        assert _info(shell, fresh.path)[-1] == "rw"

    @pytest.mark.cases(343)
    @ONE_RECORD
    def test_a_new_file_belongs_to_the_owner_of_the_mount(
        self, fresh: Efivars, probe: Probe
    ) -> None:
        fresh.mount("uid=1000,gid=100")
        fresh.write("O", b"O")
        (found,) = probe.steps([do.Stat(fresh.file("O"))])
        succeeded(found)
        assert (found.field("uid"), found.field("gid")) == (1000, 100)

    @pytest.mark.parametrize("options", ["mode=0700", "gid=-1", "efi"])
    def test_unknown_options_and_values_are_refused(self, fresh: Efivars, options: str) -> None:
        with pytest.raises(CommandFailed):
            fresh.mount(options)
        assert fresh.mount_state() is None

    @pytest.mark.parametrize("options", ["nosuid", "nodev", "noexec"])
    def test_options_of_every_mount_are_taken(self, fresh: Efivars, options: str) -> None:
        # state-002: systemd's mount has all three
        fresh.mount(options)
        assert options in _state(fresh).options


class TestReadOnly:
    """Two flags: the mount's own, which only user space changes, and the superblock's."""

    @ONE_RECORD
    def test_a_remount_read_only_refuses_writes(self, efivars: Efivars) -> None:
        # mount-001
        efivars.write("R", b"R")
        efivars.remount("ro")
        assert _state(efivars).mount_read_only
        with refused(errno.EROFS):
            efivars.write("R", b"x", flags="O_WRONLY")
        with refused(errno.EROFS):
            efivars.unlink("R")
        assert efivars.read("R").data == b"R"

    def test_a_remount_read_only_is_so_in_both_flags(self, efivars: Efivars) -> None:
        """Also where the file system is mounted a second time (do_remount, K6 fs/namespace.c)."""
        efivars.remount("ro")
        state = _state(efivars)
        assert state.mount_read_only
        assert state.superblock_read_only

    @ONE_RECORD
    def test_a_remount_read_write_takes_writes_again(self, efivars: Efivars) -> None:
        # mount-002
        efivars.remount("ro")
        efivars.remount("rw")
        assert _state(efivars).writable
        efivars.write("R", b"R")
        assert efivars.read("R").data == b"R"

    @ONE_RECORD
    def test_a_remount_read_only_waits_for_no_writer(self, efivars: Efivars, probe: Probe) -> None:
        """EBUSY while a file is open for writing, as on every file system."""
        efivars.write("R", b"R")
        efivars.set_immutable("R", False)
        (opened,) = probe.steps([do.Open("v", efivars.file("R"), "O_WRONLY")])
        succeeded(opened)
        with pytest.raises(CommandFailed, match="busy"):
            efivars.remount("ro")
        assert _state(efivars).writable
        probe.steps([do.Close("v")])
        efivars.remount("ro")
        assert _state(efivars).mount_read_only

    def test_a_mount_made_read_only_is_so_in_both_flags(self, fresh: Efivars) -> None:
        fresh.mount("ro")
        state = _state(fresh)
        assert state.mount_read_only
        assert state.superblock_read_only

    @pytest.mark.cases(322)
    @pytest.mark.pain(1)
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    def test_a_mount_made_read_only_before_the_driver_stays_so(
        self, fresh: Efivars, tee: Tee
    ) -> None:
        tee.unbind()
        fresh.mount("ro")
        tee.bind()
        assert not _state(fresh).superblock_read_only
        with refused(errno.EROFS):
            fresh.write("R", b"R")

    @pytest.mark.cases(319)
    @pytest.mark.pain(1)
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    @ONE_RECORD
    def test_a_mount_made_before_the_driver_turns_writable(self, fresh: Efivars, tee: Tee) -> None:
        # drv-004, drv-006
        tee.unbind()
        fresh.mount()
        assert _state(fresh).superblock_read_only
        assert not _state(fresh).mount_read_only
        tee.bind()
        assert _state(fresh).writable
        fresh.write("R", b"R")
        assert fresh.read("R").data == b"R"

    @pytest.mark.cases(319)
    @pytest.mark.pain(1)
    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    def test_asking_for_read_write_before_the_driver_changes_nothing(
        self, fresh: Efivars, tee: Tee
    ) -> None:
        """fstab's rw, with which users worked around a mount that stayed read-only."""
        tee.unbind()
        fresh.mount("rw")
        assert _state(fresh).superblock_read_only
        tee.bind()
        assert _state(fresh).writable

    @pytest.mark.needs("driver_bound")
    @pytest.mark.consents("unbind_driver")
    @ONE_RECORD
    def test_binding_needs_no_mount(self, fresh: Efivars, tee: Tee) -> None:
        tee.unbind()
        tee.bind()
        assert tee.is_bound()
        fresh.mount()
        assert _state(fresh).writable
        fresh.write("R", b"R")
        assert fresh.read("R").data == b"R"


class TestUnmount:
    def test_an_open_file_keeps_it_busy(self, efivars: Efivars, probe: Probe) -> None:
        # mount-003
        probe.steps([do.Open("v", efivars.file("SecureBoot", GLOBAL_VARIABLE_GUID))])
        with pytest.raises(CommandFailed, match="busy"):
            efivars.unmount()
        probe.steps([do.Close("v")])
        efivars.unmount()
        assert efivars.mount_state() is None

    def test_the_directory_below_is_empty(self, fresh: Efivars) -> None:
        assert fresh.names() == []

    def test_nothing_can_be_created_in_the_directory_below(
        self, fresh: Efivars, probe: Probe
    ) -> None:
        """What a script would take for a variable must not end up in sysfs."""
        (outcome,) = probe.steps([do.Open("v", fresh.file("U"), "O_WRONLY|O_CREAT")])
        # fs/libfs.c: empty_dir_lookup.
        with refused(errno.ENOENT, errno.EACCES, errno.EPERM):
            succeeded(outcome)

    @pytest.mark.needs("rpmb_access")
    def test_mounting_costs_no_rpmb_write(self, board: Board, efivars: Efivars) -> None:
        before = board.rpmb.counter()
        efivars.unmount()
        efivars.mount()
        assert board.rpmb.counter() == before
