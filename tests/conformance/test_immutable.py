"""The immutable flag: what keeps rm -rf from bricking a board (K6 fs/efivarfs/inode.c, vars.c).

A file is created without a variable to ask for the flag of a name: nothing reaches the store.
"""

from __future__ import annotations

import errno
from shlex import quote
from uuid import UUID

import pytest

from harness.capabilities import VENDOR_GUID
from harness.expectations import recorded
from harness.instruments.efivars import IMMUTABLE, Efivars
from harness.instruments.outcomes import accepted, refused, succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Shell
from harness.store.records import record_size

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

GLOBAL_GUID = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
CRASH_GUID = UUID("cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0")
CERTDB_GUID = UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a")

REMOVABLE = (
    "Boot0001", "BootNext", "BootOrder", "ConIn", "ConInDev", "ConOut", "ConOutDev", "Driver0001",
    "DriverOrder", "ErrOut", "ErrOutDev", "Lang", "OsIndications", "PlatformLang", "Timeout",
)  # fmt: skip
"""Names under the global GUID whose content the kernel knows (K6 fs/efivarfs/vars.c)."""
NOT_REMOVABLE = ("Key0000", "SysPrep0001", "SysPrepOrder", "Timeouts", "bootnext")
APPEND_ONLY = 0x20
"""FS_APPEND_FL (K6 include/uapi/linux/fs.h)."""

ONE_RECORD = pytest.mark.cost(store_bytes=record_size("V", 4))
TWO_RECORDS = pytest.mark.cost(store_bytes=2 * record_size("V", 4))


