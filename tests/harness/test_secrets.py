"""One token in every secret option, and then everything that commands and runs print, write, lock
and start is searched for it."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from harness.boardfile.loading import load
from harness.boardfile.sections import BoardFile
from harness.errors import ConfigurationError, PowerError
from harness.power.registry import DRIVERS
from harness.power.section import Section
from tests.harness.support.runs import board_file, inner_run

CID = "aa015851454d55212101deadbeef2900"
SECONDS = 60.0


ROOTS: dict[str, type[BaseModel]] = {"": BoardFile} | {
    f"power({driver.name}).": driver.section for driver in DRIVERS
}


def _models(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Every secret option below ``model``: its path, its table and its key."""
    for key, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        if SecretStr in kinds:
            yield f"{path}{key}", model, key
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Section:
                yield from _models(kind, f"{path}{key}.")


SECRETS = {
    path: (table, key) for start, root in ROOTS.items() for path, table, key in _models(root, start)
}
TOKENS = {path: f"TOKEN{number:03}x9Zq" for number, path in enumerate(sorted(SECRETS))}
RPMB_KEY = "5ec2e75ec2e7" + 52 * "a"


def test_the_secrets_there_are() -> None:
    assert {
        "ssh.password",
        "serial.login.password",
        "power(command).options.on",
        "power(command).options.off",
        "power(command).options.cycle",
        "power(command).options.status",
        "power(http).options.password",
        "power(snmp).options.community",
    } <= set(SECRETS)


def test_what_looks_like_a_secret_is_one() -> None:
    """A new option of such a name that prints."""
    suspicious = ("password", "secret", "token", "community", "passphrase", "credential")

    def walk(model: type[BaseModel]) -> Iterator[str]:
        for key, field in model.model_fields.items():
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            if any(word in key for word in suspicious) and SecretStr not in kinds:
                yield f"{model.__name__}.{key}"
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from walk(kind)

    found = {one for root in ROOTS.values() for one in walk(root)}
    assert found == {"PromptsSection.password"}  # what the prompt for it looks like


@pytest.mark.parametrize("path", sorted(SECRETS))
def test_a_table_shows_no_secret(path: str) -> None:
    table, key = SECRETS[path]
    one = table.model_construct(None, **{key: SecretStr(TOKENS[path])})
    for shown in (repr(one), str(one), f"{one}", one.model_dump_json(), repr(one.model_dump())):
        assert TOKENS[path] not in shown


@pytest.mark.parametrize("path", sorted(SECRETS))
@pytest.mark.parametrize("wrong", [lambda token: [token], lambda token: {token: 1}])
def test_a_secret_of_a_wrong_type_is_not_quoted(
    path: str, wrong: Callable[[str], object], tmp_path: Path
) -> None:
    file = tmp_path / "desk3.toml"
    file.write_text(_text(path, wrong(TOKENS[path])))
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert TOKENS[path] not in str(caught.value)
    assert SECRETS[path][1] in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return repr(value).replace("'", '"')


def _text(path: str, value: object) -> str:
    """A board file with one secret option that has another ``value``."""
    chosen = "command"
    tables: dict[str, dict[str, object]] = {
        "ssh": {"host": "127.0.0.1", "port": 9, "known_hosts": "/dev/null"},
        "serial": {"port": "/dev/null"},
    }
    if path.startswith("power("):
        chosen = path[len("power(") :].partition(")")[0]
    options: dict[str, dict[str, object]] = {
        "command": {"on": "true", "off": "true"},
        "http": {"kind": "tasmota", "host": "127.0.0.1:9"},
        "snmp": {"host": "127.0.0.1", "oid": "1.3.6"},
    }
    tables["power"] = {"driver": chosen}
    tables["power.options"] = options[chosen]
    table, _, key = path.replace(f"power({chosen})", "power").rpartition(".")
    tables.setdefault(table, {})[key] = value
    lines = [f'emmc_cid = "{CID}"']
    for name, content in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(one)}" for key, one in content.items())]
    return "\n".join(lines) + "\n"


