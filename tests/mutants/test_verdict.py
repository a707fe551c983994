"""What counts as caught: an assertion of a test about the board, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.mutants.mutant import Mutant, Patches
from emulation.mutants.registry import LAYERS, MUTANTS
from tests.mutants.__main__ import SAMPLE, main
from tests.mutants.results import caught_before, keep
from tests.mutants.trial import HEALTHY, Bench, Trial, files_in_order

REPOSITORY = Path(__file__).parents[2]

CASES = """
import errno
import pytest
from harness.instruments.outcomes import refused

@pytest.fixture
def broken():
    assert False

def test_set_up(broken):
    pass

def test_system_call():
    raise OSError(errno.EIO, "refused")

def test_lost():
    pytest.fail("lab error, the run ends here: gone")

@pytest.mark.timeout(0.2)
def test_timeout():
    while True:
        pass

def test_accepted():
    with refused(errno.EIO):
        pass

def test_nothing_raised():
    with pytest.raises(OSError):
        pass

def test_above_the_limit():
    pytest.fail("set_variable is 9 ms; b.toml allows limits.set_variable_ms = 1")

def test_when_enough_have_noticed():
    assert 1 == 2
"""


def run(directory: Path, *options: str) -> list[dict[str, object]]:
    verdicts = directory / "verdicts.jsonl"
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.verdict"),
            *("-p", "no:cacheprovider", "--rootdir", str(directory)),
            *("--verdicts", str(verdicts), *options, str(directory)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return [json.loads(line) for line in verdicts.read_text().splitlines()]


def test_which_failures_count(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    found = {
        str(verdict["test"]).rpartition("::test_")[2]: verdict["caught"]
        for verdict in run(tmp_path)
    }
    assert found == {
        "set_up": False,
        "system_call": False,
        "lost": False,
        "timeout": False,
        "accepted": True,
        "nothing_raised": True,
        "above_the_limit": True,
    }


def test_the_run_ends_with_the_file_that_noticed(tmp_path: Path) -> None:
    for stem in ("test_alpha", "test_beta"):
        (tmp_path / f"{stem}.py").write_text("def test_it():\n    assert False\n")
    (verdict,) = run(tmp_path)
    assert "test_alpha" in str(verdict["test"])


def test_likely_files_come_first_and_none_is_left_out() -> None:
    likely, others = files_in_order(["rpmb"])
    assert [file.stem for file in likely] == ["test_rpmb"]
    everything = (REPOSITORY / "tests" / "conformance").glob("test_*.py")
    assert {*likely, *others} == set(everything)


def test_every_mutant_names_a_file_that_exists() -> None:
    nowhere = [mutant.name for mutant in MUTANTS.values() if not files_in_order(mutant.first)[0]]
    assert nowhere == []


def test_the_board_file_pins_what_the_healthy_board_can(tmp_path: Path) -> None:
    from harness.boardfile import loading

    path = Bench(tmp_path, {"writable": True, "python3": False}, 1).board_file("erofs_is_eperm")
    board = loading.load(path)
    assert board.capabilities == {"writable": True, "python3": False}
    assert board.consents == loading.load(HEALTHY).consents
    assert board.timeouts == loading.load(HEALTHY).timeouts
    assert type(board.power) is type(loading.load(HEALTHY).power)
    assert board.power.options["mutant"] == "erofs_is_eperm"


def test_a_board_that_does_not_start_is_not_caught(tmp_path: Path) -> None:
    def no_such_mutant(patches: Patches) -> None: ...

    trial = Bench(tmp_path, {}, 60).try_mutant(Mutant(no_such_mutant, ()))
    assert not trial.caught
    assert trial.outcome.startswith("NOT caught: pytest ended with 4")


def test_what_was_caught_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    caught, survived = (MUTANTS[name] for name in SAMPLE[:2])
    keep(results, Trial(caught, "caught", 1, ["test_x.py::test_y"], []))
    keep(results, Trial(survived, "NOT caught (3 passed)", 1, [], []))

    def gone(patches: Patches) -> None: ...

    keep(results, Trial(Mutant(gone, ()), "caught", 1, ["test"], []))
    assert list(caught_before(results, MUTANTS)) == [caught.name]
    assert main([caught.name, "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert f"| `{caught.name}` | `test_x.py::test_y` |" in shown
    assert shown.endswith("MUTANTS caught 1 of 1\n")


def test_an_unknown_mutant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="did you mean erofs_is_eperm"):
        main(["erofs_is_eprm"])


def test_the_sample_covers_every_layer() -> None:
    sample = {MUTANTS[name] for name in SAMPLE}
    assert all(sample.intersection(members) for members in LAYERS.values())
    assert len(SAMPLE) == 8