class TestCleared:
    """First, because where this does not work no test can be cleaned up after."""

    @pytest.mark.cases(385)
    @TWO_RECORDS
    @accepted()
    def test_the_file_can_be_written(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        efivars.write("V", b"y", flags="O_WRONLY")
        assert efivars.read("V").data == b"y"

    @TWO_RECORDS
    def test_the_flag_stays_cleared_after_a_write(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        efivars.write("V", b"y", flags="O_WRONLY")
        assert not efivars.is_immutable("V")

    @ONE_RECORD
    def test_the_flag_can_be_set_again(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        efivars.set_immutable("V", True)
        with refused(errno.EPERM):
            efivars.unlink("V")

    @ONE_RECORD
    def test_a_descriptor_opened_meanwhile_goes_on_writing(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        with efivars.opened("V", "O_WRONLY") as file:
            efivars.set_immutable("V", True)
            assert file.write(b"\7\0\0\0x") == 5

    @TWO_RECORDS
    def test_one_file_only(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.write("W", b"x")
        efivars.set_immutable("V", False)
        assert efivars.is_immutable("W")

    @pytest.mark.disturbs
    @ONE_RECORD
    def test_a_fresh_mount_sets_it_again(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.set_immutable("V", False)
        efivars.unmount()
        efivars.mount()
        assert efivars.is_immutable("V")

    @TWO_RECORDS
    def test_one_of_the_same_name_is_immutable_again(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        efivars.delete("V")
        efivars.write("V", b"x")
        assert efivars.is_immutable("V")


class TestWhichFiles:
    @ONE_RECORD
    def test_a_new_variable_of_ours(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        with efivars.opened("V") as file:
            assert file.flags() == recorded(16, "imm-002[1]")

    def test_a_file_that_was_never_written(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            assert file.flags() == recorded(16, "basic-032[0]")

    @pytest.mark.cases(389)
    @pytest.mark.foreign(*REMOVABLE)
    @pytest.mark.consents("foreign_variables")
    def test_not_those_that_the_boot_manager_shares_with_the_system(self, efivars: Efivars) -> None:
        flags = {name: _flags_of(efivars, name, GLOBAL_GUID) for name in REMOVABLE}
        assert flags == dict.fromkeys(REMOVABLE, 0)

    @pytest.mark.cases(390)
    @pytest.mark.foreign(*NOT_REMOVABLE)
    @pytest.mark.consents("foreign_variables")
    def test_other_names_under_the_global_guid(self, efivars: Efivars) -> None:
        flags = {name: _flags_of(efivars, name, GLOBAL_GUID) for name in NOT_REMOVABLE}
        assert flags == dict.fromkeys(NOT_REMOVABLE, IMMUTABLE)

    def test_those_names_under_another_guid(self, efivars: Efivars) -> None:
        flags = {name: _flags_of(efivars, name, VENDOR_GUID) for name in ("BootOrder", "Timeout")}
        assert flags == {"BootOrder": IMMUTABLE, "Timeout": IMMUTABLE}

    @pytest.mark.cases(391)
    @pytest.mark.foreign("dump-type0-1-1-1-C", "V")
    @pytest.mark.consents("foreign_variables")
    def test_no_record_of_a_crash(self, efivars: Efivars) -> None:
        names = ("dump-type0-1-1-1-C", "V")
        flags = {name: _flags_of(efivars, name, CRASH_GUID) for name in names}
        assert flags == dict.fromkeys(names, 0)

    @pytest.mark.cases(390)
    @pytest.mark.parametrize(
        ("name", "guid", "flags"),
        [
            pytest.param("SetupMode", GLOBAL_GUID, recorded(16, "special-001.flags_before")),
            pytest.param("SignatureSupport", GLOBAL_GUID, recorded(16, "special-004.flags_before")),
            pytest.param("certdb", CERTDB_GUID, recorded(16, "special-034.flags_before")),
        ],
        ids=["SetupMode", "SignatureSupport", "certdb"],
    )
    def test_what_the_firmware_wrote(
        self, efivars: Efivars, name: str, guid: UUID, flags: int
    ) -> None:
        with efivars.opened(name, guid=guid) as file:
            assert file.flags() == flags


class TestRefused:
    """What an immutable file does not allow, whoever asks."""

    @pytest.mark.cases(383)
    @pytest.mark.parametrize("flags", ["O_WRONLY", "O_RDWR", "O_WRONLY|O_APPEND"])
    @ONE_RECORD
    def test_opening_it_for_writing(self, efivars: Efivars, flags: str) -> None:
        efivars.write("V", b"x")
        refusal = recorded(errno.EPERM, "basic-007[0]", "imm-002[3]")
        with refused(refusal), efivars.opened("V", flags):
            pass

    @pytest.mark.cases(383)
    @ONE_RECORD
    def test_a_shell_redirection(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"kept")
        written = shell.run(f"printf '\\007\\000\\000\\000lost' >{quote(efivars.file('V'))}")
        assert not written.ok
        assert "not permitted" in written.error_text.lower()
        assert efivars.read("V").data == b"kept"

    @pytest.mark.cases(384)
    @ONE_RECORD
    def test_unlink_however_often(self, efivars: Efivars) -> None:
        efivars.write("V", b"x")
        with refused(recorded(errno.EPERM, "basic-034[0]")):
            efivars.unlink("V")
        assert efivars.exists("V")
        with refused(recorded(errno.EPERM, "basic-034[2]")):
            efivars.unlink("V")
        assert efivars.read("V").data == b"x"

    @pytest.mark.cases(384)
    @ONE_RECORD
    def test_rm_as_root_by_force(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"x")
        assert not shell.run(f"rm -rf {quote(efivars.file('V'))}").ok
        assert efivars.read("V").data == b"x"

    @ONE_RECORD
    def test_not_the_descriptor_that_created_it(self, efivars: Efivars) -> None:
        with efivars.opened("V", "O_WRONLY|O_CREAT") as file:
            file.write(b"\7\0\0\0x")
            assert efivars.is_immutable("V")
            assert file.write(b"\7\0\0\0x") == 5


class TestFlags:
    @pytest.mark.cases(386)
    @pytest.mark.parametrize("flags", [APPEND_ONLY, APPEND_ONLY | IMMUTABLE, 0x40])
    @ONE_RECORD
    def test_no_other_flag_exists(self, efivars: Efivars, flags: int) -> None:
        efivars.write("V", b"x")
        with efivars.opened("V") as file:
            with refused(errno.EOPNOTSUPP):
                file.set_flags(flags)
            assert file.flags() == IMMUTABLE

    @pytest.mark.needs("chattr")
    @ONE_RECORD
    def test_chattr_and_lsattr_show_and_change_it(self, efivars: Efivars, shell: Shell) -> None:
        efivars.write("V", b"x")
        path = quote(efivars.file("V"))
        assert "i" in shell.run(f"lsattr {path}").check().text.split()[0]
        shell.run(f"chattr -i {path}").check()
        assert "i" not in shell.run(f"lsattr {path}").check().text.split()[0]
        assert not efivars.is_immutable("V")

    @pytest.mark.needs("chattr")
    @pytest.mark.cases(388)
    @ONE_RECORD
    def test_there_are_no_projects(self, efivars: Efivars, shell: Shell) -> None:
        """chattr -p is FS_IOC_FSSETXATTR."""
        efivars.write("V", b"x")
        result = shell.run(f"LC_ALL=C chattr -p 1 {quote(efivars.file('V'))}")
        assert "Operation not supported" in result.error_text
        assert efivars.is_immutable("V")

    def test_the_directory_has_none(self, efivars: Efivars, probe: Probe) -> None:
        _, flags, _ = probe.steps([do.Open("d", efivars.path), do.GetFlags("d"), do.Close("d")])
        with refused(errno.ENOTTY, errno.EOPNOTSUPP):
            succeeded(flags)


def _flags_of(efivars: Efivars, name: str, guid: UUID) -> int:
    """The flags that a file of this name has; one that had to be created goes again."""
    existed = efivars.exists(name, guid)
    with efivars.opened(name, "O_RDONLY|O_CREAT", guid) as file:
        flags = file.flags()
    if not existed and efivars.exists(name, guid):
        efivars.delete(name, guid)
    return flags
