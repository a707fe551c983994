"""``hil discover``: what is plugged in, and a board file for it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from harness.arguments import baud, seconds
from harness.cli.command import Command, add_json, tell
from harness.cli.status import Status
from harness.errors import ConfigurationError, HilError, LabError
from harness.foreign import say

if TYPE_CHECKING:
    from harness.lab.discovery import DiscoveredDevice, Discovery
    from harness.links.address import SerialAddress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probe", action="store_true", help="type line feeds at each console and see who answers"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--watch", type=seconds, metavar="S", help="then watch devices come and go for S seconds"
    )
    what.add_argument("--write", metavar="NAME", help="log in and write boards/NAME.toml")
    add_json(what, "array: kind, node, name, udev's identity, how a board file names it, console")
    parser.add_argument(
        "--port", metavar="DEVICE", help="the console to use (default: the only one that answers)"
    )
    parser.add_argument("--baud", type=baud, default=115200, help="tried first (default: 115200)")
    parser.add_argument("--user", default="root", help="for the login prompt (default: root)")
    parser.add_argument(
        "--password-env", metavar="VARIABLE", help="environment variable with the password"
    )
    parser.add_argument("--force", action="store_true", help="write over an existing board file")


def _run(options: argparse.Namespace) -> int:
    from harness.lab.discovery import Discovery, ambiguous_serials

    bench = Discovery()
    present = bench.devices()
    if options.write:
        return _write(options, present)
    described = []
    for device in present:
        described.append(_described(device, present))
        if not options.json:
            _show(device, described[-1])
        if options.probe and device.kind == "serial adapter":
            described[-1]["console"] = console = _probe(device.node, options)
            if not options.json:
                say(f"    console:  {console}")
    if options.json:
        tell(options, described)
        return Status.GOOD
    for serial in ambiguous_serials(present):
        say(f"several adapters have the serial number {serial}: they are named by their port")
    if not present:
        say("nothing found: no USB serial adapter, SD-mux, relay or eMMC reader is plugged in")
    if options.watch is not None:
        _watch(bench, options.watch)
    return Status.GOOD


def _described(device: DiscoveredDevice, present: list[DiscoveredDevice]) -> dict[str, Any]:
    from dataclasses import asdict

    from harness.lab.discovery import udev_match

    try:
        return asdict(device) | {"udev": udev_match(device, present)}
    except HilError as error:
        return asdict(device) | {"udev": None, "nameless": error.what}


def _show(device: DiscoveredDevice, described: dict[str, Any]) -> None:
    say(device)
    if described["udev"] is None:
        say(f"    {described['nameless']}")
    else:
        written = ", ".join(f'{key} = "{value}"' for key, value in described["udev"].items())
        say(f"    udev = {{ {written} }}")
    if device.usb_driver == "ftdi_sio":
        _show_latency_timer(device)


def _show_latency_timer(device: DiscoveredDevice) -> None:
    from pathlib import Path

    timer = Path("/sys/bus/usb-serial/devices", Path(device.node).name, "latency_timer")
    try:
        milliseconds = int(timer.read_text())
    except (OSError, ValueError):
        return
    if milliseconds > 1:
        say(
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


def _watch(bench: Discovery, seconds: float) -> None:
    say(f"watching for {seconds:g} s ...")
    for action, device in bench.watch(timeout=seconds):
        say(f"{'+' if action == 'add' else '-'} {device}")
        if action == "add":
            _show(device, _described(device, bench.devices()))


def _write(options: argparse.Namespace, present: list[DiscoveredDevice]) -> int:
    from harness.boardfile.files import own_folder
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
    path = own_folder() / f"{name}.toml"
    suggest.write_board_file(path, text, force=options.force)
    say(f"{path}: {facts.host}, eMMC {facts.emmc_cid}, console {address.url} at {address.baud}")
    if refusal is not None:
        say(f"no [ssh]: {refusal.what}")
    say(f"next: hil check {name}")
    return Status.GOOD


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
        if report.baud is not None and report.stage in {Stage.LOGIN, Stage.PASSWORD, Stage.SHELL}:
            answering.append(replace(address, baud=report.baud))
    if len(answering) != 1:
        raise LabError(
            f"{len(answering)} consoles show a login prompt or a shell, one is needed: "
            + ("; ".join(heard) or "no serial adapter is plugged in"),
            remedy="switch the board on, wait until it has booted, and name its console: --port",
        )
    return answering[0]


COMMAND = Command(
    "discover",
    "bring-up",
    "list serial adapters, SD-muxes, relays and eMMC readers; write a board file",
    """
  hil discover                           what is plugged in, and how a board file names it
  hil discover --probe                   ... and what is at the other end of each console
  hil discover --watch 60                plug something in and see its name
  hil discover --write desk3 --user root log in on the console and write boards/desk3.toml
""",
    _run,
    _add_arguments,
)
