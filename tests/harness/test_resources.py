"""Our own files are found in a checkout and beside an installed package, wherever it lies."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from harness import resources


def test_a_checkout_has_all_of_them() -> None:
    assert (resources.boards() / "emulated.toml").is_file()
    assert resources.schema().is_file()
    assert (resources.recorded_rows() / "attr.jsonl").is_file()
    assert (resources.conformance_suite() / "test_reads.py").is_file()


def test_an_installed_package_has_them_as_data(tmp_path: Path) -> None:
    package = tmp_path / "harness"
    package.mkdir()
    assert resources.__file__ is not None
    shutil.copy(resources.__file__, package)
    program = "from harness import resources as r; print(r.boards(), r.conformance_suite())"
    run = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout.split() == [f"{package}/data/boards", f"{package}/data/tests/conformance"]


def test_ids_are_relative_to_the_suite() -> None:
    test = "tests/conformance/test_reads.py::TestOffset::test_at[a::b]"
    file = resources.conformance_suite() / "test_reads.py"
    assert resources.suite_relative(test, file) == "test_reads.py::TestOffset::test_at[a::b]"
    own = Path(__file__)
    assert resources.suite_relative("x/test_own.py::test_it", own) == "x/test_own.py::test_it"
