"""Who may do what: everybody reads, root alone writes, and ordinary users read slowly."""

from __future__ import annotations

import errno
from shlex import quote

import pytest

from harness.expectations import recorded
from harness.instruments.efivars import Efivars
from harness.instruments.outcomes import succeeded
from harness.links import posix
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Result, Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 4))
READS = 250
"""More than an ordinary user's share of two seconds, 100 each (K6 kernel/user.c): whatever is left
of the first one, all of another is waited for."""
FRESH_USER = 65533


def as_nobody(shell: Shell, command: str, uid: int = 65534) -> Result:
    """Run a command line as a user who is nobody; where setpriv changes no user (BusyBox's does
    not) as the one called so."""
    line = quote(f"LC_ALL=C; export LC_ALL; {command}")
    return shell.run(
        f'p="setpriv --reuid={uid} --regid=65534 --clear-groups"; '
        f"if $p true 2>/dev/null; then $p sh -c {line}; "
        f"else su -s /bin/sh nobody -c {line}; fi"
    )


def errno_of(result: Result) -> int | None:
    """The errno that a failed command's message tells; None for a command that succeeded."""
    return None if result.ok else posix.errno_in(result.stderr or result.stdout)


@pytest.mark.needs("second_user")
class TestAnotherUser:
    @ONE_RECORD
    def test_reads_a_variable(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"open")
        result = as_nobody(shell, f"cat {quote(efivars.file('V'))}")
        assert result.ok
        read = result.stdout
        assert read[:4] == recorded(b"\7\0\0\0", "perm-001.output")
        assert read[4:] == b"open"

    def test_lists_the_directory(self, efivars: Efivars, shell: Shell) -> None:
        listed = as_nobody(shell, f"ls {efivars.path}").check().text.splitlines()
        assert len(listed) == len(efivars.names())

    @ONE_RECORD
    def test_does_not_write_a_variable(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"kept")
        efivars.set_immutable("V", False)
        path = quote(efivars.file("V"))
        assert errno_of(as_nobody(shell, f"printf '\\007\\0\\0\\0lost' >{path}")) == errno.EACCES
        assert efivars.read("V").data == b"kept"

    def test_does_not_create_one(self, efivars: Efivars, shell: Shell) -> None:
        path = quote(efivars.file("V"))
        result = as_nobody(shell, f"printf '\\007\\0\\0\\0y' >{path}")
        assert errno_of(result) == recorded(errno.EACCES, "perm-003.output")
        assert not efivars.exists("V")

    @ONE_RECORD
    def test_does_not_remove_one(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"kept")
        efivars.set_immutable("V", False)
        assert errno_of(as_nobody(shell, f"rm {quote(efivars.file('V'))}")) == errno.EACCES
        assert efivars.exists("V")

    @pytest.mark.needs("chattr")
    @pytest.mark.cases(387)
    @ONE_RECORD
    def test_does_not_clear_the_immutable_flag(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"kept")
        result = as_nobody(shell, f"LC_ALL=C chattr -i {quote(efivars.file('V'))} 2>&1")
        refusal = recorded("Operation not permitted while setting flags", "perm-005.output")
        assert refusal in result.text
        assert efivars.is_immutable("V")

    def test_does_not_remount(self, efivars: Efivars, shell: Shell) -> None:
        before = efivars.mount_state()
        assert not as_nobody(shell, f"mount -o remount,ro {efivars.path}").ok
        assert efivars.mount_state() == before

    @pytest.mark.needs("query_variable_info")
    def test_sees_the_space_as_root_does(self, efivars: Efivars, shell: Shell) -> None:
        df = f"df -Pk {efivars.path} | tail -n 1"
        assert as_nobody(shell, df).check().text == shell.run(df).check().text

    @pytest.mark.cases(382)
    @pytest.mark.cost(store_bytes=record_size("V", READS))
    def test_reads_a_hundred_times_a_second(self, efivars: Efivars, shell: Shell) -> None:
        """efivarfs delays the further reads of any user but root, since each one is a call of the
        firmware (K6 fs/efivarfs/file.c)."""
        efivars.write("V", b"r" * READS)
        # One who has read nothing yet, where the board can be one: fewer of them wait.
        read = as_nobody(shell, f"dd bs=1 if={quote(efivars.file('V'))}", FRESH_USER).check()
        assert len(read.stdout) == READS + 4
        assert read.duration > 0.9

    @pytest.mark.needs("rpmb_device")
    def test_does_not_open_the_rpmb(self, shell: Shell) -> None:
        result = as_nobody(shell, "for d in /dev/mmcblk*rpmb; do : <$d; done")
        assert errno_of(result) == recorded(errno.EACCES, "perm-009.output")

    @pytest.mark.needs("supplicant_service")
    def test_does_not_open_the_device_of_the_supplicant(self, shell: Shell) -> None:
        refusal = recorded(errno.EACCES, "perm-011.output")
        assert errno_of(as_nobody(shell, ": </dev/teepriv0")) == refusal


