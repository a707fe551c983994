"""The links that a board may have; of several, the first is used where nobody chose."""

from __future__ import annotations

from typing import Final, Literal, get_args

LinkName = Literal["ssh", "serial"]
LINKS: Final[tuple[LinkName, ...]] = get_args(LinkName)
