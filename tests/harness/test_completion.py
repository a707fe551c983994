"""TAB in real shells: subcommands, options and the names of boards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import main
from tests.harness.support.screen import Screen

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PS1='ready> '; source {script}"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PROMPT='ready> '; autoload -Uz compinit; compinit -u -D; eval \"$(cat {script})\"",
    ),
    "tcsh": (["tcsh", "-f"], "set prompt='ready> '; source {script}"),
}


TYPED = (
    ("hil disc", "hil discover "),
    ("hil console she", "hil console shelf "),
    ("hil log --fol", "hil log --follow "),
    ("hil lease hold she", "hil lease hold shelf "),
    ("hil power cycle she", "hil power cycle shelf "),
    ("hil check rac", "hil check rac\x07?k7-"),
)
"""Before and after TAB; the last is ambiguous from there."""

KILL_LINE = "\x15"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a user with `hil` on the path and three boards."""
    (tmp_path / "boards").mkdir()
    for name in ("rack7-left", "rack7-right", "shelf"):
        (tmp_path / "boards" / f"{name}.toml").write_text("")
    program = tmp_path / "bin" / "hil"
    program.parent.mkdir()
    root = Path(__file__).parents[2]
    program.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m harness "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HIL_BOARDS": str(tmp_path / "boards"),
    }


@pytest.mark.parametrize("shell", START)
def test_tab(
    shell: str,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell} (Debian package {shell})")
    script = tmp_path / f"hil.{shell}"
    assert main(["completion", shell]) == 0
    script.write_text(capsys.readouterr().out)
    command, setup = START[shell]
    # Editing needs a terminal that can; the others print less on one that cannot.
    screen = Screen(command, environment | {"TERM": "xterm" if shell == "tcsh" else "dumb"})
    try:
        screen.type(setup.format(script=script) + "; echo set-'up'\n")
        screen.expect("set-up\r?\n")
        screen.expect("ready> ")
        for typed, shown in TYPED:
            screen.type(f"{typed}\t")
            screen.expect(shown)
            screen.type(KILL_LINE)
    finally:
        screen.close()


def test_names_are_asked_without_reading_board_files(tmp_path: Path) -> None:
    """While somebody waits: nothing slow is imported, and a broken file does not matter."""
    (tmp_path / "broken.toml").write_text("= nonsense")
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", "boards", "--names"],
        env={**os.environ, "HIL_BOARDS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "broken" in run.stdout.splitlines()
    assert "pydantic" not in run.stderr
