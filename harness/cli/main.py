"""The command ``hil``. Each subcommand is a parser function and a run function; what is slow is
imported by the run function, so that ``hil --help`` is immediate."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.cli.bench import add_board, add_check, add_command, add_discover, add_lease, add_link
from harness.cli.console import add_console, add_log
from harness.errors import ConfigurationError, HilError

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.cli.bench import Commands

EXIT_OK = 0
EXIT_LAB = 1
EXIT_INTERRUPTED = 130
EXIT_USAGE = 4
"""As pytest's: the command line or a board file is wrong."""

_EPILOG = """examples:
  hil emulate                        start an emulated board, print how to log in
  hil boards                         list the board files
  hil run emulated uname -a          run one command on a board
  hil run --link serial desk3 'efivar -l | wc -l'
  hil shell desk3                    log in
  hil console desk3                  its serial console, logged; ^] leaves
  hil log --list desk3               what it said, boot by boot
  hil power cycle desk3
  hil check desk3                    from the cable up: where does it stop, and why
  hil discover --probe               what is plugged in, and who answers
  hil lease show                     who holds which board
  hil restore desk3                  give it its variables back after a killed run
  hil truth emulated                 replay what a real stack was recorded doing
  source <(hil completion bash)      words, options and boards with TAB
  pytest tests/conformance --board desk3
"""

_Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status: 0, 1 for the lab's faults, 4 for usage and
    configuration, 130 after Ctrl-C; ``hil run`` passes the command's own status on."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["emulate"]:
        # All of its options are the emulator's, --help included; argparse would claim them.
        return _emulate(words[1:])
    if words[:1] == ["qemu"]:
        return _qemu(words[1:])
    options = _parser().parse_args(words)
    run: _Command = options.run
    try:
        return run(options)
    except HilError as error:
        print(f"hil: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_LAB
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `hil boards | head`: the reader has what it wanted; spare the interpreter the flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="hil",
        description="Boards whose UEFI variables are kept by OP-TEE and StandaloneMM in eMMC RPMB.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_boards,
        add_check,
        add_console,
        add_discover,
        _add_emulate,
        _add_qemu,
        _add_run,
        _add_shell,
        _add_power,
        add_lease,
        add_log,
        _add_restore,
        _add_truth,
        _add_completion,
        _add_version,
    ):
        add(commands)
    return parser


# --- boards -------------------------------------------------------------------------------------


