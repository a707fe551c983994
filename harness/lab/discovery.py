"""What is plugged into this bench: serial adapters, SD-muxes, USB relays, eMMC readers.

Devices come from udev, so that their identity is the one udev rules and board files use. A
device is named by what does not change: its serial number where that is its own, else the USB
port it sits in, and the interface number of an adapter with several ports.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from harness.errors import HostError

if TYPE_CHECKING:
    from pyudev import Context, Device, Monitor

_SUBSYSTEMS = ("tty", "block", "hidraw", "mmc")


class Kind(StrEnum):
    """What a device is good for on a bench."""

    SERIAL = "serial adapter"
    SD_MUX = "SD-mux"
    RELAY = "USB relay"
    EMMC = "eMMC reader"


_SD_MUXES = {
    ("0424", "4041"): "Linux Automation USB-SD-Mux",
    ("04e8", "6001"): "Tizen SD-wire",
}
_RELAYS = {
    ("16c0", "05df"): "HID relay board (V-USB)",
    ("5131", "2007"): "HID relay board (LCUS)",
}


@dataclass(frozen=True, slots=True)
class DiscoveredDevice:
    """One device. Identity fields are udev properties, empty where the device has none:
    ``serial`` ID_SERIAL_SHORT, ``path`` ID_PATH (the port), ``interface`` ID_USB_INTERFACE_NUM."""

    kind: Kind
    node: str
    name: str
    vendor_id: str
    model_id: str
    serial: str
    path: str
    interface: str
    usb_driver: str

    def __str__(self) -> str:
        return f"{self.kind} {self.node} ({self.name or 'unknown make'})"


class Discovery:
    """The devices of this host, now and as they come and go.

    Raises :class:`HostError` where there is no udev database.
    """

    def __init__(self) -> None:
        import pyudev

        try:
            self._context: Context = pyudev.Context()
        except ImportError as error:
            raise HostError("libudev is missing", remedy="install the package libudev1") from error

    def devices(self) -> list[DiscoveredDevice]:
        """What is there, sorted by node."""
        found: dict[str, DiscoveredDevice] = {}
        for subsystem in _SUBSYSTEMS:
            for device in self._context.list_devices(subsystem=subsystem):
                known = classify(device)
                if known is not None:
                    found[known.node] = known
        return sorted(found.values(), key=lambda device: _natural(device.node))

    def watch(self, *, timeout: float | None = None) -> Iterator[tuple[str, DiscoveredDevice]]:
        """``("add" | "remove", device)`` as devices come and go, for ``timeout`` seconds."""
        monitor = self._monitor()
        seen = {device.node: device for device in self.devices()}
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            event = None if left is not None and left <= 0 else monitor.poll(left)
            if event is None:
                return
            action = event.action
            # What is removed has lost its properties: it is what was seen at its node.
            device = seen.pop(event.device_node or "", None) if action == "remove" else None
            if action == "add" and event.device_node not in seen:
                device = classify(event)
                if device is not None:
                    seen[device.node] = device
            if device is not None:
                yield action, device

    def wait_for(
        self, wanted: Callable[[DiscoveredDevice], bool], *, what: str, timeout: float
    ) -> DiscoveredDevice:
        """The first device that is ``wanted``, now or within ``timeout`` seconds: an adapter that
        draws its power from the board comes back with it. Raises :class:`HostError`, naming what
        is there."""
        monitor = self._monitor()
        deadline = time.monotonic() + timeout
        while True:
            present = self.devices()
            for device in present:
                if wanted(device):
                    return device
            left = deadline - time.monotonic()
            if left <= 0 or monitor.poll(left) is None:
                there = ", ".join(map(str, present)) or "nothing"
                raise HostError(
                    f"{what} did not appear within {timeout:g} s; there is {there}",
                    remedy="plug it in; one that draws its power from the board needs the board on",
                )

    def _monitor(self) -> Monitor:
        import pyudev

        monitor = pyudev.Monitor.from_netlink(self._context)
        for subsystem in _SUBSYSTEMS:
            monitor.filter_by(subsystem)
        monitor.start()
        return monitor


def classify(device: Device) -> DiscoveredDevice | None:
    """What a udev device is on a bench; None for everything else."""
    properties = device.properties
    node = device.device_node
    kind = None
    vendor, model = properties.get("ID_VENDOR_ID", ""), properties.get("ID_MODEL_ID", "")
    serial = properties.get("ID_SERIAL_SHORT", "")
    name = _readable(properties)
    match device.subsystem:
        case "tty":
            # Consoles and ptys have no device behind them; on-board UARTs are the host's own.
            kind = Kind.SERIAL if properties.get("ID_BUS") == "usb" else None
        case "block":
            if device.properties.get("DEVTYPE") != "disk":
                return None
            if (vendor, model) in _SD_MUXES:
                kind, name = Kind.SD_MUX, _SD_MUXES[vendor, model]
            elif _is_emmc(device):
                kind = Kind.EMMC
        case "hidraw":
            vendor, model, serial = _usb_parent(device)
            if (vendor, model) in _RELAYS:
                kind, name = Kind.RELAY, _RELAYS[vendor, model]
    if kind is None or node is None:
        return None
    return DiscoveredDevice(
        kind=kind,
        node=node,
        name=name,
        vendor_id=vendor,
        model_id=model,
        serial=serial,
        path=properties.get("ID_PATH", ""),
        interface=properties.get("ID_USB_INTERFACE_NUM", ""),
        usb_driver=properties.get("ID_USB_DRIVER", ""),
    )


def udev_match(device: DiscoveredDevice, present: Iterable[DiscoveredDevice]) -> dict[str, str]:
    """The fewest properties, as ``[serial.udev]`` of a board file spells them, that name this
    device and none of the others in ``present``, whatever is replugged or renumbered.

    A serial number is preferred; adapters whose maker gave all of them the same one (or none) are
    told apart by the port they sit in. Raises :class:`HostError` where nothing does.
    """
    others = [other for other in present if other.node != device.node and other.kind == device.kind]
    for keys in (("serial",), ("serial", "interface"), ("path",), ("path", "interface")):
        match = {key: getattr(device, key) for key in keys}
        if all(match.values()) and not any(
            all(getattr(other, key) == value for key, value in match.items()) for other in others
        ):
            return match
    raise HostError(
        f"{device} has neither a serial number nor a port of its own",
        remedy="plug it into a port of its own; `udevadm info` shows what udev knows of it",
    )


def ambiguous_serials(present: Iterable[DiscoveredDevice]) -> list[str]:
    """Serial numbers that several adapters share, though they are not ports of one."""
    adapters = {
        (device.serial, device.path.rpartition(":")[0])
        for device in present
        if device.kind is Kind.SERIAL and device.serial
    }
    counts = Counter(serial for serial, _ in adapters)
    return sorted(serial for serial, count in counts.items() if count > 1)


def _is_emmc(device: Device) -> bool:
    """An eMMC card behind a host controller, or a reader that says so; the host's own system disk
    counts too, hence only what can be taken out."""
    parent = device.find_parent("mmc")
    if parent is not None:
        return bool(parent.attributes.get("type") == b"MMC")
    return device.properties.get("ID_BUS") == "usb" and "eMMC" in device.properties.get(
        "ID_MODEL", ""
    )


def _usb_parent(device: Device) -> tuple[str, str, str]:
    """Vendor id, product id and serial number of the USB device behind ``device``."""
    parent = device.find_parent("usb", "usb_device")
    if parent is None:
        return "", "", ""
    values = (parent.attributes.get(key) for key in ("idVendor", "idProduct", "serial"))
    vendor, model, serial = (value.decode("ascii", "replace") if value else "" for value in values)
    return vendor, model, serial


def _readable(properties: Mapping[str, str]) -> str:
    vendor = properties.get("ID_VENDOR_FROM_DATABASE") or properties.get("ID_VENDOR", "")
    model = properties.get("ID_MODEL_FROM_DATABASE") or properties.get("ID_MODEL", "")
    return f"{vendor} {model}".replace("_", " ").strip()


def _natural(node: str) -> tuple[str, int]:
    """ttyUSB10 after ttyUSB9."""
    head = node.rstrip("0123456789")
    return head, int(node[len(head) :] or 0)
