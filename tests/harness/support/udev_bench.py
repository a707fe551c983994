"""A bench of USB devices in a udev database of its own (umockdev), for tests of discovery.

``run(script, *arguments)`` runs ``script`` in a process whose libudev sees nothing but the devices
that the script plugs in; the script finds a :class:`Bench` in ``bench``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pace import HANGS

_PRELUDE = "from tests.harness.support.udev_bench import FakeBench\nbench = FakeBench()\n"


def run(script: str, *arguments: str, timeout: float = HANGS) -> str:
    """What ``script`` prints. Skips where umockdev is not installed; fails with its error text."""
    if shutil.which("umockdev-wrapper") is None:
        pytest.skip("needs umockdev (Debian package umockdev)")
    done = subprocess.run(
        ["umockdev-wrapper", sys.executable, "-c", _PRELUDE + script, *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class FakeBench:
    """The umockdev test bed of this process (which runs under umockdev-wrapper)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libumockdev.so.0")
        self._library.umockdev_testbed_new.restype = ctypes.c_void_p
        self._library.umockdev_testbed_get_root_dir.restype = ctypes.c_char_p
        self._bed = ctypes.c_void_p(self._library.umockdev_testbed_new())

    @property
    def root(self) -> Path:
        """Where the bed keeps its /dev and /sys."""
        return Path(os.fsdecode(self._library.umockdev_testbed_get_root_dir(self._bed)))

    def add(self, description: str) -> None:
        """Devices in umockdev's format (umockdev-record)."""
        error = ctypes.c_void_p()
        added = self._library.umockdev_testbed_add_from_string(
            self._bed, description.encode(), ctypes.byref(error)
        )
        assert added, description

    def serial_adapter(
        self,
        name: str,
        *,
        port: str = "1-1",
        interface: int = 0,
        serial: str = "",
        vendor: str = "0403",
        model: str = "6001",
        maker: str = "FTDI",
        terminal: str | None = None,
    ) -> str:
        """Plug in a USB serial adapter and return its place in /sys. ``terminal`` is a real one to
        be its device node."""
        if terminal:
            # Its handler of ioctls denies those of a terminal.
            (self.root / "ioctl" / "_default").unlink(missing_ok=True)
        usb = f"/devices/pci0000:00/0000:00:14.0/usb1/{port}"
        place = f"{usb}/{port}:1.{interface}/{name}/tty/{name}"
        properties = {
            "DEVNAME": terminal or f"/dev/{name}",
            "SUBSYSTEM": "tty",
            "ID_BUS": "usb",
            "ID_VENDOR_ID": vendor,
            "ID_MODEL_ID": model,
            "ID_VENDOR": maker,
            "ID_MODEL": "Serial_adapter",
            "ID_PATH": f"pci-0000:00:14.0-usb-0:{port.partition('-')[2]}:1.{interface}",
            "ID_USB_INTERFACE_NUM": f"{interface:02x}",
            "ID_USB_DRIVER": "ftdi_sio",
        }
        if serial:
            properties["ID_SERIAL_SHORT"] = serial
        self.add(
            f"P: {place}\n"
            + ("" if terminal else f"N: {name}\n")
            + "".join(f"E: {key}={value}\n" for key, value in properties.items())
            + "A: dev=188:0\n"
        )
        return f"/sys{place}"

    def event(self, place: str, action: str) -> None:
        """A uevent, as the kernel sends it."""
        self._library.umockdev_testbed_uevent(self._bed, place.encode(), action.encode())

    def remove(self, place: str) -> None:
        """Unplug: the event, then the device."""
        self.event(place, "remove")
        self._library.umockdev_testbed_remove_device(self._bed, place.encode())
