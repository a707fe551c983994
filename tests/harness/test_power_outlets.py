"""Power drivers of single outlets against what they really talk to: an HTTP server that behaves as
the plugs do, a real SNMP agent, a relay board on a pseudo terminal, and a program that prints as
uhubctl does."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import TypeAdapter

from harness.errors import PowerError
from harness.power.driver import Context, PowerDriver, PowerState
from harness.power.registry import PowerSection, driver_of
from harness.power.section import Section
from tests.harness.support.servers import free_port

_SECTION: TypeAdapter[Section] = TypeAdapter(PowerSection)


def _driver(driver: str, **options: Any) -> PowerDriver:
    options = {"timeout": 2.0, "off_seconds": 0.05} | options
    section = _SECTION.validate_python({"driver": driver, "options": options})
    return driver_of(section).open(section, Context("desk3"))


def _switch_each_way(driver: PowerDriver) -> None:
    driver.off(3)
    assert driver.state() is PowerState.OFF
    driver.on(3)
    assert driver.state() is PowerState.ON
    driver.cycle(3)
    assert driver.state() is PowerState.ON


# --- HTTP ---------------------------------------------------------------------------------------


class _Plug(ThreadingHTTPServer):
    """A strip with four relays that speaks all three dialects."""

    def __init__(self) -> None:
        self.relays = [False] * 4
        self.stuck = False
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _PlugRequest)

    def switch(self, number: int, on: bool) -> None:
        if not self.stuck:
            self.relays[number] = on


class _PlugRequest(BaseHTTPRequestHandler):
    server: _Plug

    def do_GET(self) -> None:
        plug = self.server
        plug.requests.append(self.path)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        answer: object
        if url.path == "/cm":
            command, _, wanted = query["cmnd"].partition(" ")
            number = int(command.removeprefix("Power"))
            if wanted:
                plug.switch(number - 1, wanted == "On")
            answer = {f"POWER{number}": "ON" if plug.relays[number - 1] else "OFF"}
        elif url.path.startswith("/relay/"):
            number = int(url.path.rpartition("/")[2])
            if "turn" in query:
                plug.switch(number, query["turn"] == "on")
            answer = {"ison": plug.relays[number]}
        elif url.path == "/rpc/Switch.Set":
            plug.switch(int(query["id"]), query["on"] == "true")
            answer = {"was_on": False}
        elif url.path == "/rpc/Switch.GetStatus":
            answer = {"id": int(query["id"]), "output": plug.relays[int(query["id"])]}
        else:
            self.send_error(404)
            return
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def plug() -> Iterator[_Plug]:
    with _Plug() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["tasmota", "shelly", "shelly-gen1"])
def test_a_plug_switches_its_one_outlet(plug: _Plug, kind: str) -> None:
    plug.relays = [True, False, True, True]
    host = f"127.0.0.1:{plug.server_port}"
    _switch_each_way(_driver("http", kind=kind, host=host, outlet=2))
    assert plug.relays == [True, False, True, True]


def test_a_plug_that_does_not_switch_is_found_out(plug: _Plug) -> None:
    plug.stuck = True
    driver = _driver("http", kind="shelly", host=f"127.0.0.1:{plug.server_port}")
    with pytest.raises(PowerError, match=r"outlet 0 of http://127.* is still off 0.3 s after"):
        driver.on(0.3)


def test_a_plug_of_another_kind_names_the_option(plug: _Plug) -> None:
    plug.RequestHandlerClass = _WebPage
    driver = _driver("http", kind="tasmota", host=f"127.0.0.1:{plug.server_port}")
    with pytest.raises(PowerError, match=r"power\.options\.kind"):
        driver.on(1)
    assert driver.state() is PowerState.UNKNOWN


class _WebPage(_PlugRequest):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")


def test_a_plug_that_is_not_there_is_an_error_within_its_timeout() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        driver = _driver("http", kind="shelly", host=f"127.0.0.1:{taken.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(PowerError, match="desk3"):
            driver.on(1)
        assert time.monotonic() - started < 5


# --- SNMP ---------------------------------------------------------------------------------------

_OUTLET_OID = "1.3.6.1.4.1.318.1.1.4.4.2.1.3.4"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[int]:
    """A real SNMP agent whose outlet object can be written; its UDP port."""
    program = shutil.which("snmpd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs an SNMP agent (Debian package snmpd)")
    port = free_port(socket.SOCK_DGRAM)
    configuration = tmp_path / "snmpd.conf"
    configuration.write_text(
        f"rwcommunity private 127.0.0.1\nrocommunity public 127.0.0.1\n"
        f"override -rw .{_OUTLET_OID} integer 2\n"
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


@pytest.mark.parametrize("version", ["1", "2c"])
def test_a_pdu_switches_by_snmp(agent: int, version: str) -> None:
    _switch_each_way(
        _driver("snmp", host="127.0.0.1", port=agent, oid=_OUTLET_OID, version=version)
    )


def test_a_community_that_may_not_write_is_refused_with_a_remedy(agent: int) -> None:
    driver = _driver(
        "snmp", host="127.0.0.1", port=agent, oid=_OUTLET_OID, version="2c", community="public"
    )
    with pytest.raises(PowerError, match="community"):
        driver.on(2)
    assert driver.state() is PowerState.OFF


def test_a_pdu_that_does_not_answer_is_an_error_within_its_timeout() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        driver = _driver(
            "snmp", host="127.0.0.1", port=silent.getsockname()[1], oid=_OUTLET_OID, timeout=0.6
        )
        started = time.monotonic()
        with pytest.raises(PowerError):
            driver.on(2)
        assert time.monotonic() - started < 5


# --- relay --------------------------------------------------------------------------------------


class _RelayBoard(threading.Thread):
    """Four channels behind a pseudo terminal; ``talks`` as boards with several channels do."""

    def __init__(self, *, talks: bool = True) -> None:
        super().__init__(daemon=True)
        self.relays = [False] * 4
        self.talks = talks
        self._board, self._host = pty.openpty()
        tty.setraw(self._host)
        self.device = os.ttyname(self._host)
        self.start()

    def run(self) -> None:
        received = b""
        while True:
            received += os.read(self._board, 64)
            while received:
                if received[0] == 0xFF:
                    received = received[1:]
                    if self.talks:
                        lines = [
                            f"CH{n}: {'ON' if on else 'OFF'}\r\n"
                            for n, on in enumerate(self.relays, 1)
                        ]
                        os.write(self._board, "".join(lines).encode())
                elif len(received) < 4:
                    break
                else:
                    start, channel, on, total = received[:4]
                    received = received[4:]
                    if start == 0xA0 and total == (start + channel + on) & 0xFF:
                        self.relays[channel - 1] = bool(on)


def test_a_relay_switches_its_channel() -> None:
    board = _RelayBoard()
    _switch_each_way(_driver("relay", port=board.device, channel=3))
    assert board.relays == [False, False, True, False]


def test_a_relay_in_the_other_contact_is_the_other_way_round() -> None:
    board = _RelayBoard()
    driver = _driver("relay", port=board.device, normally_closed=True)
    _switch_each_way(driver)
    assert board.relays[0] is False


def test_a_relay_that_cannot_answer_has_no_known_state() -> None:
    board = _RelayBoard(talks=False)
    driver = _driver("relay", port=board.device)
    driver.on(2)
    assert driver.state() is PowerState.UNKNOWN
    assert board.relays[0] is True


def test_a_missing_relay_is_an_error() -> None:
    with pytest.raises(PowerError, match="relay 1 on /dev/no-such-relay"):
        _driver("relay", port="/dev/no-such-relay").on(1)


# --- uhubctl ------------------------------------------------------------------------------------

# Prints as uhubctl 2.5 does; needs no hub.
_UHUBCTL = """#!/bin/sh
state=$(dirname "$0")/state
while getopts l:p:a: option; do case $option in
  l) location=$OPTARG;; p) port=$OPTARG;; a) echo $OPTARG >$state;; esac; done
test "$location" = 1-1 || { echo "No compatible devices detected at location $location!"; exit 1; }
echo "Current status for hub 1-1 [0424:2514, USB 2.00, 4 ports, ppps]"
case $(cat $state) in
  on) echo "  Port $port: 0103 power enable connect [0403:6001 FTDI]";;
  *) echo "  Port $port: 0000 off";;
esac
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "uhubctl"
    program.write_text(_UHUBCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("hub")
def test_a_hub_s_port_is_switched_and_asked() -> None:
    _switch_each_way(_driver("usb-hub", location="1-1", port=2))


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_there_shows_what_uhubctl_says() -> None:
    with pytest.raises(PowerError, match="No compatible devices detected at location 1-7"):
        _driver("usb-hub", location="1-7", port=2).on(1)
