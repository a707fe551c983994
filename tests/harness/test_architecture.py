"""The arrows of CONTRIBUTING.md: who may import or mention whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EMULATION = sorted((ROOT / "emulation").rglob("*.py"))
HARNESS = sorted((ROOT / "harness").rglob("*.py"))
# What a test, a fixture or an instrument sees of a board must not tell which kind it is. The
# power driver and what reads its options must name it.
BLIND = [
    *sorted((ROOT / "harness" / "instruments").rglob("*.py")),
    *sorted((ROOT / "harness" / "probe").rglob("*.py")),
    *sorted((ROOT / "harness" / "links").rglob("*.py")),
    *sorted((ROOT / "tests" / "conformance").rglob("*.py")),
    *sorted((ROOT / "harness" / "board").rglob("*.py")),
    ROOT / "conftest.py",
]
MENTION = re.compile(r"\bemulat(?:ed|or|ion)\b", re.IGNORECASE)


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", HARNESS, ids=name_of)
def test_harness_never_imports_emulation(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0] == "emulation"]


@pytest.mark.parametrize("path", EMULATION, ids=name_of)
def test_emulation_imports_only_the_formats_of_the_harness(path: Path) -> None:
    names = [name for name in imported(path) if name.split(".")[0] == "harness"]
    assert all(name.startswith("harness.formats.") for name in names), names


@pytest.mark.parametrize("path", HARNESS, ids=name_of)
def test_harness_never_imports_tests(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0] == "tests"]


@pytest.mark.parametrize("path", BLIND, ids=name_of)
def test_nothing_that_tests_see_knows_the_kind_of_board(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert not [line for line in lines if MENTION.search(line)]


def test_formats_import_nothing_of_the_harness_but_formats() -> None:
    for path in sorted((ROOT / "harness" / "formats").rglob("*.py")):
        names = [name for name in imported(path) if name.split(".")[0] == "harness"]
        assert all(name.startswith("harness.formats") for name in names), (path, names)
