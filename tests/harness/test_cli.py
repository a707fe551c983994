"""The command ``hil``: fast, and wrong use ends in one paragraph."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main as cli
from harness.cli.command import GROUPS
from harness.cli.status import Status
from harness.resources import recorded_rows
from tests.harness.support.screen import Screen
from tests.pace import HANGS

SLOW_MODULES = ("pydantic", "paramiko", "pytest", "asyncssh", "cryptography", "serial", "pyudev")
COMMANDS = {
    "board": ["run", "shell", "console", "log", "power", "restore", "lease"],
    "bring-up": ["boards", "discover", "check"],
    "tests": ["truth"],
    "software": ["emulate", "qemu", "completion", "version"],
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


@pytest.mark.parametrize("command", [one.name for one in cli.COMMANDS if not one.passes_on])
def test_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"\nexamples:\n  hil {command}" in shown


def test_help_names_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    groups = {block.partition(":\n")[0]: block for block in shown.split("\n\n")}
    found = {name: re.findall(r"\n  (\S+)", groups[name]) for name in GROUPS}
    assert found == COMMANDS
    shown_at_work = set(re.findall(r"\bhil (\w+)", groups["examples"]))
    assert shown_at_work == {word for group in COMMANDS.values() for word in group}
    assert re.findall(r"\n  (\d+)", groups["exit status"]) == [str(int(one)) for one in Status]


def test_the_page_of_the_command_has_its_verbs_and_statuses() -> None:
    page = (Path(__file__).parents[2] / "docs" / "hil.md").read_text(encoding="utf-8")
    verbs = {group: re.findall(rf"^\| {group} \| (.*) \|$", page, re.M) for group in COMMANDS}
    assert verbs == {group: [" ".join(f"`{one}`" for one in COMMANDS[group])] for group in COMMANDS}
    assert re.findall(r"^\| (\d+) \| (.*) \|$", page, re.M) == [
        (str(int(status)), status.meaning) for status in Status
    ]


def _imported(times: str) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in times.splitlines()}


def test_starting_imports_few_modules() -> None:
    """The interpreter's own account of it, for what every ``hil`` pays."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    nothing = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", ""], capture_output=True, text=True, check=True
    )
    imported = _imported(run.stderr) - _imported(nothing.stderr)
    assert "argparse" in imported
    assert not imported & {*SLOW_MODULES, "shtab", "asyncio", "ssl", "subprocess", "termios"}
    assert not imported & {"dataclasses", "inspect", "pathlib", "importlib.metadata"}
    of_harness = {name for name in imported if name.startswith("harness.")}
    assert of_harness <= {
        *("harness.arguments", "harness.errors", "harness.foreign"),
        *("harness.links", "harness.links.names"),
        *("harness.cli", "harness.cli.main", "harness.cli.command", "harness.cli.status"),
        *(f"harness.cli.{command.name}" for command in cli.COMMANDS),
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
    assert run.stdout.startswith("desk: switched cycle; power unknown: ")
    screen = Screen([sys.executable, "-m", "harness", *words])
    try:
        assert screen.end() == 0
    finally:
        screen.close()
    assert "\r\x1b[Kdesk: power cycle ... 2 s" in screen.text
    assert "s\r\x1b[Kdesk: switched cycle; power unknown" in screen.text


def test_boards_lists_name_driver_and_description() -> None:
    run = hil("boards")
    assert run.returncode == 0, run.stderr
    assert any(line.split()[:2] == ["emulated", "emulated"] for line in run.stdout.splitlines())


def test_boards_says_which_file_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_text("emmc_cidd = 1\n")
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    run = hil("boards")
    assert run.returncode == Status.USAGE
    assert "did you mean 'emmc_cid'?" in run.stderr
    assert "emulated" in run.stdout


@pytest.mark.parametrize(
    "arguments",
    [["rum", "emulated"], ["run", "emulaated", "true"], ["run", "emulated"], ["power", "up", "x"]],
)
def test_wrong_use_is_status_4_and_no_traceback(arguments: list[str]) -> None:
    run = hil(*arguments)
    assert run.returncode == Status.USAGE
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
    run = hil("power", "state", "--json", str(tmp_path / "desk.toml"))
    assert json.loads(run.stdout) == {"board": "desk", "state": "on"}


def test_power_of_an_emulated_board_explains_itself() -> None:
    run = hil("power", "off", "emulated")
    assert run.returncode == Status.USAGE
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
    run = hil("version")
    assert run.stdout == f"stmm-hil {json.loads(hil('version', '--json').stdout)['version']}\n"


def test_every_list_and_verdict_is_there_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    offering = []
    for command in cli.COMMANDS:
        words = [command.name, *["show"] * (command.name == "lease"), "--help"]
        if not command.passes_on:
            with pytest.raises(SystemExit):
                cli.main(words)
            offering += [command.name] * (" --json " in capsys.readouterr().out)
    silent = {"run", "shell", "console", "completion"}
    assert set(offering) == {one.name for one in cli.COMMANDS if not one.passes_on} - silent


def test_boards_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_text("emmc_cidd = 1\n")
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    run = hil("boards", "--json")
    assert run.returncode == Status.USAGE
    boards = {board["name"]: board for board in json.loads(run.stdout)}
    assert boards["emulated"]["driver"] == "emulated"
    assert Path(boards["emulated"]["file"]).name == "emulated.toml"
    assert boards["bad"]["file"] == str(tmp_path / "bad.toml")
    assert "did you mean 'emmc_cid'?" in boards["bad"]["error"]


def test_truth_for_programs(tmp_path: Path) -> None:
    """One row as recorded, and one whose record was changed."""
    first, second, *_ = (recorded_rows() / "names.jsonl").read_text("utf-8").splitlines()
    changed = json.loads(second) | {"outcome": "ENOTTY"}
    (tmp_path / "names.jsonl").write_text(f"{first}\n{json.dumps(changed)}\n")
    run = hil("truth", "--json", "--rows", str(tmp_path), "emulated")
    assert run.returncode == Status.BAD, run.stderr
    answer = json.loads(run.stdout)
    assert (answer["board"], answer["agree"]) == ("emulated", False)
    agreed, differed = answer["rows"]
    assert (agreed["group"], agreed["verdict"], agreed["differences"]) == ("names", "agreed", [])
    assert (differed["id"], differed["verdict"]) == (changed["id"], "differed")
    assert "ENOTTY" in differed["differences"][0]


def test_restore_for_programs(tmp_path: Path) -> None:
    """On a board that no run has left; and never a question."""
    assert hil("restore", "--json", "emulated").returncode == Status.USAGE
    run = hil("restore", "--list", "--json", "emulated")
    assert run.returncode == Status.GOOD, run.stderr
    answer = json.loads(run.stdout)
    assert (answer["board"], answer["snapshot"], answer["complete"]) == ("emulated", None, True)


def test_a_folder_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    """Where somebody has an ``emulation`` of his own, ``hil emulate`` is still ours."""
    (tmp_path / "emulation").mkdir()
    (tmp_path / "emulation" / "__init__.py").touch()
    (tmp_path / "emulation" / "__main__.py").write_text("print('not ours')")
    program = "import sys; sys.path.pop(0); from harness.cli.main import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", program, "emulate", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.stdout.startswith("usage: "), run.stderr
    assert "--state" in run.stdout
