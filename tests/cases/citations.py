"""Recorded rows that tests cite, read out of their source, and whether a value agrees with a row.

A citation is a call ``recorded(VALUE, ROW, ...)`` (harness.expectations).
"""

from __future__ import annotations

import ast
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.truth.rows import OWN_ROWS, Row, load
from tests.cases.collecting import ROOT

CONFORMANCE = ROOT / "tests" / "conformance"

_STEP = re.compile(r"\[(\d+)\]|\.(\w+)")
_COUNTED_HEX = re.compile(r"(\d+) bytes ?([0-9a-f]*)")
# Fields that hold lines or a listing: a text agrees when it is part of them.
_TEXTS = {"output", "dm", "dmesg", "listing"}


class BadCitation(ValueError):
    """A citation that names no recorded value, or one that says otherwise."""


@dataclass(frozen=True, slots=True)
class Citation:
    """One call: where, the value, and the rows that it names."""

    where: str
    value: object
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Errno:
    """``errno.NAME`` as written in a test."""

    name: str

    def __str__(self) -> str:
        return f"errno.{self.name}"


@cache
def rows() -> Mapping[str, Row]:
    """All recorded rows by id."""
    return {row.id: row for group in load(OWN_ROWS).values() for row in group}


def problems(folder: Path = CONFORMANCE) -> list[str]:
    """What is wrong with the citations under ``folder``, each with file and line."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for call in _calls([ast.parse(path.read_text("utf-8"))]):
            where = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{call.lineno}"
            try:
                citation = _citation(call, where)
            except BadCitation as error:
                found.append(f"{where}: {error}")
                continue
            for row in citation.rows:
                try:
                    check(citation.value, row)
                except BadCitation as error:
                    found.append(f"{where}: {error}")
    return found


def cited_by(file: Path) -> dict[str, set[str]]:
    """Ids of the rows that each test of ``file`` (``Class::name``) cites, in its own body, its
    decorators, or a name of the module that it uses. Raises :class:`BadCitation`."""
    scopes = dict(_scopes(ast.parse(file.read_text("utf-8"))))
    uses = {name: _names(nodes) for name, nodes in scopes.items()}
    own = {
        name: {
            split(row)[0].id
            for call in _calls(nodes)
            for row in _citation(call, f"{file.name}:{call.lineno}").rows
        }
        for name, nodes in scopes.items()
    }
    return {name: _closure(name, uses, own) for name in scopes}


def check(value: object, text: str) -> None:
    """Return if ``value`` agrees with the row ``text``. Raises :class:`BadCitation`."""
    row, path = split(text)
    recorded = _look_up(row, path, text)
    if not agrees(value, recorded, texts=path[0] in _TEXTS):
        raise BadCitation(f"the test expects {value!s}, {text} has {recorded!r}")


def split(text: str) -> tuple[Row, list[str | int]]:
    """Take ``ID[2]`` or ``ID.field[1]`` apart. Raises :class:`BadCitation` for an unknown row."""
    known = rows()
    # An id may itself have dots: the longest one that fits.
    for end in sorted({len(text), *(m.start() for m in _STEP.finditer(text))}, reverse=True):
        if text[:end] in known:
            steps = list(_STEP.finditer(text, end))
            if "".join(step[0] for step in steps) == text[end:] and steps:
                return known[text[:end]], [int(m[1]) if m[1] else m[2] for m in steps]
            raise BadCitation(f"{text!r} names neither a step [N] nor a field .NAME of its row")
    raise BadCitation(f"no recorded row {text!r} (tests/truth)")


def agrees(value: object, recorded: object, *, texts: bool = False) -> bool:
    """Whether a literal of a test says the same as a recorded result.

    errno.NAME: ``"-NAME"``, or the error's text within ``texts``. bytes: the hexadecimal forms of
    tests/truth/README.md. True: also ``"ok"``. A number: also ``"rc=N"``.
    """
    if isinstance(value, Errno):
        if texts:
            return os.strerror(getattr(errno, value.name)) in _joined(recorded)
        return recorded == f"-{value.name}"
    if isinstance(value, bytes):
        return isinstance(recorded, str) and value == _bytes(recorded)
    if isinstance(value, bool):
        return recorded is value or (value and recorded == "ok")
    if isinstance(value, str) and texts:
        return value in _joined(recorded)
    if isinstance(value, int) and recorded == f"rc={value}":
        return True
    return type(recorded) is type(value) and recorded == value


def _bytes(text: str) -> bytes | None:
    """The content that a recorded text stands for; None when it stands for none."""
    if text.startswith(("b'", 'b"')):
        return bytes(ast.literal_eval(text))
    counted = _COUNTED_HEX.fullmatch(text)
    try:
        content = bytes.fromhex(counted[2] if counted else text)
    except ValueError:
        return None
    return content if counted is None or len(content) == int(counted[1]) else None


def _joined(recorded: object) -> str:
    return "\n".join(map(str, recorded)) if isinstance(recorded, list) else str(recorded)


def _look_up(row: Row, path: list[str | int], text: str) -> Any:
    first = path[0]
    found: Any = {**row.facts, "outcome": row.outcome, "board": row.board}
    if isinstance(first, int):
        found = row.outcomes
    for step in path:
        try:
            found = found[step]
        except (LookupError, TypeError):
            has = f"{len(found)} steps" if isinstance(found, list) else f"{', '.join(found)}"
            raise BadCitation(f"{text!r}: no {step!r} there; the row has {has}") from None
    return found


def _scopes(tree: ast.Module) -> Iterator[tuple[str, list[ast.AST]]]:
    """Each test, function or assigned name of a module with what belongs to it; the decorators and
    attributes of a class belong to each of its methods."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = {_test_of(part): part for part in node.body if _test_of(part)}
            shared = [part for part in node.body if not _test_of(part)]
            for test, method in methods.items():
                yield f"{node.name}::{test}", [*node.decorator_list, *shared, method]
            yield node.name, [*node.decorator_list, *node.body]
        elif isinstance(node, ast.FunctionDef):
            yield node.name, [node]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        yield name.id, [node]


def _test_of(part: ast.stmt) -> str:
    """The name of a method, or of a test that a function of the module makes."""
    match part:
        case ast.FunctionDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("test_"):
            return name
    return ""


def _calls(nodes: Iterable[ast.AST]) -> Iterator[ast.Call]:
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and _called(part) == "recorded":
                yield part


def _called(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def _closure(name: str, uses: Mapping[str, set[str]], own: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += [used for used in uses[one] if used in own]
    return set().union(*(own[one] for one in seen))


def _citation(call: ast.Call, where: str) -> Citation:
    if len(call.args) < 2 or call.keywords:
        raise BadCitation("recorded() takes a value and names of rows")
    value, *names = map(_literal, call.args)
    rows = tuple(name for name in names if isinstance(name, str))
    if len(rows) != len(names):
        raise BadCitation("recorded() takes names of rows after the value")
    return Citation(where, value, rows)


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "errno":
        if node.attr not in vars(errno):
            raise BadCitation(f"no errno.{node.attr}")
        return Errno(node.attr)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise BadCitation(
            f"recorded() takes literals, so that they can be compared; not {ast.unparse(node)}"
        ) from None
