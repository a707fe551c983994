"""The boards that differ do so in their power driver's options only."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.boardfile import loading
from tests.variants.boards import VARIANTS, write_board_file


@pytest.mark.parametrize("name", VARIANTS)
def test_a_board_file_differs_in_its_options_only(name: str, tmp_path: Path) -> None:
    usual = loading.load(loading.find("emulated"))
    file = loading.load(write_board_file(name, tmp_path))
    assert file.power.options == VARIANTS[name]
    same = file.model_copy(
        update={"power": file.power.model_copy(update={"options": usual.power.options})}
    )
    assert same == usual
