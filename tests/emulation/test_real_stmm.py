"""The tool that runs the StandaloneMM tests on the real image, where it has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TEST = "tests/emulation/test_stmm_boot.py::test_damaged_volume_is_formatted"


def test_without_an_image_tests_are_skipped_and_say_why(tmp_path: Path) -> None:
    image = tmp_path / "none.fd"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.emulation.real_stmm.plugin", _TEST],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HIL_STMM_IMAGE": str(image)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"no image: there is no file {image}" in run.stdout
    assert "1 skipped" in run.stdout
    assert " passed" not in run.stdout
