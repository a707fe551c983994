"""Instruments on a board: what they return, and that both ways to the RPMB say the same."""

from __future__ import annotations

import errno
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.errors import TargetError
from harness.formats import rpmb as wire
from harness.instruments.efivars import Efivars, MountState, VariableName, mount_state
from harness.instruments.kernel_log import KernelLog
from harness.instruments.outcomes import refused
from harness.instruments.rpmb import Rpmb, RpmbRefused, _MmcUtils, _PythonIoctl
from harness.instruments.tee import Tee
from harness.shell import Shell

GUID = UUID("12345678-1234-1234-1234-123456789abc")


class TestRefused:
    def test_the_expected_errno_passes(self) -> None:
        with refused(errno.EROFS, errno.EPERM):
            raise OSError(errno.EPERM, "no")

    def test_another_errno_fails(self) -> None:
        with pytest.raises(AssertionError, match="failed with EIO, expected EROFS"), refused(30):
            raise OSError(errno.EIO, "input/output error")

    def test_success_fails(self) -> None:
        with pytest.raises(AssertionError, match="succeeded, expected EROFS"), refused(30):
            pass


class TestNames:
    @pytest.mark.parametrize("name", ["BootOrder", "with-dash", "-", "a b", "Grüße", "!"])
    def test_file_name_both_ways(self, name: str) -> None:
        variable = VariableName(name, GUID)
        assert VariableName.of_file(str(variable).encode()) == variable

    def test_bytes_that_are_no_text_survive(self) -> None:
        file_name = b"\xff\xfe-" + str(GUID).encode()
        name = VariableName.of_file(file_name)
        assert str(name).encode("utf-8", "surrogateescape") == file_name

    @pytest.mark.parametrize("file_name", [b"", b"x", str(GUID).encode(), b"-" + b"g" * 36])
    def test_other_files_are_refused(self, file_name: bytes) -> None:
        with pytest.raises(ValueError, match=r"GUID|badly formed"):
            VariableName.of_file(file_name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # truth log-p3-prep: before the driver the superblock is ro and the mount is not
        (
            "25 20 0:22 / /sys/firmware/efi/efivars rw,nosuid,relatime shared:8 - "
            "efivarfs efivarfs ro",
            MountState(False, True, ("rw", "nosuid", "relatime")),
        ),
        (
            "25 20 0:22 / /sys/firmware/efi/efivars ro,relatime - efivarfs efivarfs rw",
            MountState(True, False, ("ro", "relatime")),
        ),
    ],
)
def test_mount_and_superblock_are_told_apart(line: str, expected: MountState) -> None:
    assert mount_state(line) == expected


@pytest.mark.cost(store_bytes=160)
class TestEfivars:
    def test_reading_what_is_not_there(self, efivars: Efivars) -> None:
        with refused(errno.ENOENT):
            efivars.read("NotThere")
        assert not efivars.exists("NotThere")

    def test_the_errno_and_the_call_are_in_the_message(self, efivars: Efivars) -> None:
        efivars.write("Immutable", b"x")
        with pytest.raises(PermissionError, match=r"EPERM in open.*Immutable-") as refusal:
            efivars.write("Immutable", b"y")
        assert refusal.value.errno == errno.EPERM

    def test_own_variables_are_found_and_deleted(self, efivars: Efivars) -> None:
        efivars.write("One", b"1")
        efivars.write("Two", b"2")
        assert [name.name for name in efivars.own()] == ["One", "Two"]
        assert efivars.delete_own() == []
        assert efivars.own() == []

    def test_waiting_for_what_does_not_come_says_why(self, efivars: Efivars) -> None:
        efivars.remount("ro")
        try:
            with pytest.raises(TargetError, match=r"not writable after 0.1 s: .*mount_read_only"):
                efivars.wait_until_writable(timeout=0.1)
        finally:
            efivars.remount("rw")


