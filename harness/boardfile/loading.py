"""Board files: ``boards/NAME.toml``, validated, with errors that name file, line and the nearest
valid word.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path

from pydantic import ValidationError

from harness.boardfile.files import board_files
from harness.boardfile.problems import explain
from harness.boardfile.sections import IN_A_PLACE, BoardFile
from harness.errors import ConfigurationError
from harness.power.registry import OF_A_PLACE


def load(path: Path) -> BoardFile:
    """Read and validate one board file. Relative paths in it are relative to its directory, and
    ``~`` is the user's home.

    Raises :class:`ConfigurationError` naming the file and, for every problem at once, the line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"cannot read the board file {path}: {reason}",
            remedy="give the path of a readable board file, or a name from `hil boards`",
        ) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{path}: not valid TOML: {error}", remedy="mend the line named above"
        ) from error
    data.setdefault("name", path.stem)
    in_a_place = "labgrid" in data
    if in_a_place:
        data.setdefault("power", {"driver": OF_A_PLACE})
    try:
        board = BoardFile.model_validate_json(
            json.dumps(data, default=str), context={IN_A_PLACE: in_a_place}
        )
    except ValidationError as error:
        problems = sorted(explain(problem, text) for problem in error.errors())
        raise ConfigurationError(
            "; ".join(f"{path}:{line}: {what}" for line, what in problems),
            remedy="mend the lines named above; boards/example.toml shows all",
        ) from error
    return board.seen_from(path.parent)


def find(name: str) -> Path:
    """The board file for a path or a bare name. Names are looked up in ``$HIL_BOARDS`` (a
    directory), in ``./boards`` and in the ``boards`` beside the package. Raises
    :class:`ConfigurationError` with the nearest names."""
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    known = {path.stem: path for path in reversed(list(board_files()))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(
        f"there is no board file for {name!r}",
        remedy=f"{hint}Known boards: {', '.join(sorted(known)) or 'none'}; or give a path",
    )
