"""What a console shows: the stages of a board, and the one matcher that reads prompts.

The texts are those of util-linux (agetty, login, sulogin), shadow, Linux-PAM, busybox, systemd,
dracut, initramfs-tools, GRUB, and of U-Boot as vendors change it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from harness.links.address import Prompts
from harness.links.readable import is_garbled


class Stage(StrEnum):
    """What is at the other end of the console, as far as its output tells."""

    SILENT = "silent"
    BOOTING = "booting"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    LOGIN = "login"
    PASSWORD = "password"
    SHELL = "shell"
    PASSWORD_CHANGE = "password change"
    MAINTENANCE = "maintenance"
    INITRAMFS = "initramfs"
    MENU = "menu"
    QUESTION = "question"


STOPPED: Final = {
    Stage.PASSWORD_CHANGE: (
        "the password has expired: the board asks for a new one",
        "log in by hand (`hil console`) and change it, or as root on the board: passwd, chage -d;"
        " then correct `login` of [serial]",
    ),
    Stage.MAINTENANCE: (
        "the board stopped in its emergency or rescue mode",
        "`hil console` shows what failed (`journalctl -xb`); mend it, then `exit` or power-cycle",
    ),
    Stage.INITRAMFS: (
        "the board stopped in its initramfs: it did not come up to its root file system",
        "`hil console` shows why; check root= and the disk, then power-cycle",
    ),
}
"""Where nothing goes on unless a person answers: what happened, and the remedy."""

ASKING: Final = {
    Stage.MENU: "it stands in the menu, or at the prompt, of a boot loader or an installer",
    Stage.QUESTION: "it asks a question that is none of the login's",
    Stage.PASSWORD: "it asks for a password that no user name of ours led to",
}
"""Where something may yet go on by itself, but not by what a login types."""

ANSWERED_BY_HAND: Final = (
    "answer it with `hil console`; nothing was typed. If it is a prompt of the"
    " login, the shell or the firmware, put it into [serial.prompts] of the board file"
)

_LOOKED_AT = 240  # characters of a line in which a prompt ends

# By the order in which they are asked. Each ends the last line.
_NEW_PASSWORD = (
    r"(?i)(?:\b(?:current|new|old|re-?type|re-?enter|repeat|confirm|again|create|expired|verify)\b"
    r"[^:]*\bpass\w*[^:]*|\bpass\w*\b[^:]*\bagain\b[^:]*|\(current\).*|"
    r"\b(?:neues|altes|aktuelles) passwor[td]\b[^:]*|\b(?:nouveau|ancien) mot de passe\b[^:]*): ?$"
)
_MAINTENANCE = (
    r"(?i)control-d (?:to continue|for normal startup)\)?: ?$|root password for (?:\w+ )?maint"
    r"|root password for login|press enter (?:for maintenance|to continue)\b"
)
_INITRAMFS = (
    r"^\(initramfs\) ?$|^\[rootfs [^\]]*\][#$] ?$|"
    r"^(?:dracut|switch_root|pre-\w+|initqueue|cmdline|mount|emergency|rescue):[/\w.-]*[#$] ?$"
)
_FIRMWARE = (
    r"^(?:[\w() .@-]*=>|[\w .()@-]*U-Boot\w* ?[>#]+|(?:ZynqMP|Zynq|Versal|STM32MP|MT\d+|ath|hush)>"
    r"|Marvell>>|\(?IPQ\w*\)? ?#|SOCFPGA\w* #) ?$"
)
_MENU = (
    r"(?i)^(?:shell|grub|grub rescue|ipxe)> ?$|^barebox[@:].*[/:>] ?$|\bwhich entry is highlighted"
    r"|\bexecuted automatically in \d+|^boot in \d+|\[press enter to \w+|^\W*boot menu\W*$"
)
_QUESTION = (
    r"(?i)\b(?:pass(?:word|phrase|code)|PIN|press|hit|choose|choice|select\w*|enter|continue"
    r"|proceed|confirm|user ?name|account|language|locale|keyboard|time ?zone|host ?name|code|token"
    r"|y(?:es)?/n(?:o)?)\b.*[:?>\])-] *$|\[[yn](?:/[yn])?\] *:? *$|\? *$"
    r"|\b(?:press|hit|strike) (?:any key|a key|enter|return)\b.*$"
)
# Enter is what it asks for: busybox init's "askfirst".
_ENTER = re.compile(r"(?i)press enter to activate this console")
_LAST_LOGIN = re.compile(r"(?i)\blast login: ?$")
# U-Boot of vendors that have their board's name for a prompt: told by where the board is.
_VENDOR_PROMPT = re.compile(r"^[\w().@ -]{1,40}[#>] ?$")

RESCUE: Final = re.compile(
    rb"You are in (?:emergency|rescue|single)|Entering (?:emergency|rescue) mode"
    rb"|emergency recovery shell|Cannot open access to console|root password for (?:\w+ )?maint"
)
"""A line after which a shell's prompt is that of a maintenance shell..."""
RESCUED: Final = re.compile(rb"Reached target .*(?:Multi-User|Graphical)|Started .*[Gg]etty")
"""... until one of these, or a login's prompt."""
EXPIRED: Final = re.compile(
    r"(?i)required to change your password|must change (?:your|the) password|changing password for"
    r"|(?:password|account)(?: has| is)? expired|change your password (?:now|immediately)"
)
"""What is said before a password must be changed."""
REFUSED: Final = re.compile(r"[Ii]ncorrect|[Ll]ogin failed|denied|number of tries")

