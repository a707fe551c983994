"""``journalctl`` of the emulated board: arguments in, text and exit status out."""

from __future__ import annotations

from collections.abc import Sequence

from emulation.userland.system.journal import Journal
from emulation.userland.system.systemctl import Reply, UnitTable, full_name


class Journalctl:
    """``journalctl``: the units' lines, and with -k the kernel's."""

    def __init__(self, units: UnitTable, journal: Journal) -> None:
        self._units = units
        self._journal = journal

    async def run(self, uid: int, arguments: Sequence[str]) -> Reply:
        """One invocation; paging is never done and following is refused."""
        unit = identifier = ""
        output, lines, reverse = "short", None, False
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            key, equals, value = word.partition("=")
            if key in ("-u", "--unit", "-n", "--lines", "-o", "--output", "-t", "--identifier"):
                value = value if equals else rest.pop(0) if rest else ""
            if key in ("-u", "--unit"):
                found = self._units.find(value)
                unit = found.file.name if found else full_name(value)
            elif word.startswith("-u"):
                unit = full_name(word[2:])
            elif key in ("-n", "--lines"):
                lines = int(value) if value.isdecimal() else None
            elif word.startswith("-n") and word[2:].isdecimal():
                lines = int(word[2:])
            elif key in ("-o", "--output"):
                output = value
            elif key in ("-t", "--identifier"):
                identifier = value
            elif key in ("-k", "--dmesg"):
                identifier = "kernel"
            elif key in ("-r", "--reverse"):
                reverse = True
            elif key in ("-f", "--follow"):
                return Reply().fail(1, "journalctl: following is not supported by this userland")
        entries = self._journal.entries(unit=unit, identifier=identifier)
        if lines is not None:
            entries = entries[-lines:] if lines else []
        if reverse:
            entries.reverse()
        if not entries:
            return Reply(out=["-- No entries --"])
        if output == "cat":
            return Reply(out=[entry.text for entry in entries])
        return Reply(out=[entry.render(self._journal.hostname) for entry in entries])
