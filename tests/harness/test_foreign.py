"""What somebody else wrote is harmless wherever a person sees it."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.check.finding import fail
from harness.check.show import Screen
from harness.cli.command import tell
from harness.cli.progress import progress
from harness.errors import CommandFailed, HilError, LabError
from harness.foreign import MOST, escaped, escaped_lines, say
from harness.links import posix
from tests.harness.support.runs import board_file, inner_run
from tests.pace import HANGS

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


INNER = r"""
import pytest
HOSTILE = "a\x1b]0;title\x07b\rc\u202ee\x9bf\u2028g\x7fh"

def test_fails(shell, record_property):
    record_property("said", HOSTILE)
    print("captured " + HOSTILE)
    found = shell.run("printf 'a\\033]0;title\\007b\\rc\\342\\200\\256e'").text
    assert not found, "the board says: " + found

def test_fails_without_trace():
    pytest.fail("why " + HOSTILE, pytrace=False)

def test_is_skipped():
    pytest.skip("because " + HOSTILE)
"""


@pytest.mark.fault("C3")
def test_a_run(tmp_path: Path) -> None:
    """Terminal, JUnit and KTAP."""
    ktap, junit = tmp_path / "run.ktap", tmp_path / "junit-of-run.xml"
    run = inner_run(tmp_path, INNER, board_file(tmp_path), f"-rA --ktap {ktap} --junitxml {junit}")
    assert "the board says: a\\x1b]0;title" in run.output
    assert _is_harmless(run.output)
    assert _is_harmless(ktap.read_text("utf-8"))
    for element in ET.parse(junit).iter():
        for text in (*element.attrib.values(), element.text or ""):
            assert _is_harmless(text), text


APART = r"""
import pytest

def test_is_skipped(record_property):
    record_property("said", "a\x1bb")
    pytest.skip("because")

@pytest.mark.xfail(reason="as known")
def test_is_known():
    assert 0
"""


@pytest.mark.fault("C3")
def test_reports_of_another_worker(tmp_path: Path) -> None:
    """pytest-xdist sends texts, and no class of ours."""
    (tmp_path / "test_apart.py").write_text(APART)
    command = [sys.executable, "-m", "pytest", "-p", "harness.pytest_plugin", "-c", "/dev/null"]
    run = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-n", "1", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert "1 skipped, 1 xfailed" in run.stdout, run.stdout + run.stderr


NAMES = r"""
NAME = "hil-\x1b]0;title\x07-\u202e-12345678-1234-1234-1234-123456789abc"

def test_makes_one(shell):
    line = "printf '\\007\\000\\000\\000x' >'/sys/firmware/efi/efivars/" + NAME + "'"
    shell.run(line).check()
    shell.run("printf '\\033]0;x\\007\\r\\n' >/dev/console")
"""


@pytest.mark.fault("C3")
def test_a_variable_with_a_name_for_the_terminal(tmp_path: Path) -> None:
    """What a test has left behind is named by the run, and put into the way back."""
    run = inner_run(tmp_path, NAMES, board_file(tmp_path))
    assert "hil-\\x1b]0;title" in run.output, run.output
    assert _is_harmless(run.output)


@pytest.mark.fault("C3")
def test_restore_lists_names_of_a_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli.main import main

    monkeypatch.setenv("HIL_LEASES", str(tmp_path / "leases"))
    store = tmp_path / "store"
    file = board_file(tmp_path, 'driver = "emulated"', f'driver = "emulated"\nstate = "{store}"')
    killed = NAMES + "    import os\n    os._exit(9)\n"
    inner_run(tmp_path, killed, file)
    main(["restore", "--list", str(file)])
    shown = capsys.readouterr().out
    assert "hil-\\x1b]0;title" in shown
    assert _is_harmless(shown)


@pytest.mark.fault("C3")
def test_log_shows_what_a_console_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli.main import main

    cid = "aa015851454d55212101deadbeef2900"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    logs = tmp_path / "stmm-hil" / cid / "console"
    logs.mkdir(parents=True)
    said = "[1.0 2026-01-01T00:00:00+00:00] panic \x1bP1$r\x9b5m\u202e \x07\x7f\n"
    (logs / "boot-001.log").write_text(said, "utf-8")
    file = tmp_path / "desk3.toml"
    file.write_text(
        f'emmc_cid = "{cid}"\n[serial]\nport = "/dev/null"\n[power]\ndriver = "manual"\n'
    )
    for words in (["log"], ["log", "--list"], ["log", "--json"]):
        assert main([*words, str(file)]) == 0
    shown = capsys.readouterr().out
    assert "panic" in shown
    assert _is_harmless(shown)


def test_every_error_class_escapes() -> None:
    def below(one: type[HilError]) -> set[type[HilError]]:
        return {one}.union(*(below(kind) for kind in one.__subclasses__()))

    for kind in below(HilError):
        assert kind.__str__ is HilError.__str__, kind
