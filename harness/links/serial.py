"""The serial link: a shell on a noisy console.

The prompt is used only to log in and to start the receiver (:mod:`harness.links.agent`);
commands, results and files travel in its checked frames.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from shlex import quote

from harness.errors import (
    HilError,
    LinkError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
    OutcomeUnknown,
    SerialDamage,
)
from harness.links import agent, posix
from harness.links.address import SerialAddress
from harness.links.agent import Frame, Kind, Outcome, Tools
from harness.links.console import Console, Stage
from harness.links.fragments import Fragments
from harness.links.patience import Patience
from harness.links.rates import ERASE_LINE, RateSearch, is_garbled
from harness.shell import Result

__all__ = ["Console", "SerialShell", "Stage"]

TRIES = 4  # of one piece before it is made shorter
LOOK_AGAIN = 0.5  # seconds until the result of a command that runs is asked for
NUDGE_INTERVAL = 0.5  # seconds between line feeds to a console that says nothing
# While a system boots, what is typed before it has opened its port may block the port for good
# (seen with QEMU's PL011): only when it has said nothing for so long.
BOOT_QUIET, BOOT_LONGEST = 4.0, 20.0
SHORTEST_PIECE, LONGEST_PIECE = 16, 1024  # characters of a command in one line
SMALLEST_BLOCK, LARGEST_BLOCK = 32, 4096  # bytes of a result in one frame; powers of two
UPLOAD_BLOCK = 1536  # bytes of a file in one command
INLINE_STDIN = 256  # bytes of standard input inside the command
TYPED_PIECE = 24  # characters typed at once at an interactive prompt, echo-checked
WRONG_LOGINS = 4
LOGIN_ANSWER = 5.0  # seconds a login program may take, e.g. to look up the user

_SHORT_FRAME = 24  # characters of an answer without data
_LONG_FRAME = 900  # ... of a result with its first block

_REFUSED = re.compile(r"[Ii]ncorrect|[Ll]ogin failed|denied")

_KILL_LINE = "\x15"
_INTERRUPT = b"\x03"


class SerialShell:
    """:class:`harness.shell.Shell` over a :class:`Console`. Logs in at the first use.

    Processes started by a command find SIGINT and SIGQUIT ignored, as those of any
    background job: a command is ended from outside by its timeout.
    """

    def __init__(self, console: Console, *, login_timeout: float = 30.0) -> None:
        self.console = console
        self.login_timeout = login_timeout
        self.least_timeout = 0.0
        self._owns_console = False
        self._lock = threading.RLock()
        self._directory_name = f"hil-{secrets.token_hex(4)}"
        self._directory = ""
        self._tools = Tools()
        self._attached = False  # the receiver answered and nothing has gone wrong since
        self._logged_in = False
        self.login_baud: int | None = None
        """The rate at which the login succeeded (bit/s); None before."""
        self._directory_state = ""
        self._knowledge_lost = False
        self._prompt_text = ""
        self._number = 0
        self._piece = 96
        self._block = 2048
        self._patience = Patience()
        self._fragments = Fragments(agent.SLOTS)
        self._mark = console.mark()
        self._inbox: deque[Frame] = deque()

    @classmethod
    def open(cls, address: SerialAddress, *, baud: int | None = None) -> SerialShell:
        """Open the device and wrap it; takes and raises the same as :class:`Console`."""
        shell = cls(Console(address, baud=baud))
        shell._owns_console = True
        return shell

    @property
    def name(self) -> str:
        return self.console.name

    def run(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        if "\0" in command:
            raise ValueError("a command line cannot contain NUL")
        timeout = max(timeout, self.least_timeout)
        with self._lock, self._located(command):
            start = time.monotonic()
            deadline = start + timeout
            self._attach(min(deadline, start + self.login_timeout))
            outcome = self._execute(self._with_stdin(command, stdin, deadline), deadline, timeout)
        duration = time.monotonic() - start
        return Result(command, outcome.status, outcome.stdout, outcome.stderr, duration)

    def run_isolated(self, command: str, *, timeout: float = 10.0, stdin: bytes = b"") -> Result:
        """As :meth:`run`, in a session of its own without controlling terminal."""
        line = f"exec $(command -v setsid) sh -c {quote(command)}"
        with self._located(command):
            result = self.run(line, timeout=timeout, stdin=stdin)
        return Result(command, result.status, result.stdout, result.stderr, result.duration)

    def read_file(self, path: str, *, timeout: float = 10.0) -> bytes:
        result = self.run(f"exec cat <{quote(path)}", timeout=timeout)
        if not result.ok:
            raise posix.os_error(result.stderr, path)
        return result.stdout

    def write_file(
        self, path: str, data: bytes, *, mode: int = 0o644, timeout: float = 30.0
    ) -> None:
        timeout = max(timeout, self.least_timeout)
        target = quote(path)
        with self._lock, self._located(f"write {path}"):
            deadline = time.monotonic() + timeout
            self._attach(deadline)
            upload = self._upload(data, deadline, timeout)
            outcome = self._execute(
                f"cat <{upload} >{target} && chmod {mode:o} {target} && cksum <{target};"
                f" r=$?; rm -f {upload}; exit $r",
                deadline,
                timeout,
            )
        if outcome.status != 0:
            raise posix.os_error(outcome.stderr, path)
        if outcome.stdout.split() != f"{posix.cksum(data)} {len(data)}".encode().split():
            raise LinkError(
                f"{path} on the board does not hold what was written",
                remedy="check the free space of that file system and whether something else"
                " writes to the file",
                link=self.name,
            )

    def reconnect(self, *, deadline: float) -> None:
        end = time.monotonic() + deadline
        with self._lock, self._located(None):
            self._attached = False
            if not self.console.alive:
                self.console.reopen(timeout=deadline)
                self._mark = self.console.mark()
            try:
                self._attach(end)
            except (LinkLost, LinkTimeout) as error:
                raise LinkTimeout(
                    f"the board did not come back on the console in time; last: {error.what}",
                    remedy=error.remedy,
                ) from error

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self._attached:
                self._attached = False
                self._write("q")
                self._await(lambda frame: frame.kind is Kind.BYE, time.monotonic() + 0.7)
                if self._logged_in:
                    self.console.write(b"exit\n")
        if self._owns_console:
            self.console.close()

    @contextlib.contextmanager
    def _located(self, command: str | None) -> Iterator[None]:
        try:
            yield
        except HilError as error:
            error.located(link=self.name)
            error.command = command or error.command
            raise

    # frames

    def _wire_time(self, characters: int) -> float:
        return characters * 10 / self.console.address.baud

    def _write(self, *lines: str) -> None:
        self.console.write("".join(f"{line}\n" for line in lines).encode("ascii"))

    def _receive(self, until: float) -> Frame | None:
        """The next frame, or None at the time ``until`` (monotonic seconds)."""
        while not self._inbox:
            mark = self.console.mark()
            found, position = agent.frames(self.console.since(self._mark))
            self._mark += position
            self._inbox.extend(found)
            if not found and not self.console.wait_for_data(mark, timeout=until - time.monotonic()):
                return None
        return self._inbox.popleft()

    def _await(self, wanted: Callable[[Frame], bool], until: float) -> Frame | None:
        while (frame := self._receive(until)) is not None:
            if wanted(frame):
                return frame
        return None

    def _ask(
        self, line: str, wanted: Callable[[Frame], bool], deadline: float, *, characters: int
    ) -> Frame | None:
        """Send ``line`` until a frame is ``wanted``; None after several tries. An answer has up
        to ``characters``. Raises ``SerialDamage`` at the deadline."""
        prefix = ""
        for number in range(TRIES):
            start = time.monotonic()
            if start >= deadline:
                raise SerialDamage(
                    f"the receiver on the board does not answer; {self.console.tail()}",
                    remedy="check cable, baud rate and that nobody else writes to the console",
                )
            self._write(prefix + line)
            wire = self._wire_time(len(line) + characters)
            frame = self._await(wanted, min(start + wire + self._patience.seconds, deadline))
            if frame is not None:
                if number == 0:
                    self._patience.learn(time.monotonic() - start - wire)
                return frame
            self._patience.failed()
            prefix = _KILL_LINE
        return None

    # commands

    def _execute(self, command: str, deadline: float, timeout: float) -> Outcome:
        """Run ``command`` once under a new id and bring its result, however often parts of it
        must be asked for."""
        text = agent.printable(command)
        for fragment in self._fragments.new_in(text):
            self._keep(fragment, deadline)
        before, rest, after = self._fragments.split(text)
        kind, places = ("y", f".{before}.{after}") if before or after else ("x", "")
        self._number += 1
        number = self._number
        line = self._deliver(number, kind, places, rest, deadline)
        self._inbox.clear()
        self._mark = self.console.mark()
        started = False
        unanswered = 0
        sent = time.monotonic()
        self._write(line)
        ask_again = sent + self._patience.seconds + self._wire_time(len(line) + _SHORT_FRAME)
        while True:
            frame = self._receive(min(ask_again, deadline))
            now = time.monotonic()
            if frame is None:
                if now >= deadline:
                    self._interrupt()
                    raise _timed_out(timeout, self.console.tail() if not started else None)
                self._expect_the_same_boot()
                unanswered += 1
                if self._back_at_prompt() or (unanswered % 6 == 0 and not started):
                    self._reattach(deadline)
                    kind, places, rest = "x", "", text
                    line = self._deliver(number, kind, places, rest, deadline)
                self._patience.failed()
                repeated = f"r{number}" if started else line
                self._write(f"{_KILL_LINE}{repeated}")
                ask_again = now + self._patience.seconds + self._wire_time(len(repeated))
                continue
            ask_again = now + self._patience.seconds + self._wire_time(_LONG_FRAME)
            match frame.kind:
                case Kind.STARTED:
                    if not started and unanswered == 0:
                        self._patience.learn(now - sent - self._wire_time(len(line) + 1))
                    started = True
                    ask_again += LOOK_AGAIN
                case Kind.RESULT | Kind.LONG_RESULT:
                    outcome = self._take_result(number, frame, deadline)
                    if outcome is not None:
                        self._piece = min(self._piece + self._piece // 4, LONGEST_PIECE)
                        return outcome
                    self._write(f"{_KILL_LINE}r{number}")
                case Kind.LOST if frame.fields[0] == str(number):
                    raise _unknown("the receiver on the board was killed while the command ran")
                case Kind.UNKNOWN | Kind.DAMAGED if not started:
                    self._shorten_pieces()
                    line = self._deliver(number, kind, places, rest, deadline)
                    self._write(f"{_KILL_LINE}{line}")
                case Kind.UNKNOWN | Kind.DAMAGED | None:
                    self._write(f"{_KILL_LINE}r{number}")

    def _keep(self, fragment: str, deadline: float) -> None:
        """Have the receiver remember ``fragment``."""
        place = self._fragments.free_place()
        self._number += 1
        while True:
            line = self._deliver(self._number, "k", f".{place}", fragment, deadline)
            if self._confirmed(line, deadline):
                self._fragments.keep(place, fragment)
                return

    def _deliver(self, number: int, kind: str, places: str, text: str, deadline: float) -> str:
        """Bring all but the last piece of a text across; returns the line with the last one."""
        packed = self._tools.shorter(text)
        kind, text = (kind, text) if packed is None else (kind.upper(), packed)
        at = index = 0
        while len(text) - at > self._piece:
            size = self._piece
            if self._confirmed(agent.line(f"c{number}.{index}", text[at : at + size]), deadline):
                at += size
                index += 1
        return agent.line(f"{kind}{number}.{index}{places}", text[at:])

    def _confirmed(self, line: str, deadline: float) -> bool:
        """Send a piece until the receiver says that it has it; False after several damages, the
        pieces to come are then shorter. Raises ``SerialDamage`` at the deadline."""
        number, index, *_, digest = line[1:].partition(":")[0].split(".")
        answer = [number, index, digest]
        frame = self._ask(
            line,
            lambda frame: frame.kind in (Kind.DAMAGED, Kind.UNKNOWN) or frame.fields == answer,
            deadline,
            characters=_SHORT_FRAME,
        )
        if frame is not None and frame.kind is Kind.PIECE:
            self._piece = min(self._piece + self._piece // 8, LONGEST_PIECE)
            return True
        self._shorten_pieces()
        return False

    def _shorten_pieces(self) -> None:
        self._piece = max(self._piece // 2, SHORTEST_PIECE)

    def _take_result(self, number: int, frame: Frame, deadline: float) -> Outcome | None:
        """The outcome that a frame tells or announces; None if anything about it is damaged, or
        if it is of an earlier command."""
        found = self._tools.parse_result(frame)
        if found is None or frame.fields[0] != str(number):
            return None
        if isinstance(found, Outcome):
            return found
        blob = self._fetch(number, found.size, deadline)
        return None if blob is None else found.outcome(blob)

    def _fetch(self, number: int, size: int, deadline: float) -> bytes | None:
        """A long result block by block; each is asked for until it is intact. The first comes
        unasked."""
        until = time.monotonic() + self._wire_time(_LONG_FRAME) + self._patience.seconds
        blob = self._await_block(f"{number}.{agent.FIRST_BLOCK}.0", min(until, deadline)) or b""
        while len(blob) < size:
            # blocks are counted from the start of the result
            length = self._block
            while len(blob) % length:
                length //= 2
            block = self._fetch_block(number, length, len(blob) // length, deadline)
            if block is None:
                if time.monotonic() >= deadline:
                    return None
                self._block = max(length // 2, SMALLEST_BLOCK)
                continue
            if not block:
                return None
            blob += block
            if length == self._block:
                self._block = min(2 * self._block, LARGEST_BLOCK)
        return blob

    def _fetch_block(self, number: int, length: int, index: int, deadline: float) -> bytes | None:
        name = f"{number}.{length}.{index}"
        start = time.monotonic()
        self._write(f"{_KILL_LINE}f{name}")
        until = start + self._wire_time(2 * length + _SHORT_FRAME) + self._patience.seconds
        block = self._await_block(name, min(until, deadline))
        if time.monotonic() >= until:
            self._patience.failed()
        return block

    def _await_block(self, name: str, until: float) -> bytes | None:
        """The content of the block ``name``; None if it came damaged or not in time."""
        while (frame := self._receive(until)) is not None:
            if frame.kind is None:
                return None  # the answer, damaged: ask again at once
            if frame.body.startswith(f"B{name}."):
                checksum, _, data = frame.body[len(name) + 2 :].partition(".")
                block = self._tools.decode(data)
                right = block is not None and str(posix.cksum(block)) == checksum
                return block if right else None
        return None

    def _interrupt(self) -> None:
        """End the command that runs; the receiver must prove itself before the next one."""
        self._attached = False
        with contextlib.suppress(LinkError):
            self.console.write(_INTERRUPT)

    def _expect_the_same_boot(self) -> None:
        if self.console.stage is not Stage.SHELL:
            self._attached = False
            raise _unknown(
                f"the board is no longer at its shell but at stage {self.console.stage} (rebooted?)"
            )

    def _reattach(self, deadline: float) -> None:
        """The receiver fell silent while a command was to start: find or start it again."""
        self._knowledge_lost = False
        self._attached = False
        if self._back_at_prompt():
            self._directory = ""  # no need to ask: it has ended
        self._attach(deadline)
        if self._knowledge_lost:
            raise _unknown("the receiver on the board is gone with what it knew")

    def _back_at_prompt(self) -> bool:
        """Whether exactly the prompt from which the receiver was started stands there again."""
        shown = agent.without_noise(self.console.since(self._mark))
        return bool(self._prompt_text) and _last_line(shown) == self._prompt_text

    def _with_stdin(self, command: str, stdin: bytes, deadline: float) -> str:
        if not stdin:
            return command
        path = f"{self._directory}/stdin"
        if len(stdin) <= INLINE_STDIN:
            return f"printf '{posix.octal(stdin)}' >{path} && " + posix.from_file(command, path)
        upload = self._upload(stdin, deadline, deadline - time.monotonic())
        return posix.from_file(command, upload)

    def _upload(self, data: bytes, deadline: float, timeout: float) -> str:
        """Put ``data`` into a file in the receiver's directory; returns its path. Every append
        runs at most once, so the file is exactly the data."""
        path = f"{self._directory}/upload"
        self._execute(f": >{path}", deadline, timeout)
        for at in range(0, len(data), UPLOAD_BLOCK):
            block = data[at : at + UPLOAD_BLOCK]
            if self._tools.base64:
                line = f"printf %s {b64encode(block).decode()} | base64 -d >>{path}"
            else:
                line = f"printf '{posix.octal(block)}' >>{path}"
            outcome = self._execute(line, deadline, timeout)
            if outcome.status != 0:
                raise posix.os_error(outcome.stderr, path)
        return path

    # from a silent line to the receiver

    def _attach(self, end: float) -> None:
        """Make sure that the receiver answers: ask it, else log in and start it.

        Raises ``LinkLost`` when that does not succeed in time (no command was sent),
        ``LinkRefused`` when the login is refused.
        """
        if self._attached and self.console.stage is Stage.SHELL:
            return
        self._attached = False
        if self._directory and self.console.stage is Stage.SHELL and self._ping(end):
            return
        rates = RateSearch(self.console, end=end)
        try:
            # From the log-in again: what stood there may have been the last words of a board
            # that goes down for a reboot.
            self._log_in(end, rates)
            while not self._start_receiver(end):
                self._log_in(end, rates)
            self.login_baud = self.console.address.baud
        except (LinkTimeout, SerialDamage) as error:
            rates.give_up()
            raise LinkLost(
                f"no shell on the console within the time given: {error.what}",
                remedy=error.remedy,
            ) from error

    def _ping(self, end: float) -> bool:
        """Whether the receiver answers; interrupts what may still occupy it."""
        nonces = set()
        for _ in range(5):
            nonces.add(nonce := secrets.token_hex(2))
            self._write(f"{_KILL_LINE}p{nonce}")
            until = time.monotonic() + self._patience.seconds + self._wire_time(80)
            if self._take_pong(self._await_pong(nonces, min(until, end))):
                return True
            if time.monotonic() >= end or self.console.stage is not Stage.SHELL:
                return False
            self.console.write(_INTERRUPT)
            self._patience.failed()
        return False

    def _await_pong(self, nonces: set[str], until: float) -> Frame | None:
        """The answer to one of several questions: a slow target may still be at the first."""
        return self._await(
            lambda frame: frame.kind is Kind.PONG and frame.fields[0] in nonces, until
        )

    def _take_pong(self, frame: Frame | None) -> bool:
        if frame is None or len(frame.fields) != 4:
            return False
        _, self._directory_state, encoding, directory = frame.fields
        if not directory.endswith(f"/{self._directory_name}"):
            self._write(f"{_KILL_LINE}q")  # left by a harness that was killed
            return False
        self._directory = directory
        self._tools = Tools.named(encoding)
        self._attached = True
        return True

    def _log_in(self, end: float, rates: RateSearch) -> None:
        """Reach a shell prompt: what stands on the screen decides what is typed, at once."""
        console = self.console
        seen = console.last_words
        begun = time.monotonic()
        next_nudge = begun if self._may_type(begun) else begun + NUDGE_INTERVAL
        nudges = refusals = 0
        answered: _Prompt | None = None
        while True:
            mark = console.mark()
            text = agent.without_noise(console.since(seen))
            prompt = self._prompt_in(text)
            if prompt is not None:
                rates.answered()
            if prompt is _Prompt.SHELL:
                return
            if prompt is _Prompt.FIRMWARE:
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
            self.console.write(_INTERRUPT + ERASE_LINE + b"q\n")
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

    def _prompt_in(self, text: str) -> _Prompt | None:
        line = _last_line(text)
        prompts = self.console.address.prompts
        for kind, pattern in (
            (_Prompt.PASSWORD, prompts.password),
            (_Prompt.LOGIN, prompts.login),
            (_Prompt.FIRMWARE, prompts.firmware),
            (_Prompt.SHELL, prompts.shell),
        ):
            if line and re.search(pattern, line) and not is_garbled(line.encode("latin-1")):
                return kind
        return None

    def _answer(self, prompt: _Prompt, end: float) -> int:
        """Type user name or password; returns the position after which the next prompt counts:
        one before the echo was printed for an earlier line feed."""
        console, login = self.console, self.console.address.login
        if prompt is _Prompt.LOGIN:
            self._logged_in = True
            if not self._type(login.user, end):
                console.write(_KILL_LINE.encode() + login.user.encode())
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

    def _type(self, text: str, end: float) -> bool:
        """Type ``text`` without the end of line; whether its echo came back whole."""
        mark = self.console.mark()
        self.console.write(text.encode())
        return self._shows(lambda shown: text in shown, mark, len(text), end)

    def _shows(self, wanted: Callable[[str], bool], mark: int, characters: int, end: float) -> bool:
        start = time.monotonic()
        wire = 2 * self._wire_time(characters)
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

    def _start_receiver(self, end: float) -> bool:
        """From a shell prompt to the receiver; False when a step was damaged. Raises LinkTimeout
        at ``end``."""
        if time.monotonic() >= end:
            raise LinkTimeout(
                f"the receiver could not be started; {self.console.tail()}",
                remedy="check cable and baud rate; the account needs a POSIX shell, stty, cksum",
            )
        self._mark = self.console.mark()
        self._inbox.clear()
        if not (self._fresh_prompt(end) and self._type_loader(end) and self._load(end)):
            return False
        self._knowledge_lost = self._directory_state != "old"
        return True

    def _fresh_prompt(self, end: float) -> bool:
        mark = self.console.mark()
        self.console.write(_INTERRUPT)
        shown = self._shows(
            lambda shown: self._prompt_in(shown) is _Prompt.SHELL and "\n" in shown, mark, 80, end
        )
        self._prompt_text = _last_line(agent.without_noise(self.console.since(mark)))
        return shown

    def _type_loader(self, end: float) -> bool:
        """Type the loader into shell variables, each line checked by its echo, and run it."""
        pieces = [
            agent.LOADER[at : at + TYPED_PIECE] for at in range(0, len(agent.LOADER), TYPED_PIECE)
        ]
        names = [f"h{chr(ord('a') + index)}" for index in range(len(pieces))]
        lines = [f"{name}='{piece}'" for name, piece in zip(names, pieces, strict=True)]
        lines.append('sh -c "' + "".join(f"${name}" for name in names) + '"')
        for line in lines:
            while not self._type(line, end):
                while not self._fresh_prompt(end):
                    if time.monotonic() >= end or self.console.stage is not Stage.SHELL:
                        return False
            mark = self.console.mark()
            self.console.write(b"\n")
            if not self._shows(lambda shown: "\n" in shown, mark, 8, end):
                self.console.write(b"\n")
        return True

    def _load(self, end: float) -> bool:
        """Hand the receiver over to the loader and see it start."""
        self._fragments.clear()
        script = agent.script(self._directory_name)
        at = number = 0
        while at < len(script):
            size = self._piece
            line = f"{number}:{script[at : at + size]}"
            echo = self._ask(line, _not_of(number - 1), end, characters=len(line))
            if echo is None:
                return False  # silent, in spite of all patience
            if echo.body == line:
                at += size
                number += 1
                self._piece = min(self._piece + self._piece // 8, LONGEST_PIECE)
            else:
                self._shorten_pieces()
        answers = {"ready"}
        for _ in range(TRIES):
            answers.add(nonce := secrets.token_hex(2))
            self._write(f"{_KILL_LINE}x:", f"{_KILL_LINE}p{nonce}")
            # its start takes some processes
            until = time.monotonic() + self._wire_time(160) + 4 * self._patience.seconds
            if self._take_pong(self._await_pong(answers, min(until, end))):
                return True
            self._patience.failed()
        return False


def _not_of(number: int) -> Callable[[Frame], bool]:
    """Answers of the loader but those to a piece that was sent twice."""
    return lambda frame: not frame.body.startswith(f"{number}:")


def _last_line(text: str) -> str:
    return re.split(r"[\n\r\x1f]", text)[-1]


class _Prompt(Enum):
    PASSWORD = 1
    LOGIN = 2
    FIRMWARE = 3
    SHELL = 4


def _timed_out(timeout: float, silent: str | None) -> LinkTimeout:
    if silent is not None:
        return LinkTimeout(
            f"the console did not answer within {timeout:g} s; {silent}",
            remedy="check that the board is alive; power-cycle it if its console stays silent",
        )
    return LinkTimeout(
        f"no end of the command within {timeout:g} s; it was interrupted",
        remedy="look at the kernel log for why it hangs, or give a longer timeout",
    )


def _unknown(what: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        what,
        remedy="the command may or may not have run and is not repeated: bring the board back and"
        " look at the state it should have changed",
    )
