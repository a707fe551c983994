"""The serial link: a shell on a noisy console.

The prompt is used only to log in and to start the receiver (:mod:`harness.links.agent`);
commands, results and files travel in its checked frames.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from shlex import quote

from harness.errors import (
    HilError,
    LinkError,
    LinkLost,
    LinkTimeout,
    OutcomeUnknown,
    SerialDamage,
)
from harness.links import agent, posix
from harness.links.address import SerialAddress
from harness.links.agent import Frame, Kind, Outcome, Tools
from harness.links.console import Console, Stage
from harness.links.fragments import Fragments
from harness.links.framed import KILL_LINE, LONG_FRAME, SHORT_FRAME, TRIES, Blocks, FramedLine
from harness.links.login import INTERRUPT, ConsoleLogin
from harness.links.rates import RateSearch
from harness.links.reading import last_line
from harness.shell import Result

LOOK_AGAIN = 0.5  # seconds until the result of a command that runs is asked for
SHORTEST_PIECE, LONGEST_PIECE = 16, 1024  # characters of a command in one line
UPLOAD_BLOCK = 1536  # bytes of a file in one command
INLINE_STDIN = 256  # bytes of standard input inside the command
_DIRECTORY = re.compile(r"/(?:run|dev/shm|tmp)/hil-[0-9a-f]{8}")
TYPED_PIECE = 24  # characters typed at once at an interactive prompt, echo-checked


class SerialShell:
    """:class:`harness.shell.Shell` over a :class:`Console`. Logs in at the first use.

    Processes started by a command find SIGINT and SIGQUIT ignored, as those of any
    background job: a command is ended from outside by its timeout.
    """

    def __init__(self, console: Console, *, login_timeout: float = math.inf) -> None:
        self.console = console
        self.login_timeout = login_timeout
        self.least_timeout = 0.0
        self._owns_console = False
        self._lock = threading.RLock()
        self._directory_name = f"hil-{secrets.token_hex(4)}"
        self._directory = ""
        self._tools = Tools()
        self._attached = False  # the receiver answered and nothing has gone wrong since
        self.login_baud: int | None = None
        """The rate at which the login succeeded (bit/s); None before."""
        self._directory_state = ""
        self._knowledge_lost = False
        self._number = 0
        self._piece = 96
        self._line = FramedLine(console)
        self._login = ConsoleLogin(console, self._line.patience)
        self._blocks = Blocks(self._line)
        self._fragments = Fragments(agent.SLOTS)

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
        posix.check_written(path, data, outcome.stdout, link=self.name)

    def reconnect(self, *, deadline: float) -> None:
        end = time.monotonic() + deadline
        with self._lock, self._located(None):
            self._attached = False
            if not self.console.alive:
                self.console.reopen(timeout=deadline)
                self._line.start_afresh()
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
                self._line.write("q")
                self._line.wait(lambda frame: frame.kind is Kind.BYE, time.monotonic() + 0.7)
                if self._login.logged_in:
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
        self._line.start_afresh()
        started = False
        unanswered = 0
        sent = time.monotonic()
        self._line.write(line)
        ask_again = sent + self._line.due(len(line) + SHORT_FRAME)
        while True:
            frame = self._line.receive(min(ask_again, deadline))
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
                self._line.patience.failed()
                repeated = f"r{number}" if started else line
                self._line.write(f"{KILL_LINE}{repeated}")
                ask_again = now + self._line.due(len(repeated))
                continue
            ask_again = now + self._line.due(LONG_FRAME)
            match frame.kind:
                case Kind.STARTED:
                    if not started and unanswered == 0:
                        self._line.patience.learn(
                            now - sent - self.console.wire_time(len(line) + 1)
                        )
                    started = True
                    ask_again += LOOK_AGAIN
                case Kind.RESULT | Kind.LONG_RESULT:
                    outcome = self._take_result(number, frame, deadline)
                    if outcome is not None:
                        self._piece = min(self._piece + self._piece // 4, LONGEST_PIECE)
                        return outcome
                    self._line.write(f"{KILL_LINE}r{number}")
                case Kind.LOST if frame.fields[0] == str(number):
                    raise OutcomeUnknown(
                        "the receiver on the board was killed while the command ran"
                    )
                case Kind.UNKNOWN | Kind.DAMAGED if not started:
                    self._shorten_pieces()
                    line = self._deliver(number, kind, places, rest, deadline)
                    self._line.write(f"{KILL_LINE}{line}")
                case Kind.UNKNOWN | Kind.DAMAGED | None:
                    self._line.write(f"{KILL_LINE}r{number}")

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
        frame = self._line.ask(
            line,
            lambda frame: frame.kind in (Kind.DAMAGED, Kind.UNKNOWN) or frame.fields == answer,
            deadline,
            characters=SHORT_FRAME,
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
        blob = self._blocks.fetch(number, found.size, self._tools, deadline)
        return None if blob is None else found.outcome(blob)

    def _interrupt(self) -> None:
        """End the command that runs; the receiver must prove itself before the next one."""
        self._attached = False
        with contextlib.suppress(LinkError):
            self.console.write(INTERRUPT)

    def _expect_the_same_boot(self) -> None:
        if self.console.stage is not Stage.SHELL:
            self._attached = False
            raise OutcomeUnknown(
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
            raise OutcomeUnknown("the receiver on the board is gone with what it knew")

    def _back_at_prompt(self) -> bool:
        """Whether exactly the prompt from which the receiver was started stands there again."""
        shown = last_line(self._line.unframed)
        return bool(self._login.prompt_text) and shown == self._login.prompt_text

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
            self._login.log_in(end, rates)
            while not self._start_receiver(end):
                self._login.log_in(end, rates)
            self.login_baud = self.console.address.baud
        except (LinkTimeout, SerialDamage) as error:
            rates.give_up()
            raise self._no_shell(error) from error

    def _no_shell(self, error: HilError) -> LinkError:
        if shell := self._login.foreign_shell:
            return LinkLost(
                f"the login shell {shell} is no POSIX shell, and did not become one by `exec sh`;"
                f" {self.console.tail()}",
                remedy="give the account one (`chsh -s /bin/sh`), or log in as another user",
            )
        what, remedy = error.what, error.remedy
        if isinstance(error, SerialDamage) and (others := self.console.others):
            what += f"; it is read by others, too, who get a part of it: {', '.join(others)}"
        return LinkLost(
            f"no shell on the console within the time given: {what}",
            remedy=remedy,
        )

    def _ping(self, end: float) -> bool:
        """Whether the receiver answers; interrupts what may still occupy it."""
        nonces = set()
        for _ in range(5):
            nonces.add(nonce := secrets.token_hex(2))
            self._line.write(f"{KILL_LINE}p{nonce}")
            until = time.monotonic() + self._line.due(80)
            if self._take_pong(self._await_pong(nonces, min(until, end))):
                return True
            if time.monotonic() >= end or self.console.stage is not Stage.SHELL:
                return False
            self.console.write(INTERRUPT)
            self._line.patience.failed()
        return False

    def _await_pong(self, nonces: set[str], until: float) -> Frame | None:
        """The answer to one of several questions: a slow target may still be at the first."""
        return self._line.wait(
            lambda frame: frame.kind is Kind.PONG and frame.fields[0] in nonces, until
        )

    def _take_pong(self, frame: Frame | None) -> bool:
        if frame is None or len(frame.fields) != 4:
            return False
        _, self._directory_state, encoding, directory = frame.fields
        if not directory.endswith(f"/{self._directory_name}"):
            if _DIRECTORY.fullmatch(directory):  # whole: left by a harness that was killed
                self._line.write(f"{KILL_LINE}q")
            return False
        tools = Tools.named(encoding)
        if tools is None:
            return False
        self._directory = directory
        self._tools = tools
        self._attached = True
        return True

    def _start_receiver(self, end: float) -> bool:
        """From a shell prompt to the receiver; False when a step was damaged. Raises LinkTimeout
        at ``end``."""
        if time.monotonic() >= end:
            raise LinkTimeout(
                f"the receiver could not be started; {self.console.tail()}",
                remedy="check cable and baud rate; the account needs a POSIX shell, stty, cksum",
            )
        self._line.start_afresh()
        if not (self._login.fresh_prompt(end) and self._type_loader(end)):
            if self.console.stage is Stage.SHELL:
                self._login.replace_shell(end)
            return False
        if not self._load(end):
            return False
        self._knowledge_lost = self._directory_state != "old"
        return True

    def _type_loader(self, end: float) -> bool:
        """Type the loader into shell variables, each line checked by its echo, and run it."""
        pieces = [
            agent.LOADER[at : at + TYPED_PIECE] for at in range(0, len(agent.LOADER), TYPED_PIECE)
        ]
        names = [f"h{chr(ord('a') + index)}" for index in range(len(pieces))]
        lines = [f"{name}='{piece}'" for name, piece in zip(names, pieces, strict=True)]
        lines.append('sh -c "' + "".join(f"${name}" for name in names) + '"')
        for line in lines:
            tries = 0
            while not self._login.type(line, end):
                tries += 1
                if tries > TRIES:
                    return False
                while not self._login.fresh_prompt(end):
                    if time.monotonic() >= end or self.console.stage is not Stage.SHELL:
                        return False
            mark = self.console.mark()
            self.console.write(b"\n")
            if line is lines[0] and not self._login.assigns(mark, end):
                return False
            if not self._login.shows(lambda shown: "\n" in shown, mark, 8, end):
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
            echo = self._line.ask(line, _not_of(number - 1), end, characters=len(line))
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
            self._line.write(f"{KILL_LINE}x:", f"{KILL_LINE}p{nonce}")
            # its start takes some processes
            until = time.monotonic() + self.console.wire_time(160) + 4 * self._line.patience.seconds
            if self._take_pong(self._await_pong(answers, min(until, end))):
                return True
            self._line.patience.failed()
        return False


def _not_of(number: int) -> Callable[[Frame], bool]:
    """Answers of the loader but those to a piece that was sent twice."""
    return lambda frame: not frame.body.startswith(f"{number}:")


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
