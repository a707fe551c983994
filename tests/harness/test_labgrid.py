"""Boards in labgrid places: a real coordinator and real exporters, an outlet over HTTP, and an
emulated board behind ser2net."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.board.board import Board
from harness.board.state_dir import STATE_ENVIRONMENT
from harness.boardfile import loading
from harness.boardfile.sections import BoardFile, LabgridSection
from harness.check.walk import walk
from harness.errors import ConfigurationError, HilError, LabError, PowerError
from harness.lab.labgrid.place import LabgridPlace
from harness.lab.lease import LEASES_ENVIRONMENT, BoardHeld, LeaseBroken
from harness.lab.powering import power_of
from harness.lab.things import things_of
from harness.power.driver import PowerState
from harness.power.registry import driver_of
from tests.harness.support.labgrid_lab import PATIENCE, LabgridLab, Pdu, serving
from tests.harness.support.running_board import CID, RunningBoard
from tests.harness.support.servers import free_port, need


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabgridLab]:
    pytest.importorskip("labgrid", reason="labgrid is missing; pip install 'stmm-hil[labgrid]'")
    started = LabgridLab(tmp_path_factory.mktemp("labgrid"))
    yield started
    started.close()


class Relay:
    """What the outlet does when nothing hangs on it."""

    def __init__(self) -> None:
        self.on = False
        self.stuck = False

    def switch(self, on: bool) -> None:
        if not self.stuck:
            self.on = on


@pytest.fixture(scope="module")
def outlet() -> Iterator[tuple[Relay, Pdu]]:
    relay = Relay()
    with serving(Pdu(relay.switch, lambda: relay.on)) as pdu:
        yield relay, pdu


@pytest.fixture(scope="module")
def _desk(lab: LabgridLab, outlet: tuple[Relay, Pdu]) -> str:
    service = "NetworkService:\n    address: 127.0.0.1\n    username: root\n    port: 2222\n"
    lab.export("lab1", f"desk3:\n  {outlet[1].resource}  {service}")
    lab.place("desk-3", "lab1/desk3/*")
    return "desk-3"


@pytest.fixture
def desk(lab: LabgridLab, _desk: str) -> str:
    """A free place with an outlet and an SSH address."""
    lab.wait_until_free(_desk)
    return _desk


@pytest.fixture(autouse=True, scope="module")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LEASES_ENVIRONMENT, str(tmp_path_factory.mktemp("leases")))
        patch.setenv(STATE_ENVIRONMENT, str(tmp_path_factory.mktemp("state")))
        patch.setenv("no_proxy", "*")
        yield


def _section(lab: LabgridLab, place: str, **values: Any) -> LabgridSection:
    return LabgridSection(coordinator=lab.address, place=place, **values)


def _refused(section: LabgridSection, kind: type[HilError]) -> str:
    place = LabgridPlace(section, board="desk3")
    try:
        with pytest.raises(kind) as refusal:
            place.hold()
    finally:
        place.close()
    return str(refusal.value)


def _file(folder: Path, text: str) -> BoardFile:
    path = folder / "bench.toml"
    path.write_text(f'emmc_cid = "{CID}"\n{text}')
    return loading.load(path)


# --- the board file -----------------------------------------------------------------------------


def test_a_place_is_enough_of_a_board_file(tmp_path: Path) -> None:
    file = _file(tmp_path, '[labgrid]\ncoordinator = "lab"\nplace = "desk-3"\n[ssh]\n'
                 'known_hosts = "k"\n[serial.login]\nuser = "me"\n')  # fmt: skip
    assert driver_of(file.power).needs_place
    assert things_of(file) == ["place lab:20408 desk-3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[power]\ndriver = "labgrid"\n[ssh]\nhost = "h"\nknown_hosts = "k"\n', "needs [labgrid]"),
        ('[labgrid]\ncoordinator = "lab"\n', "bench.toml:2: missing 'labgrid.place'"),
        ('[labgrid]\ncoordinator = "ws://lab/ws"\nplace = "p"\n', "bench.toml:3: 'labgrid.coord"),
        ('[labgrid]\ncoordinator = "l"\nplace = "p"\nwiat = 1\n', "did you mean 'wait'"),
        ('[power]\ndriver = "manual"\n[serial]\nbaud = 9600\n', "exactly one of port and udev"),
    ],
)
def test_a_wrong_board_file_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        _file(tmp_path, text)
    assert said in str(refusal.value)


def test_without_labgrid_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    section = LabgridSection(coordinator="127.0.0.1:1", place="desk-3")
    assert "pip install 'stmm-hil[labgrid]'" in _refused(section, ConfigurationError)


# --- who has it ---------------------------------------------------------------------------------


def test_a_place_is_acquired_and_given_back(lab: LabgridLab, desk: str) -> None:
    place = LabgridPlace(_section(lab, desk), board="desk3")
    place.hold()
    held = lab.holder(desk)
    place.close()
    assert held.count("/") == 1
    lab.wait_until_free(desk)


def test_somebody_elses_place_is_refused_with_the_name_or_waited_for(
    lab: LabgridLab, desk: str, tmp_path: Path
) -> None:
    lab.client("-p", desk, "acquire", user="alice", host="far")
    said = _refused(_section(lab, desk), BoardHeld)
    assert "is acquired by far/alice since 20" in said
    assert "Fault: lab" in said
    assert lab.holder(desk) == "far/alice"

    text = f'[labgrid]\ncoordinator = "{lab.address}"\nplace = "{desk}"\n'
    failure = walk(_file(tmp_path, text)).first_failure
    assert failure is not None
    assert failure.step == "lease"
    assert "far/alice" in failure.cause

    told: list[str] = []

    def waiting(state: str) -> None:
        told.append(state)
        if len(told) == 1:
            lab.client("-p", desk, "release", user="alice", host="far")

    place = LabgridPlace(_section(lab, desk, wait=PATIENCE), board="desk3", waiting=waiting)
    try:
        place.hold()
        assert lab.holder(desk) not in {"", "far/alice"}
        assert "Reservation" not in lab.client("reservations")
    finally:
        place.close()
    assert "acquired by far/alice since" in told[0]


@pytest.mark.slow
def test_a_place_that_somebody_reserved_is_refused_with_the_name(
    lab: LabgridLab, desk: str
) -> None:
    lab.client("reserve", f"name={desk}", user="carl", host="far")
    token = lab.client("reservations").split("'")[1]
    try:
        assert "is reserved for far/carl" in _refused(_section(lab, desk), BoardHeld)
    finally:
        lab.client("cancel-reservation", token, user="carl", host="far")


@pytest.mark.slow
def test_a_place_that_is_ours_already_is_used_and_left_so(lab: LabgridLab, desk: str) -> None:
    lab.client("-p", desk, "acquire")
    try:
        place = LabgridPlace(_section(lab, desk), board="desk3")
        place.hold()
        place.close()
        assert lab.holder(desk)
    finally:
        lab.client("-p", desk, "release")


@pytest.mark.slow
def test_the_next_run_of_the_same_user_waits_for_the_one_before(lab: LabgridLab, desk: str) -> None:
    """labgrid tells users apart, not runs."""
    first = LabgridPlace(_section(lab, desk), board="desk3")
    second = LabgridPlace(_section(lab, desk, wait=1), board="desk3")
    first.hold()
    try:
        with pytest.raises(BoardHeld, match=f"labgrid place {desk} for process {os.getpid()}"):
            second.hold()
    finally:
        first.close()
    second.hold()
    second.close()


def test_a_place_that_was_taken_away_stops_the_run(lab: LabgridLab, desk: str) -> None:
    place = LabgridPlace(_section(lab, desk), board="desk3")
    place.hold()
    try:
        place.check()
        lab.client("-p", desk, "release", "--kick", user="bob")
        _fails_in_the_end(place.check, LeaseBroken, "was taken away from")
        with pytest.raises(LeaseBroken):
            place.switch(True, 5)
    finally:
        place.close()


def _fails_in_the_end(action: Callable[[], object], kind: type[HilError], said: str) -> None:
    deadline = time.monotonic() + PATIENCE
    heard = ""
    while not heard and time.monotonic() < deadline:
        try:
            action()
            time.sleep(0.05)
        except kind as error:
            heard = str(error)
    assert re.search(said, heard)


@pytest.mark.slow
def test_a_coordinator_that_dies_stops_the_run(tmp_path: Path) -> None:
    """It forgets who has acquired what: somebody else may have the place the next minute."""
    pytest.importorskip("labgrid", reason="labgrid is missing; pip install 'stmm-hil[labgrid]'")
    lab = LabgridLab(tmp_path)
    place = LabgridPlace(_section(lab, "bare"), board="desk3")
    try:
        lab.place("bare", "*/bare/*")
        with pytest.raises(LabError, match=r"nobody exports \*/bare/\*"):
            place.hold()
        lab.client("-p", "bare", "del-match", "*/bare/*")
        place.hold()
        lab.end("coordinator")
        _fails_in_the_end(place.check, LeaseBroken, "coordinator .* went away")
    finally:
        place.close()
        lab.close()


HOLDER = """
import sys, time
from harness.boardfile.sections import LabgridSection
from harness.lab.labgrid.place import LabgridPlace
LabgridPlace(LabgridSection(coordinator=sys.argv[1], place=sys.argv[2]), board="b").hold()
print("held", flush=True)
time.sleep(600)
"""


def test_a_killed_run_leaves_no_place_acquired(lab: LabgridLab, desk: str) -> None:
    """labgrid itself would keep it for ever; the process that holds it outlives the run."""
    run = subprocess.Popen(
        [sys.executable, "-c", HOLDER, lab.address, desk], stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"held\n"
    assert lab.holder(desk)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    place = LabgridPlace(_section(lab, desk), board="desk3")
    place.hold()
    place.close()
    lab.wait_until_free(desk)


# --- what is missing ----------------------------------------------------------------------------


def test_an_unknown_place_is_answered_with_the_nearest(lab: LabgridLab, desk: str) -> None:
    said = _refused(_section(lab, "dekc-3"), ConfigurationError)
    assert "has no place 'dekc-3'" in said
    assert "did you mean 'desk-3'?" in said


def test_a_dead_coordinator_is_named(tmp_path: Path) -> None:
    pytest.importorskip("labgrid", reason="labgrid is missing; pip install 'stmm-hil[labgrid]'")
    section = LabgridSection(coordinator=f"127.0.0.1:{free_port()}", place="desk-3")
    said = _refused(section, LabError)
    assert f"coordinator at {section.coordinator} cannot be reached (Connection refused)" in said


@pytest.mark.slow
def test_a_coordinator_that_says_nothing_is_named() -> None:
    pytest.importorskip("labgrid", reason="labgrid is missing; pip install 'stmm-hil[labgrid]'")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        said = _refused(LabgridSection(coordinator=address, place="desk-3"), LabError)
    assert f"{address} does not answer as a labgrid coordinator" in said


@pytest.mark.slow
def test_an_exporter_that_is_gone_is_named(lab: LabgridLab, outlet: tuple[Relay, Pdu]) -> None:
    resources = f"shelf:\n  {outlet[1].resource}"
    lab.export("lab2", resources)
    lab.place("shelf-1", "lab2/shelf/*")
    place = LabgridPlace(_section(lab, "shelf-1"), board="desk3")
    place.hold()
    try:
        place.switch(True, PATIENCE)
        lab.end("lab2")
        gone = "lab2/shelf/NetworkPowerPort.*is not available"
        _fails_in_the_end(lambda: place.power(PATIENCE), LabError, gone)
    finally:
        place.close()
    lab.wait_until_free("shelf-1")
    said = _refused(_section(lab, "shelf-1"), LabError)
    assert "nobody exports lab2/shelf/*" in said
    assert "is labgrid-exporter running on 'lab2'" in said


@pytest.mark.slow
def test_several_resources_of_a_kind_must_be_chosen(
    lab: LabgridLab, outlet: tuple[Relay, Pdu]
) -> None:
    ports = "".join(
        f"  {name}:\n    cls: NetworkSerialPort\n    host: 127.0.0.1\n    port: {number}\n"
        f"    speed: 9600\n    protocol: raw\n"
        for name, number in (("console", 4001), ("secure", 4002))
    )
    lab.export("lab3", f"rack:\n{ports}")
    lab.place("rack-1", "lab3/rack/*")
    place = LabgridPlace(_section(lab, "rack-1"), board="desk3")
    try:
        with pytest.raises(ConfigurationError, match="2 resources for serial; there is console, s"):
            place.serial()
        assert place.ssh() is None
        with pytest.raises(ConfigurationError, match="has nothing that switches power"):
            place.switch(True, PATIENCE)
    finally:
        place.close()
    place = LabgridPlace(_section(lab, "rack-1", serial="console"), board="desk3")
    try:
        serial = place.serial()
        assert serial is not None
        assert (serial.url, serial.baud) == ("socket://127.0.0.1:4001", 9600)
    finally:
        place.close()
    place = LabgridPlace(_section(lab, "rack-1", serial="cnsole"), board="desk3")
    try:
        with pytest.raises(ConfigurationError, match="no serial resource 'cnsole'"):
            place.serial()
    finally:
        place.close()


# --- power --------------------------------------------------------------------------------------


def test_power_is_switched_and_verified(
    lab: LabgridLab, desk: str, outlet: tuple[Relay, Pdu], tmp_path: Path
) -> None:
    relay, _ = outlet
    file = _file(
        tmp_path,
        f'[labgrid]\ncoordinator = "{lab.address}"\nplace = "{desk}"\n'
        '[power]\ndriver = "labgrid"\noptions = { off_seconds = 0.05 }\n',
    )
    power = power_of(file)
    try:
        power.on(PATIENCE)
        assert relay.on
        assert power.state() is PowerState.ON
        power.off(PATIENCE)
        assert not relay.on
        assert power.state() is PowerState.OFF
        power.cycle(PATIENCE)
        assert relay.on
        relay.stuck = True
        with pytest.raises(PowerError, match=f"the power of labgrid place {desk} is still on"):
            power.off(0.5)
    finally:
        relay.stuck = False
        power.close()


@pytest.mark.slow
def test_an_outlet_that_does_not_answer_is_the_labs_fault(lab: LabgridLab) -> None:
    """labgrid's backends wait for ever; the place is given back all the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"dead": free_port(), "silent": silent.getsockname()[1]}
        lab.export(
            "lab4",
            "".join(
                f"{name}:\n  NetworkPowerPort:\n    model: rest\n    index: 1\n"
                f"    host: http://127.0.0.1:{port}/r\n"
                for name, port in ports.items()
            ),
        )
        for name, timeout, said in (
            ("dead", PATIENCE, "lab4/dead/NetworkPowerPort.*Connection refused"),
            ("silent", 1.0, "no answer within 1 s"),
        ):
            lab.place(f"{name}-1", f"lab4/{name}/*")
            place = LabgridPlace(_section(lab, f"{name}-1"), board="desk3")
            try:
                with pytest.raises(PowerError, match=said):
                    place.switch(True, timeout)
            finally:
                place.close()
            lab.wait_until_free(f"{name}-1")


