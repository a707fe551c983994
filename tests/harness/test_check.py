"""``hil check`` on boards that are well, and what it never does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.board.board import Board
from harness.boardfile import loading
from harness.boardfile.sections import BoardFile
from harness.check.finding import Verdict, fail, not_looked_at, ok
from harness.check.show import Screen
from harness.check.walk import STEPS, Walk, walk
from harness.formats.rpmb import RpmbResult
from harness.instruments.rpmb import RpmbRefused
from harness.lab.lease import LeaseDesk
from harness.lab.things import things_of
from tests.harness.support.running_board import RunningBoard
from tests.harness.support.udev_bench import run
from tests.pace import HANGS

ROOT = Path(__file__).parents[2]
EMULATED = loading.load(ROOT / "boards" / "emulated.toml")


@pytest.fixture(autouse=True)
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIL_LEASES", str(tmp_path / "leases"))


def emulated(**options: str) -> BoardFile:
    known = EMULATED.power.options
    assert isinstance(known, dict)
    power = EMULATED.power.model_copy(update={"options": {**known, **options}})
    return EMULATED.model_copy(update={"power": power})


def verdicts(report: Walk) -> dict[str, Verdict]:
    return {finding.step: finding.verdict for finding in report.findings}


def found(report: Walk, step: str) -> str:
    return next(finding.found for finding in report.findings if finding.step == step)


@pytest.mark.parametrize("link", ["ssh", "serial"])
def test_a_healthy_board_is_green_from_the_cable_up(link: str) -> None:
    report = walk(emulated(supplicant_unbinds="yes"), link="ssh" if link == "ssh" else "serial")
    assert set(verdicts(report).values()) == {Verdict.OK}, [f.lines() for f in report.findings]
    assert not report.failed
    assert "3 RPMB writes" in found(report, "round trip")
    assert sum(finding.seconds for finding in report.findings) < 10


@pytest.mark.parametrize("options", [{"variant": "mm-kernel-rpmb"}, {"userland": "busybox"}])
def test_nothing_fails_on_boards_that_differ(options: dict[str, str]) -> None:
    report = walk(emulated(**options), link="ssh")
    assert not report.failed, [f.lines() for f in report.findings if f.verdict is Verdict.FAIL]


def test_a_store_that_is_just_being_formatted_is_waited_for() -> None:
    """In `file` an empty one is formatted when Linux already runs."""
    file = emulated(variant="file")
    timeouts = file.timeouts.model_copy(update={"ready": 60.0})
    report = walk(file.model_copy(update={"timeouts": timeouts}), link="ssh")
    assert found(report, "read-write") == "rw, without anybody's help"


def test_a_store_that_is_still_being_formatted_is_said_to_be() -> None:
    """For a minute, where the kernel sleeps after each RPMB write."""
    file = emulated(variant="file", mmc_postsleep="yes")
    timeouts = file.timeouts.model_copy(update={"ready": 0.01})
    failure = walk(file.model_copy(update={"timeouts": timeouts}), link="ssh").first_failure
    assert failure is not None
    assert failure.step == "read-write"
    assert failure.cause.startswith("the firmware is still writing to the card")
    assert "timeouts.ready in the board file (0.01 s)" in failure.remedy


def test_a_step_needs_only_earlier_ones() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    for index, step in enumerate(STEPS):
        assert set(step.needs) <= set(names[:index]), step.name


# --- on a board that runs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    board = RunningBoard(tmp_path_factory.mktemp("board"))
    yield board
    board.close()


def state_of(path: Path) -> tuple[int, list[str]]:
    with Board(loading.load(path)) as board:
        return board.rpmb.counter(), board.shell.run("ls /sys/firmware/efi/efivars").text.split()


def test_without_consents_nothing_is_written(running: RunningBoard) -> None:
    path = running.file(consents="")
    before = state_of(path)
    report = walk(loading.load(path))
    assert state_of(path) == before
    assert not report.failed
    assert found(report, "power") == "driver 'manual' cannot tell; not switched"
    assert verdicts(report)["round trip"] is Verdict.NOT_LOOKED_AT
    assert found(report, "round trip").startswith("because not allowed")
    assert verdicts(report)["SetVariable"] is Verdict.NOT_LOOKED_AT


def test_the_round_trip_leaves_no_variable(running: RunningBoard) -> None:
    path = running.file()
    before = state_of(path)
    assert not walk(loading.load(path)).failed
    counter, names = state_of(path)
    assert names == before[1]
    assert counter > before[0]


def test_the_drop_in_is_given_where_it_is_missing(running: RunningBoard) -> None:
    report = walk(loading.load(running.file(consents="")))
    warning = next(finding for finding in report.findings if finding.step == "service stop")
    assert warning.verdict is Verdict.WARN
    assert "/etc/systemd/system/tee-supplicant.service.d/unbind.conf" in warning.remedy
    assert "/sys/bus/tee/drivers/tee-stmm-efi/unbind" in warning.remedy


def test_a_limit_of_the_board_file_counts(running: RunningBoard) -> None:
    path = running.file()
    file = loading.load(path).model_copy(update={"limits": {"set_variable_ms": 0.001}})
    failure = walk(file).first_failure
    assert failure is not None
    assert (failure.step, "slower" in failure.cause) == ("SetVariable", True)


def test_a_board_that_somebody_holds_is_not_touched(running: RunningBoard) -> None:
    file = loading.load(running.file())
    with LeaseDesk().acquire(things_of(file), board="twin", purpose="demo", timeout=0.0):
        report = walk(file)
    first, *others = report.findings
    assert (first.step, first.verdict) == ("lease", Verdict.FAIL)
    assert f"process {os.getpid()}" in first.cause
    assert {finding.verdict for finding in others} == {Verdict.NOT_LOOKED_AT}


class Outlet:
    """Switches a running board by files, so that shell commands can: a board file's [power]."""

    def __init__(self, board: RunningBoard) -> None:
        self._board = board
        self._pipe = board.folder / "outlet"
        self._state = board.folder / "outlet-state"
        os.mkfifo(self._pipe)
        self._set("off")
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def power(self) -> str:
        on, off = (f"echo {word} > {self._pipe}" for word in ("on", "off"))
        waited = f"until grep -q on {self._state}; do sleep 0.05; done"
        return (
            f'driver = "command"\n[power.options]\non = "{on}; {waited}"\noff = "{off}"\n'
            f'status = "cat {self._state}"'
        )

    def _serve(self) -> None:
        while word := self._pipe.read_text().strip():
            self._set(word)

    def _set(self, word: str) -> None:
        self._board.ask(word)
        self._state.write_text(word)


