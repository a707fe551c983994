"""Facts in which boards differ, measured on boards that differ by one option."""

from __future__ import annotations

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.capabilities import Capability
from harness.consents import Consent

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


def test_nothing_is_created_without_consent() -> None:
    with board_with({}) as board:
        board.wait_until_ready()
        finding = board.capabilities.findings[Capability.UNCOMMITTED_FILES_STAY]
        assert not finding.present
        assert finding.detail == "not measured without the consent write_rpmb"
