"""The kernel log since a mark, and the lines in it that fail a test."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from harness.shell import Shell

# Lines that no healthy board prints, whatever a test does to it.
BAD_PATTERNS: tuple[str, ...] = (
    r"Kernel panic",
    r"\bOops\b",
    r"\bBUG: ",
    r"Unable to handle kernel",
    r"Internal error:",
    r"WARNING: CPU:",
    r"INFO: task .* blocked for more than",
    r"rcu.*self-detected stall",
    r"refcount_t: ",
    r"UBSAN: ",
    r"KASAN: ",
    r"optee.*(abort|panic)",
    r"E/TC:.*(abort|panic|PANIC)",
    r"rpmb_dead",
)


_AFTER_LAST = """
{ line[NR] = $0 }
$0 == ENVIRON["l"] { last = NR }
END { for (i = last + 1; i <= NR; i++) print line[i] }
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the kernel log: the last line at that moment (empty for an empty log)."""

    last_line: str


class KernelLog:
    """``dmesg`` through a shell. Raises :class:`harness.errors.CommandFailed` where the log cannot
    be read."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def mark(self) -> Mark:
        """Remember where the log ends now."""
        return Mark(self._shell.run("dmesg | tail -n 1").check().text)

    def since(self, mark: Mark, *, timeout: float = 10.0) -> list[str]:
        """The lines after ``mark``; the whole log when the marked line is gone (the board was
        rebooted, the ring went round, somebody cleared it)."""
        return self._shell.run(since_script(mark), timeout=timeout).check().text.splitlines()

    def all(self, *, timeout: float = 30.0) -> list[str]:
        """Every line that the ring still holds."""
        return self._shell.run("dmesg", timeout=timeout).check().text.splitlines()


def since_script(mark: Mark) -> str:
    """The shell command that prints the lines after ``mark``."""
    # Only the new lines cross the link: a whole log takes seconds on a serial line.
    return f"dmesg | l={shlex.quote(mark.last_line)} awk {shlex.quote(_AFTER_LAST)}"


def bad_lines(
    lines: Iterable[str],
    *,
    allowed: Iterable[str] = (),
    patterns: Iterable[str] = BAD_PATTERNS,
) -> list[str]:
    """The lines that match ``patterns`` and none of the ``allowed`` regular expressions."""
    bad = re.compile("|".join(patterns))
    permitted = [re.compile(pattern) for pattern in allowed]
    return [
        line
        for line in lines
        if bad.search(line) and not any(pattern.search(line) for pattern in permitted)
    ]
