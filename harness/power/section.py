"""``[power]`` of a board file: what the sections of all drivers have in common.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from typing import Any

from pydantic import Field

from harness.tables import Seconds, Table


class Section(Table):
    """How the board is switched; each driver has a section of its own. Its docstring says in one
    line what the driver is, in the JSON schema, boards/example.toml and docs/lab.md."""

    driver: str
    options: Any


class OutletOptions(Table):
    """What drivers of single outlets share."""

    off_seconds: Seconds = Field(default=1.0, description="how long the power stays off in a cycle")
    timeout: Seconds = Field(default=10.0, description="for each request")
