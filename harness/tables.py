"""Tables of a board file: what all of them have in common.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=3600)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Table(BaseModel):
    """A table without unknown keys, without conversions and without changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
