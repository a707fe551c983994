"""Power by an LCUS relay board on a serial port (9600 baud).

A command is ``A0``, the channel, ``00`` or ``01``, and the sum of the three; boards with several
channels answer ``FF`` with a line ``CHn: ON`` or ``CHn: OFF`` for each.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.errors import PowerError
from harness.power.driver import Driver, PowerState
from harness.power.outlet import OutletPower
from harness.power.section import OutletOptions, Section

if TYPE_CHECKING:
    from serial import Serial

_ANSWER_SECONDS = 0.5


class RelayPowerOptions(OutletOptions):
    """One channel of an LCUS relay board on a serial port."""

    port: str = Field(min_length=1, description="device path, e.g. /dev/serial/by-path/...")
    channel: int = Field(default=1, ge=1, le=8)
    normally_closed: bool = Field(
        default=False, description="the board is fed through the contact that opens when energised"
    )


class RelayPowerSection(Section):
    """A relay board on a serial port."""

    driver: Literal["relay"]
    options: RelayPowerOptions


class RelayOutlet:
    """See :class:`harness.power.driver.Outlet`; the state is UNKNOWN with boards that do not
    answer."""

    def __init__(self, options: RelayPowerOptions) -> None:
        self._options = options

    def switch(self, on: bool, timeout: float) -> None:
        energised = on is not self._options.normally_closed
        body = bytes([0xA0, self._options.channel, energised])
        with self._open(timeout) as port:
            port.write(body + bytes([sum(body) & 0xFF]))
            port.flush()

    def read(self, timeout: float) -> PowerState:
        wanted = re.compile(rb"CH\s*%d\s*:\s*(ON|OFF)" % self._options.channel)
        with self._open(timeout) as port:
            port.reset_input_buffer()
            port.write(b"\xff")
            answer = b""
            deadline = time.monotonic() + min(timeout, _ANSWER_SECONDS)
            while (left := deadline - time.monotonic()) > 0:
                port.timeout = left
                answer += port.read(1)
                found = wanted.search(answer)
                if found:
                    energised = found[1] == b"ON"
                    on = energised is not self._options.normally_closed
                    return PowerState.ON if on else PowerState.OFF
        return PowerState.UNKNOWN

    def __str__(self) -> str:
        return f"relay {self._options.channel} on {self._options.port}"

    def _open(self, timeout: float) -> Serial:
        import serial

        try:
            return serial.Serial(
                self._options.port,
                9600,
                timeout=timeout,
                write_timeout=timeout,
                exclusive=True,
            )
        except (serial.SerialException, OSError) as error:
            raise PowerError(
                f"{self} cannot be opened ({error})",
                remedy="is it plugged in, may this user open it, does another program hold it?",
            ) from error


def _things(section: RelayPowerSection) -> list[str]:
    return [f"outlet relay {os.path.realpath(section.options.port)} {section.options.channel}"]


DRIVER = Driver(
    section=RelayPowerSection,
    open=lambda section, context: OutletPower(
        RelayOutlet(section.options), section.options, board=context.board
    ),
    things=_things,
    cannot_tell=lambda section: "this relay board does not answer; those with one channel cannot",
)
