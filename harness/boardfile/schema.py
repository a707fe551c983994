"""The JSON schema of board files.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

import json
from typing import Any

from harness.boardfile.sections import BoardFile


def schema() -> dict[str, Any]:
    """The JSON schema of board files, for editors."""
    generated = BoardFile.model_json_schema()
    # A board file need not repeat its own name, and a labgrid place brings its power.
    generated["required"] = [key for key in generated["required"] if key not in {"name", "power"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}


def schema_text() -> str:
    """:func:`schema` as committed in ``boards/board.schema.json``."""
    return json.dumps(schema(), indent=2) + "\n"
