"""Switches prove what they did, or it is an error at once: refusals, passwords as devices ask for
them today, objects that are not there, a plug that lies."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import parse_http_list, parse_keqv_list

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.errors import PowerError
from harness.power.driver import PowerState
from tests.harness.support.running_board import RunningBoard
from tests.harness.support.servers import free_port
from tests.harness.test_power_outlets import _driver, _switch_each_way

OUTLET = "1.3.6.1.4.1.318.1.1.4.4.2.1.3.4"


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Answers(BaseHTTPRequestHandler):
    """One and the same answer."""

    answer: object = {}

    def do_GET(self) -> None:
        self.reply(200, self.answer)

    def reply(self, status: int, answer: object, **headers: str) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def answering(answer: object) -> type[Answers]:
    return type("Handler", (Answers,), {"answer": answer})


_HIL = "import sys; from harness.cli.main import main; sys.exit(main())"


def hil(path: Path, action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _HIL, "power", action, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "HIL_LEASES": str(path.parent / "leases")},
    )


def board(tmp_path: Path, driver: str, options: str) -> Path:
    path = tmp_path / "desk.toml"
    path.write_text(
        'emmc_cid = "15010038474e4433520155aabbccdd00"\n[serial]\nport = "/dev/null"\n'
        f'[power]\ndriver = "{driver}"\n[power.options]\n{options}\n'
    )
    return path


REFUSALS: dict[str, dict[str, object]] = {
    "tasmota": {"WARNING": "Need user=<username>&password=<password>"},
    "shelly": {"code": -103, "message": "Argument 'id', value 9 not found!"},
    "shelly-gen1": {"error": "no such relay"},
}


@pytest.mark.fault("B16")
@pytest.mark.parametrize("action", ["on", "off", "cycle", "state"])
@pytest.mark.parametrize("kind", list(REFUSALS))
def test_a_refusal_is_an_error_at_once(tmp_path: Path, kind: str, action: str) -> None:
    with served(answering(REFUSALS[kind])) as host:
        done = hil(board(tmp_path, "http", f'kind = "{kind}"\nhost = "{host}"'), action)
    assert done.returncode != 0, done
    assert next(iter(REFUSALS[kind])) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fault("B16")
def test_a_status_command_that_says_neither_is_an_error(tmp_path: Path) -> None:
    done = hil(board(tmp_path, "command", 'on = "true"\noff = "true"\nstatus = "echo eh"'), "on")
    assert done.returncode != 0
    assert "'eh' and not `on` or `off`" in done.stderr


@pytest.mark.fault("B16")
def test_a_hardware_that_cannot_tell_is_named(tmp_path: Path) -> None:
    done = hil(board(tmp_path, "command", 'on = "true"\noff = "true"'), "on")
    assert done.returncode == 0, done
    assert "cannot tell ([power.options] has no status command)" in done.stdout


# --- passwords ------------------------------------------------------------------------------------


def digesting(algorithm: str) -> type[Answers]:
    """RFC 7616, as Shelly's second generation asks for SHA-256; `admin` and `s3cret`."""

    def hashed(text: str) -> str:
        name = algorithm.removesuffix("-sess").replace("-", "").lower()
        return hashlib.new(name, text.encode()).hexdigest()

    class Handler(Answers):
        on = False
        nonces: set[str] = set()

        def do_GET(self) -> None:
            given = self.headers.get("Authorization", "")
            if not self.right(given):
                nonce = secrets.token_hex(8)
                self.nonces.add(nonce)
                challenge = f'Digest qop="auth", realm="plug", nonce="{nonce}"'
                self.reply(401, {}, WWW_Authenticate=f"{challenge}, algorithm={algorithm}")
                return
            if "Switch.Set" in self.path:
                type(self).on = "on=true" in self.path
            self.reply(200, {"output": self.on})

        def right(self, given: str) -> bool:
            if not given.startswith("Digest "):
                return False
            said = parse_keqv_list(parse_http_list(given.removeprefix("Digest ")))
            if said["nonce"] not in self.nonces:
                return False
            first = hashed("admin:plug:s3cret")
            second = hashed(f"GET:{said['uri']}")
            count = f"{said['nonce']}:{said['nc']}:{said['cnonce']}:{said['qop']}"
            return said["response"] == hashed(f"{first}:{count}:{second}")

    return Handler


@pytest.mark.fault("B17")
@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
def test_a_plug_s_password_by_digest(algorithm: str) -> None:
    with served(digesting(algorithm)) as host:
        assert _curl(host, algorithm)
        driver = _driver("http", kind="shelly", host=host, password="s3cret")
        _switch_each_way(driver)
        for wrong in ({"password": "guess"}, {}):
            refused = _driver("http", kind="shelly", host=host, **wrong)
            with pytest.raises(PowerError, match="status 401") as caught:
                refused.on(2)
            assert "guess" not in str(caught.value)


