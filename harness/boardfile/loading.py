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
from datetime import date, time
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.boardfile import files
from harness.boardfile.schema import schema
from harness.boardfile.sections import IN_A_PLACE, BoardFile
from harness.edges import AT_THE_EDGE, meaning, read_regular, reading
from harness.errors import ConfigurationError
from harness.power.registry import OF_A_PLACE

_LARGEST: Final = 1 << 16
"""Bytes of a board file; real ones have some 2000."""
_DEEPEST: Final = 16
"""How far tables may be nested; the deepest key has four names."""
_LONGEST_INTEGER: Final = 64
"""Bits, with sign, as TOML promises them."""
_TOLD: Final = 10
"""How many problems of one file are told."""
_SHOWN: Final = 80
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor or turns its writing round."""
_OF_SEVERAL_LINES: Final = frozenset({"description", "on", "off", "cycle", "status"})
"""Keys whose texts may have line feeds and tabs: shell commands and prose."""
_TYPED: Final = "interrupt_key"
"""A key that is typed at a firmware: ^C is one."""


def load(path: Path) -> BoardFile:
    """Read and validate one board file. Relative paths in it are relative to its directory, and
    ``~`` is the user's home.

    Raises :class:`ConfigurationError` naming the file and the line of each problem, all at once,
    unless some value could not be right anywhere: then those.
    """
    readable = "give the path of a readable board file, or a name from `hil boards`"
    with reading("the board file", path, remedy=readable):
        content = read_regular(path, limit=_LARGEST)
    text, data = _parse(path, content)
    lines = _Lines(text)
    if impossible := sorted(_impossible(data, lines)):
        raise _wrong(path, impossible)
    data.setdefault("name", path.stem)
    in_a_place = "labgrid" in data
    if in_a_place:
        data.setdefault("power", {"driver": OF_A_PLACE})
    try:
        board = BoardFile.model_validate_json(json.dumps(data), context={IN_A_PLACE: in_a_place})
    except ValidationError as error:
        problems = error.errors()
        raise _wrong(path, sorted(_explain(one, lines) for one in problems[:_TOLD])) from error
    return board.seen_from(path.parent)


def find(name: str, boards_from: str | None = None) -> Path:
    """The board file for a path or a bare name, see :mod:`harness.boardfile.files`. Raises
    :class:`ConfigurationError` with the nearest names, or with both files of one name."""
    if "/" in name or name.endswith(".toml"):
        return files.allowed(Path(name), boards_from)
    known: dict[str, list[Path]] = {}
    for path in files.board_files(boards_from):
        known.setdefault(path.stem, []).append(path)
    if len(known.get(name, ())) > 1:
        raise ConfigurationError(
            f"there are two boards {name!r}: {' and '.join(map(str, known[name]))}",
            remedy="rename or remove one of the files, or give the path of the one that you mean",
        )
    if name in known:
        return files.allowed(known[name][0], boards_from)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(
        f"there is no board file for {name!r}",
        remedy=f"{hint}Known boards: {', '.join(sorted(known)) or 'none'}; or give a path",
    )


# --- what can never be right ----------------------------------------------------------------------


def _parse(path: Path, content: bytes) -> tuple[str, dict[str, Any]]:
    text = content.decode("utf-8", "replace")
    try:
        return text, tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line, what = content.count(b"\n", 0, error.start) + 1, meaning(error)
    except tomllib.TOMLDecodeError as error:
        named = re.search(r"at line (\d+)", str(error))
        line = int(named[1]) if named else text.rstrip("\n").count("\n") + 1
        what = f"not valid TOML: {error}"
    except AT_THE_EDGE as error:
        line, what = _line_that_raises(type(error), text), meaning(error)
    raise ConfigurationError(f"{path}:{line}: {what}", remedy="mend the line named above")


def _line_that_raises(kind: type[BaseException], text: str) -> int:
    """The first line up to which the text raises ``kind``: the parser goes from top to bottom, and
    of a value that is cut off it says something else."""
    lines = text.split("\n")
    good, bad = 0, len(lines)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            tomllib.loads("\n".join(lines[:middle]))
        except tomllib.TOMLDecodeError:
            good = middle
        except kind:
            bad = middle
        else:
            good = middle
    return bad


def _impossible(data: dict[str, Any], lines: _Lines) -> list[tuple[int, str]]:
    """What no key may have, whatever it means: line and problem of each, at most ten."""
    found: list[tuple[int, str]] = []
    left: list[tuple[int, tuple[str, ...], object]] = [(0, (), data)]
    while left and len(found) < _TOLD:
        depth, path, value = left.pop()
        what = None
        match value:
            case dict() | list() if depth > _DEEPEST:
                what = "nested too deeply"
            case dict():
                left += [(depth + 1, (*path, key), inner) for key, inner in value.items()]
                if bad := next((key for key in value if _CONTROL.search(key)), None):
                    what = f"the key {_short(bad)} has a control character"
            case list():
                left += [(depth + 1, path, inner) for inner in value]
            case str() if path[-1] != _TYPED and _CONTROL.search(
                _without_line_ends(path[-1], value)
            ):
                what = "has a control character"  # not shown: it may be a secret
            case bool():
                pass
            case int() if value.bit_length() >= _LONGEST_INTEGER:
                what = f"an integer of {value.bit_length()} bits"
            case date() | time():
                what = f"{value} is a date or a time, which no key takes: put text into quotes"
        if what is not None:
            found.append((lines.of(path), f"{_dotted(path)}: {what}"))
    return found


def _without_line_ends(key: str, text: str) -> str:
    return re.sub(r"[\n\t]", "", text) if key in _OF_SEVERAL_LINES else text


def _wrong(path: Path, problems: Sequence[tuple[int, str]]) -> ConfigurationError:
    return ConfigurationError(
        "; ".join(f"{path}:{line}: {what}" for line, what in problems),
        remedy="mend the lines named above; boards/example.toml shows all",
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _dotted(path: Sequence[str]) -> str:
    text = ".".join(path) or "the board file"
    return text if text.isprintable() and len(text) <= _SHOWN else _short(text)


# --- explaining what is wrong -------------------------------------------------------------------

_SECRET = '"writeOnly": true'  # in the schema of what does not print
_Location = Sequence[str | int]


def _explain(problem: ErrorDetails, lines: _Lines) -> tuple[int, str]:
    """One problem: its line, and what is wrong with the nearest valid word."""
    location = [part for part in problem["loc"] if part != "[key]"]
    table, toml_path = _walk(location)
    line = lines.of(toml_path)
    dotted = _dotted(toml_path)
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
            return lines.of([*toml_path, "driver"]), (
                f"unknown driver {_short(tag)}{_nearest(tag, valid)}"
            )
        case "value_error":
            return line, f"{dotted}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            if _SECRET in json.dumps(table):
                return line, f"{dotted!r}: {message}"
            return line, f"{dotted!r}: {message}, not {_short(problem['input'])}"


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


_HEADER = re.compile(r"^\s*\[{1,2}([^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[\w"'-]+)*)\s*=""")


class _Lines:
    """On which line of a board file each key is set."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {(): 1}
        table: tuple[str, ...] = ()
        for number, line in enumerate(text.split("\n"), 1):
            if header := _HEADER.match(line):
                table = key = _split_key(header[1])
            elif assignment := _ASSIGNMENT.match(line):
                key = (*table, *_split_key(assignment[1]))
            else:
                continue
            self._lines.setdefault(key, number)
            self._lines.setdefault(key[: _DEEPEST + 1], number)  # as far as anybody looks

    def of(self, path: Sequence[str]) -> int:
        """That of ``path``; for a missing key, that of the nearest table above it that exists
        (line 1 for the file itself)."""
        wanted = tuple(path)
        while wanted not in self._lines:
            wanted = wanted[:-1]
        return self._lines[wanted]


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
