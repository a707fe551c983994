"""The way to the board: lease, power, adapter, console, SSH, and whether it is the right board."""

import time
from pathlib import Path
from threading import Event

from harness.check.finding import Finding, fail, not_looked_at, ok, warn
from harness.check.survey import Survey
from harness.check.target import MACHINE, NO_EMMC
from harness.consents import Consent
from harness.errors import (
    CommandFailed,
    HilError,
    HostError,
    LinkError,
    LinkRefused,
    MissingCapability,
    PowerError,
    WrongBoard,
)
from harness.lab.adapter import wait_for_port
from harness.lab.console_probe import probe_console
from harness.lab.lease import BoardHeld, lease_board
from harness.lab.things import things_of
from harness.links.address import SerialAddress
from harness.links.console import Console, Stage
from harness.links.device import others_with
from harness.links.rates import ERASE_LINE, RateSearch, correction
from harness.power.driver import PowerState

_ALREADY_ON_SECONDS = 5.0
_POLL_SECONDS = 0.05
_QUIET_SECONDS = 1.0


def lease(survey: Survey) -> Finding:
    """Nobody else holds any of the board's physical things, nor its labgrid place; for the time of
    the check we do."""
    things = things_of(survey.file)
    try:
        survey.lease = lease_board(survey.file, purpose="hil check")
        survey.board.power.hold()
    except BoardHeld as error:
        return fail("somebody else holds the board", cause=error.what, remedy=error.remedy)
    return ok(f"ours: {', '.join(things)}" if things else "nothing to share: made for this check")


def power(survey: Survey) -> Finding:
    """The verified state. A board that is off is switched on where its owner allows it."""
    driver, name = survey.board.power, survey.file.power.driver
    try:
        state = driver.verify()
    except (PowerError, HostError) as error:
        return fail(f"unknown, by driver {name!r}", cause=error.what, remedy=error.remedy)
    if state is PowerState.UNKNOWN:
        return ok(f"driver {name!r} cannot tell; not switched")
    if state is PowerState.ON:
        return ok(f"on, by driver {name!r}; not switched")
    if not survey.file.consents_to(Consent.POWER_CYCLE):
        return fail(
            f"off, by driver {name!r}",
            cause="the board has no power, and its board file does not let the harness switch it",
            remedy=f"hil power on {survey.file.name}, or set power_cycle = true in [consents]",
        )
    opened = _record(survey)
    try:
        driver.on(survey.file.timeouts.power)
        if not opened:
            # A console that is the power driver's own is there once the power is on.
            _record(survey)
    except (PowerError, HostError, MissingCapability) as error:
        return fail("off, and it could not be switched on", cause=error.what, remedy=error.remedy)
    survey.switched_on = True
    verified = driver.state()
    if verified is PowerState.OFF:
        return fail(
            "switched on, and still off",
            cause=f"driver {name!r} took the command without effect",
            remedy="check that [power] names the outlet that this board is plugged into",
        )
    return ok(f"was off; switched on, now {verified}")


def _record(survey: Survey) -> bool:
    """Open the console before the power, to hear the whole boot. What prevents it (then False) is
    the adapter's step to tell."""
    try:
        serial = survey.endpoints.serial
        survey.recording = Console(serial) if serial is not None else None
        opened = True
    except HilError:
        survey.recording, opened = None, False
    # The driver may know of links only once the power is on.
    survey.__dict__.pop("endpoints", None)
    return opened