def _curl(host: str, algorithm: str) -> bool:
    """Where curl gets along, so must we."""
    if not (program := shutil.which("curl")):
        return True
    url = f"http://{host}/rpc/Switch.GetStatus?id=0"
    command = [program, "-s", "--noproxy", "*", "--digest", "-u", "admin:s3cret", url]
    return b"output" in subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.fault("B17")
def test_a_plug_s_password_in_basic() -> None:
    class Basic(Answers):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") == "Basic YWRtaW46czNjcmV0":
                self.reply(200, {"ison": "turn=on" in self.path or True})
            else:
                self.reply(401, {}, WWW_Authenticate='Basic realm="plug"')

    with served(Basic) as host:
        _driver("http", kind="shelly-gen1", host=host, password="s3cret").on(2)


# --- SNMP -----------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[int]:
    """A real snmpd with users of version 3, and no object but the outlet's; its UDP port."""
    program = shutil.which("snmpd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs an SNMP agent (Debian package snmpd)")
    port = free_port(socket.SOCK_DGRAM)
    configuration = tmp_path / "snmpd.conf"
    configuration.write_text(
        "rwcommunity private 127.0.0.1\nrwuser ann priv\nrwuser bob auth\n"
        "createUser ann SHA-256 authauthauth AES privprivpriv\n"
        "createUser bob SHA authauthauth\n"
        f"override -rw .{OUTLET} integer 2\n"
    )
    with subprocess.Popen(
        [program, "-f", "-C", "-c", configuration, "-Le", f"udp:127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"SNMP_PERSISTENT_DIR": str(tmp_path)},
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "NET-SNMP version" in line:
                break
        yield port
        process.terminate()


@pytest.mark.fault("B18")
@pytest.mark.parametrize(
    "options",
    [
        {"user": "ann", "auth": "sha256", "priv_password": "privprivpriv"},
        {"user": "bob"},
    ],
    ids=["authPriv", "authNoPriv"],
)
def test_a_pdu_switches_by_version_3(agent: int, options: dict[str, str]) -> None:
    options = {"version": "3", "auth_password": "authauthauth", **options}
    _switch_each_way(_driver("snmp", host="127.0.0.1", port=agent, oid=OUTLET, **options))


@pytest.mark.fault("B18")
@pytest.mark.parametrize(
    "options",
    [
        {"user": "ann", "auth_password": "wrongwrong", "auth": "sha256"},
        {"user": "nobody", "auth_password": "authauthauth"},
        {"user": "bob"},
        {"user": "bob", "auth_password": "short"},
    ],
    ids=["password", "user", "no password", "short"],
)
def test_what_version_3_refuses_is_told(agent: int, options: dict[str, str]) -> None:
    driver = _driver("snmp", host="127.0.0.1", port=agent, oid=OUTLET, version="3", **options)
    with pytest.raises(PowerError, match="user and passwords") as caught:
        driver.on(2)
    assert "wrongwrong" not in str(caught.value)
    assert driver.state() is PowerState.UNKNOWN


@pytest.mark.fault("B18")
@pytest.mark.parametrize("oid", [f"{OUTLET}.9", "1.3.6.1.4.1.99999.1.1", "1.3.6.1.2.1.1.1.0"])
@pytest.mark.parametrize("version", ["1", "2c"])
def test_an_object_that_is_not_there_or_no_number(
    tmp_path: Path, agent: int, oid: str, version: str
) -> None:
    options = f'host = "127.0.0.1"\nport = {agent}\noid = "{oid}"\nversion = "{version}"'
    for action in ("state", "on"):
        done = hil(board(tmp_path, "snmp", options), action)
        assert done.returncode != 0, done
        assert f"object {oid} of 127.0.0.1" in done.stderr
        assert "Traceback" not in done.stderr


# --- a plug that lies -----------------------------------------------------------------------------


@pytest.mark.fault("B16")
@pytest.mark.long
def test_a_board_that_lives_on_is_found_by_its_boot_id(tmp_path: Path) -> None:
    """The plug says off and on again, and the board, on another supply, noticed nothing."""
    said = tmp_path / "said"
    running = RunningBoard(tmp_path)
    try:
        path = running.file(
            consents="power_cycle = true",
            power=f'driver = "command"\n[power.options]\non = "echo on >{said}"\n'
            f'off = "echo off >{said}"\nstatus = "cat {said}"\noff_seconds = 0.05',
        )
        said.write_text("on")
        with Board(loading.load(path)) as desk:
            for cut in (desk.switch.cycle, _off_and_on(desk)):
                started = time.monotonic()
                with pytest.raises(PowerError, match=r"lives on: boot [0-9a-f-]{36}"):
                    cut()
                assert time.monotonic() - started < 30
    finally:
        running.close()


def _off_and_on(desk: Board) -> Callable[[], None]:
    def cut() -> None:
        desk.switch.off()
        desk.switch.on()

    return cut