# --- a board ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board_in_a_place(
    lab: LabgridLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningBoard, str]]:
    """An emulated board: its console by ser2net, its power by an outlet, its SSH address."""
    need("ser2net", "ser2net")
    board = RunningBoard(tmp_path_factory.mktemp("board"))

    def switch(on: bool) -> None:
        board.ask("on" if on else "off")

    pdu = Pdu(switch, lambda: board.ask("status")["power"] == "on")
    try:
        with serving(pdu):
            lab.export(
                "lab5",
                f"bench:\n  {pdu.resource}"
                f"  RawSerialPort:\n    port: {os.path.realpath(board.ends['serial'])}\n"
                f"    speed: 115200\n"
                f"  NetworkService:\n    address: {board.ends['host']}\n    username: root\n"
                f"    port: {board.ends['port']}\n",
            )
            lab.place("bench-1", "lab5/bench/*")
            yield (
                board,
                (
                    f'[labgrid]\ncoordinator = "{lab.address}"\nplace = "bench-1"\n'
                    f'[ssh]\nkey = "{board.ends["key"]}"\n'
                    f'known_hosts = "{board.ends["known_hosts"]}"\n'
                    "[consents]\npower_cycle = true\n"
                ),
            )
    finally:
        board.close()


def test_a_board_in_a_place_is_a_board(
    lab: LabgridLab, board_in_a_place: tuple[RunningBoard, str], tmp_path: Path
) -> None:
    running, text = board_in_a_place
    with Board(_file(tmp_path, text)) as board:
        assert board.links.ssh.run("echo over ssh").check().text == "over ssh"
        assert board.links.serial.run("echo over serial").check().text == "over serial"
        assert board.links.serial.name.startswith("serial rfc2217://127.0.0.1:")
        before = board.links.boot_id
        board.switch.cycle()
        assert board.links.boot_id != before
        assert (
            board.links.serial.run("cat /proc/sys/kernel/random/boot_id").text
            == board.links.boot_id
        )
        assert board.power.state() is PowerState.ON
        board.switch.off()
        assert running.ask("status")["power"] == "off"
        board.switch.on()
        assert lab.holder("bench-1")
    lab.wait_until_free("bench-1")


@pytest.mark.slow
def test_a_run_whose_place_is_taken_away_ends(
    lab: LabgridLab, board_in_a_place: tuple[RunningBoard, str], tmp_path: Path
) -> None:
    path = tmp_path / "bench.toml"
    path.write_text(f'emmc_cid = "{CID}"\n{board_in_a_place[1]}write_rpmb = true\n')
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    run = subprocess.Popen(
        [*words, "--board", path, "tests/conformance"],
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if " PASSED " in line:
            break
    lab.client("-p", "bench-1", "release", "--kick", user="bob")
    rest, _ = run.communicate(timeout=2 * PATIENCE)
    assert "Exit: labgrid place bench-1 was taken away from" in rest
    assert run.returncode == pytest.ExitCode.INTERRUPTED
