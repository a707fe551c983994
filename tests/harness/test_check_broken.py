"""Boards that are broken in one way each: the first line that fails names the cause."""

from __future__ import annotations

import contextlib
import functools
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from harness.boardfile import loading
from harness.boardfile.sections import BoardFile
from harness.check import cable
from harness.check.finding import Finding, Verdict
from harness.check.walk import Walk, walk
from harness.consents import Consent
from harness.lab import console_probe
from harness.links.address import SerialAddress
from harness.links.console import Console
from harness.shell import Shell
from tests.harness.support.line import Line
from tests.harness.support.running_board import RunningBoard

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
EMULATED = loading.load(ROOT / "boards" / "emulated.toml")
TEST_KEY = "d3eb3ec36e334c9f988ce2c0b85954610d2bcf8664844df2ab56e6c61bb701e4"
OTHER_KEY = "11" * 32


@pytest.fixture(autouse=True)
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIL_LEASES", str(tmp_path / "leases"))


def emulated(*options: str, consents: dict[Consent, bool]) -> BoardFile:
    known = EMULATED.power.options
    assert isinstance(known, dict)
    words = {key: value for key, _, value in (option.partition("=") for option in options)}
    power = EMULATED.power.model_copy(update={"options": {**known, **words}})
    allowed = {**EMULATED.consents, **consents}
    return EMULATED.model_copy(update={"power": power, "consents": allowed})


def first_failure(report: Walk) -> Finding:
    failure = report.first_failure
    assert failure is not None, [finding.lines() for finding in report.findings]
    assert failure.remedy
    return failure


def _slow(*values: str) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("options", "step", "cause"),
    [
        ("supplicant_autostart=no", "supplicant", "tee-supplicant does not run"),
        ("supplicant=emulation", "round trip", "a build with RPMB_EMU"),
        _slow("supplicant=emulation variant=file", "RPMB key", "a build with RPMB_EMU"),
        (f"rpmb_key={OTHER_KEY}", "driver", "wrong key"),
        _slow(f"rpmb_key={OTHER_KEY} variant=file", "driver", "wrong key"),
        ("write_key=no", "RPMB key", "no authentication key"),
        ("mount=read-only", "read-write", "/etc/fstab mounts it ro"),
        _slow("mount=none", "efivarfs", "nobody mounted efivarfs"),
        ("driver=manual", "driver", "tee_stmm_efi is not loaded"),
        _slow("driver=absent", "kernel config", "built without it"),
        _slow(f"stmm=no rpmb_key={TEST_KEY}", "StMM device", "built without it (CFG_STMM_PATH)"),
        (f"fault=stmm.start:1+=panic rpmb_key={TEST_KEY}", "driver", "StandaloneMM panicked"),
        _slow(
            f"fault=stmm.start=panic rpmb_key={TEST_KEY}", "EFI services", "could not start its EFI"
        ),
        ("preempt_rt=yes", "efivarfs", "PREEMPT_RT kernel starts without EFI run-time services"),
        _slow("rpmb_node=no", "RPMB device", "nobody made its device node"),
        ("supplicant_user=tee", "RPMB access", "missing permission"),
        _slow("cid=15010038474e4433520155aabbccdd00", "identity", "no eMMC with the CID"),
    ],
)
def test_a_board_that_is_made_broken(options: str, step: str, cause: str) -> None:
    failure = first_failure(
        walk(emulated(*options.split(), consents={Consent.PROGRAM_KEY: False}), link="ssh")
    )
    assert (failure.step, cause in failure.cause) == (step, True), failure.lines()


# --- on a board that runs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    board = RunningBoard(tmp_path_factory.mktemp("board"))
    yield board
    board.close()


@contextlib.contextmanager
def shell_of(board: RunningBoard) -> Iterator[Shell]:
    from harness.board.board import Board

    with Board(loading.load(board.file())) as opened:
        yield opened.shell


def check(path: Path) -> Walk:
    return walk(loading.load(path), link="ssh")


