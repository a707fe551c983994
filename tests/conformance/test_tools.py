"""Ordinary programs on variables: what each one needs of the file system, and what it does there.

The flows of libefivar, systemd, fwupd and others as system calls, and the programs themselves where
the board has them. Recorded rows: p2a-007 to -010, p2c-001, -006, -007, -016, state-002, mount-002.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from harness.capabilities import VENDOR_GUID
from harness.errors import MissingCapability
from harness.expectations import recorded
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from harness.instruments.efivars import IMMUTABLE, Efivars, VariableName
from harness.instruments.outcomes import succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.shell import Result, Shell

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]

CONTENT = b"\7\0\0\0data"
ONE_RECORD = pytest.mark.cost(store_bytes=68)
"""One variable with a one-letter name and up to four bytes."""
TWO_RECORDS = pytest.mark.cost(store_bytes=136)
SCRATCH = "/tmp/hil-tools"


@pytest.fixture
def content(shell: Shell) -> Iterator[str]:
    """An ordinary file on the board with what one write(2) to a variable carries."""
    shell.run(f"mkdir -p {SCRATCH}").check()
    shell.write_file(f"{SCRATCH}/content", CONTENT)
    yield f"{SCRATCH}/content"
    shell.run(f"rm -rf {SCRATCH}")


@pytest.fixture
def path(efivars: Efivars) -> str:
    """The path of our variable "T"."""
    return efivars.file("T")


def _run(shell: Shell, command: str) -> Result:
    """Run a command whose first word is a program; skips where the board lacks it."""
    program = command.split()[0]
    if not shell.run(f"command -v {program} >/dev/null").ok:
        raise MissingCapability(f"the board has no {program}", remedy=f"install {program}")
    return shell.run(command, timeout=30)


def _works(result: Result) -> Result:
    """The result of a program that must not fail."""
    assert result.ok, f"{result.command}: {result.error_text}"
    return result


class TestLibefivar:
    """efivar, efibootmgr and mokutil go through one library (efivar src/efivarfs.c)."""

    @ONE_RECORD
    def test_two_opens_of_a_variable_are_the_same_inode(
        self, efivars: Efivars, probe: Probe, path: str
    ) -> None:
        efivars.write("T", b"data")
        outcomes = probe.steps(
            [
                do.Open("a", path),
                do.Fstat("a"),
                do.Open("b", path),
                do.Fstat("b"),
                do.Stat(path),
                do.Close("a"),
                do.Close("b"),
            ]
        )
        for outcome in outcomes:
            succeeded(outcome)
        numbers = {outcomes[at].field("ino") for at in (1, 3, 4)}
        assert len(numbers) == 1

    @TWO_RECORDS
    def test_the_inode_stays_when_the_value_changes(
        self, efivars: Efivars, probe: Probe, path: str
    ) -> None:
        efivars.write("T", b"data")
        (before,) = probe.steps([do.Stat(path)])
        efivars.overwrite("T", b"new")
        (after,) = probe.steps([do.Stat(path)])
        succeeded(before)
        succeeded(after)
        assert after.field("ino") == before.field("ino")

    @TWO_RECORDS
    def test_an_update_clears_the_flag_through_one_descriptor_and_writes_through_another(
        self, efivars: Efivars, probe: Probe, path: str
    ) -> None:
        efivars.write("T", b"data")
        outcomes = probe.steps(
            [
                do.Open("flags", path),
                do.GetFlags("flags"),
                do.SetFlags("flags", 0),
                do.Open("data", path, "O_WRONLY"),
                do.Write("data", b"\7\0\0\0new"),
                do.Close("data"),
                do.SetFlags("flags", IMMUTABLE),
                do.Close("flags"),
            ]
        )
        for outcome in outcomes:
            succeeded(outcome)
        assert efivars.read("T").data == b"new"
        assert efivars.is_immutable("T")

    @ONE_RECORD
    def test_a_failed_first_write_can_be_taken_back(
        self, efivars: Efivars, probe: Probe, path: str
    ) -> None:
        """It creates exclusively, writes once, and unlinks after a failure."""
        opened, written, unlinked, _ = probe.steps(
            [
                do.Open("v", path, "O_WRONLY|O_CREAT|O_EXCL"),
                do.Write("v", b"\x80\0\0\0data"),
                do.Unlink(path),
                do.Close("v"),
            ]
        )
        succeeded(opened)
        assert written.errno == "EINVAL"
        # A new file is immutable by its name: its own unlink needs the flag cleared first.
        assert unlinked.errno == "EPERM"
        if efivars.exists("T"):
            efivars.delete("T")
        efivars.write("T", b"data")
        assert efivars.read("T").data == b"data"

    @ONE_RECORD
    def test_the_size_is_known_before_the_read(
        self, efivars: Efivars, probe: Probe, path: str
    ) -> None:
        """Two reads: four bytes of attributes, then as many as fstat(2) promised."""
        efivars.write("T", b"data")
        opened, shown, attributes, data, _ = probe.steps(
            [
                do.Open("v", path),
                do.Fstat("v"),
                do.Read("v", 4),
                do.Read("v", 4096),
                do.Close("v"),
            ]
        )
        succeeded(opened)
        succeeded(shown)
        succeeded(attributes)
        succeeded(data)
        assert (shown.value, attributes.data, data.data) == (8, CONTENT[:4], CONTENT[4:])


@pytest.mark.needs("efivar")
class TestEfivar:
    """The program; names of one letter are none to it."""

    NAME = f"{VENDOR_GUID}-T2"

    @pytest.fixture
    def attributes(self, shell: Shell) -> str:
        """The option that gives them: efivar 38 renamed it, and ignores the old one."""
        return "-A" if "-A, --attributes" in shell.run("efivar --help").text else "-t"

    @pytest.mark.cases(432)
    @pytest.mark.disturbs
    def test_it_lists_what_the_directory_has(self, shell: Shell, efivars: Efivars) -> None:
        # p2a-007
        listed = _works(shell.run("efivar -l")).text.split()
        assert sorted(listed) == sorted(f"{name.guid}-{name.name}" for name in efivars.names())

    @pytest.mark.cases(432)
    @pytest.mark.cost(store_bytes=72)
    def test_it_prints_attributes_and_value(self, shell: Shell, efivars: Efivars) -> None:
        # p2a-009
        efivars.write("T2", b"data")
        shown = _works(shell.run(f"efivar -p -n {self.NAME}")).text
        lines = [line.strip() for line in shown.splitlines()]
        assert f"GUID: {VENDOR_GUID}" in lines
        assert 'Name: "T2"' in lines
        expected = ["Non-Volatile", "Boot Service Access", "Runtime Service Access"]
        assert lines[lines.index("Attributes:") + 1 : lines.index("Value:")] == expected
        assert re.search(r"^00000000  64 61 74 61 +\|data", shown, re.MULTILINE)

    @pytest.mark.cases(432)
    @pytest.mark.cost(store_bytes=72)
    def test_it_creates(
        self, shell: Shell, efivars: Efivars, content: str, attributes: str
    ) -> None:
        shell.run(f"printf data > {content}").check()
        _works(shell.run(f"efivar -w {attributes} 7 -n {self.NAME} -f {content}"))
        variable = efivars.read("T2")
        assert (variable.attributes, variable.data) == (7, b"data")

    @pytest.mark.cases(432)
    @pytest.mark.cost(store_bytes=144)
    def test_it_overwrites_an_immutable_variable(
        self, shell: Shell, efivars: Efivars, content: str, attributes: str
    ) -> None:
        efivars.write("T2", b"old")
        shell.run(f"printf new > {content}").check()
        _works(shell.run(f"efivar -w {attributes} 7 -n {self.NAME} -f {content}"))
        assert efivars.read("T2").data == b"new"
        assert efivars.is_immutable("T2")

    @pytest.mark.cases(432)
    @pytest.mark.cost(store_bytes=144)
    def test_it_appends(
        self, shell: Shell, efivars: Efivars, content: str, attributes: str
    ) -> None:
        efivars.write("T2", b"da")
        shell.run(f"printf ta > {content}").check()
        _works(shell.run(f"efivar -a {attributes} 7 -n {self.NAME} -f {content}"))
        assert efivars.read("T2").data == b"data"

    @pytest.mark.cases(432)
    def test_a_missing_variable_is_said_to_be_missing(self, shell: Shell) -> None:
        # p2a-023
        result = shell.run(f"efivar -p -n {self.NAME}")
        assert recorded("No such file or directory", "p2a-023.output") in result.error_text

    @pytest.mark.cases(433)
    @pytest.mark.cost(store_bytes=72)
    def test_an_export_holds_the_variable(
        self, shell: Shell, efivars: Efivars, content: str
    ) -> None:
        usage = shell.run("efivar --help").text
        if "--export" not in usage:
            raise MissingCapability(
                "this efivar has no --export", remedy="install efivar 38 or later"
            )
        efivars.write("T2", b"data")
        _works(shell.run(f"efivar -n {self.NAME} --export {content}"))
        exported = shell.read_file(content)
        assert "T2".encode("utf-16-le") in exported
        assert b"data" in exported

    @pytest.mark.cases(434)
    @pytest.mark.cost(store_bytes=72)
    def test_many_at_once_read_the_same(self, shell: Shell, efivars: Efivars) -> None:
        efivars.write("T2", b"data")
        command = (
            f'for i in 1 2 3 4 5 6 7 8; do efivar -d -n {self.NAME} & p="$p $!"; done; '
            "for i in $p; do wait $i || exit; done"
        )
        shown = _works(shell.run(command, timeout=30)).text.split()
        assert shown == ["100", "97", "116", "97"] * 8


class TestCopying:
    """One write(2) a file is what cp, dd, cat and tee make of a small one."""

    @pytest.mark.cases(444)
    @ONE_RECORD
    @pytest.mark.parametrize(
        "command",
        [
            pytest.param("cp {content} {path}", id="cp"),
            pytest.param("cat {content} > {path}", id="cat"),
            pytest.param("dd if={content} of={path} bs=64k 2>/dev/null", id="dd"),
            pytest.param("tee {path} < {content} > /dev/null", id="tee"),
            pytest.param("printf '\\7\\0\\0\\0data' > {path}", id="printf"),
            pytest.param("busybox cp {content} {path}", id="busybox cp"),
            pytest.param("busybox dd if={content} of={path} 2>/dev/null", id="busybox dd"),
            pytest.param("head -c 8 {content} > {path}", id="head"),
        ],
    )
    def test_a_variable_is_made_by(
        self, shell: Shell, efivars: Efivars, content: str, path: str, command: str
    ) -> None:
        # p2c-007
        _works(_run(shell, command.format(content=content, path=path)))
        variable = efivars.read("T")
        assert (variable.attributes, variable.data) == (7, b"data")

    @ONE_RECORD
    def test_dd_a_byte_at_a_time_makes_none(
        self, shell: Shell, efivars: Efivars, content: str, path: str
    ) -> None:
        result = _run(shell, f"dd if={content} of={path} bs=1")
        assert not result.ok
        assert "Invalid argument" in result.error_text
        assert not efivars.exists("T") or efivars.read_raw("T") == b""

    @ONE_RECORD
    def test_cp_cannot_overwrite_an_immutable_variable(
        self, shell: Shell, efivars: Efivars, content: str, path: str
    ) -> None:
        efivars.write("T", b"kept")
        result = _run(shell, f"cp {content} {path}")
        assert "Operation not permitted" in result.error_text
        assert efivars.read("T").data == b"kept"

    @TWO_RECORDS
    def test_cp_overwrites_once_the_flag_is_cleared(
        self, shell: Shell, efivars: Efivars, content: str, path: str
    ) -> None:
        """It truncates first: only the size shown changes by that, and the write sets it anew."""
        efivars.write("T", b"old")
        efivars.set_immutable("T", False)
        _works(_run(shell, f"cp {content} {path}"))
        assert efivars.read("T").data == b"data"
        assert efivars.size("T") == len(CONTENT)

    @ONE_RECORD
    @pytest.mark.parametrize(
        "command",
        ["cat {path}", "dd if={path} 2>/dev/null", "head -c 99 {path}", "tail -c 99 {path}"],
    )
    def test_a_variable_is_read_by(
        self, shell: Shell, efivars: Efivars, path: str, command: str
    ) -> None:
        efivars.write("T", b"data")
        assert _run(shell, command.format(path=path)).stdout == CONTENT

    @ONE_RECORD
    def test_a_copy_of_the_whole_directory_has_every_variable(
        self, shell: Shell, efivars: Efivars, content: str
    ) -> None:
        """How people back variables up."""
        efivars.write("T", b"data")
        _works(_run(shell, f"cp -r {efivars.path} {SCRATCH}/copy"))
        names = shell.run(f"ls -1 {SCRATCH}/copy").check().text.splitlines()
        assert sorted(names) == sorted(map(str, efivars.names()))
        assert shell.read_file(f"{SCRATCH}/copy/{VariableName('T', VENDOR_GUID)}") == CONTENT

    @TWO_RECORDS
    def test_a_variable_is_given_back_from_its_copy(
        self, shell: Shell, efivars: Efivars, content: str, path: str
    ) -> None:
        efivars.write("T", b"data")
        _works(_run(shell, f"cp {path} {SCRATCH}/copy"))
        efivars.delete("T")
        _works(_run(shell, f"cp {SCRATCH}/copy {path}"))
        assert efivars.read_raw("T") == CONTENT


@pytest.mark.needs("chattr")
class TestChattr:
    @ONE_RECORD
    def test_lsattr_shows_the_flag(self, shell: Shell, efivars: Efivars, path: str) -> None:
        # state-002, imm-003
        efivars.write("T", b"data")
        shown = _works(shell.run(f"lsattr {path}")).text
        assert shown.split()[0].strip("-") == "i"

    @ONE_RECORD
    def test_rm_fails_before_chattr_and_works_after_it(
        self, shell: Shell, efivars: Efivars, path: str
    ) -> None:
        # mount-002
        efivars.write("T", b"data")
        refusal = shell.run(f"rm -f {path}")
        assert recorded("Operation not permitted", "mount-002.output") in refusal.error_text
        assert efivars.exists("T")
        _works(shell.run(f"chattr -i {path} && rm {path}"))
        assert not efivars.exists("T")

    @ONE_RECORD
    def test_the_flag_is_set_again(self, shell: Shell, efivars: Efivars, path: str) -> None:
        efivars.write("T", b"data")
        _works(shell.run(f"chattr -i {path} && chattr +i {path}"))
        assert efivars.is_immutable("T")

    @ONE_RECORD
    @pytest.mark.parametrize("flag", ["a", "d", "A"])
    def test_no_other_flag_can_be_set(
        self, shell: Shell, efivars: Efivars, path: str, flag: str
    ) -> None:
        efivars.write("T", b"data")
        assert not shell.run(f"chattr +{flag} {path}").ok
        assert efivars.is_immutable("T")


class TestDf:
    @pytest.mark.cases(345)
    def test_the_type_is_shown(self, shell: Shell, efivars: Efivars) -> None:
        assert _run(shell, f"stat -f -c %T {efivars.path}").text in (
            # older programs do not know the number
            "efivarfs",
            "UNKNOWN (0xde5e81e4)",
            "UNKNOWN",
        )

    @pytest.mark.cases(346, 347, 443)
    @pytest.mark.pain(14)
    def test_the_figures_are_those_of_statfs(
        self, shell: Shell, efivars: Efivars, probe: Probe
    ) -> None:
        """fwupd takes free blocks times block size for the room, and 0 for "no figures"."""
        (found,) = probe.steps([do.StatFs(efivars.path)])
        succeeded(found)
        shown = _works(_run(shell, f"df -k {efivars.path}")).text.splitlines()[-1].split()
        free = found.field("bavail") * found.field("bsize")
        total = found.field("blocks") * found.field("bsize")
        assert shown[0] == "efivarfs"
        assert abs(int(shown[1]) * 1024 - total) < 1024
        assert abs(int(shown[3]) * 1024 - free) < 1024

    def test_findmnt_finds_it_by_type(self, shell: Shell, efivars: Efivars) -> None:
        found = _works(_run(shell, "findmnt -n -t efivarfs -o TARGET")).text.splitlines()
        assert efivars.path in found


class TestEfitools:
    @pytest.mark.cases(438)
    @pytest.mark.needs("efitools")
    def test_efi_readvar_finds_the_mount_by_its_type(self, shell: Shell, efivars: Efivars) -> None:
        shown = _works(shell.run("efi-readvar")).text
        for key in ("PK", "KEK"):
            empty = not efivars.exists(key, GLOBAL_VARIABLE_GUID)
            assert (f"Variable {key} has no entries" in shown) == empty

    @pytest.mark.cases(439)
    def test_sbkeysync_takes_the_mount_for_efivarfs(self, shell: Shell) -> None:
        """It looks at f_type and nothing else."""
        result = _run(shell, "sbkeysync --dry-run --verbose --no-default-keystores")
        assert result.ok, result.error_text
        assert "firmware keys:" in result.text


class TestSystemd:
    """What systemd and bootctl do to a variable (src/basic/efivars.c)."""

    @pytest.mark.cases(445)
    @ONE_RECORD
    def test_a_value_is_read_with_one_byte_to_spare(
        self, efivars: Efivars, probe: Probe, path: str
    ) -> None:
        """It asks for more than fstat(2) promised: a value that grew meanwhile would show."""
        efivars.write("T", b"data")
        _, shown, content, _ = probe.steps(
            [do.Open("v", path), do.Fstat("v"), do.Read("v", 4 + 4 + 1), do.Close("v")]
        )
        succeeded(shown)
        succeeded(content)
        assert (shown.value or 0) >= 4
        assert content.data == CONTENT

    def test_the_firmware_s_directory_says_that_the_board_booted_with_efi(
        self, shell: Shell
    ) -> None:
        assert shell.run("test -d /sys/firmware/efi").ok
        size = shell.run("cat /sys/firmware/efi/fw_platform_size").text
        assert size in ("32", "64")


class TestManyReaders:
    @pytest.mark.cases(434)
    @ONE_RECORD
    def test_parallel_readers_see_whole_values(
        self, shell: Shell, efivars: Efivars, path: str
    ) -> None:
        efivars.write("T", b"data")
        quoted = shlex.quote(path)
        command = (
            f'for i in 1 2 3 4 5 6 7 8; do cat {quoted} & p="$p $!"; done; '
            "for i in $p; do wait $i || exit; done"
        )
        assert _works(shell.run(command, timeout=30)).stdout == CONTENT * 8

    def test_a_search_through_all_variables_fails_nowhere(
        self, shell: Shell, efivars: Efivars
    ) -> None:
        result = shell.run(f"cat {efivars.path}/* > /dev/null")
        assert (result.status, result.error_text) == (0, "")
