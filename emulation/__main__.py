"""``python -m emulation``: power on an emulated board and keep it until told to stop.

    python -m emulation [--state DIR] [--port N] [--json] [--control] [-o key=value ...]

Prints how to log in over SSH and serial; with ``--json`` one line of JSON once SSH answers, with
``--control`` it obeys lines on standard input (``on``, ``off``, ``status``, ``fault SPEC`` as in
docs/faults.md, ``fault clear``), each answered by one line of JSON.  SIGTERM, SIGINT and the end
of standard input power the board off.
Exit status 0 after an orderly end, 2 when the board cannot run here or was described wrongly, 4
for a wrong command line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import json
import os
import resource
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from emulation.faults import FaultSpecError
from emulation.options import BoardOptions, OptionError
from emulation.userland.jail.plan import JailError
from emulation.userland.jail.spawner import UserlandMissing
from emulation.userland.jail.zygote import Zygote

if TYPE_CHECKING:
    from emulation.board import RunningBoard

CANNOT_RUN = 2
WRONG_USE = 4

_STATE_FILES = frozenset({"lock", "rpmb.img", "rootfs", "safekeeping", "ssh_host_ed25519_key"})
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TELL_AGAIN_SECONDS = 60.0

_ENDING_SECONDS = 5.0
_POLL_SECONDS = 0.05


class CannotStart(Exception):
    """The text says why and what to do."""


@dataclass(frozen=True)
class Endpoints:
    """How to reach the board; what ``--json`` prints."""

    host: str
    port: int
    user: str
    key: str
    known_hosts: str
    serial: str
    pid: int

    def ssh_command(self) -> str:
        """A command line to paste."""
        trust = f"UserKnownHostsFile={self.known_hosts}"
        where = f"{self.user}@{self.host}"
        options = ("-o", "IdentitiesOnly=yes", "-o", trust)
        return shlex.join(["ssh", "-i", self.key, "-p", str(self.port), *options, where])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a board; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        options = BoardOptions.parse(chosen.option)
        state_directory = chosen.state or _default_state()
        with _broken(options.mutant), _owned(state_directory) as state:
            Zygote.shared()  # gets ready on another processor while this one imports the rest
            return asyncio.run(_run(options, state, chosen))
    except (CannotStart, OptionError, UserlandMissing) as error:
        print(f"emulation: {error}", file=sys.stderr)
    except JailError as error:
        print(_explain(error), file=sys.stderr)
    return CANNOT_RUN


def _broken(mutant: str) -> contextlib.AbstractContextManager[None]:
    """The sabotage that the options ask for. Raises OptionError."""
    if not mutant:
        return contextlib.nullcontext()
    # Late: to know the mutants is to import the whole model.
    from emulation.mutants.registry import installed

    return installed(mutant)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(WRONG_USE, f"{self.prog}: {message}\n")


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= 5 else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1 to 65535; 0: any")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m emulation",
        description="Power on an emulated board that one can log in to over SSH and serial.",
        epilog="@FILE: arguments from a file, one a line; other users do not see those.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where the board's eMMC, files and keys live"
    )
    parser.add_argument("--port", type=_port, default=0, help="TCP port of SSH on 127.0.0.1")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, no prose")
    parser.add_argument("--control", action="store_true", help="obey commands on standard input")
    parser.add_argument(
        "-o",
        dest="option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what kind of board, e.g. variant=mm, userland=busybox",
    )
    return parser


def _default_state() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base, "stmm-hil", "board")


@contextlib.contextmanager
def _owned(state: Path) -> Iterator[Path]:
    """Make the state directory, its owner's alone, and keep every other supervisor out of it."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        _close_to_others(state)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        lock = os.open(state / "lock", flags, 0o600)
    except OSError as error:
        raise CannotStart(f"{state}: {error.strerror}; choose another with --state") from None
    if not _locked(lock):
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise CannotStart(
            f"{state}: in use by process {owner}; stop it or choose another with --state"
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    try:
        yield state.resolve()
    finally:
        os.close(lock)


def _close_to_others(state: Path) -> None:
    """What lies in it, set-user-ID files of the board's root among it, is nobody else's to use.
    Raises CannotStart where it may be more than a state directory."""
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise CannotStart(f"{state}: belongs to another user; choose another with --state")
        if not status.st_mode & 0o077:
            return
        with os.scandir(fd) as entries:
            names = {entry.name for entry in entries}
        if names and not names & _STATE_FILES:
            raise CannotStart(
                f"{state}: holds other things and is open to other users; choose an empty "
                "directory with --state, or chmod 700 this one"
            )
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _locked(lock: int) -> bool:
    """Take it; a board whose harness was just killed takes a moment to end."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        threading.Event().wait(_POLL_SECONDS)


def _explain(error: JailError) -> str:
    """What this host lacks, and the remedy."""
    from emulation.userland.jail import probe

    lines = [f"emulation: this host cannot run the board: {error}"]
    for step in probe.check():
        if not step.ok:
            lines += [f"  failing step: {step.name}: {step.detail}", f"  remedy: {step.remedy}"]
    return "\n".join(lines)


class _Complaints:
    """What the event loop cannot do: told in one line a minute where the host's limits are why."""

    def __init__(self) -> None:
        self._told = -_TELL_AGAIN_SECONDS

    def take(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
        elif loop.time() >= self._told + _TELL_AGAIN_SECONDS:
            self._told = loop.time()
            print(
                f"emulation: the host lets this process open no more ({error.strerror}): "
                "connections wait",
                file=sys.stderr,
            )


async def _run(options: BoardOptions, state: Path, chosen: argparse.Namespace) -> int:
    from emulation.board import RunningBoard
    from emulation.userland.access.console import SerialLine
    from emulation.userland.access.ssh import ReservedPort

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.set_exception_handler(_Complaints().take)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    try:
        port = ReservedPort(chosen.port)
    except OSError as error:
        raise CannotStart(f"port {chosen.port}: {error.strerror}; choose another") from None
    line = SerialLine(state / "serial", baud=options.baud)
    board = RunningBoard(options, state, line, port)
    try:
        if await _unless(stopped, board.power_on()):
            endpoints = Endpoints(
                "127.0.0.1",
                port.port,
                "root",
                str(state / "id_ed25519"),
                str(state / "known_hosts"),
                str(line.link),
                os.getpid(),
            )
            _announce(endpoints, state, as_json=chosen.json)
            if chosen.control:
                _obey(board, stopped)
            await stopped.wait()
    finally:
        board.close()
        line.close()
        port.close()
        for name in ("id_ed25519", "known_hosts", "manager.sock"):
            (state / name).unlink(missing_ok=True)
    return 0


async def _unless(stopped: asyncio.Event, work: object) -> bool:
    """Await ``work``; when told to stop meanwhile, let it finish and return False."""
    await work  # type: ignore[misc]
    return not stopped.is_set()


def _announce(endpoints: Endpoints, state: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(endpoints)), flush=True)
        return
    print(
        f"The board is up.\n"
        f"  SSH:     {endpoints.ssh_command()}\n"
        f"  serial:  picocom -b 115200 {shlex.quote(endpoints.serial)}\n"
        f"           (log in as root, no password)\n"
        f"  state:   {state} (its eMMC and files; it is the same board next time)\n"
        f"Press ^C to power it off.",
        flush=True,
    )


def _obey(board: RunningBoard, stopped: asyncio.Event) -> None:
    """Read commands on a thread of their own: standard input may be anything, even a file."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            for line in sys.stdin:
                done = asyncio.run_coroutine_threadsafe(_command(board, line.split()), loop)
                print(json.dumps(done.result()), flush=True)
            loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=read, name="control", daemon=True).start()


async def _command(board: RunningBoard, words: Sequence[str]) -> dict[str, str]:
    """Carry out one line of the control protocol."""
    try:
        match list(words):
            case ["on"]:
                await board.power_on()
            case ["off"]:
                await board.power_cut()
            case ["status"]:
                pass
            case ["fault", "clear"]:
                board.disarm_faults()
            case ["fault", spec]:
                board.arm_fault(spec)
            case _:
                return {"error": "commands are: on, off, status, fault SPEC, fault clear"}
    except (JailError, FaultSpecError, OSError) as error:
        return {"error": str(error)}
    return {"power": "on" if board.powered else "off"}


if __name__ == "__main__":
    sys.exit(main())
