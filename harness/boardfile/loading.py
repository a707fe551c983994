"""Board files: ``boards/NAME.toml``, validated, with errors that name file, line and the nearest
valid word.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.boardfile.files import board_files
from harness.boardfile.schema import schema
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
        problems = sorted(_explain(problem, text) for problem in error.errors())
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


# --- explaining what is wrong -------------------------------------------------------------------

_SECRET = '"writeOnly": true'  # in the schema of what does not print
_Location = Sequence[str | int]


def _explain(problem: ErrorDetails, text: str) -> tuple[int, str]:
    """One problem: its line, and what is wrong with the nearest valid word."""
    location = [part for part in problem["loc"] if part != "[key]"]
    table, toml_path = _walk(location)
    line = _line_of(toml_path, text)
    dotted = ".".join(toml_path) or "the board file"
    match problem["type"]:
        case "extra_forbidden" | "enum" if _is_key_problem(problem):
            hint = _nearest(toml_path[-1], _words(table))
            return line, f"unknown key {dotted!r}{hint}"
        case "missing":
            return line, f"missing {dotted!r}"
        case "union_tag_not_found":
            return line, f"missing '{dotted}.driver'"
        case "union_tag_invalid":
            tag = problem["ctx"]["tag"]
            valid = [word.strip(" '") for word in problem["ctx"]["expected_tags"].split(",")]
            return _line_of([*toml_path, "driver"], text), (
                f"unknown driver {tag!r}{_nearest(tag, valid)}"
            )
        case "value_error":
            return line, f"{dotted}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            if _SECRET in json.dumps(table):
                return line, f"{dotted!r}: {message}"
            return line, f"{dotted!r}: {message}, not {problem['input']!r}"


def _is_key_problem(problem: ErrorDetails) -> bool:
    return problem["type"] == "extra_forbidden" or problem["loc"][-1] == "[key]"


def _nearest(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if near:
        return f", did you mean {near[0]!r}?"
    return f", valid are {', '.join(sorted(valid))}" if valid else ""


def _walk(location: _Location) -> tuple[dict[str, Any], list[str]]:
    """Follow a pydantic location through the JSON schema: the schema of the last table on the
    way, and the location as the TOML file spells it (union tags are not keys)."""
    root = schema()

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return resolve(root["$defs"][node["$ref"].rpartition("/")[2]])
        tables = [option for option in node.get("anyOf", ()) if "$ref" in option]
        return resolve(tables[0]) if tables else node

    node, toml_path = root, []
    for part in map(str, location):
        mapping = node.get("discriminator", {}).get("mapping")
        if mapping and part in mapping:
            node = resolve({"$ref": mapping[part]})
            continue
        toml_path.append(part)
        child = node.get("properties", {}).get(part)
        if child is None:
            break
        node = resolve(child)
    return node, toml_path


def _words(node: dict[str, Any]) -> list[str]:
    """The keys that a table may have."""
    if "propertyNames" in node:
        names = node["propertyNames"]
        if "$ref" in names:
            names = schema()["$defs"][names["$ref"].rpartition("/")[2]]
        return list(names.get("enum", ()))
    return list(node.get("properties", ()))


_HEADER = re.compile(r"^\s*\[+([^\]]+)\]+")
_ASSIGNMENT = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[\w"'-]+)*)\s*=""")


def _line_of(path: Sequence[str], text: str) -> int:
    """The line on which ``path`` is set; for a missing key, the line of the nearest table above
    it that exists (line 1 for the file itself)."""
    lines: dict[tuple[str, ...], int] = {(): 1}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _split_key(header[1])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault((*table, *_split_key(assignment[1])), number)
    wanted = tuple(path)
    while wanted not in lines:
        wanted = wanted[:-1]
    return lines[wanted]


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
