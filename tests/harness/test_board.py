"""A board on a real SSH server: measured capabilities, consents, and the wrong board."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import capabilities
from harness.board.board import Board
from harness.board.standing import Standing
from harness.boardfile.sections import BoardFile, SshSection
from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import (
    ConsentMissing,
    LinkError,
    LinkTimeout,
    MissingCapability,
    TargetError,
    WrongBoard,
)
from harness.instruments.kernel_log import bad_lines
from harness.links.ssh import SshShell
from harness.power.manual import ManualPowerSection
from tests.harness.support.servers import Server, openssh

CID = "00112233445566778899aabbccddeeff"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = openssh(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


def file_for(server: Server, *consents: Consent) -> BoardFile:
    address = server.address
    return BoardFile(
        name="desk",
        emmc_cid=CID,
        ssh=SshSection(
            host=address.host,
            port=address.port,
            user=address.user,
            key=address.key,
            host_key_fingerprint=address.host_key_fingerprint,
        ),
        power=ManualPowerSection(driver="manual"),
        consents=dict.fromkeys(consents, True),
    )


@pytest.fixture(scope="module")
def measured(server: Server) -> capabilities.Capabilities:
    pinned = {Capability.MMC_UTILS: True, Capability.STMM_DRIVER: False}
    shell = SshShell(server.address)
    try:
        return capabilities.measure(shell, board="desk", pinned=pinned)
    finally:
        shell.close()


class TestCapabilities:
    def test_tools_are_measured(self, measured: capabilities.Capabilities) -> None:
        for name, command in [("python3", "python3"), ("efibootmgr", "efibootmgr")]:
            assert measured.has(name) == (shutil.which(command) is not None)

    def test_what_the_series_promises_fails(self, measured: capabilities.Capabilities) -> None:
        with pytest.raises(TargetError, match=r"no stmm_driver .*the kernel series promises it"):
            measured.require("stmm_driver")

    def test_what_nobody_promised_skips(self, measured: capabilities.Capabilities) -> None:
        with pytest.raises(MissingCapability, match="no query_variable_info"):
            measured.require(Capability.QUERY_VARIABLE_INFO)

    def test_what_the_board_file_pinned_fails(self) -> None:
        finding = capabilities.Measured(Capability.MMC_UTILS, False, "")
        pinned = capabilities.Capabilities(
            {Capability.MMC_UTILS: finding}, {Capability.MMC_UTILS: True}, "desk"
        )
        with pytest.raises(TargetError, match="its board file says that it has"):
            pinned.require("mmc_utils")
        assert pinned.contradictions() == [
            "mmc_utils is pinned true and measured false (no output)"
        ]


class TestBoard:
    @pytest.fixture
    def board(self, server: Server) -> Iterator[Board]:
        with Board(file_for(server, Consent.WRITE_RPMB)) as board:
            yield board

    def test_ssh_is_the_default_link(self, board: Board) -> None:
        assert board.links.chosen == "ssh"
        assert board.links.names == ["ssh"]
        assert board.shell.run("echo here").text == "here"

    def test_boot_id_is_the_kernels(self, board: Board) -> None:
        assert board.links.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def test_a_link_it_lacks_is_a_missing_capability(self, board: Board) -> None:
        with pytest.raises(MissingCapability, match=r"no serial link .*board desk"):
            _ = board.links.console

    def test_no_instrument_outlives_its_link(self, board: Board) -> None:
        shell, before = board.shell, vars(board.instruments)
        assert all(shell in vars(instrument).values() for instrument in before.values())
        board.relink()
        after = vars(board.instruments)
        assert after.keys() == before.keys()
        for name, instrument in after.items():
            assert instrument is not before[name]
            assert board.shell in vars(instrument).values()
            assert shell not in vars(instrument).values()
            assert getattr(board, name, instrument) is instrument

    def test_no_consent_no_action(self, board: Board) -> None:
        with pytest.raises(ConsentMissing, match="does not consent to stop_supplicant"):
            board.tee.stop_supplicant()
        with pytest.raises(ConsentMissing, match="does not consent to power_cycle"):
            board.reboot()

    def test_the_wrong_board_is_never_written_to(self, board: Board) -> None:
        with pytest.raises(WrongBoard, match=f"no eMMC with the CID {CID}"):
            board.efivars.write("Name", b"data")


def test_a_board_that_comes_up_late_is_waited_for(tmp_path: Path) -> None:
    server = openssh(tmp_path)
    starter = threading.Timer(0.7, server.start)
    starter.start()
    try:
        with Board(file_for(server)) as board:
            assert board.shell.run("true").ok
    finally:
        starter.join()
        server.stop()


def test_a_board_that_stays_away_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.board.links._LISTENS_SECONDS", 0.5)
    server = openssh(tmp_path)
    with pytest.raises(LinkTimeout, match=str(server.address.port)), Board(file_for(server)):
        pass


def test_closing_twice_is_harmless(server: Server) -> None:
    board = Board(file_for(server))
    board.close()
    board.close()
    with pytest.raises((MissingCapability, LinkError)):
        board.shell.run("true")


def test_what_must_be_mended_comes_in_order() -> None:
    whole = Standing(bound=True, mounted=True, writable=True, supplicant=True)
    broken = Standing(bound=False, mounted=True, writable=False, supplicant=False)
    assert broken.lacks(whole) == ["supplicant running", "driver bound", "efivarfs writable"]
    assert whole.lacks(broken) == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("[   12.5] Kernel panic - not syncing: sysrq triggered crash", True),
        ("[   12.5] Internal error: Oops: 0000000096000004 [#1] SMP", True),
        ("[   12.5] BUG: kernel NULL pointer dereference", True),
        ("[   12.5] INFO: task python3:223 blocked for more than 120 seconds.", True),
        ("[   12.5] E/TC:0 tee_rpmb_init rpmb_dead", True),
        ("[    0.5] optee: revision 4.10", False),
        ("[   19.4] Firmware does not support SetVariable at runtime", False),
        ("[   19.4] debug: looking for BUGs", False),
    ],
)
def test_bad_lines_of_the_kernel_log(line: str, bad: bool) -> None:
    assert bad_lines([line]) == ([line] if bad else [])


def test_allowed_lines_are_not_bad() -> None:
    lines = ["Kernel panic - not syncing: sysrq", "BUG: other"]
    assert bad_lines(lines, allowed=["not syncing: sysrq"]) == ["BUG: other"]


def test_the_board_file_says_what_every_command_gets(server: Server) -> None:
    file = file_for(server)
    slow = file.model_copy(update={"timeouts": file.timeouts.model_copy(update={"command": 20.0})})
    with Board(slow) as board:
        assert board.shell.run("sleep 1; echo done", timeout=0.2).text == "done"
