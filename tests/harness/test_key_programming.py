"""Nothing programs an RPMB key by accident."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.consents import Consent
from harness.errors import ConsentMissing, WrongBoard
from harness.formats import rpmb as wire
from harness.instruments.rpmb import RpmbRefused
from harness.safekeeping.key_programming import KeyProgramming

ROOT = Path(__file__).parents[2]
FILE = loading.load(ROOT / "boards" / "emulated.toml")
CID = FILE.emmc_cid
MEANT = KeyProgramming(wanted=True, identity=CID)


@pytest.fixture(scope="module")
def blank() -> Iterator[Board]:
    """A board whose RPMB has no key, and whose OP-TEE gives it none."""
    options = {**FILE.power.options, "variant": "file", "write_key": False}
    power = FILE.power.model_copy(update={"options": options})
    with Board(FILE.model_copy(update={"power": power})) as board:
        yield board


def test_a_key_that_was_meant_is_programmed_once(
    blank: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RpmbRefused) as refusal:
        blank.rpmb.counter()
    assert refusal.value.result == wire.RpmbResult.KEY_NOT_PROGRAMMED
    for refused in (
        lambda: blank.rpmb.program_key(wire.OPTEE_TEST_KEY),
        lambda: blank.rpmb.exchange(wire.key_request(bytes(32)), 1, reliable=True),
        lambda: blank.rpmb.exchange(wire.key_request(bytes(32)), 1),
    ):
        with pytest.raises(ConsentMissing, match="was not asked for"):
            refused()
    with pytest.raises(RpmbRefused):
        blank.rpmb.counter()
    monkeypatch.setattr(blank, "_programming", MEANT.require)
    blank.rpmb.program_key(wire.OPTEE_TEST_KEY)
    assert blank.rpmb.counter() == 0
    blank.rpmb.read_block(0, key=wire.OPTEE_TEST_KEY)
    with pytest.raises(RpmbRefused):
        blank.rpmb.program_key(bytes(32))
    blank.rpmb.read_block(0, key=wire.OPTEE_TEST_KEY)


@pytest.mark.parametrize(
    ("given", "consent", "disposable", "what"),
    [
        (KeyProgramming(), True, True, "was not asked for"),
        (KeyProgramming(identity=CID), True, True, "was not asked for"),
        (MEANT, False, True, "does not consent to program_key"),
        (MEANT, True, False, "for ever"),
        (KeyProgramming(wanted=True), True, True, "nobody typed in"),
        (KeyProgramming(wanted=True, identity=""), True, True, "nobody typed in"),
    ],
)
def test_all_must_be_given(
    blank: Board,
    monkeypatch: pytest.MonkeyPatch,
    given: KeyProgramming,
    consent: bool,
    disposable: bool,
    what: str,
) -> None:
    consents = {**FILE.consents, Consent.PROGRAM_KEY: consent}
    changed = blank.file.model_copy(update={"consents": consents, "disposable": disposable})
    monkeypatch.setattr(blank, "file", changed)
    with pytest.raises(ConsentMissing, match=what):
        given.require(blank)


@pytest.mark.parametrize("typed", ["yes", CID[:8], "0" * 32, CID[1:]])
def test_another_boards_identity_ends_the_run(blank: Board, typed: str) -> None:
    with pytest.raises(WrongBoard, match="the identity typed in is"):
        KeyProgramming(wanted=True, identity=typed).require(blank)


def test_no_test_programs_a_key_behind_the_harness() -> None:
    """What a shell command does is not seen: so none may be written."""
    forbidden = re.compile(r"rpmb\s+write-key")
    for path in (ROOT / "tests" / "conformance").rglob("*.py"):
        assert not forbidden.search(path.read_text()), path