class TestModes:
    @ONE_RECORD
    @pytest.mark.parametrize("mode", [0o644, 0o600])
    def test_a_new_file_has_the_mode_that_its_creator_asked_for(
        self, efivars: Efivars, probe: Probe, mode: int
    ) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT", mode=mode) as file:
            file.write(b"\7\0\0\0x")
        (found,) = probe.steps([do.Stat(efivars.file("V"))])
        assert oct(found.field("mode")) == oct(0o100000 | mode)
        assert (found.field("uid"), found.field("gid"), found.field("nlink")) == (0, 0, 1)

    @pytest.mark.disturbs
    @ONE_RECORD
    def test_after_a_fresh_mount_everybody_reads_and_root_writes(
        self, efivars: Efivars, probe: Probe
    ) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT", mode=0o600) as file:
            file.write(b"\7\0\0\0x")
        efivars.unmount()
        efivars.mount()
        file_, directory = probe.steps([do.Stat(efivars.file("V")), do.Stat(efivars.path)])
        assert oct(file_.field("mode")) == oct(0o100644)
        assert oct(directory.field("mode")) == oct(0o040755)

    @pytest.mark.cases(343)
    @pytest.mark.disturbs
    @ONE_RECORD
    def test_uid_and_gid_of_the_mount_own_every_file(
        self, efivars: Efivars, probe: Probe, shell: Shell
    ) -> None:
        efivars.write("V", b"x")
        efivars.unmount()
        try:
            efivars.mount("uid=1,gid=2")
            paths = (efivars.path, efivars.file("V"))
            found = probe.steps([do.Stat(path) for path in paths])
            mounted = shell.run("cat /proc/mounts").check().text.splitlines()
        finally:
            efivars.unmount()
            efivars.mount()
        assert [(one.field("uid"), one.field("gid")) for one in found] == [(1, 2), (1, 2)]
        (line,) = (line for line in mounted if f" {efivars.path} efivarfs " in line)
        assert line.split()[3].split(",")[-2:] == ["uid=1", "gid=2"]

    @ONE_RECORD
    def test_an_immutable_file_keeps_mode_and_owner(
        self, efivars: Efivars, shell: Shell, probe: Probe
    ) -> None:
        efivars.write("V", b"x")
        path = quote(efivars.file("V"))
        for command in (f"chmod 600 {path}", f"chown 1 {path}"):
            assert errno_of(shell.run(command)) == errno.EPERM
        (found,) = probe.steps([do.Stat(efivars.file("V"))])
        succeeded(found)
        assert (oct(found.field("mode")), found.field("uid")) == (oct(0o100644), 0)

    @ONE_RECORD
    def test_an_ordinary_file_takes_mode_and_owner(
        self, efivars: Efivars, shell: Shell, probe: Probe
    ) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        path = quote(efivars.file("V"))
        shell.run(f"chmod 600 {path} && chown 1 {path}").check()
        (found,) = probe.steps([do.Stat(efivars.file("V"))])
        assert (oct(found.field("mode")), found.field("uid")) == (oct(0o100600), 1)
