"""The serial adapter that a board file means: which device of this host it is now, and the wait for
one that draws its power from the board."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
import time
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from harness.errors import HostError
from harness.lab.discovery import DiscoveredDevice, Discovery, Kind
from harness.lab.holder import lock

if TYPE_CHECKING:
    from harness.boardfile.sections import SerialSection, UdevMatch

_POLL_SECONDS = 0.05
_TIOCGEXCL = 0x80045440


class AdapterAbsent(HostError):
    """The serial adapter is not plugged in, or without power."""


def is_url(port: str) -> bool:
    """Whether the console is at the other end of a network rather than a device of this host."""
    return "://" in port


def matches(device: DiscoveredDevice, wanted: UdevMatch) -> bool:
    """Whether a serial adapter has every property that ``[serial.udev]`` gives."""
    properties = wanted.model_dump(exclude_none=True)
    return device.kind is Kind.SERIAL and all(
        getattr(device, key) == value for key, value in properties.items()
    )


def node_of(wanted: UdevMatch, *, timeout: float = 0.0) -> str:
    """The device node of the one adapter that ``[serial.udev]`` names, which may take ``timeout``
    seconds to appear. Raises :class:`AdapterAbsent`, and :class:`HostError` where several match."""
    discovery = Discovery()
    what = f"the serial adapter with {_shown(wanted)}"
    if timeout > 0:
        try:
            discovery.wait_for(lambda device: matches(device, wanted), what=what, timeout=timeout)
        except HostError as error:
            raise AdapterAbsent(error.what, remedy=error.remedy) from error
    present = discovery.devices()
    found = [device for device in present if matches(device, wanted)]
    if len(found) == 1:
        return found[0].node
    if found:
        nodes = ", ".join(device.node for device in found)
        raise HostError(
            f"{len(found)} serial adapters have {_shown(wanted)}: {nodes}",
            remedy="give more properties in [serial.udev]; `hil discover` shows the fewest that do",
        )
    raise AdapterAbsent(
        f"{what} is not plugged in; there is {', '.join(map(str, present)) or 'nothing'}",
        remedy="plug it in, or correct [serial.udev]; `hil discover` shows what is there",
    )


def wait_for_port(port: str, *, timeout: float) -> None:
    """Wait until the device ``port`` is there; a console behind a URL is not waited for. Raises
    :class:`AdapterAbsent` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not is_url(port) and not Path(port).exists():
        if time.monotonic() >= deadline:
            within = f"did not appear within {timeout:g} s" if timeout else "is not there"
            raise AdapterAbsent(
                f"the serial adapter {port} {within}",
                remedy="plug it in, or correct `port` in [serial]; one that draws its power from "
                "the board needs the board on, for at most timeouts.adapter seconds",
            )
        Event().wait(_POLL_SECONDS)


def lock_node(node: str) -> int | None:
    """A descriptor that keeps the device ``node`` locked while it is open: whoever uses the node
    sees that, from whatever container. None for what is no terminal that we can open.

    It is an open file description lock (fcntl(2)), so that the console can be opened and locked
    (flock(2)) beside it. Raises BlockingIOError where somebody else has locked the device, or
    opened it for nobody else (TIOCEXCL).
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if not Path(node).is_char_device():
            return None
        descriptor = os.open(node, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BlockingIOError(error.errno, "exclusively opened", node) from error
        return None
    try:
        # What the board says while nobody listens must not be echoed: it would answer itself.
        settings = termios.tcgetattr(descriptor)
        settings[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
        lock(descriptor)
        if struct.unpack("i", fcntl.ioctl(descriptor, _TIOCGEXCL, bytes(4)))[0]:
            # ... by somebody, which does not keep root out.
            raise BlockingIOError(errno.EBUSY, "exclusively opened", node)
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
    except termios.error:  # not a terminal, or just unplugged
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_gone(descriptor: int) -> bool:
    """Whether an open terminal has been unplugged."""
    try:
        termios.tcgetattr(descriptor)
    except termios.error:
        return True
    return False


def usb_port_of(section: SerialSection) -> str:
    """The USB port that the adapter sits in, however the board file names it: one word for two
    board files that mean the same one. What the board file says where udev does not know it."""
    if section.port is not None and is_url(section.port):
        return section.port
    node = None if section.port is None else os.path.realpath(section.port)
    for device in Discovery().devices():
        named = device.node == node if section.udev is None else matches(device, section.udev)
        if named and device.path:
            return f"{device.path} {device.interface}".strip()
    return node or str(section.udev)


def _shown(wanted: UdevMatch) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in wanted.model_dump(exclude_none=True).items()
    )
