"""Facts in which boards differ, measured on boards that differ by one option."""

from __future__ import annotations

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.capabilities import Capability
from harness.consents import Consent
from harness.store.records import record_size

HEALTHY = {
    "sftp": True,
    "uncommitted_files_stay": True,
    "truncate_changes_size": True,
    "exit_boot_services_told": True,
    "relocation_keeps_tail": True,
}


def board_with(consents: dict[Consent, bool], **options: str | bool) -> Board:
    file = loading.load(loading.find("emulated"))
    power = file.power.model_copy(update={"options": options})
    return Board(file.model_copy(update={"power": power, "consents": consents}), link="ssh")


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"variant": "mm-query"}, ()),
        ({"efivarfs": "K7"}, ("uncommitted_files_stay", "truncate_changes_size")),
        ({"variant": "file"}, ("exit_boot_services_told",)),
        ({"optee": "4.1"}, ("relocation_keeps_tail",)),
        ({"sftp": False}, ("sftp",)),
    ],
)
def test_measured_without_a_write(
    options: dict[str, str | bool], differing: tuple[str, ...]
) -> None:
    with board_with({Consent.WRITE_RPMB: True}, **options) as board:
        board.wait_until_ready()
        before = board.rpmb.counter(), board.efivars.names()
        facts = {name: board.capabilities.has(name) for name in HEALTHY}
        assert facts == {name: value ^ (name in differing) for name, value in HEALTHY.items()}
        assert (board.rpmb.counter(), board.efivars.names()) == before


@pytest.mark.parametrize(
    ("options", "live"),
    [
        ({"efivarfs": "K6"}, True),
        ({"efivarfs": "K6", "userland": "busybox"}, True),
        ({"efivarfs": "K7"}, False),
        ({"efivarfs": "K7", "userland": "busybox"}, False),
        ({"variant": "mm"}, False),  # no figures
    ],
)
def test_a_cached_statfs_is_told_by_a_mark(options: dict[str, str | bool], live: bool) -> None:
    with board_with({Consent.WRITE_RPMB: True}, **options) as board:
        board.wait_until_ready()
        before = board.efivars.names()
        assert board.capabilities.has(Capability.STATFS_IS_LIVE) is live
        assert board.efivars.names() == before


def test_the_mark_is_written_when_it_is_asked_for_and_once() -> None:
    with board_with({Consent.WRITE_RPMB: True, Consent.POWER_CYCLE: True}) as board:
        board.wait_until_ready()
        before = board.rpmb.counter(), board.efivars.space().free
        assert board.capabilities.has(Capability.WRITABLE)
        assert (board.rpmb.counter(), board.efivars.space().free) == before
        assert board.capabilities.has(Capability.STATFS_IS_LIVE)
        after = board.efivars.space().free
        assert before[1] - after == record_size("hil-statfs", 1)
        assert board.rpmb.counter() > before[0]
        board.reboot()
        assert board.capabilities.has(Capability.STATFS_IS_LIVE)
        assert board.efivars.space().free == after


def test_nothing_is_created_without_consent() -> None:
    with board_with({}) as board:
        board.wait_until_ready()
        before = board.efivars.space()
        for name in (Capability.UNCOMMITTED_FILES_STAY, Capability.STATFS_IS_LIVE):
            assert not board.capabilities.has(name)
            detail = board.capabilities.findings[name].detail
            assert detail == "not measured without the consent write_rpmb"
        assert board.efivars.space() == before
