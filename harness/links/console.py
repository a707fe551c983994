"""A serial console: one reader thread, everything captured with time stamps, the boot stage."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import (
    ConfigurationError,
    HilError,
    HostError,
    LinkLost,
    LinkRefused,
    LinkTimeout,
)
from harness.foreign import escaped
from harness.links.address import SerialAddress
from harness.links.capture import FIRMWARE_START, Capture
from harness.links.device import check_device, holders_of, others_with
from harness.links.readable import decoded, without_escapes
from harness.links.reading import RESCUE, RESCUED, Reader
from harness.links.reading import Stage as Stage

if TYPE_CHECKING:
    from serial import Serial

KEEP = 4 << 20  # bytes of console output held in memory
WRITE_TIMEOUT = 5.0  # seconds until an adapter that takes no bytes is given up
_NEAR = 600  # bytes before the last line in which a prompt is looked for
# seconds that pyserial may wait for an RFC 2217 server to take a rate, and the former one again
_RATE_NEGOTIATION = 6.0
_WAKE = 0.2  # seconds between looks at the stop flag where a read cannot be cancelled

_FIRMWARE_LATER = re.compile(rb"^[IDM]/TC:|NOTICE: +BL3|^(?:DRAM|MMC|Hit any key)")
_SYSTEM = re.compile(rb"^\[  OK  \]|^\s*Starting .*\.\.\.\s*$|^Welcome to |^INIT: |: Run /s?b?init")
_KERNEL_START = re.compile(rb"Starting kernel|Booting Linux|Linux version \d|^\[ {4}0\.0+\] ")


class Console:
    """An open serial console. The device is opened exclusively, at construction.

    Raises ``HostError`` (device missing, no permission, no terminal), ``LinkRefused`` (busy;
    says who holds it), ``ConfigurationError`` (malformed URL).
    """

    def __init__(self, address: SerialAddress, *, baud: int | None = None) -> None:
        """``baud`` is the rate (bit/s) where it is known to be another than the address says."""
        self.address = replace(address, baud=baud or address.baud)
        self.configured_baud = address.baud
        self._proved_bauds: list[int] = []
        self.reader = Reader(address.prompts)
        self._news = threading.Condition()
        self._data = bytearray()
        self._dropped = 0
        self._stage = Stage.SILENT
        self._rescue = False
        self._heard = time.monotonic()
        self._line = b""
        self._boot_began = 0
        self._rate_began = 0
        self._failure: BaseException | None = None
        self._stopping = False
        self._writing = threading.Lock()
        self._capture = Capture(address.capture) if address.capture else None
        self._port: Serial | None = None
        self._reader: threading.Thread | None = None
        self.reopen()

    @property
    def name(self) -> str:
        return f"serial {self.address}"

    @property
    def stage(self) -> Stage:
        """The last stage its output showed; ``SILENT`` while nothing was received."""
        return self._stage

    @property
    def last_line(self) -> bytes:
        """The unfinished line, without escape sequences: where a prompt stands."""
        return self._line

    @property
    def last_words(self) -> int:
        """The position from which a prompt may still stand, on the last line or under kernel
        messages: near the end, of this boot and at this rate."""
        with self._news:
            line = self._dropped + len(self._data) - len(self._line)
            begun = max(self._boot_began, self._rate_began, self._dropped)
            return min(line, max(line - _NEAR, begun))

    @property
    def quiet_seconds(self) -> float:
        """How long nothing has been received."""
        return time.monotonic() - self._heard

    @property
    def others(self) -> list[str]:
        """Who else reads this device, as far as this user may see: named, with what ends it."""
        return [] if "://" in self.address.url else others_with(self.address.url)

    @property
    def proved_bauds(self) -> list[int]:
        """The rates at which something readable came, the last one first (bit/s)."""
        return self._proved_bauds

    def heard_at_this_rate(self) -> None:
        """Something readable came at the present rate."""
        baud = self.address.baud
        self._proved_bauds = [baud, *(one for one in self._proved_bauds if one != baud)]

    def wire_time(self, characters: int) -> float:
        """Seconds that they take at the present rate."""
        return characters * 10 / self.address.baud

    @property
    def rate_change_seconds(self) -> float:
        """How long :meth:`change_rate` may take."""
        return _RATE_NEGOTIATION if self.address.url.startswith("rfc2217:") else 0.0

    def change_rate(self, baud: int) -> None:
        """Go on at ``baud`` bit/s; what stood there at the former rate no longer counts. Raises
        ``LinkRefused`` where no rate can be set or this one is not taken (the former one holds
        then), ``LinkLost`` when the adapter is gone."""
        if self.address.url.startswith("socket:"):
            raise LinkRefused(
                "a socket:// console does not set the rate, its serial server does",
                remedy="set the rate at the serial server, or use its rfc2217:// port",
                link=self.name,
            )
        with self._news:  # what comes from now on is of the new rate
            self._set_rate(baud)
            self.address = replace(self.address, baud=baud)
            self._line = b""
            self._rate_began = self._dropped + len(self._data)
            if self._stage in (Stage.LOGIN, Stage.PASSWORD, Stage.SHELL):
                self._stage = Stage.SILENT
            elif self._stage is Stage.FIRMWARE:
                self._stage = Stage.BOOTING  # it has handed over to what speaks at another rate

    def _set_rate(self, baud: int) -> None:
        import termios

        import serial

        port = self._port
        try:
            port = self._live_port()
            port.baudrate = baud
        except (serial.SerialException, ValueError, OSError, termios.error) as error:
            server = self.address.url.startswith("rfc2217:")
            if port is None or not (server or isinstance(error, ValueError)):
                raise self._lost(error) from error
            with contextlib.suppress(serial.SerialException, ValueError, OSError):
                port.baudrate = self.address.baud
            raise LinkRefused(
                f"{self.address} does not take {baud} baud ({error})",
                remedy="set the rate at the serial server" if server else "use another adapter",
                link=self.name,
            ) from error

    def expect_boot(self) -> None:
        """The board's power was just switched: nothing is known until it speaks again, and
        nothing should be typed before that."""
        with self._news:
            self._stage = Stage.BOOTING
            self._rescue = False
            self._line = b""
            self._boot_began = self._dropped + len(self._data)
            self._heard = time.monotonic()

    def mark(self) -> int:
        """The number of bytes received so far: a position for :meth:`since`."""
        with self._news:
            return self._dropped + len(self._data)

    def since(self, mark: int) -> bytes:
        """Everything received after ``mark`` (at most the last 4 MiB)."""
        with self._news:
            return bytes(self._data[max(0, mark - self._dropped) :])

    def read(self, mark: int, most: int) -> tuple[bytes, int]:
        """Up to ``most`` bytes after ``mark``, or after the oldest that is kept, and the position
        behind them."""
        with self._news:
            start = max(mark, self._dropped)
            data = bytes(self._data[start - self._dropped :][:most])
            return data, start + len(data)

    def text_since(self, mark: int) -> bytes:
        """As :meth:`since`, without escape sequences."""
        return without_escapes(self.since(mark))

    def write(self, data: bytes) -> None:
        """Send bytes as they are. Raises ``LinkLost`` when the adapter is gone."""
        import serial

        try:
            with self._writing:
                self._live_port().write(data)
        except (serial.SerialException, OSError) as error:
            raise self._lost(error) from error

    def wait_for_data(self, mark: int, *, timeout: float) -> bool:
        """Wait until more than ``mark`` bytes have been received; False at the timeout.

        Raises ``LinkLost`` when the adapter is gone.
        """
        with self._news:
            self._news.wait_for(
                lambda: self._failure is not None or self._dropped + len(self._data) > mark,
                max(0.0, timeout),
            )
            if self._dropped + len(self._data) > mark:
                return True
            if self._failure is not None:
                raise self._lost(self._failure)
            return False

    def wait_for(self, pattern: str, *, timeout: float, since: int | None = None) -> str:
        """Wait until ``pattern`` (regular expression, escape sequences removed) appears after
        ``since`` (default: now); returns the match. Raises ``LinkTimeout`` with the last lines,
        ``LinkLost`` when the adapter is gone."""
        deadline = time.monotonic() + timeout
        start = self.mark() if since is None else since
        compiled = re.compile(pattern, re.M)
        while True:
            mark = self.mark()
            found = compiled.search(decoded(without_escapes(self.since(start))))
            if found:
                return found[0]
            if not self.wait_for_data(mark, timeout=deadline - time.monotonic()):
                raise LinkTimeout(
                    f"the console did not show {pattern!r} within {timeout:g} s; {self.tail()}",
                    remedy=_silence_remedy(self.address, silent=self.mark() == 0),
                    link=self.name,
                )

    def tail(self, lines: int = 4) -> str:
        """The last lines, for messages."""
        text = without_escapes(self.since(self.mark() - 2000)).decode("utf-8", "backslashreplace")
        last = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
        shown = " | ".join(escaped(line, most=200) for line in last)
        return f"last lines: {shown}" if last else "it is silent"

    def send_break(self, *, duration: float = 0.25) -> None:
        """Hold the line in break state for ``duration`` seconds. Raises ``LinkLost``."""
        import serial

        try:
            self._live_port().send_break(duration)
        except (serial.SerialException, OSError) as error:
            raise self._lost(error) from error

    def sysrq(self, key: str) -> None:
        """Magic SysRq over serial: break, then ``key`` (K6 drivers/tty/serial/serial_core.h,
        within 5 s). The kernel needs ``CONFIG_MAGIC_SYSRQ_SERIAL``."""
        self.send_break()
        self.write(key.encode("ascii"))

    def reopen(self, *, timeout: float = 0.0) -> None:
        """Open the device again; an adapter that vanished with the board's power is waited for
        ``timeout`` seconds. Raises as the constructor."""
        deadline = time.monotonic() + timeout
        self._stop()
        while True:
            try:
                self._port, waiting = _open(self.address)
                break
            except HilError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)
        self._failure = None
        self._stopping = False
        if waiting:
            self._received(waiting)
        self._reader = threading.Thread(
            target=self._read_all, args=(self._port,), name=self.name, daemon=True
        )
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._failure is None and self._port is not None

    def close(self) -> None:
        """Stop the reader and give the device back; never raises."""
        self._stop()
        if self._capture:
            self._capture.close()

    def _stop(self) -> None:
        port, self._port = self._port, None
        if port is None:
            return
        self._stopping = True
        with contextlib.suppress(Exception):
            port.cancel_read()
        if self._reader and self._reader is not threading.current_thread():
            self._reader.join(2 * _WAKE)
        with contextlib.suppress(Exception):
            port.close()

    def _live_port(self) -> Serial:
        if self._port is None:
            raise OSError(errno.EBADF, "the console is closed")
        return self._port

    def _lost(self, error: BaseException) -> LinkLost:
        return LinkLost(
            f"the serial device {self.address} is gone or takes no bytes ({error})",
            remedy="check the adapter's cable and whether it draws its power from the board",
            link=self.name,
        )

    def _read_all(self, port: Serial) -> None:
        try:
            while not self._stopping:
                data = port.read(1)
                if data:
                    waiting = port.in_waiting
                    self._received(data + port.read(waiting) if waiting else data)
        except BaseException as error:  # every failure must reach the waiting threads
            with self._news:
                if not self._stopping:
                    self._failure = error
                self._news.notify_all()

    def _received(self, data: bytes) -> None:
        if self._capture:  # first: who waits for these bytes may close the console
            self._capture.write(data)
        with self._news:
            self._data += data
            self._heard = time.monotonic()
            surplus = len(self._data) - KEEP
            if surplus > KEEP // 4:
                del self._data[:surplus]
                self._dropped += surplus
            self._track(data)
            self._news.notify_all()

    def _track(self, data: bytes) -> None:
        *lines, last = (self._line + data).split(b"\n")
        end = self._dropped + len(self._data) - len(last) - sum(len(line) + 1 for line in lines)
        for line in lines:
            end += len(line) + 1
            if self._track_line(line):
                self._boot_began = end
        self._line = without_escapes(last[-4096:])
        shown = decoded(self._line)
        waiting = self.reading(shown)
        if waiting is not None:
            self._stage = waiting
            self._rescue = self._rescue and waiting not in (Stage.LOGIN, Stage.PASSWORD)
        elif self.reader.key_for(shown) is not None:
            self._stage = Stage.FIRMWARE

    def reading(self, shown: str) -> Stage | None:
        """What waits for input where ``shown`` ends, at the place that the board is in."""
        firmware = self._stage is Stage.FIRMWARE
        return self.reader.waiting(shown, firmware=firmware, rescue=self._rescue)

    def _track_line(self, line: bytes) -> bool:
        """Whether a boot, or its next part, begins with this line."""
        began = self._began(line)
        if began or RESCUED.search(line):
            self._rescue = False
        elif RESCUE.search(line):
            self._rescue = True
        if self._stage in (Stage.MENU, Stage.QUESTION) and line.strip():
            self._stage = Stage.BOOTING  # answered, by somebody
        return began

    def _began(self, line: bytes) -> bool:
        if FIRMWARE_START.search(line):
            self._stage = Stage.FIRMWARE
            return True
        if _KERNEL_START.search(line):
            self._stage = Stage.KERNEL
            return True
        if self._stage in (Stage.SILENT, Stage.BOOTING) and _FIRMWARE_LATER.search(line):
            self._stage = Stage.FIRMWARE
        elif self._stage is Stage.FIRMWARE and _SYSTEM.search(line):
            self._stage = Stage.KERNEL  # one that said nothing while it began
        return False


def _silence_remedy(address: SerialAddress, *, silent: bool) -> str:
    if silent:
        return (
            f"nothing at all was received: check that the board has power, that TX and RX are not"
            f" swapped, that {address.url} is the right adapter and that {address.baud} baud is"
            " the board's rate"
        )
    return (
        f"if the last lines are unreadable, {address.baud} baud is the wrong rate; otherwise see"
        " where the boot stopped"
    )


def _open(address: SerialAddress) -> tuple[Serial, bytes]:
    """The open port, and what it had received before."""
    import serial

    local = "://" not in address.url
    if local:
        check_device(address)
    waiting = _waiting(address.url) if local else b""
    try:
        port = serial.serial_for_url(
            address.url,
            baudrate=address.baud,
            timeout=None if local else _WAKE,
            # RFC 2217 acknowledges, and pyserial refuses a second limit there
            write_timeout=None if address.url.startswith("rfc2217:") else WRITE_TIMEOUT,
            exclusive=True if local else None,
        )
    except ValueError as error:
        raise ConfigurationError(
            f"{address.url!r} is no serial device ({error})",
            remedy="give a device path, socket://host:port or rfc2217://host:port",
            link=f"serial {address}",
        ) from error
    except (serial.SerialException, OSError) as error:
        raise _refusal(address, error, local) from error
    return port, waiting


def _waiting(device: str) -> bytes:
    """What the device has received while nobody had it open: pyserial would throw it away, and
    it may be all that a board says while it boots."""
    data = b""
    with contextlib.suppress(OSError):  # told when it is opened in earnest
        fd = os.open(device, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not from under another program
            while os.isatty(fd) and len(data) < KEEP and (more := os.read(fd, 4096)):
                data += more
        finally:
            os.close(fd)
    return data


def _refusal(address: SerialAddress, error: BaseException, local: bool) -> HilError:
    link = f"serial {address}"
    if not local:
        return LinkRefused(
            f"{address} cannot be opened ({error})",
            remedy="check that the serial server runs and that nobody else is connected to it",
            link=link,
        )
    busy = "lock" in str(error) or getattr(error, "errno", None) == errno.EBUSY
    if busy:
        holders = ", ".join(holders_of(Path(address.url))) or "a process of another user"
        return LinkRefused(
            f"the serial device {address} is busy: held by {holders}",
            remedy="end that program (a terminal program, another test run) and try again",
            link=link,
        )
    return HostError(
        f"the serial device {address} cannot be opened ({error})",
        remedy="check that it is a serial port and that its driver works (`dmesg`)",
        link=link,
    )
