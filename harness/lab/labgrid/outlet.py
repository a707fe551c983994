"""Power by the labgrid place that a board file names, and the place around any other driver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HilError
from harness.power.driver import Endpoints, PowerDriver, PowerState

if TYPE_CHECKING:
    from harness.lab.labgrid.place import LabgridPlace


class LabgridOutlet:
    """See :class:`harness.power.driver.Outlet`: the power resource of a place; the state is what
    labgrid's driver reads from the hardware."""

    def __init__(self, place: LabgridPlace) -> None:
        self._place = place

    def switch(self, on: bool, timeout: float) -> None:
        self._place.switch(on, timeout)

    def read(self, timeout: float) -> PowerState:
        return self._place.power(timeout)

    def __str__(self) -> str:
        return f"the power of {self._place}"


class PlacePower(PowerDriver):
    """The power of a board in a labgrid place: the place is acquired before ``driver`` touches
    anything, and released at :meth:`close`. ``ssh`` and ``serial`` say which links the place is
    asked for."""

    def __init__(
        self, driver: PowerDriver, place: LabgridPlace, *, ssh: bool, serial: bool
    ) -> None:
        self._driver = driver
        self._place = place
        self._ssh = ssh
        self._serial = serial

    def hold(self) -> None:
        """Acquire the place; raises as :meth:`harness.lab.labgrid.place.LabgridPlace.hold`."""
        self._place.hold()

    def check(self) -> None:
        """Raise :class:`harness.lab.lease.LeaseBroken` if somebody took the place away."""
        self._place.check()

    def on(self, timeout: float) -> None:
        self.hold()
        self._driver.on(timeout)

    def off(self, timeout: float) -> None:
        self.hold()
        self._driver.off(timeout)

    def cycle(self, timeout: float) -> None:
        self.hold()
        self._driver.cycle(timeout)

    def state(self) -> PowerState:
        try:
            self.hold()
            return self._driver.state()
        except HilError:
            return PowerState.UNKNOWN

    def verify(self) -> PowerState:
        self.hold()
        return self._driver.verify()

    def endpoints(self) -> Endpoints:
        """What the place exports."""
        return Endpoints(
            ssh=self._place.ssh() if self._ssh else None,
            serial=self._place.serial() if self._serial else None,
        )

    def keeps(self) -> Path | None:
        return self._driver.keeps()

    def close(self) -> None:
        self._driver.close()
        self._place.close()
