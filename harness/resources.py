"""Where our own files are, in a checkout as in an installed package: nobody else computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent
_CHECKOUT: Final = _PACKAGE.parent


def boards() -> Path:
    """The folder of board files that come with the harness."""
    return _own("boards")


def schema() -> Path:
    """The JSON schema of board files, for editors."""
    return boards() / "board.schema.json"


def recorded_rows() -> Path:
    """The folder of what real firmware was recorded doing (its README.md has the format)."""
    return _own("tests/truth")


def conformance_suite() -> Path:
    """The folder of the tests that run on any board."""
    return _own("tests/conformance")


def suite_relative(test: str, file: Path) -> str:
    """The id of a ``test`` in ``file`` as results keep it: relative to the suite, so that it
    outlives a move, e.g. ``test_reads.py::TestOffset``; of other tests the id as it is."""
    try:
        inside = file.resolve().relative_to(conformance_suite()).as_posix()
    except ValueError:
        return test
    return "::".join([inside, *test.split("::")[1:]])


def _own(path: str) -> Path:
    """``path`` in the checkout, whose mark is the project file beside the package; else among
    the package's data. It may be missing where a package was built without."""
    beside = (_CHECKOUT / "pyproject.toml").is_file()
    return (_CHECKOUT if beside else _PACKAGE / "data") / path