@pytest.mark.parametrize(
    ("breaking", "mending", "step", "cause"),
    [
        (
            "mount -o remount,ro /sys/firmware/efi/efivars",
            "mount -o remount,rw /sys/firmware/efi/efivars",
            "read-write",
            "made ro by hand",
        ),
        (
            "kill -STOP $(pidof tee-supplicant)",
            "kill -CONT $(pidof tee-supplicant)",
            "supplicant",
            "a signal (SIGSTOP)",
        ),
        (
            "systemctl stop tee-supplicant",
            "systemctl start tee-supplicant",
            "supplicant",
            "tee-supplicant does not run",
        ),
        (
            "cd /sys/bus/tee/drivers/tee-stmm-efi && basename optee-ta-* > unbind",
            "echo optee-ta-ed32d533-99e6-4209-9cc0-2d72cdd998a7 "
            "> /sys/bus/tee/drivers/tee-stmm-efi/bind",
            "driver",
            "unbound by hand",
        ),
        (
            "umount /sys/firmware/efi/efivars",
            "mount -t efivarfs efivarfs /sys/firmware/efi/efivars",
            "efivarfs",
            "nobody mounted efivarfs",
        ),
    ],
)
def test_what_somebody_did_to_a_board(
    running: RunningBoard, breaking: str, mending: str, step: str, cause: str
) -> None:
    with shell_of(running) as shell:
        shell.run_isolated(breaking).check()
        try:
            failure = first_failure(check(running.file()))
        finally:
            shell.run_isolated(mending).check()
    assert (failure.step, cause in failure.cause) == (step, True), failure.lines()


def test_another_host_key(running: RunningBoard) -> None:
    report = check(running.file(fingerprint="SHA256:" + "A" * 43))
    failure = first_failure(report)
    assert (failure.step, "host key" in failure.cause) == ("ssh", True), failure.lines()


def test_the_console_still_shows_the_board_when_ssh_does_not(running: RunningBoard) -> None:
    path = running.file(fingerprint="SHA256:" + "A" * 43, consents="")
    report = walk(loading.load(path))
    assert [f.step for f in report.findings if f.verdict is Verdict.FAIL] == ["ssh"]
    assert found(report, "login").startswith("root over serial")
    assert found(report, "driver") == "tee-stmm-efi is bound"


def test_a_login_that_no_link_leads_to_falls_with_the_first_of_them(running: RunningBoard) -> None:
    report = walk(
        loading.load(running.file(fingerprint="SHA256:" + "A" * 43, serial="/dev/ttyNothing"))
    )
    assert [f.step for f in report.findings if f.verdict is Verdict.FAIL] == ["adapter", "ssh"]
    assert found(report, "login") == found(report, "identity") == "because adapter failed"


def found(report: Walk, step: str) -> str:
    return next(finding.found for finding in report.findings if finding.step == step)


def test_another_boards_file(running: RunningBoard) -> None:
    failure = first_failure(check(running.file(cid="15010038474e4433520155aabbccdd00")))
    assert (failure.step, failure.found) == ("identity", "another board answers")


