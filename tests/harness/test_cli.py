"""The command ``hil``: fast, and wrong use ends in one paragraph."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main as cli
from tests.harness.support.screen import Screen
from tests.pace import HANGS

SLOW_MODULES = ("pydantic", "paramiko", "pytest", "asyncssh", "cryptography", "serial", "pyudev")
COMMANDS = {
    *("boards", "check", "completion", "console", "discover", "emulate", "lease", "log", "power"),
    *("restore", "run", "shell", "truth", "version"),
}


def hil(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_help_shows_examples_and_imports_nothing_slow() -> None:
    program = (
        "import sys, harness.cli.main\n"
        "try:\n    harness.cli.main.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {SLOW_MODULES!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "hil power cycle desk3" in run.stdout
    assert run.stdout.endswith("[]\n"), run.stdout[-200:]


@pytest.mark.parametrize("command", sorted(COMMANDS - {"emulate"}))
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"\nexamples:\n  hil {command}" in shown


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert [word for word in COMMANDS if not re.search(rf"\n    {word}\s", shown)] == []
    shown_at_work = set(re.findall(r"\bhil (\w+)", shown.partition("examples:")[2]))
    assert shown_at_work >= COMMANDS - {"version"}


def test_starting_imports_few_modules() -> None:
    """The interpreter's own account of it, for what every ``hil`` pays."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {*SLOW_MODULES, "shtab", "asyncio", "ssl", "subprocess", "termios"}
    of_harness = {name for name in imported if name.startswith("harness.")}
    assert of_harness <= {
        "harness.cli.main",
        "harness.errors",
        "harness.cli",
        "harness.cli.bench",
        "harness.cli.console",
        "harness.safekeeping",
        "harness.cli.restore",
    }


def test_what_takes_long_is_told(tmp_path: Path) -> None:
    """After two seconds: a plain line in a pipe, counted seconds on a terminal, and then gone."""
    (tmp_path / "desk.toml").write_text(
        'emmc_cid = "00000000000000000000000000000000"\n'
        '[serial]\nport = "/dev/ttyUSB0"\n'
        '[power]\ndriver = "command"\n[power.options]\n'
        'on = "sleep 3"\noff = "true"\noff_seconds = 0.01\n'
    )
    words = ["power", "cycle", str(tmp_path / "desk.toml")]
    run = hil(*words)
    assert run.stderr == "desk: power cycle ...\n"
    assert run.stdout.startswith("desk: power ")
    screen = Screen([sys.executable, "-m", "harness", *words])
    try:
        assert screen.end() == 0
    finally:
        screen.close()
    assert "\r\x1b[Kdesk: power cycle ... 2 s" in screen.text
    assert "s\r\x1b[Kdesk: power unknown" in screen.text


def test_boards_lists_name_driver_and_description() -> None:
    run = hil("boards")
    assert run.returncode == 0, run.stderr
    assert any(line.split()[:2] == ["emulated", "emulated"] for line in run.stdout.splitlines())


def test_boards_says_which_file_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_text("emmc_cidd = 1\n")
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    run = hil("boards")
    assert run.returncode == cli.EXIT_USAGE
    assert "did you mean 'emmc_cid'?" in run.stderr
    assert "emulated" in run.stdout


@pytest.mark.parametrize(
    "arguments",
    [["rum", "emulated"], ["run", "emulaated", "true"], ["run", "emulated"], ["power", "up", "x"]],
)
def test_wrong_use_is_status_4_and_no_traceback(arguments: list[str]) -> None:
    run = hil(*arguments)
    assert run.returncode == cli.EXIT_USAGE
    assert "Traceback" not in run.stderr
    assert "hil" in run.stderr


def test_misspelt_board_gets_the_nearest_name() -> None:
    assert "did you mean 'emulated'?" in hil("run", "emulatd", "true").stderr


def test_power_of_a_real_board(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(
        'emmc_cid = "00000000000000000000000000000000"\n'
        '[serial]\nport = "/dev/ttyUSB0"\n'
        '[power]\ndriver = "command"\n[power.options]\n'
        f'on = "echo on > {tmp_path}/outlet"\noff = "echo off > {tmp_path}/outlet"\n'
        f'status = "cat {tmp_path}/outlet"\noff_seconds = 0.01\n'
    )
    run = hil("power", "cycle", str(tmp_path / "desk.toml"))
    assert (run.returncode, run.stdout) == (0, "desk: power on\n")


def test_power_of_an_emulated_board_explains_itself() -> None:
    run = hil("power", "off", "emulated")
    assert run.returncode == cli.EXIT_USAGE
    assert "hil emulate" in run.stderr


def test_closed_pipe_is_no_error() -> None:
    run = subprocess.run(
        f"{sys.executable} -m harness boards --schema | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert run.stdout == "{\n0\n"
    assert run.stderr == ""


def test_version_is_the_distributions() -> None:
    assert hil("version").stdout.startswith("stmm-hil ")
