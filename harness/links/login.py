"""From a silent console to a shell prompt."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from harness.errors import LinkError, LinkLost, LinkRefused, LinkTimeout
from harness.links import agent
from harness.links.console import Console
from harness.links.patience import Patience
from harness.links.rates import ERASE_LINE, RateSearch
from harness.links.reading import (
    ANSWERED_BY_HAND,
    ASKING,
    EXPIRED,
    REFUSED,
    STOPPED,
    Stage,
    last_line,
    unwrapped,
)

NUDGE_INTERVAL = 0.5  # seconds between line feeds to a console that says nothing
# Seconds of silence in which a prompt is whole, and in which a line has nothing more to say.
STANDS, LISTEN = 0.05, 0.2
# While a system boots, what is typed before it has opened its port may block the port for good
# (seen with QEMU's PL011): only when it has said nothing for so long.
BOOT_QUIET, BOOT_LONGEST = 4.0, 20.0
WRONG_LOGINS = 4
LOGIN_ANSWER = 5.0  # seconds in which a login program echoes the end of a line
INTERRUPT = b"\x03"

_POSIX = re.compile(r"/(?:ba|da|a|k|mk|z|pdk|ya)?sh$|/busybox$")
_NOTICED = 16 << 10  # bytes of the console in which a login reads
_RECEIVER = re.compile(r"\x1ePidle\.[^\x1f]*\x1f")


class ConsoleLogin:
    """Logs in on ``console``; what it learns of the far end's speed goes to ``patience``.

    Nothing is typed but line feeds where nothing is asked and nobody speaks, the user's name at
    the login's prompt, and the password, once, at the first prompt for it that the name leads to.
    """

    def __init__(self, console: Console, patience: Patience) -> None:
        self.console = console
        self._patience = patience
        self.logged_in = False
        """Whether a user name was typed: then somebody must log out."""
        self.prompt_text = ""
        """The last fresh prompt."""
        self.foreign_shell = ""
        """The login shell, where it is no POSIX shell."""
        self._answered: Stage | None = None  # what was typed last, at which prompt
        self._refusals = 0
        self._words = ""
        self._spoke = 0.0

    def log_in(self, end: float, rates: RateSearch) -> None:
        """Reach a shell prompt: what stands on the screen decides what is typed, as soon as it is
        whole. Raises ``LinkRefused`` where only a person can go on, ``LinkTimeout`` at ``end``."""
        console = self.console
        seen = console.last_words
        begun = time.monotonic()
        self._answered, self._refusals = None, 0
        self._words, self._spoke = self._text(seen), begun - console.quiet_seconds
        next_nudge = begun if self._may_type(begun, end) else begun + LISTEN
        nudges = 0
        while True:
            mark = console.mark()
            text = self._text(seen)
            stage = console.reading(text)
            now = time.monotonic()
            if text != self._words:
                self._words, self._spoke = text, now
            if stage in (Stage.SHELL, Stage.LOGIN, Stage.PASSWORD):
                rates.answered()
            if now >= end:
                raise self._no_shell(stage, rates.told)
            stands = self._spoke + STANDS + console.wire_time(8)
            if stage is not None and now < stands:
                console.wait_for_data(mark, timeout=min(stands, end) - now)
                continue
            if stage is Stage.SHELL:
                return
            if stage is not None:
                moved = self._take(stage, text, end)
                if moved is not None:
                    seen, nudges = moved, 0
                    next_nudge = time.monotonic() + LOGIN_ANSWER
                    self._words, self._spoke = "", time.monotonic()
                    continue
            elif rates.moved():
                seen, nudges, self._answered = rates.start, 0, None
                next_nudge = now if self._may_type(begun, end) else now + NUDGE_INTERVAL
                continue
            elif now >= next_nudge and self._may_type(begun, end):
                nudges += 1
                self._nudge(nudges, text, other_rate=rates.changed)
                rates.asked()
                next_nudge = now + max(NUDGE_INTERVAL, self._patience.seconds)
            elif now >= next_nudge:
                next_nudge = now + LISTEN
            wake = end if stage is not None else min(next_nudge, rates.next_look, end)
            console.wait_for_data(mark, timeout=wake - now)

    def _take(self, stage: Stage, text: str, end: float) -> int | None:
        """What a prompt that stands there asks for is typed; returns the position after which the
        next one counts, None if it is not for us."""
        if stage in STOPPED:
            raise self._stopped(stage)
        if stage is Stage.FIRMWARE:
            raise LinkLost(
                f"the board waits at its firmware prompt; {self.console.tail()}",
                remedy="boot it (`boot` on the console) or power-cycle it",
            )
        if stage is Stage.PASSWORD:
            if self._answered is Stage.LOGIN and not EXPIRED.search(text):
                return self._answer(stage, end)
            if self._answered is not None:
                raise self._stopped(Stage.PASSWORD_CHANGE)
            return None
        if stage is not Stage.LOGIN:
            return None
        refused = bool(REFUSED.search(text))
        self._refusals += refused
        if self._refusals >= WRONG_LOGINS:
            raise self._login_refused()
        if (refused or self._answered is Stage.LOGIN) and self._settles(end):
            # what was typed answered an earlier prompt: look where it has led
            self._answered = None
            return self.console.mark() - len(self.console.last_line)
        return self._answer(stage, end)

    def _text(self, seen: int) -> str:
        """What came after ``seen``, without kernel messages, nor the beginning of one."""
        start = max(seen, self.console.mark() - _NOTICED)
        text = agent.without_noise(self.console.since(start))
        return re.sub(r"\[ *\d+\.\d*(?:\][^\n]*)?$", "", text)

    def _stopped(self, stage: Stage) -> LinkRefused:
        what, remedy = STOPPED[stage]
        return LinkRefused(f"{what}; nothing was typed; {self.console.tail()}", remedy=remedy)

    def _no_shell(self, stage: Stage | None, told: str) -> LinkError:
        """Why the time is over, from what stands there."""
        tail = self.console.tail()
        if others := self.console.others:
            tail += f"; it is read by others, too, who get a part of it: {', '.join(others)}"
        if stage in ASKING:
            return LinkTimeout(f"{ASKING[stage]}; {tail}", remedy=ANSWERED_BY_HAND)
        if self._answered is not None:
            typed = "user name" if self._answered is Stage.LOGIN else "password"
            return LinkTimeout(
                f"no prompt came within the time given after the {typed} had been typed; {tail}",
                remedy="raise the timeout (timeouts.boot) if this login takes longer; is the prompt"
                " of its shell another than prompts.shell of [serial]?",
            )
        return LinkTimeout(
            f"stage {self.console.stage}, {tail}{told}",
            remedy="check power, TX and RX, baud rate and the prompts in the board file;"
            " see the console log",
        )

    def _nudge(self, number: int, text: str, *, other_rate: bool) -> None:
        """Ask a silent console for its prompt. After some line feeds in vain it is at none: in a
        program, or in a receiver that a killed harness left, which an interrupt makes speak."""
        if _RECEIVER.search(text):
            self.console.write(ERASE_LINE + b"q\n")
        elif self._answered is None and number > (1 if other_rate else 2) and not self._starts():
            self.console.write(INTERRUPT + ERASE_LINE + b"\n")
        else:
            self.console.write(ERASE_LINE + b"\n" if other_rate else b"\n")

    def _starts(self) -> bool:
        return self.console.stage in (Stage.KERNEL, Stage.FIRMWARE)

    def _settles(self, end: float) -> bool:
        """Wait until nothing more comes; False if it goes on."""
        until = min(end, time.monotonic() + LOGIN_ANSWER)
        while time.monotonic() < until:
            mark = self.console.mark()
            if not self.console.wait_for_data(mark, timeout=self._patience.seconds):
                return True
        return False

    def _may_type(self, begun: float, end: float) -> bool:
        """Whether a line feed does no harm: nobody is asked anything else, nobody speaks; it would
        stop a firmware that counts down, and a system that boots is left alone until it has long
        been quiet."""
        now = time.monotonic()
        quiet = now - self._spoke
        if quiet < LISTEN + self.console.wire_time(20):
            return False
        stage = self.console.stage
        if stage is Stage.FIRMWARE:
            return False
        if stage in (Stage.KERNEL, Stage.BOOTING):
            self._answered = None
            longest = max(BOOT_LONGEST, (end - begun) / 2)
            return self.console.quiet_seconds >= BOOT_QUIET or now - begun >= longest
        if self._answered is Stage.LOGIN:
            return quiet >= LOGIN_ANSWER and "\n" not in self._words  # its end of line was lost
        if self._answered is Stage.PASSWORD:
            # it is in, and a message has gone over the shell's prompt
            return quiet >= BOOT_LONGEST and bool(self._words.strip())
        return True

    def _answer(self, prompt: Stage, end: float) -> int:
        """Type user name or password; returns the position after which the next prompt counts:
        one before the echo was printed for an earlier line feed."""
        console, login = self.console, self.console.address.login
        self._answered = prompt
        if prompt is Stage.LOGIN:
            self.logged_in = True
            if not self.type(login.user, end):
                console.write(ERASE_LINE + login.user.encode())
            answered = console.mark()
        else:
            answered = console.mark()
            console.write((login.password or "").encode())
        console.write(b"\n")
        return answered

    def _login_refused(self) -> LinkRefused:
        return LinkRefused(
            f"the login of user {self.console.address.login.user!r} on the console was refused"
            f" {WRONG_LOGINS} times",
            remedy="correct `login` (user, password) of the serial link in the board file",
        )

    def type(self, text: str, end: float) -> bool:
        """Type ``text`` without the end of line; whether its echo came back whole."""
        mark = self.console.mark()
        self.console.write(text.encode())
        return self.shows(lambda shown: text in unwrapped(shown), mark, len(text), end)

    def shows(self, wanted: Callable[[str], bool], mark: int, characters: int, end: float) -> bool:
        """Whether what came after ``mark``, about ``characters``, gets as it is ``wanted``."""
        start = time.monotonic()
        wire = 2 * self.console.wire_time(characters)
        until = start + wire + 2 * self._patience.seconds
        while True:
            now = self.console.mark()
            if wanted(agent.without_noise(self.console.since(mark))):
                self._patience.learn(time.monotonic() - start - wire)
                return True
            if not self.console.wait_for_data(now, timeout=min(until, end) - time.monotonic()):
                if time.monotonic() >= until:
                    self._patience.failed()
                    return False
                if time.monotonic() >= end:
                    return False

    def fresh_prompt(self, end: float) -> bool:
        """Interrupt what runs; whether the shell then shows its prompt, kept in ``prompt_text``."""
        mark = self.console.mark()
        self.console.write(INTERRUPT)
        return self._prompt_follows(mark, end)

    def _prompt_follows(self, mark: int, end: float) -> bool:
        def whole(shown: str) -> bool:
            return "\n" in shown and self.console.reading(shown) is Stage.SHELL

        shown = self.shows(whole, mark, 80, end)
        self.prompt_text = last_line(agent.without_noise(self.console.since(mark)))
        return shown

    def assigns(self, mark: int, end: float) -> bool:
        """Whether the shell answers the assignment typed before ``mark`` with nothing but its
        prompt, as POSIX shells do."""
        if not self._prompt_follows(mark, end):
            return False
        text = agent.without_noise(self.console.since(mark)).replace(self.prompt_text, "")
        return not text.strip()

    def replace_shell(self, end: float) -> None:
        """A login shell that does not take what is typed, or answers otherwise than a POSIX shell,
        is asked for its name and to become `sh`."""
        mark = self.console.mark()
        self.console.write(ERASE_LINE + b"echo shell=$SHELL\n")
        self.shows(lambda shown: bool(_named(shown)), mark, 100, end)
        name = _named(agent.without_noise(self.console.since(mark)))
        if name and not _POSIX.search(name):
            self.foreign_shell = name
        mark = self.console.mark()
        self.console.write(ERASE_LINE + b"exec sh\n")
        self._prompt_follows(mark, end)


def _named(shown: str) -> str:
    found = re.search(r"shell=(/[\w./+-]+)\s", shown)
    return found[1] if found else ""
