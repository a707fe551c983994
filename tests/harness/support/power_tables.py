"""What the documentation says of power drivers, from their records.

``python -m tests.harness.support.power_tables`` writes it into docs/lab.md and boards/example.toml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.power.driver import Driver
from harness.power.registry import DRIVERS

_ROOT = Path(__file__).parents[3]


def _options(driver: Driver[Any]) -> Iterator[tuple[str, bool]]:
    """The names in its [power.options], and whether each must be given."""
    options = driver.section.model_fields["options"].annotation
    if isinstance(options, type) and issubclass(options, BaseModel):
        for name, field in options.model_fields.items():
            yield name, field.is_required()


def docs_table() -> str:
    """For docs/lab.md."""
    rows = ["| driver | what it is | `[power.options]` (**must be given**) |", "|---|---|---|"]
    for driver in DRIVERS:
        options = (f"**{name}**" if required else name for name, required in _options(driver))
        what = driver.description.replace("``", "`").removesuffix(".")
        rows.append(f"| `{driver.name}` | {what} | {', '.join(options)} |")
    return "\n".join(rows) + "\n"


def example_list() -> str:
    """For boards/example.toml: a line a driver."""
    lines = []
    for driver in DRIVERS:
        required = ", ".join(name for name, required in _options(driver) if required)
        what = driver.description.partition(";")[0].removesuffix(".")
        named = f'driver = "{driver.name}"'
        lines.append(f"# {named:<23} {what}{f': {required}' if required else ''}\n")
    return "".join(lines)


TEXTS = {
    _ROOT / "docs" / "lab.md": (r"(?<=\n)\| driver \|.*\n(\|.*\n)+", docs_table),
    _ROOT / "boards" / "example.toml": (r'(?<=\n)(# driver = ".*\n)+', example_list),
}
"""Where each stands: the file, what is replaced, and by what."""


def main() -> None:
    """Bring both up to date."""
    for path, (pattern, text) in TEXTS.items():
        (old,) = re.finditer(pattern, known := path.read_text("utf-8"))
        path.write_text(known[: old.start()] + text() + known[old.end() :])


if __name__ == "__main__":
    main()
