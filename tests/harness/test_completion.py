"""TAB in real shells: subcommands, options and the names of boards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.cli import main
from tests.harness.support.screen import Screen

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PS1='ready> '; source {script}"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PROMPT='ready> '; autoload -Uz compinit; compinit -u -D; source {script}",
    ),
    "tcsh": (["tcsh", "-f"], "set prompt='ready> '; source {script}"),
}


@pytest.fixture
def tab(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str, str, str], None]]:
    """``tab(shell, typed, shown)``: what a shell makes of words after TAB."""
    (tmp_path / "boards").mkdir()
    for name in ("rack7-left", "rack7-right", "shelf"):
        (tmp_path / "boards" / f"{name}.toml").write_text("")
    program = tmp_path / "bin" / "hil"
    program.parent.mkdir()
    root = Path(__file__).parents[2]
    program.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m harness "$@"\n')
    program.chmod(0o755)
    screens = []

    def press(shell: str, typed: str, shown: str) -> None:
        if shutil.which(shell) is None:
            pytest.skip(f"needs {shell}")
        script = tmp_path / f"hil.{shell}"
        assert main(["completion", shell]) == 0
        script.write_text(capsys.readouterr().out)
        command, setup = START[shell]
        environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "HIL_BOARDS": str(tmp_path / "boards"),
            "TERM": "dumb",
        }
        screen = Screen(command, environment)
        screens.append(screen)
        screen.type(setup.format(script=script) + "; echo set-'up'\n")
        screen.expect("set-up\r?\n")
        screen.expect("ready> ")
        screen.type(f"{typed}\t")
        screen.expect(shown)

    yield press
    for screen in screens:
        screen.close()


@pytest.mark.parametrize("shell", START)
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("hil disc", "hil discover "),
        ("hil console she", "hil console shelf "),
        ("hil log --li", "hil log --list "),
        ("hil lease hold she", "hil lease hold shelf "),
        ("hil power cycle she", "hil power cycle shelf "),
    ],
)
def test_tab(tab: Callable[[str, str, str], None], shell: str, typed: str, shown: str) -> None:
    tab(shell, typed, shown)


def test_an_ambiguous_name_is_completed_as_far_as_it_goes(
    tab: Callable[[str, str, str], None],
) -> None:
    tab("bash", "hil check rac", "hil check rack7-")


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
