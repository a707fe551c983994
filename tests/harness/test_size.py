"""What is counted of the code is what changed in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import size

BOARD = '''"""A board."""


class Board:
    """Its class."""

    name: str

    def on(self) -> None:
        """Switch it on."""
        self._state = 1; self._since = 2

    def _hidden(self) -> None: ...
'''


def test_a_tree_is_compared_with_a_commit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=ann", "-c", "user.email=ann@bench")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "harness" / "board" / "board.py"
    file.parent.mkdir(parents=True)
    file.write_text(BOARD)
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    file.write_text(BOARD + "\n    def off(self) -> None:\n        pass\n")
    (tmp_path / "emulation").mkdir()
    (tmp_path / "emulation" / "flat.py").write_text(
        '"""Longer than others: one piece."""\n' + "a = 1\n" * 501
    )
    (tmp_path / "harness" / "errors.py").write_text("b = 2\n" * 501)
    (tmp_path / "setup.py").write_text("c = 3\n" * 501)

    assert size.main(["--against", "HEAD"], tmp_path) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    # The class, two functions, the field, both statements of one line; of `...` none.
    assert ["statements:", "harness/board", "8", "6", "+2"] in lines
    assert ["statements:", "harness", "509", "6", "+503"] in lines
    assert ["statements:", "emulation/*.py", "501", "0", "+501"] in lines
    assert ["lines:", "harness/board", "16", "13", "+3"] in lines
    assert ["lines", "of", "class", "Board", "13", "10", "+3"] in lines
    assert ["public", "names", "of", "Board", "3", "2", "+1"] in lines
    assert ["emulation/flat.py", "502", "says", "why"] in lines
    assert ["harness/errors.py", "501", "DOES", "NOT", "SAY", "WHY"] in lines
    assert not [line for line in lines if "setup.py" in line]


def test_without_a_commit_there_is_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert size.main([]) == 0
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split() == ["now"]
    counted = {name: int(count) for name, _, count in (row.rpartition(" ") for row in rows[:8])}
    assert all(counted.values())
