"""A person, or a pipe, at a board's console."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType
from typing import Final, NoReturn

from harness.errors import HilError, HostError, LinkError, LinkLost
from harness.foreign import Shown, escaped
from harness.lab.adapter import AdapterAbsent
from harness.links.console import Console

ESCAPE: Final = b"\x1d"  # ^]
HINT: Final = "^] leaves; ^] and then b: break, s: SysRq, ?: what else"
MENU: Final = """^] then
  q or ^]  leave (so does ^] alone, after a moment)
  b        send a break
  s KEY    magic SysRq: a break, then KEY (h: the kernel lists the keys)
  l        send ^] itself to the board
  ?        this list
  any other key goes back to the board"""
GRACE: Final = 2.0
"""Seconds after ^] in which a key says what else than to leave."""
LONGEST_ANSWER: Final = 60.0
"""Seconds after the end of a pipe that a board may talk on without being silent."""

_RETRY_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 0.1
_READ_SIZE: Final = 4096
_SHOW_SIZE: Final = 65536
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
# Colour, bracketed paste, hidden cursor, mouse: what a board that died may have left switched on.
_TERMINAL_RESET: Final = b"\x1b[0m\x1b[?25h\x1b[?2004l\x1b[?1000l"


class ConsoleSession:
    """Carries keys to the board and its output to the screen until somebody leaves, a pipe is at
    its end, or :meth:`end` is called.

    ``connect`` opens the console; it is called again when the adapter vanishes, until it is back.
    ``keyboard`` and ``screen`` are file descriptors; messages go to ``sys.stderr``. From a pipe,
    the session ends ``quiet`` seconds after its end and the board's last word, of a board that
    talks on ``longest`` seconds after its end; at once where nothing was sent.
    """

    def __init__(
        self,
        connect: Callable[[], Console],
        *,
        keyboard: int = 0,
        screen: int = 1,
        read_only: bool = False,
        quiet: float = 1.0,
        longest: float = LONGEST_ANSWER,
        patience: float = 10.0,
    ) -> None:
        self._connect = connect
        self._keyboard = keyboard
        self._screen = screen
        self._read_only = read_only
        self._quiet = quiet
        self._longest = longest
        self._patience = patience
        self._interactive = os.isatty(keyboard)
        self._console: Console | None = None
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._was_attached = False
        self._keys = _Keys.BOARD
        self._wake_read, self._wake_write = os.pipe()

    def run(self) -> None:
        """Returns when it is over; raises what ended it. The terminal is as it was before,
        whatever happened."""
        with _signals_as_exceptions(), self._terminal():
            if self._interactive:
                self._tell(HINT)
            carrier = threading.Thread(target=self._carry_output, name="console output")
            carrier.start()
            try:
                if self._interactive:
                    self._carry_keys()
                else:
                    self._carry_pipe()
            finally:
                self._over.set()
                carrier.join()
        if self._error is not None:
            raise self._error

    def end(self, error: BaseException | None = None) -> None:
        """End the session from any thread; :meth:`run` raises ``error``."""
        self._error = self._error or error
        self._over.set()
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    # --- from the board -----------------------------------------------------------------------

    def _carry_output(self) -> None:
        try:
            while not self._over.is_set():
                self._console = self._attach()
                if self._console is not None:
                    self._show_until_lost(self._console)
        except BaseException as error:  # whatever it is, it is told where `run` was called
            self.end(error)
        finally:
            if self._console is not None:
                self._console.close()

    def _attach(self) -> Console | None:
        """The console, as soon as it can be opened; None when the session is over before."""
        told = ""
        begun = time.monotonic()
        while not self._over.is_set():
            try:
                console = self._connect()
            except (HostError, LinkError) as error:
                if not self._may_wait(error, time.monotonic() - begun):
                    raise
                if told != error.what:
                    told = error.what
                    self._tell(f"{told}; waiting for it")
                self._over.wait(_RETRY_SECONDS)
            else:
                if told:
                    self._tell(f"{console.address} is there")
                self._was_attached = True
                return console
        return None

    def _may_wait(self, error: HilError, waited: float) -> bool:
        """A person decides how long. A busy or forbidden port is no adapter that comes and goes,
        unless it was open before: then udev may not be through with it."""
        comes_and_goes = self._was_attached or isinstance(error, AdapterAbsent)
        return comes_and_goes and (self._interactive or waited < self._patience)

    def _show_until_lost(self, console: Console) -> None:
        shown = 0
        try:
            while not self._over.is_set():
                if console.wait_for_data(shown, timeout=_LOOK_SECONDS):
                    data, shown = console.read(shown, _SHOW_SIZE)
                    self._show(data)
            self._show(console.since(shown))
        except LinkLost as error:
            self._console = None
            console.close()
            self._tell(error.what)

    def _show(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._screen, data) :]

    # --- to the board -------------------------------------------------------------------------

    def _carry_pipe(self) -> None:
        """Everything, in order; what the adapter took when it vanished is sent again."""
        unsent = b""
        longest = 0.0  # where nothing was sent, nothing is answered
        ended: float | None = None
        while not self._over.is_set():
            console = self._console
            if console is None or ended is not None:
                self._over.wait(_LOOK_SECONDS)
            elif not unsent and self._readable(_LOOK_SECONDS):
                unsent = os.read(self._keyboard, _READ_SIZE)
                ended = None if unsent else time.monotonic()
                longest = self._longest if unsent else longest
            if console is not None and unsent and self._send(unsent):
                unsent = b""
            if console is not None and ended is not None:
                waited = time.monotonic() - ended
                silent = console.quiet_seconds >= self._quiet and console.alive
                if waited >= self._quiet and (silent or waited >= longest):
                    return

    def _carry_keys(self) -> None:
        while not self._over.is_set():
            menu = self._keys is _Keys.MENU
            if self._readable(GRACE if menu else None):
                data = self._read_keys()
                if not data:
                    return  # the terminal is gone
                self._typed(data)
            elif menu:
                return

    def _readable(self, timeout: float | None) -> bool:
        ready, _, _ = select.select([self._keyboard, self._wake_read], [], [], timeout)
        return self._keyboard in ready

    def _read_keys(self) -> bytes:
        with contextlib.suppress(OSError):
            return os.read(self._keyboard, _READ_SIZE)
        return b""

    def _typed(self, data: bytes) -> None:
        while data and not self._over.is_set():
            if self._keys is _Keys.BOARD:
                plain, escape, data = data.partition(ESCAPE)
                if plain:
                    self._send(plain)
                if escape:
                    self._keys = _Keys.MENU
                    self._tell("leaving; b: break, s: SysRq, ?: what else, other keys: stay")
                continue
            key, data = data[:1], data[1:]
            keys, self._keys = self._keys, _Keys.BOARD
            if keys is _Keys.SYSRQ:
                self._sysrq(key)
            else:
                self._command(key)

    def _command(self, key: bytes) -> None:
        match key:
            case b"q" | b"Q" | b"\x1d":
                self.end()
            case b"b":
                self._break()
            case b"s":
                self._keys = _Keys.SYSRQ
                self._tell("SysRq: which key? (h: the kernel lists them, Escape: none)")
            case b"l":
                self._send(ESCAPE)
            case b"?" | b"h":
                self._tell(Shown(MENU.replace("\n", "\r\n")))
            case _:
                self._tell("back at the board")

    def _break(self) -> None:
        if self._may_write():
            with contextlib.suppress(LinkLost):
                self._live().send_break()
                self._tell("break sent")

    def _sysrq(self, key: bytes) -> None:
        if b"0" <= key <= b"z" and self._may_write():
            with contextlib.suppress(LinkLost):
                self._live().sysrq(key.decode("ascii"))
                self._tell(f"SysRq {key.decode('ascii')} sent")

    def _send(self, data: bytes) -> bool:
        if self._may_write():
            with contextlib.suppress(LinkLost):
                self._live().write(data)
                return True
        return self._read_only

    def _may_write(self) -> bool:
        if self._read_only:
            self._tell("only watching (--read-only): nothing was sent")
        return not self._read_only

    def _live(self) -> Console:
        console = self._console
        if console is None:
            raise LinkLost("the adapter is gone", remedy="it is waited for")
        return console

    # --- the terminal -------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        shown = escaped(text)
        message = f"\r\n[hil: {shown}]\r\n" if self._interactive else f"hil: {shown}\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Raw for as long as it lasts: ^C is the board's."""
        if not self._interactive:
            yield
            return
        saved = termios.tcgetattr(self._keyboard)
        try:
            tty.setraw(self._keyboard, termios.TCSANOW)
            yield
        finally:
            # It may be gone, and then nobody needs it back.
            with contextlib.suppress(OSError, termios.error):
                if os.isatty(self._screen):
                    self._show(_TERMINAL_RESET)
                termios.tcsetattr(self._keyboard, termios.TCSANOW, saved)


class _Keys(Enum):
    """Whom the next key is for."""

    BOARD = 1
    MENU = 2
    SYSRQ = 3


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception would, exit status 128 and the number."""

    def raise_it(number: int, frame: FrameType | None) -> NoReturn:
        for later in _ENDING:  # one is enough: the clean-up is not to be interrupted
            signal.signal(later, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, raise_it) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
