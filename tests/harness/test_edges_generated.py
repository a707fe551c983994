"""Generated input at every edge: the harness's own words or success, within a second, and errors
name a line that exists."""

from __future__ import annotations

import contextlib
import io
import re
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.boardfile import loading
from harness.errors import ConfigurationError

# Bounded, and always the same: what is new is the fuzzer's to find.
BOUNDED = settings(
    max_examples=100,
    deadline=1000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

CID = '"aa015851454d55212101deadbeef2900"'
HOSTILE = (
    *("nan", "-inf", "1e999", "-1", "0", "1", "true", "[]", "{}", "1979-05-27", "07:32:00"),
    *("9" * 5000, "0x" + "f" * 5000, "[" * 500 + "]" * 500, "{a=" * 400 + "1" + "}" * 400),
    *('"\\u0000"', '"\\u001b[2J"', '"a\\nb"', '"("', '"a{999999999999}"', '"~nobody-x/y"', '""'),
    *('"/dev/zero"', "'''\n[[[[\n'''", '"' + "x" * 3000 + '"', '"\\ud800"', "'\u2028'", "="),
    *(CID, '"manual"', '"command"', '"h"', '["^ok$"]', '{ on = "true", off = "true" }'),
)
KEYS = (
    *("name", "description", "emmc_cid", "kernel_log_allowed", "limits", "timeouts", "ssh"),
    *("host", "port", "key", "known_hosts", "driver", "options", "boot", "command", "a_ms"),
    *("serial", "baud", "prompts", "shell", "power", "power_cycle", "rpmb_write_budget", "state"),
    *('"quoted key"', '"\\u001b"', "'a.b'", "a.b.c.d", "labgrid", "coordinator", "place", "udev"),
)
TABLES = (
    *("ssh", "serial", "serial.login", "serial.prompts", "power", "power.options", "timeouts"),
    *("limits", "consents", "capabilities", "labgrid", "x", "[x]", ".".join("t" * 1400)),
)
ASSIGNMENTS = st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(HOSTILE))
LINES = st.one_of(
    ASSIGNMENTS,
    ASSIGNMENTS,
    st.builds("[{}]".format, st.sampled_from(TABLES)),
    st.text(max_size=40),
)
BOARD_TEXTS = st.one_of(
    st.lists(LINES, max_size=12).map("\n".join),
    st.lists(ASSIGNMENTS, max_size=4).map(
        lambda lines: "\n".join(
            [f"emmc_cid = {CID}", '[serial]\nport = "p"\n[power]\ndriver = "manual"', *lines]
        )
    ),
)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < 1.0


@given(text=BOARD_TEXTS)
@BOUNDED
@pytest.mark.fault("R6", "R7")
def test_board_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_bytes(content := text.encode("utf-8", "surrogatepass"))
    with quick():
        try:
            loading.load(path)
        except ConfigurationError as error:
            told = str(error)
            lines = [int(line) for line in re.findall(r"desk\.toml:(\d+): ", told)]
            assert lines
            assert all(1 <= line <= content.count(b"\n") + 1 for line in lines)
            assert not re.search(r"[\x00-\x1f\x7f]", told), "one paragraph, and nothing obeyed"
            assert len(told) < 10_000


NUMBERS = st.one_of(
    st.sampled_from(["nan", "inf", "-inf", "-1", "1e400", "1e300", "0", "9" * 5000, "", "\uff11"]),
    st.floats().map(str),
    st.integers().map(str),
    st.text(max_size=10),
)
WORDS = st.one_of(
    st.sampled_from(
        [*(f"--{word}" for word in ("timeout", "wait", "quiet", "link", "boot", "json", "list")),
         *("show", "hold", "break", "on", "state", "none-such", "./none/such.toml", "-", "--"),
         *("--boards-from=/nowhere", "--boards-from", "@/dev/zero", "x" * 5000 + ".toml")]
    ),
    NUMBERS,
    st.builds("--{}={}".format, st.sampled_from(["timeout", "wait", "quiet", "baud"]), NUMBERS),
    st.text(string.printable, max_size=12),
)  # fmt: skip
# What looks at the bench or starts a program is for the tests of that.
PLAIN = ["run", "console", "log", "power", "restore", "lease", "check", "truth", "shell"]


@given(command=st.sampled_from(PLAIN), words=st.lists(WORDS, max_size=5))
@BOUNDED
@pytest.mark.fault("R8")
def test_command_lines(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.cli.main import main

    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    monkeypatch.setenv("HIL_LEASES", str(tmp_path / "leases"))
    told = io.StringIO()
    with quick(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main([command, *words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else -1
    assert status in (0, 4), told.getvalue()
    assert status == 0 or told.getvalue()


def test_every_command_is_thrown_at_or_named() -> None:
    from harness.cli.main import COMMANDS

    others = {"boards", "discover", "emulate", "qemu", "completion", "version"}
    assert {one.name for one in COMMANDS} == {*PLAIN, *others}


KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"
HOSTS = st.one_of(
    st.sampled_from(["board", "[board]:22", "a,board", "*", "!board", "|1|x", "|1|AA==|AA==", ""]),
    st.text(max_size=12),
)
KEY_LINES = st.builds(
    "{}{} {} {}".format,
    st.sampled_from(["", "", "@revoked ", "@cert-authority ", "@x ", "# "]),
    HOSTS,
    st.sampled_from(["ssh-ed25519", "ssh-rsa", "x", ""]),
    st.one_of(st.just(KEY), st.text("AQg=/+ \n", max_size=30)),
)


@given(lines=st.lists(st.one_of(KEY_LINES.map(str.encode), st.binary(max_size=40)), max_size=8))
@BOUNDED
@pytest.mark.fault("R7")
def test_known_hosts(lines: list[bytes], tmp_path: Path) -> None:
    import asyncssh

    from harness.links import hostkeys

    good = f"board ssh-ed25519 {KEY}".encode()
    content = b"\n".join([*lines, good])
    path = tmp_path / "known_hosts"
    path.write_bytes(content)
    known = asyncssh.import_known_hosts("")
    with quick():
        damaged = hostkeys.load(known, path, needed=True)
    assert all(1 <= line <= content.count(b"\n") + 1 for line in damaged)
    assert known.match("board", "", None)[0]
