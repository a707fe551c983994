"""U-Boot's command line as a boot stage: reached while it counts down, driven, left again.

It has no checksums: what is typed is checked by its echo, what comes back ends in the status.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

from harness.errors import CommandFailed, LinkTimeout, SerialDamage
from harness.links.console import Console, Stage
from harness.links.patience import Patience
from harness.links.rates import RateSearch
from harness.links.readable import decoded, without_escapes

PIECE = 16  # characters typed at once: the FIFO of a UART that firmware polls
TRIES = 20  # of a line whose echo came damaged
LONGEST_LINE = 200  # characters; CONFIG_SYS_CBSIZE is 256 on small boards

_INTERRUPT = b"\x03"
_COUNTED = re.compile(r":[\s\d\x08]*\n\s*$")  # a count-down that is over; others end their line


@dataclass(frozen=True, slots=True)
class FirmwareResult:
    """What a command printed, and its status: 0 or 1 in U-Boot."""

    command: str
    status: int
    text: str

    def check(self) -> FirmwareResult:
        """Return self; raise :class:`CommandFailed` unless the status is 0."""
        if self.status != 0:
            raise CommandFailed(
                f"the firmware says: {self.text.strip() or f'status {self.status}'}",
                remedy="try it at the prompt with `hil console`",
                status=self.status,
                stdout=self.text.encode("utf-8"),
                stderr=b"",
                command=self.command,
            )
        return self


class FirmwarePrompt:
    """The prompt that ``prompts.firmware`` of the console's address describes, or one that vendors
    are known to have; a count-down is stopped by the key that it names, or ``interrupt_key``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._patience = Patience()

    def reach(self, *, timeout: float, since: int | None = None) -> None:
        """After power on: stop the count-down and wait for the prompt. A count-down before the
        position ``since`` (default: now) of the console is over. Raises ``LinkTimeout``."""
        console = self._console
        deadline = time.monotonic() + timeout
        start = console.mark() if since is None else since
        stopped = -1
        rates = RateSearch(console, end=deadline)
        while not self._stands():
            if rates.moved():
                start, stopped = rates.start, -1
            mark = console.mark()
            shown = decoded(without_escapes(console.since(start)))
            before, _, line = (shown if _COUNTED.search(shown) else shown.rstrip()).rpartition("\n")
            key = console.reader.key_for(line)
            # one key for each count-down: another would be the first of the next command
            if key is not None and len(before) != stopped:
                stopped = len(before)
                console.write(key)
            if not console.wait_for_data(mark, timeout=deadline - time.monotonic()):
                rates.give_up()
                raise LinkTimeout(
                    f"no firmware prompt within {timeout:g} s; stage {console.stage}; "
                    f"{console.tail()}{rates.told}",
                    remedy="is its bootdelay above 0, and serial.prompts.firmware of the board "
                    "file the prompt that it shows? What stops its count-down: interrupt_text and "
                    "interrupt_key",
                    link=console.name,
                )

    def run(self, command: str, *, timeout: float = 10.0) -> FirmwareResult:
        """Run one command line and bring what it prints. Raises ``SerialDamage`` if it cannot be
        typed undamaged (it has not run then), ``LinkTimeout`` if it does not end."""
        nonce = secrets.token_hex(3)
        line = f"{command}; echo {nonce}=$?"
        deadline = time.monotonic() + timeout
        start = self._type_line(line, deadline)
        # its echo has $? where the answer has a number
        answer = re.compile(rf"{nonce}=(\d+)\r*\n")
        while True:
            mark = self._console.mark()
            shown = decoded(without_escapes(self._console.since(start)))
            found = answer.search(shown)
            if found and self._stands():
                text = shown[: found.start()]
                text = text.replace("\r", "").removeprefix("\n")
                return FirmwareResult(command, int(found[1]), text)
            if not self._console.wait_for_data(mark, timeout=deadline - time.monotonic()):
                raise LinkTimeout(
                    f"no end of {command!r} within {timeout:g} s; {self._console.tail()}",
                    remedy="if it starts a system, use boot(); otherwise give a longer timeout",
                    link=self._console.name,
                    command=command,
                )

    def boot(self, command: str = "boot", *, timeout: float = 60.0) -> None:
        """Leave the prompt with a command that starts the system; returns when a kernel or a
        login prompt shows. Raises as :meth:`run`."""
        deadline = time.monotonic() + timeout
        self._type_line(command, deadline)
        while self._console.stage in (Stage.FIRMWARE, Stage.SILENT, Stage.BOOTING):
            mark = self._console.mark()
            if not self._console.wait_for_data(mark, timeout=deadline - time.monotonic()):
                raise LinkTimeout(
                    f"{command!r} started no kernel within {timeout:g} s; {self._console.tail()}",
                    remedy="see what the firmware says above",
                    link=self._console.name,
                    command=command,
                )

    def _stands(self) -> bool:
        """Whether the last line is the prompt."""
        return self._console.reading(decoded(self._console.last_line)) is Stage.FIRMWARE

    def _type_line(self, line: str, deadline: float) -> int:
        """Type a line, each piece checked by its echo, and end it; returns the console's position
        before the answer."""
        if len(line) > LONGEST_LINE or not (line.isascii() and line.isprintable()):
            raise ValueError(f"a line for the firmware has up to {LONGEST_LINE} printable ASCII")
        for _ in range(TRIES):
            if self._typed(line, deadline):
                return self._ended(deadline)
            self._console.write(_INTERRUPT)
            self._await_prompt(min(deadline, time.monotonic() + self._patience.seconds))
        raise SerialDamage(
            f"{line!r} cannot be typed at the firmware prompt; {self._console.tail()}",
            remedy="check cable and baud rate; the command has not been run",
            link=self._console.name,
            command=line,
        )

    def _ended(self, deadline: float) -> int:
        """End the line typed, again only where nothing at all came: the firmware may take an empty
        line for the last command once more. Returns the position before the answer."""
        start = self._console.mark()
        for _ in range(TRIES):
            self._console.write(b"\n")
            until = min(deadline, time.monotonic() + self._patience.seconds)
            if self._console.wait_for_data(start, timeout=until - time.monotonic()):
                break
        return start

    def _typed(self, line: str, deadline: float) -> bool:
        for at in range(0, len(line), PIECE):
            piece = line[at : at + PIECE].encode("ascii")
            mark = self._console.mark()
            start = time.monotonic()
            self._console.write(piece)
            until = min(deadline, start + self._patience.seconds)
            while without_escapes(self._console.since(mark)) != piece:
                now = self._console.mark()
                if not self._console.wait_for_data(now, timeout=until - time.monotonic()):
                    self._patience.failed()
                    return False
            self._patience.learn(time.monotonic() - start)
        return True

    def _await_prompt(self, until: float) -> None:
        while not self._stands():
            mark = self._console.mark()
            if not self._console.wait_for_data(mark, timeout=until - time.monotonic()):
                return
