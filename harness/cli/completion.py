"""What a shell needs to complete the words of ``hil``: made from its parser by shtab, so that it
cannot drift. Only the names of boards are asked for when somebody presses TAB."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

import shtab

_NAMES: Final = "hil boards --names"
_BOARDS: Final = {
    "bash": "_hil_boards",
    "zsh": "_hil_boards",
    "tcsh": f"`{_NAMES}`",
}
# A board may also be named by the path of its file.
_PREAMBLE: Final = {
    "bash": f"""_hil_boards() {{
  compgen -W "$({_NAMES} 2>/dev/null)" -- "$1"
  case $1 in */*|.*) compgen -f -X '!*.toml' -- "$1"; compgen -d -S / -- "$1";; esac
}}""",
    "zsh": f"""_hil_boards() {{
  local -a names=(${{(f)"$({_NAMES} 2>/dev/null)"}})
  _describe 'board' names || _files -g '*.toml'
}}""",
    "tcsh": "",
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of ``parser`` for ``shell``: bash, zsh or tcsh."""
    for action in _actions(parser):
        if action.dest == "board":
            action.complete = _BOARDS  # type: ignore[attr-defined]
        elif action.metavar in ("FILE", "DIR"):
            action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell, preamble=_PREAMBLE[shell]))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of the parser and of all its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
