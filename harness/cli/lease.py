"""``hil lease``: who holds a board; hold it; take it away."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

from harness.arguments import seconds
from harness.cli.command import Command, add_board, add_json, board_file, tell
from harness.cli.status import Status
from harness.errors import ConfigurationError
from harness.foreign import Shown, say

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable

    from harness.lab.holder import Holder
    from harness.lab.lease import Status as Held

_INTERRUPTED_SECONDS = 15.0
"""How long a command whose board was taken away may take to end."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="who holds a board (default: any), and who waits")
    add_board(show, needed=False)
    add_json(show, "object: holders, queue; arrays of user, pid, board, purpose, since, things")
    show.set_defaults(action=_show)
    hold = actions.add_parser("hold", help="hold a board while a command runs, or until ^C")
    hold.add_argument(
        "--wait", type=seconds, default=0.0, metavar="S", help="wait S seconds for it"
    )
    add_board(hold)
    hold.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    hold.set_defaults(action=_hold)
    away = actions.add_parser("break", help="take a board away from its holder, whose run ends")
    away.add_argument("--reason", default="no reason given", help="told to the holder")
    add_board(away)
    away.set_defaults(action=_break)


def _run(options: argparse.Namespace) -> int:
    action: Callable[[argparse.Namespace], int] = options.action
    return action(options)


def _show(options: argparse.Namespace) -> int:
    from harness.lab.lease import LeaseDesk

    desk = LeaseDesk()
    status = desk.status(_things(options)) if options.board else desk.all()
    if options.json:
        tell(options, {"holders": _public(status.holders), "queue": _public(status.queue)})
    else:
        _show_status(status)
    return Status.GOOD


def _public(holders: Iterable[Holder]) -> list[dict[str, object]]:
    keys = ("user", "pid", "board", "purpose", "since", "things")
    return [{key: getattr(one, key) for key in keys} for one in holders]


def _hold(options: argparse.Namespace) -> int:
    import signal
    import subprocess
    import threading

    from harness import interrupts
    from harness.lab.lease import TOKEN_ENVIRONMENT, LeaseBroken, lease_board

    lost = threading.Event()
    command: subprocess.Popen[bytes] | None = None

    def end(broken: LeaseBroken) -> None:
        lost.set()
        with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
            say(Shown(f"hil: {broken}"), file=sys.stderr)
        if command is not None:
            interrupt(command)

    def interrupt(command: subprocess.Popen[bytes]) -> None:
        # As ^C: a run of pytest gives the board back before it ends.
        command.send_signal(signal.SIGINT)
        try:
            command.wait(_INTERRUPTED_SECONDS)
        except subprocess.TimeoutExpired:
            command.terminate()

    with lease_board(
        board_file(options),
        purpose="hil lease hold",
        timeout=options.wait,
        waiting=lambda status: _show_status(status, file=sys.stderr),
    ) as lease:
        lease.watch(end)
        token = {TOKEN_ENVIRONMENT: lease.token}
        if not options.command:
            say(
                f"{options.board} is held; ^C gives it back. To use it in another terminal:",
                f"export {TOKEN_ENVIRONMENT}={lease.token}",
            )
            lost.wait()
        else:
            try:
                with interrupts.whole():
                    command = subprocess.Popen(options.command, env={**os.environ, **token})
            except OSError as error:
                raise ConfigurationError(
                    f"cannot run {options.command[0]}: {error.strerror}",
                    remedy="give a program and its arguments; `sh -c '...'` for a shell's line",
                ) from error
            except KeyboardInterrupt as signalled:
                if command is None:
                    raise
                _pass_on(signalled, command)
            if lost.is_set():
                interrupt(command)
            status = _passing_on_signals(command)
            if not lost.is_set():
                return status
    return Status.BAD


def _passing_on_signals(command: subprocess.Popen[bytes]) -> int:
    """The command's exit status: what holds the board may take a while to give it back."""
    while True:
        try:
            return command.wait()
        except KeyboardInterrupt as end:
            _pass_on(end, command)


def _pass_on(end: KeyboardInterrupt, command: subprocess.Popen[bytes]) -> None:
    import signal

    command.send_signal(getattr(end, "number", signal.SIGINT))


def _break(options: argparse.Namespace) -> int:
    from harness.lab.lease import LeaseDesk

    asked = LeaseDesk().break_lease(_things(options), reason=options.reason, timeout=30.0)
    for victim in asked:
        say(f"taken from {victim}")
    if not asked:
        say(f"nobody holds {options.board}")
    return Status.GOOD


def _things(options: argparse.Namespace) -> list[str]:
    from harness.lab.things import things_of

    return things_of(board_file(options))


def _show_status(status: Held, file: TextIO | None = None) -> None:
    for holder in status.holders:
        say(f"held     {holder}", file=file)
    for place, waiting in enumerate(status.queue, 1):
        say(f"waits {place}  {waiting}", file=file)
    if not status.holders and not status.queue:
        say("nobody holds or waits for a board", file=file)


COMMAND = Command(
    "lease",
    "board",
    "who holds a board; hold it; take it away",
    """
  hil lease show                         who holds which board, and who waits
  hil lease hold desk3 make test         hold the board while a command runs
  hil lease hold --wait 600 desk3        ... or until ^C; wait up to ten minutes for it
  hil lease break --reason "demo at 3" desk3
""",
    _run,
    _add_arguments,
)
