"""Two trees are measured in turn, each with its own packages, and what became worse is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.against import Change, compare

ROOT = Path(__file__).parents[2]
BENCHMARK = """
from pathlib import Path
from benchmarks.figures import figure
from harness.speed import SPEED
figure("steady", 5.0)
figure("slower", SPEED)
with Path({log!r}).open("a") as log:
    log.write(f"{{SPEED}} ")
"""


def tree(folder: Path, speed: float, log: Path, *, tells: bool = True) -> Path:
    """A tree with one benchmark, whose figure is a constant of its own package."""
    (folder / "harness").mkdir(parents=True)
    (folder / "harness" / "__init__.py").touch()
    (folder / "harness" / "speed.py").write_text(f"SPEED = {speed}\n")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "__init__.py").touch()
    if tells:
        shutil.copy(ROOT / "benchmarks" / "figures.py", folder / "benchmarks")
    text = BENCHMARK.format(log=str(log)) if tells else "raise AssertionError"
    (folder / "benchmarks" / "bench_toy.py").write_text(text)
    return folder


@pytest.mark.parametrize("tells", [True, False], ids=["with its own", "with this tree's"])
def test_what_is_surely_worse_fails(
    tells: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    there = tree(tmp_path / "there", 10.0, log, tells=tells)
    here = tree(tmp_path / "here", 12.0, log)
    assert compare(there, ["toy"], 5, here) == 1
    # In turn, and each other pair the other way round.
    assert log.read_text() == "10.0 12.0 12.0 10.0 10.0 12.0 12.0 10.0 10.0 12.0 "
    shown = capsys.readouterr().out.splitlines()
    steady, slower = (" ".join(line.split()) for line in shown[1:3])
    assert steady == "steady 5.00 5.00 ms +0.0% no change (5 of 5 pairs)"
    assert slower == "slower 10.00 12.00 ms +20.0% surely worse (5 of 5 pairs)"
    assert shown[-1] == "worse by more than a tenth: slower"
    assert compare(here, ["toy"], 5, there if tells else here) == 0


def test_a_tree_without_figures_says_why(tmp_path: Path) -> None:
    there = tree(tmp_path / "there", 10.0, tmp_path / "log")
    (there / "harness" / "speed.py").unlink()
    with pytest.raises(ChildProcessError, match=r"(?s)there: toy has no figures:.*harness\.speed"):
        compare(there, ["toy"], 1, there)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ((11, 12, 12, 13, 9), "not surely worse (4 of 5 pairs)"),
        ((9, 8, 9, 9, 8), "surely better (5 of 5 pairs)"),
        ((10.1,) * 5, "surely worse (5 of 5 pairs)"),
    ],
)
def test_how_sure_it_is(now: tuple[float, ...], said: str) -> None:
    change = Change("figure", "ms", (10.0,) * 5, now)
    assert str(change).endswith(said)
    assert not change.is_worse  # not surely, or by no tenth