_COUNT_DOWN = re.compile(
    r"(?i)(?:\b(?:hit|press|type|enter|strike|push)\b[^\n]{0,60}?\b(?:"
    r"(?:stop|abort|interrupt|cancel)\b[^\n]{0,20}?boot"
    r"|enter\b[^\n]{0,12}?(?:U-Boot|prompt|console|command line))"
    r"|auto-?boot(?:ing)?\b[^\n]{0,30}?\b(?:hit|press|type)\b)[^\n]*$"
)
_NAMED_KEYS = (
    (r"(?i)\bctrl ?[+-]? ?c\b|\^c\b|\bcontrol-c\b", b"\x03"),
    (r"(?i)<esc> ?<esc>", b"\x1b\x1b"),
    (r"(?i)\besc(?:ape)?\b", b"\x1b"),
    (r"(?i)\bspace(?:bar)?\b|\bany key\b", b" "),
    (r"(?i)\b(?:enter|return)\b(?! (?:the )?(?:u-boot|boot|prompt|console))", b"\r"),
)


class Reader:
    """Reads with the ``prompts`` of a board; those that its file gives come before what is known
    here of emergency shells and menus."""

    def __init__(self, prompts: Prompts) -> None:
        own = prompts.shell != Prompts().shell
        kinds = (
            (Stage.PASSWORD_CHANGE, _NEW_PASSWORD),
            (Stage.PASSWORD, prompts.password),
            (Stage.LOGIN, prompts.login),
            (Stage.FIRMWARE, prompts.firmware),
            (Stage.SHELL, prompts.shell if own else r"(?!)"),
            (Stage.FIRMWARE, _FIRMWARE),
            (Stage.MAINTENANCE, _MAINTENANCE),
            (Stage.INITRAMFS, _INITRAMFS),
            (Stage.MENU, _MENU),
            (Stage.SHELL, prompts.shell),
            (Stage.QUESTION, _QUESTION),
        )
        self._own_shell = re.compile(prompts.shell) if own else None
        self._kinds = [(stage, re.compile(pattern)) for stage, pattern in kinds]
        self._interrupt_text = prompts.interrupt_text and re.compile(prompts.interrupt_text)
        self._interrupt_key = prompts.interrupt_key

    def waiting(self, shown: str, *, firmware: bool = False, rescue: bool = False) -> Stage | None:
        """What waits for input where ``shown`` (without escape sequences) ends; None if nothing
        that is known. With ``firmware`` a short prompt is that of a vendor's U-Boot, with
        ``rescue`` a shell's that of a maintenance shell."""
        line = last_line(shown)
        if not line.strip():
            told = shown.rstrip().rpartition("\n")[2]
            return Stage.MAINTENANCE if re.search(_MAINTENANCE, told) and rescue else None
        if is_garbled(line.encode("utf-8", "replace")) or _ENTER.search(line):
            return None
        if self.key_for(line) is not None:
            return None
        start = max(0, len(line) - _LOOKED_AT)
        for stage, pattern in self._kinds:
            if pattern.search(line, start):
                return self._in_its_place(stage, line, firmware=firmware, rescue=rescue)
        return None

    def _in_its_place(
        self, stage: Stage, line: str, *, firmware: bool, rescue: bool
    ) -> Stage | None:
        if stage is Stage.LOGIN and _LAST_LOGIN.search(line):
            return None
        if stage is not Stage.SHELL or (self._own_shell and self._own_shell.search(line)):
            return stage
        if firmware and _VENDOR_PROMPT.search(line):
            return Stage.FIRMWARE
        return Stage.MAINTENANCE if rescue else stage

    def key_for(self, line: str) -> bytes | None:
        """The key that a firmware which counts down to the boot on this line asks for; None if
        none counts down."""
        found = (self._interrupt_text or _COUNT_DOWN).search(line)
        if not found:
            return None
        if self._interrupt_key:
            return self._interrupt_key.encode()
        told = found[0]
        for pattern, key in _NAMED_KEYS:
            if re.search(pattern, told):
                return key
        word = re.search(r"""["'<`]([\w!-]{1,16})["'>`]""", told)
        return word[1].encode() if word else b" "


def last_line(shown: str) -> str:
    """What stands on the last line. A line editor fills it to the margin and goes on below with a
    blank and a carriage return; what stands before another carriage return is written over."""
    return re.split(r"[\n\r\x1f]", re.sub(r" \r(?![\r\n])", "", shown))[-1]


def unwrapped(shown: str) -> str:
    """``shown`` without what line editors put in at the margin of their terminal."""
    return re.sub(r" \r(?![\r\n])|\r+\n?", "", shown)
