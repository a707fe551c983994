"""``python -m tests.emulation.real_stmm [PYTEST ARGUMENTS]``: the StMM tests on the real image."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_TESTS = sorted(map(str, Path(__file__).parent.parent.glob("test_stmm_*.py")))

_TEST_SECONDS = 3600
"""A test that cuts the power at every write starts the image some hundred times."""


def main() -> int:
    """The tests' exit status."""
    options = ["-p", "tests.emulation.real_stmm.plugin", f"--timeout={_TEST_SECONDS}"]
    return pytest.main([*options, *(sys.argv[1:] or ["-q"]), *_TESTS])


if __name__ == "__main__":
    sys.exit(main())