@pytest.mark.needs("rpmb_access", "python3", "mmc_utils")
class TestRpmb:
    def test_both_carriers_say_the_same(self, shell: Shell, rpmb: Rpmb) -> None:
        tool = _MmcUtils(shell, rpmb.device)
        ioctl = _PythonIoctl(shell, rpmb.device)
        assert tool.counter(10) == ioctl.counter(10) > 0
        block = tool.read(0, 1, None, 10)
        assert len(block) == wire.DATA_SIZE
        assert ioctl.read(0, 1, None, 10) == block
        assert tool.read(0, 3, None, 10) == ioctl.read(0, 3, None, 10)

    @pytest.mark.consents("foreign_rpmb_write")
    def test_both_carriers_name_the_refusal(self, shell: Shell, rpmb: Rpmb) -> None:
        for carrier in (_MmcUtils(shell, rpmb.device), _PythonIoctl(shell, rpmb.device)):
            with pytest.raises(RpmbRefused, match="AUTHENTICATION_FAILURE") as refusal:
                carrier.write(0, bytes(256), bytes(32), 10)
            assert refusal.value.result == wire.RpmbResult.AUTHENTICATION_FAILURE

    def test_a_wrong_key_is_noticed_on_reading(self, shell: Shell, rpmb: Rpmb) -> None:
        with pytest.raises(TargetError, match="does not fit the key"):
            _PythonIoctl(shell, rpmb.device).read(0, 2, bytes(32), 10)

    def test_raw_frames_come_back(self, rpmb: Rpmb) -> None:
        nonce = bytes(range(16))
        (reply,) = rpmb.exchange(wire.counter_request(nonce), 1)
        assert reply.nonce == nonce
        assert reply.kind == wire.response_type(wire.RpmbRequest.READ_COUNTER)
        assert reply.write_counter == rpmb.counter()


class TestKernelLog:
    def test_lines_since_a_mark(self, shell: Shell, kernel_log: KernelLog) -> None:
        shell.run("echo 'hil before' > /dev/kmsg").check()
        mark = kernel_log.mark()
        assert kernel_log.since(mark) == []
        shell.run("echo 'hil [x] $HOME .*' > /dev/kmsg; echo 'hil two' > /dev/kmsg").check()
        lines = kernel_log.since(mark)
        assert [line.partition("] ")[2] for line in lines] == ["hil [x] $HOME .*", "hil two"]

    def test_without_the_marked_line_it_is_the_whole_log(
        self, shell: Shell, kernel_log: KernelLog
    ) -> None:
        mark = kernel_log.mark()
        shell.run("dmesg -C; echo 'hil after' > /dev/kmsg").check()
        assert [line.partition("] ")[2] for line in kernel_log.since(mark)] == ["hil after"]


@pytest.mark.disturbs
class TestTee:
    def test_the_service_is_found_stopped_and_started(self, board: Board, tee: Tee) -> None:
        tee.unbind()
        tee.stop_supplicant()
        assert tee.supplicant_pids() == []
        board.relink()
        assert board.tee.service.name
        board.tee.start_supplicant()
        assert len(board.tee.supplicant_pids()) == 1

    def test_waiting_for_what_does_not_come(self, tee: Tee) -> None:
        tee.unbind()
        with pytest.raises(TargetError, match=r"waited 0.1 s in vain for the tee-stmm-efi driver"):
            tee.wait_until_bound(timeout=0.1)

    def test_a_stopped_board_is_brought_back(self, board: Board, tee: Tee) -> None:
        tee.unbind()
        tee.stop_supplicant()
        board.efivars.unmount()
        mended = board.standard.restore()
        assert mended == [
            "supplicant running",
            "driver bound",
            "efivarfs mounted",
            "efivarfs writable",
        ]
        assert board.standing().writable


def test_the_right_board_is_checked_over_every_link(board: Board) -> None:
    board.check_right_board()
    assert board.shell.run("cat /proc/sys/kernel/random/boot_id").text == board.links.boot_id
