"""Tables of a board file: what all of them have in common.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=3600)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Table(BaseModel):
    """A table without unknown keys, without conversions and without changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def seen_from(self, folder: Path) -> Self:
        """The same table and those within, with relative paths taken as relative to
        ``folder``, and ``~`` as the user's home."""
        changed = {key: _seen_from(folder, value) for key, value in self}
        # What the file does not set stays so: links take that from elsewhere.
        return self.model_copy(
            update={key: value for key, value in changed.items() if value != getattr(self, key)}
        )


def _seen_from(folder: Path, value: Any) -> Any:
    match value:
        case Path():
            return folder.resolve() / value.expanduser()
        case Table():
            return value.seen_from(folder)
        case tuple():
            return tuple(_seen_from(folder, item) for item in value)
        case _:
            return value