class _Arguments:
    """What every process of this host was called with, looked at all the time."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(process.read_bytes())
                except OSError:
                    continue

    def __enter__(self) -> _Arguments:
        self._watcher.start()
        return self

    def __exit__(self, *of: object) -> None:
        self._over.set()
        self._watcher.join()


def _hil(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.stdout + done.stderr


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HIL_LEASES": str(folder / "leases"),
        "XDG_STATE_HOME": str(folder / "state"),
        "TMPDIR": str(folder),
    }


def _search(token: str, folder: Path, but: Path) -> list[str]:
    """Files below ``folder`` with the token in their name or content, but for one."""
    found = []
    for path in folder.rglob("*"):
        inside = path.is_file() and path != but and token.encode() in path.read_bytes()
        if token in path.name or inside:
            found.append(str(path))
    return found


FAILS = "{token}() {{ sleep 0.2; echo cannot log in with {token}; return 3; }}; {token}"
SUCCEEDS = "x={token}; sleep 0.2; echo on"


@pytest.mark.fault("C7", "L4")
@pytest.mark.parametrize("command", [SUCCEEDS, FAILS, "sleep 30 # {token}"])
def test_power_commands(tmp_path: Path, command: str) -> None:
    token = "TOKENcmdx9Zq"
    file = tmp_path / "desk3.toml"
    line = command.format(token=token)
    file.write_text(
        f'emmc_cid = "{CID}"\n[ssh]\nhost = "127.0.0.1"\nport = 9\nknown_hosts = "/dev/null"\n'
        f"[power]\ndriver = \"command\"\n[power.options]\ntimeout = 0.5\non = '{line}'\n"
        f"off = '{line}'\ncycle = '{line}'\nstatus = '{line}'\n[consents]\npower_cycle = true\n"
    )
    printed = ""
    with _Arguments() as arguments:
        for action in ("on", "off", "cycle", "state"):
            printed += _hil(tmp_path, "power", action, str(file))
        printed += _hil(tmp_path, "check", str(file))
        printed += _hil(tmp_path, "check", "--json", str(file))
        holding = subprocess.Popen(
            [sys.executable, "-m", "harness", "lease", "hold", str(file)],
            env=_environment(tmp_path),
            stdout=subprocess.PIPE,
        )
        assert holding.stdout is not None
        holding.stdout.readline()
        printed += _hil(tmp_path, "lease", "show") + _hil(tmp_path, "lease", "show", "--json")
        printed += _hil(tmp_path, "lease", "show", str(file))
        locked = _search(token, tmp_path, file)
        holding.terminate()
        holding.wait(SECONDS)
        holding.stdout.close()
    assert token not in printed
    assert locked == []
    assert _search(token, tmp_path, file) == []
    assert not [line for line in arguments.seen if token.encode() in line]
    if command is not SUCCEEDS:
        assert "power.options.on" in printed


@contextmanager
def _plug(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *of: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _switch(kind: str, host: str, token: str) -> PowerError:
    from harness.power.http import HttpOutlet, HttpPowerOptions

    options = HttpPowerOptions.model_validate_json(
        json.dumps({"kind": kind, "host": host, "password": token})
    )
    with pytest.raises(PowerError) as caught:
        HttpOutlet(options).switch(True, 5.0)
    return caught.value


@pytest.mark.fault("C7")
@pytest.mark.parametrize("kind", ["tasmota", "shelly", "shelly-gen1"])
def test_a_redirect_to_another_host_is_not_followed(kind: str) -> None:
    asked: list[str] = []
    token = "TOKENredirectx9Zq"

    def thief(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.path + str(request.headers))
        request.send_response(200)
        request.end_headers()

    with _plug(thief) as elsewhere:

        def redirect(request: http.server.BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", f"http://{elsewhere}{request.path}")
            request.end_headers()

        with _plug(redirect) as host:
            error = _switch(kind, host, token)
    assert asked == []
    assert token not in str(error)
    assert "redirect" in str(error)


@pytest.mark.fault("C7")
def test_a_plug_that_repeats_the_password() -> None:
    token = "TOKENechox9Zq"

    def echo(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(f'["{request.path}"]'.encode())

    with _plug(echo) as host:
        assert token not in str(_switch("tasmota", host, token))


def test_a_run_with_an_rpmb_key(tmp_path: Path) -> None:
    """Whoever may list processes would have read the key of the board."""
    changed = f'[power.options]\nrpmb_key = "{RPMB_KEY}"'
    board = board_file(tmp_path, "[power.options]", changed)
    source = "def test_one(shell):\n    assert False, shell.run('uname').text\n"
    with _Arguments() as arguments:
        run = inner_run(tmp_path, source, board, f"-l --ktap {tmp_path / 'run.ktap'}")
    assert "Linux" in run.output
    assert RPMB_KEY not in run.output
    assert _search(RPMB_KEY, tmp_path, board) == []
    assert not [line for line in arguments.seen if RPMB_KEY.encode() in line]


def test_a_run_that_cannot_log_in(tmp_path: Path) -> None:
    """Terminal with local variables, JUnit, KTAP, snapshot and lease of a run whose board refuses
    every secret."""
    tokens = {"ssh.password": "TOKENsshx9Zq", "serial.login.password": "TOKENttyx9Zq"}
    board = tmp_path / "desk3.toml"
    board.write_text(
        f'emmc_cid = "{CID}"\n[ssh]\nhost = "127.0.0.1"\nport = 9\nknown_hosts = "/dev/null"\n'
        f'password = "{tokens["ssh.password"]}"\n[serial]\nport = "/dev/null"\n[serial.login]\n'
        f'password = "{tokens["serial.login.password"]}"\n[power]\ndriver = "manual"\n'
        "[timeouts]\nboot = 1\n"
    )
    source = "def test_one(shell):\n    pass\n"
    run = inner_run(tmp_path, source, board, f"-l --tb=long --ktap {tmp_path / 'run.ktap'}")
    assert run.status != 0
    for token in tokens.values():
        assert token not in run.output
        assert _search(token, tmp_path, board) == []