def test_a_board_that_is_off_is_switched_on_where_allowed_and_its_boot_is_heard(
    tmp_path: Path,
) -> None:
    board = RunningBoard(tmp_path)
    try:
        power = Outlet(board).power
        path = board.file(power=power, consents="power_cycle = true")
        report = walk(loading.load(path), link="ssh")
    finally:
        board.close()
    assert not report.failed, [f.lines() for f in report.findings if f.verdict is Verdict.FAIL]
    assert found(report, "power") == "was off; switched on, now on"
    for part in ("U-Boot 2025.01", "TF-A v2.12.1", "EFI v2.10 by Das U-Boot", "OP-TEE 4.10"):
        assert part in found(report, "firmware")


def test_the_secure_worlds_own_words_are_evidence(tmp_path: Path) -> None:
    board = RunningBoard(tmp_path, f"rpmb_key={'11' * 32}")
    try:
        path = board.file(power=Outlet(board).power, consents="power_cycle = true")
        failure = walk(loading.load(path), link="ssh").first_failure
    finally:
        board.close()
    assert failure is not None
    assert "wrong key" in failure.cause
    assert any("Make sure key here matches device key" in line for line in failure.evidence)


# --- the key ------------------------------------------------------------------------------------


def test_a_missing_key_ends_the_walk_and_stays_missing(tmp_path: Path) -> None:
    board = RunningBoard(tmp_path, "variant=file", "supplicant_autostart=no")
    try:
        path = board.file()
        report = walk(loading.load(path))
        failure = report.first_failure
        assert failure is not None
        assert failure.step == "RPMB key"
        assert "the next boot" in failure.remedy
        for step in ("supplicant", "driver", "round trip"):
            assert found(report, step) == "because RPMB key failed"
        allowed = walk(loading.load(board.file(consents="program_key = true")))
        assert verdicts(allowed)["RPMB key"] is Verdict.WARN
        assert allowed.first_failure is not None
        assert allowed.first_failure.step == "supplicant"
        with Board(loading.load(path)) as opened, pytest.raises(RpmbRefused) as refusal:
            opened.rpmb.counter()
        assert refusal.value.result == RpmbResult.KEY_NOT_PROGRAMMED
    finally:
        board.close()


