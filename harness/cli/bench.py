"""The bench's part of the command ``hil``: ``discover``, ``lease`` and ``check``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from harness.errors import ConfigurationError, HilError, LabError

if TYPE_CHECKING:
    from harness.lab.discovery import DiscoveredDevice, Discovery
    from harness.lab.lease import Status
    from harness.links.address import SerialAddress

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What :meth:`argparse.ArgumentParser.add_subparsers` returns."""


# --- what all subcommands' parsers have in common -----------------------------------------------


def add_command(
    commands: Commands, name: str, what: str, examples: str, *, description: str | None = None
) -> argparse.ArgumentParser:
    """A subcommand; ``what`` is its line in ``hil --help`` and, without a ``description``, the
    head of its own. ``examples`` begins with a line end."""
    return commands.add_parser(
        name,
        help=what,
        description=description or what[0].upper() + what[1:] + ".",
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_board(parser: argparse.ArgumentParser) -> None:
    """The board that a subcommand is about."""
    parser.add_argument("board", metavar="BOARD", help="name from `hil boards`, or a path")


def add_link(parser: argparse.ArgumentParser) -> None:
    """Over which link it talks to the board."""
    parser.add_argument("--link", choices=("ssh", "serial"), help="default: ssh where there is one")


# --- discover -----------------------------------------------------------------------------------

_DISCOVER_EXAMPLES = """
  hil discover                           what is plugged in, and how a board file names it
  hil discover --probe                   ... and what is at the other end of each console
  hil discover --watch 60                plug something in and see its name
  hil discover --write desk3 --user root log in on the console and write boards/desk3.toml
"""


def add_discover(commands: Commands) -> None:
    parser = add_command(
        commands,
        "discover",
        "list serial adapters, SD-muxes, relays and eMMC readers; write a board file",
        _DISCOVER_EXAMPLES,
    )
    parser.add_argument(
        "--probe", action="store_true", help="type line feeds at each console and see who answers"
    )
    parser.add_argument(
        "--watch", type=float, metavar="S", help="then watch devices come and go for S seconds"
    )
    parser.add_argument("--write", metavar="NAME", help="log in and write boards/NAME.toml")
    parser.add_argument(
        "--port", metavar="DEVICE", help="the console to use (default: the only one that answers)"
    )
    parser.add_argument("--baud", type=int, default=115200, help="tried first (default: 115200)")
    parser.add_argument("--user", default="root", help="for the login prompt (default: root)")
    parser.add_argument(
        "--password-env", metavar="VARIABLE", help="environment variable with the password"
    )
    parser.add_argument("--force", action="store_true", help="write over an existing board file")
    parser.set_defaults(run=_discover)


def _discover(options: argparse.Namespace) -> int:
    from harness.lab.discovery import Discovery, ambiguous_serials

    discovery = Discovery()
    present = discovery.devices()
    if options.write:
        return _write(options, present)
    for device in present:
        _show(device, present)
        if options.probe and device.kind == "serial adapter":
            print(f"    console:  {_probe(device.node, options)}")
    for serial in ambiguous_serials(present):
        print(f"several adapters have the serial number {serial}: they are named by their port")
    if not present:
        print("nothing found: no USB serial adapter, SD-mux, relay or eMMC reader is plugged in")
    if options.watch is not None:
        _watch(discovery, options.watch)
    return 0


def _show(device: DiscoveredDevice, present: list[DiscoveredDevice]) -> None:
    from harness.lab.discovery import udev_match

    print(device)
    try:
        match = udev_match(device, present)
    except HilError as error:
        print(f"    {error.what}")
    else:
        written = ", ".join(f'{key} = "{value}"' for key, value in match.items())
        print(f"    udev = {{ {written} }}")
    if device.usb_driver == "ftdi_sio":
        _show_latency_timer(device)


def _show_latency_timer(device: DiscoveredDevice) -> None:
    timer = Path("/sys/bus/usb-serial/devices", Path(device.node).name, "latency_timer")
    try:
        milliseconds = int(timer.read_text())
    except (OSError, ValueError):
        return
    if milliseconds > 1:
        print(
            f"    latency timer {milliseconds} ms: every short answer waits so long; "
            f"`echo 1 > {timer}` as root"
        )


def _probe(node: str, options: argparse.Namespace) -> str:
    from harness.lab.console_probe import probe_console
    from harness.links.address import SerialAddress

    try:
        return str(probe_console(SerialAddress(node, options.baud)))
    except HilError as error:
        return f"cannot be opened: {error.what}"


def _watch(discovery: Discovery, seconds: float) -> None:
    print(f"watching for {seconds:g} s ...", flush=True)
    for action, device in discovery.watch(timeout=seconds):
        print(f"{'+' if action == 'add' else '-'} {device}", flush=True)
        if action == "add":
            _show(device, discovery.devices())
        sys.stdout.flush()


def _write(options: argparse.Namespace, present: list[DiscoveredDevice]) -> int:
    from harness.lab import suggest
    from harness.lab.discovery import udev_match
    from harness.links.serial import SerialShell

    name = suggest.board_name(options.write)
    address = _console(options, present)
    shell = SerialShell.open(address)
    try:
        facts = suggest.read_facts(shell)
    finally:
        shell.close()
    device = next((device for device in present if device.node == address.url), None)
    refusal = suggest.ssh_answers(facts, address.login.user)
    text = suggest.board_file(
        name,
        facts,
        address,
        udev=None if device is None else udev_match(device, present),
        ssh=refusal is None,
    )
    path = Path(os.environ.get("HIL_BOARDS", "boards")) / f"{name}.toml"
    suggest.write_board_file(path, text, force=options.force)
    print(f"{path}: {facts.host}, eMMC {facts.emmc_cid}, console {address.url} at {address.baud}")
    if refusal is not None:
        print(f"no [ssh]: {refusal.what}")
    print(f"next: hil check {name}")
    return 0


def _console(options: argparse.Namespace, present: list[DiscoveredDevice]) -> SerialAddress:
    """The console to log in on, at the rate that answers."""
    from dataclasses import replace

    from harness.lab.console_probe import probe_console
    from harness.links.address import Login, SerialAddress
    from harness.links.console import Stage

    password = None
    if options.password_env is not None:
        password = os.environ.get(options.password_env)
        if password is None:
            raise ConfigurationError(
                f"the environment has no {options.password_env}",
                remedy=f"export {options.password_env}=... before",
            )
    ports = (
        [options.port]
        if options.port
        else [device.node for device in present if device.kind == "serial adapter"]
    )
    heard = []
    answering = []
    for port in ports:
        address = SerialAddress(port, options.baud, login=Login(options.user, password))
        report = probe_console(address)
        heard.append(f"{port}: {report}")
        if report.baud is not None and report.stage in {Stage.LOGIN, Stage.SHELL}:
            answering.append(replace(address, baud=report.baud))
    if len(answering) != 1:
        raise LabError(
            f"{len(answering)} consoles show a login prompt or a shell, one is needed: "
            + ("; ".join(heard) or "no serial adapter is plugged in"),
            remedy="switch the board on, wait until it has booted, and name its console: --port",
        )
    return answering[0]


# --- lease --------------------------------------------------------------------------------------

_LEASE_EXAMPLES = """
  hil lease show                          who holds which board, and who waits
  hil lease hold desk3 make test          hold the board while a command runs
  hil lease hold --wait 600 desk3         ... or until ^C; wait up to ten minutes for it
  hil lease break --reason "demo at 3" desk3
"""


_INTERRUPTED_SECONDS = 15.0
"""How long a command whose board was taken away may take to end."""


def add_lease(commands: Commands) -> None:
    parser = add_command(
        commands,
        "lease",
        "who holds a board; hold it; take it away",
        _LEASE_EXAMPLES,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="who holds a board (default: any), and who waits")
    show.add_argument("board", nargs="?", metavar="BOARD")
    show.set_defaults(run=_lease_show)
    hold = actions.add_parser("hold", help="hold a board while a command runs, or until ^C")
    hold.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait S seconds for it")
    hold.add_argument("board", metavar="BOARD")
    hold.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    hold.set_defaults(run=_lease_hold)
    away = actions.add_parser("break", help="take a board away from its holder, whose run ends")
    away.add_argument("--reason", default="no reason given", help="told to the holder")
    away.add_argument("board", metavar="BOARD")
    away.set_defaults(run=_lease_break)


def _lease_show(options: argparse.Namespace) -> int:
    from harness.lab.lease import LeaseDesk

    desk = LeaseDesk()
    _show_status(desk.status(_things(options.board)) if options.board else desk.all())
    return 0


def _lease_hold(options: argparse.Namespace) -> int:
    import signal
    import subprocess
    import threading

    from harness.lab.lease import TOKEN_ENVIRONMENT, LeaseBroken, LeaseDesk

    lost = threading.Event()
    command: subprocess.Popen[bytes] | None = None

    def end(broken: LeaseBroken) -> None:
        print(f"hil: {broken}", file=sys.stderr, flush=True)
        lost.set()
        if command is not None:
            interrupt(command)

    def interrupt(command: subprocess.Popen[bytes]) -> None:
        # As ^C: a run of pytest gives the board back before it ends.
        command.send_signal(signal.SIGINT)
        try:
            command.wait(_INTERRUPTED_SECONDS)
        except subprocess.TimeoutExpired:
            command.terminate()

    with LeaseDesk().acquire(
        _things(options.board),
        board=options.board,
        purpose="hil lease hold",
        timeout=options.wait,
        waiting=lambda status: _show_status(status, file=sys.stderr),
    ) as lease:
        lease.watch(end)
        token = {TOKEN_ENVIRONMENT: lease.holder.token}
        if not options.command:
            print(
                f"{options.board} is held; ^C gives it back. To use it in another terminal:\n"
                f"export {TOKEN_ENVIRONMENT}={lease.holder.token}",
                flush=True,
            )
            lost.wait()
        else:
            try:
                command = subprocess.Popen(options.command, env={**os.environ, **token})
            except OSError as error:
                raise ConfigurationError(
                    f"cannot run {options.command[0]}: {error.strerror}",
                    remedy="give a program and its arguments; `sh -c '...'` for a shell's line",
                ) from error
            if lost.is_set():
                interrupt(command)
            status = command.wait()
            if not lost.is_set():
                return status
    return 1


def _lease_break(options: argparse.Namespace) -> int:
    from harness.lab.lease import LeaseDesk

    asked = LeaseDesk().break_lease(_things(options.board), reason=options.reason, timeout=30.0)
    for victim in asked:
        print(f"taken from {victim}")
    if not asked:
        print(f"nobody holds {options.board}")
    return 0


def _things(board: str) -> list[str]:
    from harness.boardfile import loading
    from harness.lab.things import things_of

    return things_of(loading.load(loading.find(board)))


def _show_status(status: Status, file: TextIO | None = None) -> None:
    for holder in status.holders:
        print(f"held     {holder}", file=file, flush=True)
    for place, waiting in enumerate(status.queue, 1):
        print(f"waits {place}  {waiting}", file=file, flush=True)
    if not status.holders and not status.queue:
        print("nobody holds or waits for a board", file=file, flush=True)


# --- check --------------------------------------------------------------------------------------

_CHECK_EXAMPLES = """
  hil check desk3                        from the cable up; the first `fail` names the cause
  hil check --link serial desk3          ... looking over the console
  hil check --json desk3 | jq .first_failure

exit status: 0 nothing failed, 1 something did, 4 the board file is wrong
"""


def add_check(commands: Commands) -> None:
    parser = add_command(
        commands,
        "check",
        "walk a board from the cable up, and say where it stops and why",
        _CHECK_EXAMPLES,
    )
    add_board(parser)
    add_link(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    import time

    from harness.boardfile import loading
    from harness.check import walk
    from harness.check.show import Screen, as_json
    from harness.cli.progress import progress

    file = loading.load(loading.find(options.board))
    screen = Screen()
    started = time.monotonic()
    if options.json:
        with progress(f"{file.name}: looking"):
            report = walk(file, link=options.link)
        print(as_json(report, time.monotonic() - started))
    else:
        report = walk(file, link=options.link, begun=screen.begun, done=screen.done)
        screen.summary(report, time.monotonic() - started)
    return int(report.failed)
