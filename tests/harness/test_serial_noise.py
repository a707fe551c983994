"""Commands over a line that loses characters, with kernel messages and escapes between them.

``HIL_NOISE_COMMANDS`` says how many (nightly: 500).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.support import bad_line

pytestmark = pytest.mark.long

COUNT = int(os.environ.get("HIL_NOISE_COMMANDS", "40"))


@pytest.mark.timeout(60 + 5 * COUNT)
@pytest.mark.parametrize(
    "where",
    [
        pytest.param(where, marks=[pytest.mark.slow] if where in bad_line.PACES else [])
        for where in bad_line.WEATHERS
    ],
)
def test_a_bad_line_never_gives_a_wrong_answer(where: str, tmp_path: Path) -> None:
    tally = bad_line.run(where, COUNT, tmp_path, seed=2)
    assert not tally.wrong
    assert not tally.repeated
    assert tally.passed, f"{tally.right} of {COUNT} right, {tally.errors}"