# --- the command --------------------------------------------------------------------------------


def hil(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "check", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


def test_the_command_prints_plain_lines_and_its_status_is_the_verdict(
    running: RunningBoard,
) -> None:
    done = hil(running.file(consents=""))
    assert done.returncode == 0, done.stdout
    assert "\x1b" not in done.stdout
    assert "ok            RPMB key" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("bench: nothing failed (")


def test_the_command_for_machines(running: RunningBoard) -> None:
    done = hil("--json", running.file(cid="15010038474e4433520155aabbccdd00"))
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["verdict"], answer["first_failure"]) == ("fail", "identity")
    assert [step["step"] for step in answer["steps"]] == [step.name for step in STEPS]


_DISCOVERED = """
import sys
from harness.cli.main import main
bench.serial_adapter("ttyUSB0", serial="A1", terminal=sys.argv[1])
assert main(["discover", "--write", "found"]) == 0
print("status", main(["check", "found"]))
"""


def test_a_discovered_board_file_is_accepted_unchanged(
    running: RunningBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIL_BOARDS", str(tmp_path))
    shown = run(_DISCOVERED, os.path.realpath(running.ends["serial"]), timeout=HANGS)
    left_out = next(line for line in shown.splitlines() if "because not allowed" in line)
    assert left_out.startswith("not looked at 2 steps "), shown
    assert left_out.endswith(" (round trip, SetVariable)"), shown
    assert shown.splitlines()[-1] == "status 0", shown


# --- showing ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_step_stands_there_until_it_is_done() -> None:
    terminal = Terminal()
    screen = Screen(terminal)
    screen.begun("RPMB key")
    assert terminal.getvalue() == "\r\x1b[K...           RPMB key"
    screen.done(ok("programmed").at("RPMB key", 0.1))
    assert terminal.getvalue().endswith(
        "\r\x1b[K\x1b[32mok           \x1b[0m RPMB key         programmed\n"
    )


def test_what_one_cause_holds_up_is_one_line() -> None:
    shown = io.StringIO()
    screen = Screen(shown)
    findings = (
        fail("no node", cause="a container", remedy="leave it").at("TEE devices", 0.1),
        fail("no node", cause="a container", remedy="leave it").at("RPMB device", 0.1),
        not_looked_at("TEE devices failed").at("supplicant", 0.0),
        not_looked_at("not allowed").at("round trip", 0.0),
        not_looked_at("TEE devices failed").at("driver", 0.0),
    )
    for finding in findings:
        screen.done(finding)
    screen.summary(Walk("bench", findings), 1.0)
    assert shown.getvalue().splitlines() == [
        "fail          TEE devices      no node",
        "    cause:    a container",
        "    next:     leave it",
        "fail          RPMB device      no node",
        "    cause:    as TEE devices",
        "not looked at 2 steps          because TEE devices failed (supplicant, driver)",
        "not looked at round trip       because not allowed",
        "bench: stops at TEE devices: a container (1.0 s)",
    ]


def test_a_failure_is_explained_below_its_line() -> None:
    finding = fail("ro", cause="by hand", remedy="remount\nreboot", evidence=["a", "b"])
    assert finding.at("read-write", 0).lines() == [
        "fail          read-write       ro",
        "    cause:    by hand",
        "    evidence: a",
        "    evidence: b",
        "    next:     remount",
        "              reboot",
    ]
