"""QEMU's machine protocol, and images that were not built."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigurationError
from harness.power.qemu import QemuPower, QemuPowerOptions
from harness.power.qmp import Monitor, QmpError

GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}


class Qemu:
    """One connection of a machine: greets, then answers each command as told."""

    def __init__(self, path: Path, answer: Callable[[str], list[dict[str, Any]]]) -> None:
        self.commands: list[str] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rw") as stream:
            print(json.dumps(GREETING), file=stream, flush=True)
            for line in stream:
                command = json.loads(line)["execute"]
                self.commands.append(command)
                for answer in self._answer(command):
                    print(json.dumps(answer), file=stream, flush=True)

    def close(self) -> None:
        self._listener.close()


def answers(command: str) -> list[dict[str, Any]]:
    if command == "silence":
        return []
    if command == "refused":
        return [{"error": {"class": "GenericError", "desc": "no such thing"}}]
    return [{"event": "STOP", "data": {}}, {"return": {"asked": command}}]


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    served = Qemu(tmp_path / "monitor", answers)
    yield served
    served.close()


@pytest.fixture
def monitor(qemu: Qemu, tmp_path: Path) -> Iterator[Monitor]:
    opened = Monitor(tmp_path / "monitor", time.monotonic() + 30)
    yield opened
    opened.close()


def test_an_answer_is_found_behind_events(qemu: Qemu, monitor: Monitor) -> None:
    assert monitor.execute("query-status", time.monotonic() + 30) == {"asked": "query-status"}
    assert qemu.commands == ["qmp_capabilities", "query-status"]


def test_a_refusal_is_an_error_and_not_the_end(monitor: Monitor) -> None:
    with pytest.raises(QmpError, match="refused: no such thing"):
        monitor.execute("refused", time.monotonic() + 30)
    assert monitor.execute("stop", time.monotonic() + 30) == {"asked": "stop"}


def test_silence_ends_at_the_deadline(monitor: Monitor) -> None:
    with pytest.raises(QmpError, match="silence"):
        monitor.execute("silence", time.monotonic() + 0.2)


def test_images_that_were_not_built_name_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no images 'mm-query'") as error:
        QemuPower(QemuPowerOptions(images="mm-query"), board="b")
    assert "hil qemu build" in error.value.remedy


def test_the_board_file_wins_over_the_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from harness.power.qemu_images import with_images

    images = tmp_path / "stmm-hil" / "qemu" / "images"
    images.mkdir(parents=True)
    (images / "mine.toml").write_text(
        'cpus = 2\nmemory_mib = 2048\nbios = "../flash.bin"\nprogram = "../q"\ndisks = ["d.img"]\n'
        '[login]\nuser = "root"\nkey = "key"\nhost_key_fingerprint = "SHA256:x"\n'
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options, login = with_images(QemuPowerOptions(cpus=4), "mine", board="b")
    assert (options.cpus, options.memory_mib) == (4, 2048)
    assert options.bios == images / "../flash.bin"
    assert options.program == str(images / "../q")
    assert options.disks == (images / "d.img",)
    assert login is not None
    assert login.key == images / "key"


def test_a_file_of_images_that_cannot_be_understood_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = tmp_path / "stmm-hil" / "qemu" / "images"
    images.mkdir(parents=True)
    (images / "mine.toml").write_text("nonsense = 1\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"mine\.toml does not say how"):
        QemuPower(QemuPowerOptions(images="mine"), board="b")