@pytest.fixture
def two_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rate that nobody answers at costs a second and a half."""
    probe = functools.partial(console_probe.probe_console, bauds=(57600,), seconds=0.7)
    monkeypatch.setattr(cable, "probe_console", probe)


@pytest.mark.usefixtures("two_rates")
def test_a_silent_console(running: RunningBoard, line: Line) -> None:
    line.weather.cut = True
    failure = first_failure(check(running.file(serial=line.device, consents="")))
    assert (failure.step, failure.cause) == ("console", "nothing was received, at any usual rate")


@pytest.mark.usefixtures("two_rates")
def test_an_unreadable_console(running: RunningBoard, line: Line) -> None:
    line.garbled = True
    failure = first_failure(check(running.file(serial=line.device, consents="")))
    assert (failure.step, "an unusual one" in failure.cause) == ("console", True)


@pytest.mark.usefixtures("two_rates")
def test_the_wrong_rate_in_the_board_file(running: RunningBoard, line: Line) -> None:
    def at_its_rate() -> None:
        while not stop.wait(0.01):
            line.garbled = termios.tcgetattr(line._slaves[0])[5] != termios.B57600

    stop = threading.Event()
    watcher = threading.Thread(target=at_its_rate)
    watcher.start()
    try:
        report = check(running.file(serial=line.device, consents=""))
    finally:
        stop.set()
        watcher.join()
    warning = next(finding for finding in report.findings if finding.step == "console")
    assert warning.verdict is Verdict.WARN
    assert warning.found == "console speaks at 57600 baud, the board file says 115200: correct it"
    assert warning.remedy == "set baud = 57600 in [serial]"


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(["sh", "-i"], environment={"PS1": "board# "})
    yield line
    line.close()


def test_an_adapter_that_is_not_there(running: RunningBoard) -> None:
    failure = first_failure(check(running.file(serial="/dev/ttyUSB77")))
    assert (failure.step, "does not exist" in failure.cause) == ("adapter", True)


def test_an_adapter_that_somebody_has_open(running: RunningBoard, line: Line) -> None:
    console = Console(SerialAddress(line.device))
    try:
        failure = first_failure(check(running.file(serial=line.device)))
    finally:
        console.close()
    assert (failure.step, "busy: held by" in failure.cause) == ("adapter", True)


def test_no_power(running: RunningBoard) -> None:
    power = 'driver = "command"\noptions = { on = "false", off = "false", status = "echo off" }'
    failure = first_failure(check(running.file(power=power)))
    assert (failure.step, "has no power" in failure.cause) == ("power", True)


# What follows leaves the board broken: in this order.


def test_a_driver_that_is_bound_and_leaves_the_file_system_read_only(tmp_path: Path) -> None:
    board = RunningBoard(tmp_path, "mutant=driver_leaves_read_only")
    try:
        with shell_of(board) as shell:
            place = "/sys/bus/tee/drivers/tee-stmm-efi"
            shell.run(f"cd {place} && d=$(basename optee-ta-*) && echo $d > unbind").check()
            shell.run(f"echo optee-ta-ed32d533-99e6-4209-9cc0-2d72cdd998a7 > {place}/bind").check()
        failure = first_failure(check(board.file()))
    finally:
        board.close()
    assert failure.step == "read-write"
    assert "mounted before the driver was bound" in failure.cause


def test_a_full_store(running: RunningBoard) -> None:
    with shell_of(running) as shell:
        guid = "6f0e6f5c-2f43-4c0e-9b1f-5a4c8d7be2a1"
        fill = (
            "cd /sys/firmware/efi/efivars; i=0; for n in 4096 1024 256 64 16 4; do "
            "while { printf '\\7\\0\\0\\0'; head -c $n /dev/zero; } > /tmp/v && i=$((i+1)) && "
            f"dd if=/tmp/v of=F$i-{guid} bs=9000 2>/dev/null; do :; done; done; true"
        )
        shell.run_isolated(fill, timeout=60).check()
    failure = first_failure(check(running.file()))
    assert (failure.step, "store is full" in failure.cause) == ("space", True), failure.lines()


@pytest.fixture
def to_break(tmp_path: Path) -> Iterator[RunningBoard]:
    board = RunningBoard(tmp_path)
    yield board
    board.close()


def test_an_rpmb_that_optee_gave_up(to_break: RunningBoard) -> None:
    to_break.ask("fault rpmb.write:1+=result:5")
    failure = first_failure(check(to_break.file()))
    assert (failure.step, "rpmb_dead" in failure.cause) == ("round trip", True), failure.lines()


def test_a_supplicant_that_does_not_answer(
    to_break: RunningBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.check.efivars._HANG_SECONDS", 3.0)
    to_break.ask("fault supplicant.request=stuck")
    failure = first_failure(check(to_break.file()))
    assert (failure.step, "does not answer" in failure.cause) == ("round trip", True), (
        failure.lines()
    )
