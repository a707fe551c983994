"""A board whose variables, console and answers hold commands for a terminal: what runs, `hil
restore` and `hil log` show of it."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.harness.support.runs import ROOT, board_file, inner_run
from tests.pace import HANGS


def _is_harmless(text: str) -> bool:
    return all(one.isprintable() or one in "\n\t" for one in text)


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
