"""Power by a port of a USB hub, switched by uhubctl (https://github.com/mvp/uhubctl)."""

import re
import subprocess
from typing import Literal

from pydantic import Field

from harness.errors import HostError, PowerError
from harness.power.driver import Driver, PowerState
from harness.power.outlet import OutletPower
from harness.power.section import OutletOptions, Section


class UsbHubPowerOptions(OutletOptions):
    """A port of a USB hub that can switch its power."""

    location: str = Field(pattern=r"^\d+(-\d+(\.\d+)*)?$", description="as uhubctl shows it: 1-1.4")
    port: int = Field(ge=1, le=32)


class UsbHubPowerSection(Section):
    """A board that is fed by a USB port, switched by uhubctl."""

    driver: Literal["usb-hub"]
    options: UsbHubPowerOptions


class UsbHubOutlet:
    """See :class:`harness.power.driver.Outlet`; the state is the hub's own port status."""

    def __init__(self, options: UsbHubPowerOptions) -> None:
        self._options = options

    def switch(self, on: bool, timeout: float) -> None:
        self._uhubctl("-a", "on" if on else "off", timeout=timeout)

    def read(self, timeout: float) -> PowerState:
        shown = self._uhubctl(timeout=timeout)
        line = re.search(rf"^\s*Port {self._options.port}: [0-9a-f]{{4}}(.*)$", shown, re.M)
        if line is None:
            raise PowerError(
                f"{self}: uhubctl shows no such port: {shown[-200:]}",
                remedy="run it by hand; not every hub can switch its ports (uhubctl's README)",
            )
        # A hub that switches its ports says `power`; `off` stands alone.
        return PowerState.ON if " power" in line[1] else PowerState.OFF

    def __str__(self) -> str:
        return f"port {self._options.port} of USB hub {self._options.location}"

    def _uhubctl(self, *action: str, timeout: float) -> str:
        command = ["uhubctl", "-l", self._options.location, "-p", str(self._options.port), *action]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except FileNotFoundError:
            raise HostError(
                "uhubctl is not installed", remedy="install the package uhubctl"
            ) from None
        except subprocess.TimeoutExpired:
            raise PowerError(
                f"{self}: uhubctl did not end within {timeout:g} s",
                remedy="unplug the hub and plug it in again",
                command=" ".join(command),
            ) from None
        text = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode:
            raise PowerError(
                f"{self}: uhubctl ended with status {done.returncode}: {text[-200:]}",
                remedy="run it by hand; a udev rule must give this user the hub (uhubctl's README)",
                command=" ".join(command),
            )
        return text


DRIVER = Driver(
    section=UsbHubPowerSection,
    open=lambda section, context: OutletPower(
        UsbHubOutlet(section.options), section.options, board=context.board
    ),
    things=lambda section: [f"outlet usb {section.options.location} {section.options.port}"],
)
