"""What somebody else wrote is harmless wherever a person sees it."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

from harness.check.finding import fail
from harness.check.show import Screen
from harness.cli.command import tell
from harness.cli.progress import progress
from harness.errors import CommandFailed, HilError, LabError
from harness.foreign import MOST, escaped, escaped_lines, say
from harness.links import posix

ROOT = Path(__file__).parents[2]
HOSTILE = "a\x1b]0;title\x07b\rc\nd\u202ee\x9bf\u2028g\x7fh\udc9bi"
SHOWN = r"a\x1b]0;title\x07b\rc\nd\u202ee\x9bf\u2028g\x7fh\x9bi"


def _is_harmless(text: str) -> bool:
    return all(one.isprintable() or one in "\n\t" for one in text)


def test_every_control_character_is_told() -> None:
    assert escaped(HOSTILE) == SHOWN
    assert escaped(HOSTILE.encode("utf-8", "surrogateescape")) == SHOWN
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert escaped(every, most=len(every)).isprintable()
    assert escaped(escaped(HOSTILE)) == SHOWN
    assert escaped_lines("one\n\ttwo\x1b[2J") == "one\n\ttwo\\x1b[2J"


def test_its_length_is_bounded() -> None:
    shown = escaped("x" * (MOST + 17))
    assert shown.endswith("x… (17 characters more)")
    assert len(str(LabError("y" * 10_000_000, remedy="z" * 10_000_000))) < 3 * MOST


@pytest.mark.fault("C3")
def test_errors() -> None:
    error = LabError(HOSTILE, remedy=HOSTILE, board=HOSTILE, link=HOSTILE, command=HOSTILE)
    failed = CommandFailed(HOSTILE, remedy="r", status=1, stdout=b"", stderr=b"")
    for text in (str(error), error.what, str(failed), repr(failed)):
        assert _is_harmless(text)
    assert "\n" not in error.what
    assert _is_harmless(str(posix.os_error(HOSTILE.encode("utf-8", "surrogateescape"), "/x")))


@pytest.mark.fault("L9")
def test_printers(capsys: pytest.CaptureFixture[str]) -> None:
    class Options:
        json = False

    say(HOSTILE)
    tell(Options(), {}, HOSTILE)  # type: ignore[arg-type]
    Screen(sys.stdout).done(fail(HOSTILE, cause=HOSTILE, remedy="r", evidence=[HOSTILE]))
    with progress("waiting", sys.stderr) as also:
        also(HOSTILE)
    shown = capsys.readouterr().out
    assert shown.count(SHOWN.partition("\\n")[0]) == 6
    assert _is_harmless(shown)


def test_a_terminal_without_unicode() -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, "ascii")
    say("größer", file=terminal)
    assert raw.getvalue() == b"gr\\xf6\\xdfer\n"


def test_nothing_else_prints() -> None:
    """Whoever prints by himself forgets. What is left out carries bytes of the user, answers to a
    program, or runs on the board."""
    elsewhere = {
        "harness/foreign.py",
        "harness/instruments/rpmb.py",  # a program for the board
        "harness/probe/target.py",  # likewise
        "harness/lab/labgrid/keeper.py",  # JSON to its parent
    }
    found = []
    for path in (ROOT / "harness").rglob("*.py"):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name not in elsewhere:
                called = node.func
                if isinstance(called, ast.Name) and called.id == "print":
                    found.append(f"{name}:{node.lineno}")
    assert found == []


def test_every_error_class_escapes() -> None:
    def below(one: type[HilError]) -> set[type[HilError]]:
        return {one}.union(*(below(kind) for kind in one.__subclasses__()))

    for kind in below(HilError):
        assert kind.__str__ is HilError.__str__, kind
