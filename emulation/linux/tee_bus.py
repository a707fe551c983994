"""The kernel's ``tee`` bus: devices OP-TEE announces, drivers, and how they find each other.

Source: K6 drivers/tee/tee_core.c (tee_bus_type), drivers/tee/optee/device.c, drivers/base/dd.c and
bus.c; truth drv.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from emulation.linux.kernel import KERN_ERR, Kernel, Task


@dataclass(eq=False)
class TeeDevice:
    """A trusted application that a kernel driver can use."""

    uuid: UUID
    needs_supplicant: bool
    """It was found by GET_DEVICES_SUPP and so carries the sysfs file ``need_supplicant``."""
    driver: BusDriver | None = field(default=None, init=False)
    locked: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """The device's name in sysfs."""
        return f"optee-ta-{self.uuid}"

    @property
    def modalias(self) -> str:
        """What module loading matches."""
        return f"tee:{self.uuid}"


@dataclass(frozen=True, eq=False)
class BusDriver:
    """A driver on the bus; ``probe`` raises OSError when it will not have the device."""

    name: str
    uuids: frozenset[UUID]
    probe: Callable[[], None]
    remove: Callable[[], None]


class TeeBus:
    """Devices and drivers by name; binding holds the device's lock, as device_lock does."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.devices: dict[str, TeeDevice] = {}
        self.drivers: dict[str, BusDriver] = {}
        self._added: list[Callable[[TeeDevice], None]] = []

    def on_added(self, listener: Callable[[TeeDevice], None]) -> None:
        """Call ``listener`` with every new device: its uevent."""
        self._added.append(listener)

    def add_device(self, device: TeeDevice) -> None:
        """Register a device: uevent, then a probe by whatever driver is there."""
        if device.name in self.devices:
            return
        self.devices[device.name] = device
        for listener in self._added:
            listener(device)
        for driver in tuple(self.drivers.values()):
            if device.uuid in driver.uuids:
                self._attach_quietly(driver, device)

    def register_driver(self, driver: BusDriver) -> None:
        """Register a driver and probe every free device it matches; OSError EBUSY by name."""
        if driver.name in self.drivers:
            raise OSError(errno.EBUSY, "driver already registered")
        self.drivers[driver.name] = driver
        for device in tuple(self.devices.values()):
            if device.uuid in driver.uuids:
                self._attach_quietly(driver, device)

    def unregister_driver(self, name: str) -> None:
        """Take a driver from the bus; its devices are released first."""
        driver = self.drivers.pop(name)
        for device in self.devices.values():
            with self._lock(device):
                if device.driver is driver:
                    self._detach(device)

    def bind(self, driver_name: str, device_name: str) -> None:
        """A write to the driver's ``bind``: ENODEV no such device, EBUSY it has a driver."""
        driver = self._driver(driver_name)
        device = self.devices.get(device_name)
        if device is None or device.uuid not in driver.uuids:
            raise OSError(errno.ENODEV, "no such device")
        with self._lock(device):
            if device.driver is not None:
                raise OSError(errno.EBUSY, "device is bound")
            self._attach(driver, device)

    def unbind(self, driver_name: str, device_name: str) -> None:
        """A write to the driver's ``unbind``: ENODEV unless the device is this driver's."""
        driver = self._driver(driver_name)
        device = self.devices.get(device_name)
        if device is None or device.driver is not driver:
            raise OSError(errno.ENODEV, "no such device")
        with self._lock(device):
            if device.driver is driver:
                self._detach(device)

    def _driver(self, name: str) -> BusDriver:
        if name not in self.drivers:
            raise OSError(errno.ENODEV, "no such driver")
        return self.drivers[name]

    def _attach_quietly(self, driver: BusDriver, device: TeeDevice) -> None:
        """Probe at registration time: a failure is logged, and nobody gets its errno."""
        with self._lock(device):
            if device.driver is None:
                try:
                    self._attach(driver, device)
                except OSError:
                    return

    def _attach(self, driver: BusDriver, device: TeeDevice) -> None:
        device.driver = driver
        try:
            driver.probe()
        except BaseException as error:
            device.driver = None
            if isinstance(error, OSError) and error.errno not in (errno.ENODEV, errno.ENXIO):
                self._kernel.printk(
                    f"{driver.name} {device.name}: probe with driver {driver.name} failed with "
                    f"error -{error.errno}",
                    KERN_ERR,
                )
            raise

    @staticmethod
    def _detach(device: TeeDevice) -> None:
        if device.driver is not None:
            device.driver.remove()
            device.driver = None

    @contextmanager
    def _lock(self, device: TeeDevice) -> Iterator[None]:
        def take() -> bool:
            if device.locked:
                return False
            device.locked = True
            return True

        # A mutex: no signal ends the wait for it.
        self._kernel.wait(take, task=Task.kernel())
        try:
            yield
        finally:
            device.locked = False
            self._kernel.wake()
