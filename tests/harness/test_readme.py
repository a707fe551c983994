"""The README's example board file is one that the harness takes."""

from __future__ import annotations

import re
from pathlib import Path

from harness.boardfile import loading
from harness.consents import Consent

README = Path(__file__).parents[2] / "README.md"


def test_the_example_board_file_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    path = tmp_path / "my-board.toml"
    path.write_text(blocks[0], encoding="utf-8")
    file = loading.load(path)
    assert file.name == "my-board"
    assert file.consents_to(Consent.POWER_CYCLE)
    assert not file.consents_to(Consent.WRITE_RPMB)
