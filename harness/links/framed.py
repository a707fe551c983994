"""The receiver's frames (:mod:`harness.links.agent`) on a console: asked for and waited for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from harness.errors import OutputWithoutEnd, SerialDamage
from harness.links import agent, posix
from harness.links.agent import Frame, Tools
from harness.links.channel import OUTPUT_LIMIT
from harness.links.console import Console
from harness.links.patience import Patience

SMALLEST_BLOCK, LARGEST_BLOCK = 32, 4096  # bytes of a result in one frame; powers of two
SHORT_FRAME = 24  # characters of an answer without data
LONG_FRAME = 900  # ... of a result with its first block
WINDOW = 64 << 10  # bytes of the console in which frames are looked for at once
TRIES = 4  # of one line before it is given up
KILL_LINE = "\x15"


class FramedLine:
    """Lines to the receiver, frames from it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.patience = Patience()
        self._inbox: deque[Frame] = deque()
        self._position = console.mark()

    def start_afresh(self) -> None:
        """What has come so far is of no interest."""
        self._inbox.clear()
        self._position = self.console.mark()

    @property
    def unframed(self) -> str:
        """What came after the last frame that was looked at."""
        return agent.without_noise(self.console.since(self._position))

    def due(self, characters: int) -> float:
        """Seconds until an answer is given up, ``characters`` being on the wire both ways."""
        return self.patience.seconds + self.console.wire_time(characters)

    def write(self, *lines: str) -> None:
        self.console.write("".join(f"{line}\n" for line in lines).encode("ascii"))

    def receive(self, until: float) -> Frame | None:
        """The next frame, or None at the time ``until`` (monotonic seconds)."""
        while not self._inbox:
            data, end = self.console.read(self._position, WINDOW)
            found, used = agent.frames(data)
            self._inbox.extend(found)
            self._position = end - len(data) + used
            if found:
                break
            if len(data) == WINDOW:  # no frame is as long: a board that babbles
                self._position = end - WINDOW // 2
                if time.monotonic() >= until:
                    return None
            elif not self.console.wait_for_data(end, timeout=until - time.monotonic()):
                return None
        return self._inbox.popleft()

    def wait(self, wanted: Callable[[Frame], bool], until: float) -> Frame | None:
        while (frame := self.receive(until)) is not None:
            if wanted(frame):
                return frame
        return None

    def ask(
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
            self.write(prefix + line)
            wire = self.console.wire_time(len(line) + characters)
            frame = self.wait(wanted, min(start + wire + self.patience.seconds, deadline))
            if frame is not None:
                if number == 0:
                    self.patience.learn(time.monotonic() - start - wire)
                return frame
            self.patience.failed()
            prefix = KILL_LINE
        return None


class Blocks:
    """Long results, in blocks as large as the line bears."""

    def __init__(self, line: FramedLine) -> None:
        self._line = line
        self._size = 2048

    def fetch(self, number: int, size: int, tools: Tools, deadline: float) -> bytes | None:
        """A long result block by block; each is asked for until it is intact. The first comes
        unasked. Raises :class:`OutputWithoutEnd` for one above :data:`OUTPUT_LIMIT`."""
        if size > OUTPUT_LIMIT:
            raise OutputWithoutEnd("the command", OUTPUT_LIMIT)
        until = time.monotonic() + self._line.due(LONG_FRAME)
        blob = (
            self._await_block(f"{number}.{agent.FIRST_BLOCK}.0", tools, min(until, deadline)) or b""
        )
        while len(blob) < size:
            # blocks are counted from the start of the result
            length = self._size
            while len(blob) % length:
                length //= 2
            block = self._fetch_block(number, length, len(blob) // length, tools, deadline)
            if block is None:
                if time.monotonic() >= deadline:
                    return None
                self._size = max(length // 2, SMALLEST_BLOCK)
                continue
            if not block:
                return None
            blob += block
            if length == self._size:
                self._size = min(2 * self._size, LARGEST_BLOCK)
        return blob

    def _fetch_block(
        self, number: int, length: int, index: int, tools: Tools, deadline: float
    ) -> bytes | None:
        name = f"{number}.{length}.{index}"
        start = time.monotonic()
        self._line.write(f"{KILL_LINE}f{name}")
        until = start + self._line.due(2 * length + SHORT_FRAME)
        block = self._await_block(name, tools, min(until, deadline))
        if time.monotonic() >= until:
            self._line.patience.failed()
        return block

    def _await_block(self, name: str, tools: Tools, until: float) -> bytes | None:
        """The content of the block ``name``; None if it came damaged or not in time."""
        while (frame := self._line.receive(until)) is not None:
            if frame.kind is None:
                return None  # the answer, damaged: ask again at once
            if frame.body.startswith(f"B{name}."):
                checksum, _, data = frame.body[len(name) + 2 :].partition(".")
                block = tools.decode(data)
                right = block is not None and str(posix.cksum(block)) == checksum
                return block if right else None
        return None
