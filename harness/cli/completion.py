"""``hil completion``: what a shell needs to complete the words of ``hil``: made from its parser by
shtab, so that it cannot drift. Only the names of boards are asked for when somebody presses TAB."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from harness.cli.command import Command
from harness.cli.status import Status
from harness.foreign import Shown, say

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES: Final = "hil boards --names"
_BOARDS: Final = {
    "bash": "_hil_boards",
    "zsh": "_hil_boards",
    "tcsh": f"`{_NAMES}`",
}
# A board may also be named by the path of its file. Of `--boards-from=DIR` bash makes three words.
_PREAMBLE: Final = {
    "bash": f"""_hil_boards() {{
  local from=() i
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${{COMP_WORDS[i]}} == --boards-from ]] || continue
    [[ ${{COMP_WORDS[i+1]}} == '=' ]] && ((i++))
    from=(--boards-from "${{COMP_WORDS[i+1]/#\\~/$HOME}}")
  done
  compgen -W "$({_NAMES} "${{from[@]}}" 2>/dev/null)" -- "$1"
  case $1 in */*|.*) compgen -f -X '!*.toml' -- "$1"; compgen -d -S / -- "$1";; esac
}}""",
    "zsh": f"""_hil_boards() {{
  local -a from=()
  local i=${{words[(I)--boards-from]}}
  ((i)) && from=(--boards-from "${{(Q)${{~words[i+1]}}}}")
  local -a names=(${{(f)"$({_NAMES} $from 2>/dev/null)"}})
  _describe 'board' names || _files -g '*.toml'
}}""",
    "tcsh": "",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(_PREAMBLE))


def _run(options: argparse.Namespace) -> int:
    say(Shown(_script(options.program, options.shell)))
    return Status.GOOD


def _script(parser: argparse.ArgumentParser, shell: str) -> str:
    import shtab

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


COMMAND = Command(
    "completion",
    "software",
    "print what a shell needs to complete hil's words",
    """
  hil completion bash > ~/.local/share/bash-completion/completions/hil
  hil completion zsh > ~/.zfunc/_hil     with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  hil completion tcsh > ~/.hil.tcsh      and `source ~/.hil.tcsh` in ~/.tcshrc
  source <(hil completion bash)          for this shell only
""",
    _run,
    _add_arguments,
)
