"""The order of tests: what is cheap first, unless somebody wants another order."""

from __future__ import annotations

import re
from pathlib import Path

from tests.harness.support.runs import board_file, inner_run

INNER = """
import pytest

@pytest.mark.destructive
def test_destroys(board): pass

@pytest.mark.wear
def test_wears(board): pass

@pytest.mark.cost(store_bytes=9000)
def test_fills(board): pass

@pytest.mark.power
def test_boots(board): pass

@pytest.mark.disturbs
def test_disturbs(board): pass

def test_first(board): pass

def test_second(board): pass

def test_without_a_board(): pass
"""
AS_WRITTEN = re.findall(r"def (\w+)", INNER)
CHEAP_FIRST = [
    *("test_first", "test_second", "test_without_a_board", "test_disturbs", "test_boots"),
    *("test_wears", "test_fills", "test_destroys"),
]


def order(folder: Path, options: str = "", tests: str = "test_inner.py") -> list[str]:
    """In which order the tests would run; collecting reaches no board."""
    board = board_file(folder)
    run = inner_run(folder, INNER, board, f"--collect-only -q {options}", tests=tests)
    return re.findall(r"^test_inner\.py::(\w+)$", run.output, re.MULTILINE)


def test_cheap_ones_first_and_else_as_written(tmp_path: Path) -> None:
    assert order(tmp_path) == CHEAP_FIRST


def test_a_plugin_that_shuffles_has_its_way(tmp_path: Path) -> None:
    shuffled = order(tmp_path, "--random-order-bucket=global --random-order-seed=3")
    assert sorted(shuffled) == sorted(AS_WRITTEN)
    assert shuffled != CHEAP_FIRST


def test_tests_that_are_named_run_as_named(tmp_path: Path) -> None:
    named = ["test_wears", "test_first", "test_destroys"]
    assert order(tmp_path, tests=" ".join(f"test_inner.py::{name}" for name in named)) == named
