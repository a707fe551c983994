"""Board files: every problem at once, with file, line and the nearest valid word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import resources
from harness.boardfile import loading, schema
from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import ConfigurationError

BOARDS = resources.boards()
CID = "aa015851454d55212101deadbeef2900"
MANUAL = f'emmc_cid = "{CID}"\n[serial]\nport = "/dev/ttyUSB0"\n[power]\ndriver = "manual"\n'


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "desk.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        loading.load(path)
    return caught.value.what.replace(str(path), "desk.toml").split("; ")


@pytest.mark.parametrize("path", sorted(BOARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_committed_board_files_are_valid(path: Path) -> None:
    assert loading.load(path).name == path.stem


def test_committed_schema_is_current() -> None:
    committed = resources.schema().read_text()
    assert committed == schema.schema_text(), "run: hil boards --schema > boards/..."


def test_schema_lists_capabilities_and_consents() -> None:
    definitions = schema.schema()["$defs"]
    assert definitions["Capability"]["enum"] == list(Capability)
    assert definitions["Consent"]["enum"] == list(Consent)
    assert "name" not in schema.schema()["required"]


def test_name_defaults_to_the_file_name(tmp_path: Path) -> None:
    path = tmp_path / "desk-3.toml"
    path.write_text(MANUAL)
    assert loading.load(path).name == "desk-3"


def test_paths_are_relative_to_the_file_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    path = tmp_path / "desk.toml"
    path.write_text(MANUAL + '[ssh]\nhost = "h"\nkey = "~/.ssh/id"\nknown_hosts = "keys/known"\n')
    ssh = loading.load(path).ssh
    assert ssh is not None
    assert ssh.key == Path("/home/someone/.ssh/id")
    assert ssh.known_hosts == tmp_path / "keys/known"


def test_consents_default_to_no(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_text(MANUAL + "[consents]\nwrite_rpmb = true\n")
    board = loading.load(path)
    assert board.consents_to(Consent.WRITE_RPMB)
    assert not board.consents_to(Consent.PROGRAM_KEY)


@pytest.mark.parametrize(
    ("appended", "expected"),
    [
        ("[ssh]\nhots = 'x'\nhost = 'y'\nknown_hosts = 'k'\n",
         "desk.toml:7: unknown key 'ssh.hots', did you mean 'host'?"),
        ("[consents]\npower_cicle = true\n",
         "desk.toml:7: unknown key 'consents.power_cicle', did you mean 'power_cycle'?"),
        ("[capabilities]\nefivarsf = true\n",
         "desk.toml:7: unknown key 'capabilities.efivarsf', did you mean 'efivarfs'?"),
        ("[tiemouts]\nboot = 3.0\n",
         "desk.toml:6: unknown key 'tiemouts', did you mean 'timeouts'?"),
        ("[timeouts]\nboot = '3'\n",
         "desk.toml:7: 'timeouts.boot': input should be a valid number, not '3'"),
        ("[consents]\nwrite_rpmb = 1\n",
         "desk.toml:7: 'consents.write_rpmb': input should be a valid boolean, not 1"),
        (f"[ssh]\nhost = 'x'\nknown_hosts = 'k'\nhost_key_fingerprint = 'SHA256:{'A' * 43}'\n",
         "desk.toml:6: ssh: give only one of host_key_fingerprint and known_hosts"),
        ("[ssh]\nknown_hosts = 'k'\n", "desk.toml:6: missing 'ssh.host'"),
        ("[serial.login]\nusr = 'x'\n",
         "desk.toml:7: unknown key 'serial.login.usr', did you mean 'user'?"),
    ],
)  # fmt: skip
def test_each_problem_names_line_and_word(tmp_path: Path, appended: str, expected: str) -> None:
    assert problems(tmp_path, MANUAL + appended) == [expected]


def test_missing_and_misspelt_driver(tmp_path: Path) -> None:
    base = f'emmc_cid = "{CID}"\n[power]\n'
    assert problems(tmp_path, base) == ["desk.toml:2: missing 'power.driver'"]
    assert problems(tmp_path, base + 'driver = "manuel"\n') == [
        "desk.toml:3: unknown driver 'manuel', did you mean 'manual'?"
    ]


def test_options_of_the_driver_are_checked(tmp_path: Path) -> None:
    text = MANUAL.replace('"manual"', '"command"\noptions.onn = "x"\noptions.off = "y"')
    assert problems(tmp_path, text) == [
        "desk.toml:4: missing 'power.options.on'",
        "desk.toml:6: unknown key 'power.options.onn', did you mean 'on'?",
    ]


def test_all_problems_come_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = 'emmc_cid = 3\n[ssh]\nport = "x"\n[power]\ndriver = "manual"\n[consent]\n'
    lines = [problem.split(":")[1] for problem in problems(tmp_path, text)]
    assert lines == ["1", "2", "3", "6"]


def test_unreachable_board_is_refused(tmp_path: Path) -> None:
    text = f'emmc_cid = "{CID}"\n[power]\ndriver = "manual"\n'
    assert problems(tmp_path, text) == [
        "desk.toml:1: the board file: give [ssh] or [serial]: the board cannot be reached otherwise"
    ]


def test_toml_syntax_error_names_the_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "name = \n")
    assert "line 1" in problem


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        loading.load(tmp_path / "none.toml")


def test_names_are_found_and_misspelt_ones_get_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    (tmp_path / "desk3.toml").write_text(MANUAL)
    assert loading.find("desk3") == tmp_path / "desk3.toml"
    assert loading.find("emulated").name == "emulated.toml"
    with pytest.raises(ConfigurationError, match="did you mean 'desk3'"):
        loading.find("desk4")


def test_schema_is_json(tmp_path: Path) -> None:
    assert json.loads(schema.schema_text())["additionalProperties"] is False
