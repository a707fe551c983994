"""A laboratory run by labgrid: a real coordinator and real exporters on loopback, and the outlet
that their power resources switch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.pace import until

PATIENCE = 60.0  # seconds; a busy host is slow to start Python three times


class LabgridLab:
    """Close it. Everything it starts listens on 127.0.0.1 and lives in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # What the test's host says about proxies is not meant for its own loopback.
        self._environment = dict(os.environ, no_proxy="*", PYTHONUNBUFFERED="1")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._coordinator_log = self._start("coordinator", "coordinator", "-l", "127.0.0.1:0")
        line = self._wait_for(self._coordinator_log, "listening on ")
        self.address = line.removeprefix("listening on ").strip()

    def export(self, name: str, resources: str) -> None:
        """An exporter of that name for resources in labgrid's YAML."""
        file = self._folder / f"{name}.yaml"
        file.write_text(resources)
        words = ["-c", self.address, "-n", name, "--hostname", "127.0.0.1", str(file)]
        log = self._start(name, "exporter", *words)
        self._wait_for(log, "connected to coordinator")

    def place(self, name: str, *matches: str) -> None:
        """Make a place of all resources that match."""
        self.client("-p", name, "create")
        self.client("-p", name, "add-match", *matches)

    def client(self, *words: str, user: str = "", host: str = "", check: bool = True) -> str:
        """Run labgrid-client, as somebody else if told; what it printed."""
        environment = dict(self._environment)
        environment |= {"LG_USERNAME": user} if user else {}
        environment |= {"LG_HOSTNAME": host} if host else {}
        done = subprocess.run(
            [sys.executable, "-m", "labgrid.remote.client", "-x", self.address, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
        text = done.stdout.decode()
        assert done.returncode == 0 or not check, f"labgrid-client {words}: {text}"
        return text

    def holder(self, place: str) -> str:
        """Who has acquired the place, by the coordinator's own account; empty when nobody has."""
        said = [
            line.partition(f"{place}: place ")[2]
            for line in self._coordinator_log.read_text().splitlines(keepends=True)
            if line.startswith(f"{place}: place ") and line.endswith("\n")
        ]
        last = said[-1].strip() if said else "released"
        return "" if last == "released" else last.removeprefix("acquired by ")

    def wait_until_free(self, place: str) -> None:
        until(lambda: not self.holder(place), PATIENCE)

    def end(self, name: str) -> None:
        """Kill the coordinator (``coordinator``) or an exporter."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for name in list(self._processes):
            self.end(name)

    def _start(self, name: str, module: str, *words: str) -> Path:
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"labgrid.remote.{module}", *words],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return log

    def _wait_for(self, log: Path, beginning: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in log.read_text().splitlines(keepends=True):
                if beginning in line and line.endswith("\n"):
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no {beginning!r} in {log}: {log.read_text()[-2000:]}")


class Pdu(ThreadingHTTPServer):
    """Outlets as labgrid's backend `rest` drives them: PUT 0 or 1, GET tells. ``switch`` does it,
    ``read`` looks."""

    def __init__(self, switch: Callable[[bool], None], read: Callable[[], bool]) -> None:
        self.switch = switch
        self.read = read
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _PduRequest)

    @property
    def resource(self) -> str:
        """The resource in labgrid's YAML."""
        return (
            "NetworkPowerPort:\n"
            "    model: rest\n"
            f"    host: 'http://127.0.0.1:{self.server_port}/relay/{{index}}'\n"
            "    index: 3\n"
        )


class _PduRequest(BaseHTTPRequestHandler):
    server: Pdu

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.switch(body == b"1")
        self._answer(b"ok")

    def do_GET(self) -> None:
        with self.server.lock:
            on = self.server.read()
        self._answer(b"1" if on else b"0")

    def _answer(self, body: bytes) -> None:
        if self.path != "/relay/3":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving(pdu: Pdu) -> Iterator[Pdu]:
    """Until the end of the block."""
    with pdu:
        thread = threading.Thread(target=pdu.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield pdu
        finally:
            pdu.shutdown()
            thread.join()
