"""KTAP version 1, as kernel CI reads it (Linux Documentation/dev-tools/ktap.rst): a nested test
for each group, diagnostic lines before the result that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.foreign import escaped
from harness.pytest_plugin.results import CUT_SHORT, Result

_VERSION = "KTAP version 1"
_INDENT = "  "
_BAD = frozenset({"failed", CUT_SHORT})


def document(results: Iterable[Result], facts: Sequence[str] = ()) -> str:
    """The whole run; ``facts`` (board, firmware, kernel) come first, as diagnostics."""
    return _text(_groups(results, facts))


def of_boards(boards: Mapping[str, tuple[Sequence[str], Iterable[Result], str | None]]) -> str:
    """A run on several boards, one level more: facts and results of each, and why not all of its
    tests were run, if so."""
    lines = [_VERSION, f"1..{len(boards)}"]
    for number, (board, (facts, results, ended)) in enumerate(boards.items(), 1):
        results = list(results)
        nested = _groups(results, facts)
        nested.insert(1, f"# Subtest: {_name(board)}")
        lines += [f"{_INDENT}{line}" for line in nested]
        if ended:
            lines.append(f"# {' '.join(ended.split())}")
        failed = ended is not None or any(result.outcome in _BAD for result in results)
        directive = " # ERROR not tested to the end" if ended else ""
        lines.append(f"{_word(failed)} {number} {_name(board)}{directive}")
    return _text(lines)


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{escaped(line)}\n" for line in lines)


def _groups(results: Iterable[Result], facts: Sequence[str]) -> list[str]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    lines = [_VERSION, *(f"# {fact}" for fact in facts), f"1..{len(groups)}"]
    for number, (group, members) in enumerate(groups.items(), 1):
        lines += [f"{_INDENT}{line}" for line in _nested(group, members)]
        failed = any(result.outcome in _BAD for result in members)
        skipped = all(result.outcome == "skipped" for result in members)
        directive = " # SKIP no test of the group was run" if skipped else ""
        lines.append(f"{_word(failed)} {number} {_name(group)}{directive}")
    return lines


def _nested(group: str, members: Sequence[Result]) -> Iterable[str]:
    yield _VERSION
    yield f"# Subtest: {_name(group)}"
    yield f"1..{len(members)}"
    for number, result in enumerate(members, 1):
        for name, value in result.properties:
            yield f"# {name}: {value}"
        if result.outcome == "failed":
            yield f"# {result.whose}: {result.why}"
        word = _word(result.outcome in _BAD)
        yield f"{word} {number} {_name(result.name)}{_directive(result)}"


def _directive(result: Result) -> str:
    if result.outcome == "skipped":
        return f" # SKIP {result.why}".rstrip()
    if result.outcome == CUT_SHORT:
        return " # ERROR the run ended within it"
    if result.outcome == "failed" and result.in_set_up:
        return " # ERROR in set-up"
    return ""


def _word(failed: bool) -> str:
    return "not ok" if failed else "ok"


def _name(text: str) -> str:
    """A number sign would begin a directive."""
    return text.replace("#", "_")
