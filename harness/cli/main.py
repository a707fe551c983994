"""The command ``hil``: the list of its subcommands, and how one is chosen and run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from harness.cli import (
    boards,
    check,
    completion,
    console,
    discover,
    emulate,
    lease,
    log,
    power,
    qemu,
    restore,
    run,
    shell,
    truth,
    version,
)
from harness.cli.command import GROUPS, Command
from harness.cli.status import Status
from harness.errors import ConfigurationError, HilError, HostError, of_host
from harness.foreign import Shown, say

COMMANDS: Final[tuple[Command, ...]] = (
    run.COMMAND,
    shell.COMMAND,
    console.COMMAND,
    log.COMMAND,
    power.COMMAND,
    restore.COMMAND,
    lease.COMMAND,
    boards.COMMAND,
    discover.COMMAND,
    check.COMMAND,
    truth.COMMAND,
    emulate.COMMAND,
    qemu.COMMAND,
    completion.COMMAND,
    version.COMMAND,
)
"""In the order of ``hil --help``."""

_SIGNALLED: Final = 128
_ABOUT: Final = "Boards whose UEFI variables are kept by OP-TEE and StandaloneMM in eMMC RPMB."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status, see :class:`Status`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for command in COMMANDS:
        if command.passes_on and words[:1] == [command.name]:
            return command.run(argparse.Namespace(words=words[1:]))
    program = parser()
    options = program.parse_args(words)
    options.program = program
    chosen: Command = options.chosen
    from harness import interrupts

    as_before = interrupts.install()
    try:
        return chosen.run(options)
    except HilError as error:
        # An error has escaped itself; what to do next may take several lines.
        say(Shown(f"hil: {error}"), file=sys.stderr)
        return Status.USAGE if isinstance(error, ConfigurationError) else Status.BAD
    except KeyboardInterrupt as end:
        return _SIGNALLED + getattr(end, "number", Status.INTERRUPTED - _SIGNALLED)
    except BrokenPipeError:
        # `hil boards | head`: the reader has what it wanted; spare the interpreter the flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.GOOD
    except (OSError, RuntimeError, MemoryError) as error:
        if (host := of_host(error)) is None and not isinstance(error, OSError):
            raise
        say(f"hil: {host or _without_better_words(error)}", file=sys.stderr)
        return Status.BAD
    finally:
        as_before()


def _without_better_words(error: Exception) -> str:
    """A folder of ours that cannot be made, and the like."""
    from harness.edges import meaning

    name = getattr(error, "filename", None)
    return f"{f'{name}: ' if name else ''}{meaning(error)}. Fault: {HostError.fault}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Status.USAGE, f"{self.prog}: {message}\n")


class _Program(_Parser):
    """Shows its subcommands in groups, which argparse cannot."""

    def format_help(self) -> str:
        lines = [self.format_usage(), _ABOUT]
        for group in GROUPS:
            lines += ["", f"{group}:"]
            lines += [f"  {one.name:<12}{one.help}" for one in COMMANDS if one.group == group]
        lines += ["", "examples:", *(one.examples.splitlines()[1] for one in COMMANDS)]
        lines += ["  pytest tests/conformance --board desk3", "", "exit status:"]
        lines += [f"  {status:<12}{status.meaning}" for status in Status]
        return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    program = _Program(prog="hil", description=_ABOUT)
    commands = program.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for command in COMMANDS:
        one = commands.add_parser(
            command.name,
            help=command.help,
            description=command.description or f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"examples:{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.set_defaults(chosen=command)
    return program