def adapter(survey: Survey) -> Finding:
    """The serial adapter: there, ours to open, and nobody else's now."""
    try:
        survey.serial = survey.endpoints.serial
        if survey.serial is None:
            return not_looked_at("the board file has no [serial]")
        if survey.recording is None:
            if survey.switched_on:
                wait_for_port(survey.serial.url, timeout=survey.file.timeouts.adapter)
            Console(survey.serial).close()
        others = "" if "://" in survey.serial.url else "; ".join(others_with(survey.serial.url))
    except HilError as error:
        name = survey.serial or "[serial]"
        survey.without_serial()
        survey.serial = None
        return fail(f"{name} cannot be opened", cause=error.what, remedy=error.remedy)
    if others:
        url = survey.serial.url
        survey.without_serial()
        survey.serial = None
        return fail(
            f"{url} is read by others, too",
            cause=f"whoever reads first gets the bytes: {others}",
            remedy="end that program, or keep it from this adapter",
        )
    return ok(f"{survey.serial.url} can be opened, nobody else has it open")


def latency_timer(survey: Survey) -> Finding:
    """An FTDI adapter keeps short answers back for its latency timer."""
    assert survey.serial is not None
    node = Path(survey.serial.url).resolve().name
    timer = Path("/sys/bus/usb-serial/devices", node, "latency_timer")
    try:
        milliseconds = int(timer.read_text())
    except (OSError, ValueError):
        return ok("no latency timer: not an FTDI adapter")
    if milliseconds <= 1:
        return ok(f"{milliseconds} ms")
    return warn(
        f"{milliseconds} ms",
        cause="the FTDI adapter keeps every short answer back for so long",
        remedy=f"as root: echo 1 > {timer}; for ever by a udev rule: "
        'ACTION=="add", SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1"',
    )


def console(survey: Survey) -> Finding:
    """Who answers on the console, and at which rate. Types nothing but line feeds."""
    assert survey.serial is not None
    if survey.recording is not None:
        heard = _listen_to_boot(survey)
        if heard is not None:
            return heard
    report = probe_console(survey.serial)
    survey.console_text += "\n".join(report.banners)
    wanted = survey.serial
    if report.silent:
        return fail(
            f"silent at {wanted.url}",
            cause="nothing was received, at any usual rate",
            remedy="is the board on? are TX and RX crossed and the grounds connected? is it the "
            "adapter of this board? does the kernel command line have console=?",
        )
    if report.baud is None:
        return fail(
            f"unreadable at {wanted.baud} baud and every other usual rate",
            cause="the rate is an unusual one, the levels are wrong (RS-232 for 3.3 V), or the "
            "ground is missing",
            evidence=[report.tail],
            remedy="set baud in [serial] to the rate of the firmware and of console= in the kernel "
            "command line",
        )
    return _staged(report.stage, report.baud, wanted, report.banners)


def _listen_to_boot(survey: Survey) -> Finding | None:
    """The whole boot, until somebody can log in; None if nothing was heard."""
    recording, serial = survey.recording, survey.serial
    assert recording is not None
    assert serial is not None
    deadline = time.monotonic() + survey.file.timeouts.boot
    rates = RateSearch(recording, end=deadline)
    try:
        while recording.stage not in {Stage.LOGIN, Stage.PASSWORD, Stage.SHELL}:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            news = recording.wait_for_data(recording.mark(), timeout=min(left, _QUIET_SECONDS))
            # A kernel message may have run over the prompt. A firmware would take the key as a
            # wish to stop its countdown.
            if not rates.moved() and not news and recording.stage is Stage.KERNEL:
                recording.write(ERASE_LINE + b"\n" if rates.changed else b"\n")
                rates.asked()
    except LinkError as error:
        return fail("the adapter went away during the boot", cause=error.what, remedy=error.remedy)
    finally:
        heard = recording.since(0).decode("utf-8", "replace")
        survey.console_text += heard
        recording.close()
        survey.recording = None
    if recording.stage is Stage.SILENT:
        return None
    last = [line.strip() for line in heard.splitlines() if line.strip()][-3:]
    return _staged(recording.stage, recording.address.baud, serial, last)


