"""Tables of a board file: what all of them have in common.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from harness.arguments import BAUDS


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
        re.compile(pattern.encode())  # as it is matched against a console's bytes
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Seconds = Annotated[float, Field(gt=0, le=3600)]
Port = Annotated[int, Field(ge=1, le=65535)]
Baud = Annotated[int, Field(ge=BAUDS[0], le=BAUDS[1])]
Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression of Python, for text and for the bytes of a console."""


class Table(BaseModel):
    """A table without unknown keys, without conversions and without changes; its numbers are
    finite, and the home of each ``~user`` in its paths is known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _home_is_known(cls, value: Any) -> Any:
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                try:
                    path.expanduser()
                except RuntimeError:
                    raise ValueError(f"there is no user {path.parts[0][1:]!r}") from None
        return value

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
