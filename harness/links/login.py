"""From a silent console to a shell prompt."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from enum import Enum

from harness.errors import LinkLost, LinkRefused, LinkTimeout
from harness.links import agent
from harness.links.console import Console, Stage
from harness.links.patience import Patience
from harness.links.rates import ERASE_LINE, RateSearch
from harness.links.readable import is_garbled

NUDGE_INTERVAL = 0.5  # seconds between line feeds to a console that says nothing
# While a system boots, what is typed before it has opened its port may block the port for good
# (seen with QEMU's PL011): only when it has said nothing for so long.
BOOT_QUIET, BOOT_LONGEST = 4.0, 20.0
WRONG_LOGINS = 4
LOGIN_ANSWER = 5.0  # seconds a login program may take, e.g. to look up the user
INTERRUPT = b"\x03"

_REFUSED = re.compile(r"[Ii]ncorrect|[Ll]ogin failed|denied")


class Prompt(Enum):
    PASSWORD = 1
    LOGIN = 2
    FIRMWARE = 3
    SHELL = 4


class ConsoleLogin:
    """Logs in on ``console``; what it learns of the far end's speed goes to ``patience``."""

    def __init__(self, console: Console, patience: Patience) -> None:
        self.console = console
        self._patience = patience
        self.logged_in = False
        """Whether a user name was typed: then somebody must log out."""
        self.prompt_text = ""
        """The last fresh prompt."""

    def log_in(self, end: float, rates: RateSearch) -> None:
        """Reach a shell prompt: what stands on the screen decides what is typed, at once."""
        console = self.console
        seen = console.last_words
        begun = time.monotonic()
        next_nudge = begun if self._may_type(begun) else begun + NUDGE_INTERVAL
        nudges = refusals = 0
        answered: Prompt | None = None
        while True:
            mark = console.mark()
            text = agent.without_noise(console.since(seen))
            prompt = self._prompt_in(text)
            if prompt is not None:
                rates.answered()
            if prompt is Prompt.SHELL:
                return
            if prompt is Prompt.FIRMWARE:
                raise LinkLost(
                    f"the board waits at its firmware prompt; {console.tail()}",
                    remedy="boot it (`boot` on the console) or power-cycle it",
                )
            if prompt is not None:
                refused = bool(_REFUSED.search(text))
                refusals += refused
                if refusals >= WRONG_LOGINS:
                    raise self._login_refused()
                if (refused or answered is prompt) and self._settles(end):
                    # what was typed answered an earlier prompt: look where it has led
                    seen = console.mark() - len(console.last_line)
                    answered = None
                    continue
                answered = prompt
                nudges = 0
                next_nudge = time.monotonic() + LOGIN_ANSWER
                seen = self._answer(prompt, end)
                continue
            now = time.monotonic()
            if now >= end:
                raise LinkTimeout(
                    f"stage {console.stage}, {console.tail()}{rates.told}",
                    remedy="check power, TX and RX, baud rate and the prompts in the board file;"
                    " see the console log",
                )
            if rates.moved():
                seen = rates.start
                answered = None
                nudges = 0
                next_nudge = now if self._may_type(begun) else now + NUDGE_INTERVAL
                continue
            if now >= next_nudge:
                if self._may_type(begun):
                    nudges += 1
                    self._nudge(nudges, other_rate=rates.changed)
                    rates.asked()
                next_nudge = now + max(NUDGE_INTERVAL, self._patience.seconds)
            console.wait_for_data(mark, timeout=min(next_nudge, rates.next_look, end) - now)

    def _nudge(self, number: int, *, other_rate: bool) -> None:
        """Ask a silent console for its prompt. After some line feeds in vain it is at none: in a
        program, or in a receiver that a killed harness left."""
        stuck = number > (1 if other_rate else 2) and self.console.stage is not Stage.KERNEL
        if stuck:
            self.console.write(INTERRUPT + ERASE_LINE + b"q\n")
        else:
            self.console.write(ERASE_LINE + b"\n" if other_rate else b"\n")

    def _settles(self, end: float) -> bool:
        """Wait until nothing more comes; False if it goes on."""
        until = min(end, time.monotonic() + LOGIN_ANSWER)
        while time.monotonic() < until:
            mark = self.console.mark()
            if not self.console.wait_for_data(mark, timeout=self._patience.seconds):
                return True
        return False

    def _may_type(self, begun: float) -> bool:
        """Whether a line feed does no harm: it would stop a firmware that counts down, and a
        system that boots is left alone until it has long been quiet."""
        match self.console.stage:
            case Stage.FIRMWARE:
                return False
            case Stage.KERNEL | Stage.BOOTING:
                waited = time.monotonic() - begun
                return self.console.quiet_seconds >= BOOT_QUIET or waited >= BOOT_LONGEST
            case _:
                return True

    def _prompt_in(self, text: str) -> Prompt | None:
        line = last_line(text)
        prompts = self.console.address.prompts
        for kind, pattern in (
            (Prompt.PASSWORD, prompts.password),
            (Prompt.LOGIN, prompts.login),
            (Prompt.FIRMWARE, prompts.firmware),
            (Prompt.SHELL, prompts.shell),
        ):
            if line and re.search(pattern, line) and not is_garbled(line.encode("latin-1")):
                return kind
        return None

    def _answer(self, prompt: Prompt, end: float) -> int:
        """Type user name or password; returns the position after which the next prompt counts:
        one before the echo was printed for an earlier line feed."""
        console, login = self.console, self.console.address.login
        if prompt is Prompt.LOGIN:
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
        return self.shows(lambda shown: text in shown, mark, len(text), end)

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
        shown = self.shows(
            lambda shown: self._prompt_in(shown) is Prompt.SHELL and "\n" in shown, mark, 80, end
        )
        self.prompt_text = last_line(agent.without_noise(self.console.since(mark)))
        return shown


def last_line(text: str) -> str:
    return re.split(r"[\n\r\x1f]", text)[-1]