def _staged(
    stage: Stage, baud: int, serial: SerialAddress, lines: tuple[str, ...] | list[str]
) -> Finding:
    """What stands there, at ``baud`` bit/s; the link finds that rate, too, at every login anew."""
    if stage is Stage.FIRMWARE:
        return fail(
            f"{baud} baud, and it stands in the firmware",
            cause="the boot stopped before the kernel, or somebody stopped it with a key",
            evidence=lines,
            remedy="`boot` at the firmware's prompt; `hil console` shows why it does not",
        )
    if baud != serial.baud:
        return warn(
            correction(baud, serial.baud),
            cause="the board file has the wrong rate, or that of the firmware only: every login "
            "first waits at it in vain",
            evidence=lines,
            remedy=f"set baud = {baud} in [serial]",
        )
    if stage in {Stage.LOGIN, Stage.PASSWORD, Stage.SHELL}:
        return ok(f"{baud} baud, a {stage} prompt")
    return warn(
        f"{baud} baud, no login prompt (stage: {stage})",
        cause="no getty serves this console, or the board is still booting",
        evidence=lines,
        remedy="enable serial-getty@ for the console's tty",
    )


def ssh(survey: Survey) -> Finding:
    """The host key and the login, by running a command."""
    end = survey.endpoints.ssh
    if end is None:
        return not_looked_at("the board file has no [ssh]")
    limits = survey.file.timeouts
    timeout = limits.boot if survey.switched_on else _ALREADY_ON_SECONDS
    error = _reach(survey, timeout)
    if error is None:
        return ok(f"{end}, the host key is the expected one")
    survey.board.links.do_without("ssh")
    return fail(f"{end} refused", cause=error.what, remedy=error.remedy)


def _reach(survey: Survey, timeout: float) -> HilError | None:
    """Why SSH does not answer a command within ``timeout`` seconds; None if it does."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            survey.board.links.ssh.reconnect(deadline=max(0.1, deadline - time.monotonic()))
            survey.board.links.ssh.run("true", timeout=_ALREADY_ON_SECONDS).check()
        except LinkRefused as error:
            return error  # a wrong key stays wrong
        except (LinkError, CommandFailed) as error:
            if time.monotonic() >= deadline:
                return error
            Event().wait(_POLL_SECONDS)
        except HilError as error:
            return error
        else:
            return None


def login(survey: Survey) -> Finding:
    """A shell on the chosen link: what everything below is looked at with."""
    chosen = survey.board.links.chosen
    try:
        said = survey.shell.run("id -un; id -u").check().text
    except HilError as error:
        return fail(f"no shell over {chosen}", cause=error.what, remedy=error.remedy)
    match said.split():
        case [name, number] if number.isdecimal():
            survey.user = name, number
            return ok(f"{name} over {survey.shell.name}")
    return fail(
        f"no POSIX shell over {chosen}",
        cause="the login runs something else than what it is asked for",
        evidence=[f"id -un; id -u: {said.strip() or 'nothing'}"],
        remedy="look at what the user's login shell is, and at ForceCommand and command= of its "
        "sshd and key",
    )


def root(survey: Survey) -> Finding:
    """Who logs in: asked once the board is known to be the one that is meant."""
    name, number = survey.user
    if number == "0":
        return ok(name)
    return fail(
        f"{name} over {survey.shell.name}",
        cause="only root may read the RPMB and write variables",
        remedy=f"log in as root: user in [{survey.board.links.chosen}] of the board file",
    )


def identity(survey: Survey) -> Finding:
    """The eMMC's CID is the board file's, and every link reaches the same boot."""
    try:
        survey.board.check_right_board()
    except WrongBoard as error:
        machine = survey.shell.run(MACHINE).text.splitlines()
        return fail(
            f"no such board: {', '.join(machine)}"
            if NO_EMMC in machine
            else "another board answers",
            cause=error.what,
            evidence=[] if NO_EMMC in machine else [", ".join(machine)],
            remedy=f"{error.remedy}; nothing further is looked at or touched",
        )
    except HilError as error:
        return fail("the links could not be compared", cause=error.what, remedy=error.remedy)
    links = " and ".join(survey.board.links.names)
    return ok(f"eMMC {survey.file.emmc_cid}, one boot over {links}")
