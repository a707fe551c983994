"""``journalctl`` of the emulated board: arguments in, text and exit status out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from emulation.userland.system.command_line import CommandLine, Ended, Reply
from emulation.userland.system.journal import Journal
from emulation.userland.system.systemctl import UnitTable, full_name

_COMMAND_LINE: Final = CommandLine(
    "journalctl",
    "-u --unit= -t --identifier= -n --lines=? -o --output= -k --dmesg -r --reverse -f --follow "
    "-b --boot=? -g --grep= -q --quiet -a --all -x --catalog -e --pager-end -m --merge -l --full "
    "--no-full --no-pager --no-tail --system --utc --no-hostname --sync --flush",
    "journalctl [OPTIONS...] [MATCHES...]",
    "",
    "Query the journal.",
)
_SHORT_OUTPUTS: Final = ("short", "cat")


class Journalctl:
    """``journalctl``: the units' lines, and with -k the kernel's."""

    def __init__(self, units: UnitTable, journal: Journal) -> None:
        self._units = units
        self._journal = journal

    async def run(self, uid: int, arguments: Sequence[str]) -> Reply:
        """One invocation; paging is never done and following is refused."""
        try:
            return self._read(arguments)
        except Ended as ended:
            return ended.reply

    def _read(self, arguments: Sequence[str]) -> Reply:
        words = _COMMAND_LINE.read(_joined(arguments))
        output = words.last("output") or "short"
        if words.operands:
            text = f"Failed to add match '{words.operands[0]}': Invalid argument"
            return Reply().fail(1, text)
        if output not in _SHORT_OUTPUTS:
            return Reply().fail(1, f"Unknown output format '{output}'.")
        if words.has("follow"):
            return Reply().fail(1, "journalctl: following is not supported by this userland")
        boot = words.last("boot") or "0"
        if boot not in ("0", "+0", "-0"):
            text = f"Data from the specified boot ({boot}) is not available: No such boot ID"
            return Reply().fail(1, f"{text} in journal")
        unit = words.last("unit") or ""
        if unit:
            found = self._units.find(unit)
            unit = found.file.name if found else full_name(unit)
        identifier = "kernel" if words.has("dmesg") else words.last("identifier") or ""
        entries = self._journal.entries(unit=unit, identifier=identifier)
        try:
            pattern = re.compile(words.last("grep") or "")
        except re.error as error:
            return Reply().fail(1, f'Bad pattern "{words.last("grep")}": {error}')
        entries = [entry for entry in entries if pattern.search(entry.text)]
        lines = words.last("lines")
        if lines is not None and lines != "all":
            if lines and not lines.isdecimal():
                return Reply().fail(1, f"Failed to parse --lines='{lines}'.")
            entries = entries[-int(lines or 10) :] if lines != "0" else []
        if words.has("reverse"):
            entries.reverse()
        if not entries:
            return Reply(out=[] if words.has("quiet") else ["-- No entries --"])
        if output == "cat":
            return Reply(out=[entry.text for entry in entries])
        return Reply(out=[entry.render(self._journal.hostname) for entry in entries])


def _joined(arguments: Sequence[str]) -> list[str]:
    """-n and -b take a number from the next word, too, where it is one (journalctl(1))."""
    joined: list[str] = []
    for word in arguments:
        taker = joined[-1] if joined else ""
        if taker in ("-n", "-b") and re.fullmatch(r"[+-]?\d+|all", word):
            joined[-1] += word
        elif taker in ("--lines", "--boot") and re.fullmatch(r"[+-]?\d+|all", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