def _add_boards(commands: Commands) -> None:
    parser = add_command(
        commands,
        "boards",
        "list the board files, or print their JSON schema",
        """
  hil boards                             name, power driver and description of each
  hil boards --names                     only the names, without reading the files
  hil boards --schema > board.schema.json
  HIL_BOARDS=~/lab hil boards            ... and those of a folder of your own
""",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--schema", action="store_true", help="print the JSON schema for editors")
    what.add_argument("--names", action="store_true", help="print names only, one a line")
    parser.set_defaults(run=_boards)


def _boards(options: argparse.Namespace) -> int:
    from harness.boardfile.files import board_files

    if options.names:
        print("\n".join(sorted({path.stem for path in board_files()})))
        return EXIT_OK
    from harness.boardfile import loading

    if options.schema:
        from harness.boardfile.schema import schema_text

        print(schema_text(), end="")
        return EXIT_OK
    status = EXIT_OK
    for path in board_files():
        try:
            board = loading.load(path)
        except ConfigurationError as error:
            print(f"{path.stem:<16} {error}", file=sys.stderr)
            status = EXIT_USAGE
        else:
            print(f"{board.name:<16} {board.power.driver:<10} {board.description}")
    return status


# --- emulate ------------------------------------------------------------------------------------


def _add_emulate(commands: Commands) -> None:
    add_command(
        commands,
        "emulate",
        "start an emulated board and print how to log in",
        """
  hil emulate                            until ^C; its flash is kept for the next time
  hil emulate --state /tmp/board --port 2222
  hil emulate -o variant=mm -o userland=busybox
  hil emulate --help                     all of its options
""",
    )


def _emulate(arguments: Sequence[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", "emulation", *arguments])


# --- qemu ---------------------------------------------------------------------------------------


def _add_qemu(commands: Commands) -> None:
    add_command(
        commands,
        "qemu",
        "build the real stack, to run on QEMU as the board qemu-arm64",
        """
  hil qemu build --check                 what stands in the way; nothing is built
  hil qemu build                         all of it; where it was interrupted, it goes on
  hil qemu build --list                  the pieces, and what each took
  hil qemu build --help
""",
    )


def _qemu(arguments: Sequence[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", "emulation.qemu", *arguments])


# --- run ----------------------------------------------------------------------------------------


def _add_run(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "run one command on a board",
        """
  hil run desk3 uname -a
  hil run --link serial desk3 'efivar -l | wc -l'
  hil run --timeout 600 desk3 fwts uefirtvariable
  hil run emulated efibootmgr -v         a board in software, for this one command

exit status: the command's own
""",
    )
    add_board(parser)
    add_link(parser)
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds (default: 60)"
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="a POSIX shell command line"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    command = options.command[options.command[:1] == ["--"] :]
    if not command:
        raise ConfigurationError("no command given", remedy="hil run BOARD COMMAND...")
    with _opened(options, purpose="hil run") as board:
        board.shell.least_timeout = 0.0
        result = board.shell.run_isolated(" ".join(command), timeout=options.timeout)
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    return result.status


# --- shell --------------------------------------------------------------------------------------


def _add_shell(commands: Commands) -> None:
    parser = add_command(
        commands,
        "shell",
        "log in to a board by ssh",
        """
  hil shell desk3
  hil shell emulated                     a board in software, until you log out
""",
    )
    add_board(parser)
    parser.set_defaults(run=_shell, link="ssh")


def _shell(options: argparse.Namespace) -> int:
    import subprocess

    with _opened(options, purpose="hil shell") as board:
        address = board.ssh.address
        command = ["ssh", "-p", str(address.port), "-l", address.user]
        if address.key is not None:
            command += ["-i", str(address.key), "-o", "IdentitiesOnly=yes"]
        if address.known_hosts is not None:
            command += ["-o", f"UserKnownHostsFile={address.known_hosts}"]
            command += ["-o", "StrictHostKeyChecking=yes"]
        return subprocess.run([*command, address.host], check=False).returncode


# --- power --------------------------------------------------------------------------------------


def _add_power(commands: Commands) -> None:
    parser = add_command(
        commands,
        "power",
        "switch a board's power",
        """
  hil power state desk3                  as its driver verified it
  hil power cycle desk3                  off, and on again
""",
    )
    parser.add_argument("action", choices=("on", "off", "cycle", "state"))
    add_board(parser)
    parser.set_defaults(run=_power)


def _power(options: argparse.Namespace) -> int:
    from harness.boardfile import loading
    from harness.cli.progress import progress
    from harness.lab.lease import leased
    from harness.lab.powering import power_of
    from harness.power.registry import driver_of

    board = loading.load(loading.find(options.board))
    if starts_by := driver_of(board.power).starts_by:
        raise ConfigurationError(
            f"board {board.name} lives only as long as the process that emulates it",
            remedy=f"{starts_by}; its power is its process",
        )
    driver = power_of(board)
    try:
        if options.action != "state":
            with (
                leased(board, purpose=f"hil power {options.action}"),
                progress(f"{board.name}: power {options.action}"),
            ):
                match options.action:
                    case "on":
                        driver.on(board.timeouts.power)
                    case "off":
                        driver.off(board.timeouts.power)
                    case "cycle":
                        driver.cycle(board.timeouts.power)
        print(f"{board.name}: power {driver.state()}")
    finally:
        driver.close()
    return EXIT_OK


# --- restore ------------------------------------------------------------------------------------


def _add_restore(commands: Commands) -> None:
    from harness.cli import restore as cli

    cli.add(commands)


# --- truth --------------------------------------------------------------------------------------


def _add_truth(commands: Commands) -> None:
    parser = add_command(
        commands,
        "truth",
        "replay what a real stack was recorded doing, and compare",
        """
  hil truth emulated
  hil truth --link serial desk3
  hil truth --group GROUP --rows DIR desk3

exit status: 0 everything that was not skipped agreed, 1 something differed
""",
    )
    add_board(parser)
    add_link(parser)
    parser.add_argument(
        "--rows", type=Path, metavar="DIR", help="folder of recorded groups (default: tests/truth)"
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME",
        help="only this group; may be repeated",
    )
    parser.set_defaults(run=_truth)


def _truth(options: argparse.Namespace) -> int:
    from harness.boardfile import loading
    from harness.cli.progress import progress
    from harness.lab.lease import leased
    from harness.truth.report import all_agree, replay

    board = loading.load(loading.find(options.board))
    with leased(board, purpose="hil truth"), progress(f"{board.name}: replaying") as say:
        results = replay(board, options.rows, link=options.link, only=options.group, say=say)
    return EXIT_OK if all_agree(results) else EXIT_LAB


# --- completion ---------------------------------------------------------------------------------


def _add_completion(commands: Commands) -> None:
    parser = add_command(
        commands,
        "completion",
        "print what a shell needs to complete hil's words",
        """
  hil completion bash > ~/.local/share/bash-completion/completions/hil
  hil completion zsh > ~/.zfunc/_hil     with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  hil completion tcsh > ~/.hil.tcsh      and `source ~/.hil.tcsh` in ~/.tcshrc
  source <(hil completion bash)          for this shell only
""",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    from harness.cli.completion import script

    print(script(_parser(), options.shell))
    return EXIT_OK


# --- version ------------------------------------------------------------------------------------


def _add_version(commands: Commands) -> None:
    parser = add_command(commands, "version", "print the version", "\n  hil version\n")
    parser.set_defaults(run=_version)


def _version(options: argparse.Namespace) -> int:
    from importlib.metadata import version

    print(f"stmm-hil {version('stmm-hil')}")
    return EXIT_OK


@contextlib.contextmanager
def _opened(options: argparse.Namespace, *, purpose: str) -> Iterator[Board]:
    """The board that a command names, leased, and reached on the link it asks for."""
    from harness.board.board import Board
    from harness.boardfile import loading
    from harness.cli.progress import progress
    from harness.lab.lease import leased

    file = loading.load(loading.find(options.board))
    with leased(file, purpose=purpose), contextlib.ExitStack() as opened:
        with progress(f"{file.name}: waiting for it to answer"):
            board = opened.enter_context(Board(file, link=options.link))
        yield board
