"""``python -m benchmarks.run [NAME ...]``: every benchmark of this folder, or those named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Each ``bench_*.py`` in a process of its own; 1 if one missed what it requires."""
    status = 0
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if not sys.argv[1:] or name in sys.argv[1:]:
            print(f"== {name}", flush=True)
            status |= subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"]).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
