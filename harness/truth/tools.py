"""Programs that a recorded command line runs, and what brings one that a board lacks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

_PACKAGES = {
    "bsdextrautils": "hexdump",
    "coreutils": "cat dd df head ls mkdir rm sleep stat tail timeout touch wc",
    "e2fsprogs": "chattr lsattr",
    "efitools": "cert-to-efi-sig-list efi-readvar efi-updatevar sign-efi-sig-list",
    "kmod": "insmod lsmod modinfo modprobe rmmod",
    "mmc-utils": "mmc",
    "mount": "mount umount",
    "procps": "free pgrep pkill ps top",
    "psmisc": "fuser killall",
    "sbsigntool": "sbsign sbvarsign sbverify",
    "systemd": "bootctl journalctl systemctl systemd-run",
    "udev": "udevadm",
    "util-linux": "dmesg findmnt lsblk script su",
    "attr": "getfattr setfattr",
}
PACKAGE = {tool: package for package, tools in _PACKAGES.items() for tool in tools.split()}
"""Debian's package of a program, where it has not the program's name."""

_KEYWORDS = ("do", "then", "else", "elif", "if", "while", "until", "!", "{", "time")
_NO_COMMAND_FOLLOWS = ("done", "fi", "esac", "}", "for", "case", "select", "function")
_RUNNERS = ("timeout", "nohup", "env", "exec", "sudo", "setsid", "nice", "xargs", "command")
_ASSIGNMENT = re.compile(r"\w+\+?=.*", re.DOTALL)
_PROGRAM = re.compile(r"[a-z][\w.+-]*")


def programs(line: str) -> list[str]:
    """Programs, and builtins, that the line runs, in their order; nothing of a line that is not
    understood. Paths, functions and what stands in a variable are left out."""
    try:
        words = list(_words(line))
    except ValueError:
        return []
    found: list[str] = []
    _collect(words, found)
    functions = {words[n] for n, after in enumerate(words[1:]) if after == "()"}
    return [name for name in dict.fromkeys(found) if name not in functions]


def missing(lacking: Sequence[str]) -> str:
    """Why a line cannot be taken on a board that lacks these programs."""
    told = (f"{one} (package {PACKAGE.get(one, one)})" for one in lacking)
    return f"the board has no {', '.join(told)}"


def _words(line: str) -> Iterator[str]:
    plain = re.sub(r"\\['\"]", "_", line).replace("\n", ";")
    lexer = shlex.shlex(plain, posix=False, punctuation_chars=True)
    # $# and ${#x} are no comments.
    lexer.commenters = ""
    lexer.wordchars += "$@%,:{}+^!\\[]#`"
    yield from lexer


def _collect(words: Sequence[str], found: list[str]) -> None:
    begins, skips, previous, runner = True, 0, "", ""
    for word in words:
        if skips:
            skips -= 1
        elif set(word) <= set(";|&()"):
            begins, runner = True, ""
        elif set(word) <= set("<>&"):
            skips = 1
        elif previous == "-c" and runner in ("su", "sh", "bash", "dash") and word[0] in "'\"":
            found += programs(word[1:-1])
        elif begins and (_ASSIGNMENT.fullmatch(word) or word in _KEYWORDS):
            pass
        elif begins and word in _NO_COMMAND_FOLLOWS:
            begins = False
        elif begins or (runner in _RUNNERS and _PROGRAM.fullmatch(word)):
            begins, runner = False, word
            if _PROGRAM.fullmatch(word):
                found.append(word)
        previous = word
