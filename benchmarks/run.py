"""Run every benchmark of this folder, or those named."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Each ``bench_*.py`` in turn, under its own heading."""
    folder = Path(__file__).parent
    for path in sorted(folder.glob("bench_*.py")):
        if not sys.argv[1:] or path.stem.removeprefix("bench_") in sys.argv[1:]:
            print(f"== {path.stem}", flush=True)
            runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
