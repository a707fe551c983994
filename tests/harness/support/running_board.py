"""A board that is on already, as on a bench: a process of its own with SSH and a serial line, and
a board file for it that names no way to switch it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.pace import HANGS

CID = "aa015851454d55212101deadbeef2900"


class RunningBoard:
    """Close it. ``options`` are the emulator's; ``folder`` is where its flash and files are."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        words = [word for option in options for word in ("-o", option)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "emulation", "--json", "--control", "--state", folder, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ends: dict[str, Any] = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """One line of the control protocol, e.g. ``fault rpmb.write=lost``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert "error" not in answer, answer
        return answer

    def file(
        self,
        *,
        cid: str = CID,
        serial: str | None = None,
        baud: int = 115200,
        fingerprint: str | None = None,
        consents: str = "write_rpmb = true",
        power: str = 'driver = "manual"',
    ) -> Path:
        """A board file; what is not given is right."""
        ends = self.ends
        trust = (
            f'host_key_fingerprint = "{fingerprint}"'
            if fingerprint
            else f'known_hosts = "{ends["known_hosts"]}"'
        )
        path = self.folder / "bench.toml"
        path.write_text(
            f'emmc_cid = "{cid}"\n'
            f'[ssh]\nhost = "{ends["host"]}"\nport = {ends["port"]}\nkey = "{ends["key"]}"\n'
            f"{trust}\n"
            f'[serial]\nport = "{serial or ends["serial"]}"\nbaud = {baud}\n'
            f"[power]\n{power}\n"
            f"[consents]\n{consents}\n"
        )
        return path

    def close(self) -> None:
        """Pull the plug."""
        self._process.terminate()
        self._process.communicate(timeout=HANGS)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))
