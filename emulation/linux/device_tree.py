"""The device tree that firmware handed over: /sys/firmware/devicetree/base.

Names and values as QEMU's virt machine has them (truth log-console-boot1-fresh), and the serial
number that a boot loader adds.  Source: Devicetree Specification 0.4, 2.2 and 2.3.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from emulation.linux.sysfs import Attribute, Tree


def properties(cid: bytes) -> Mapping[str, bytes]:
    """Path below the root -> value, strings with their NUL; ``cid``: the serial number is of it."""
    serial = hashlib.sha256(cid).hexdigest()[:16]
    return {
        "#address-cells": bytes([0, 0, 0, 2]),
        "#size-cells": bytes([0, 0, 0, 2]),
        "compatible": b"linux,dummy-virt\0",
        "firmware/optee/compatible": b"linaro,optee-tz\0",
        "firmware/optee/method": b"smc\0",
        "firmware/optee/name": b"optee\0",
        "model": b"linux,dummy-virt\0",
        "name": b"\0",
        "psci/compatible": b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0",
        "psci/method": b"smc\0",
        "serial-number": serial.encode() + b"\0",
    }


def tree(cid: bytes) -> Tree:
    """The directories."""
    root: dict[str, Any] = {}
    for path, value in properties(cid).items():
        *folders, name = path.split("/")
        directory = root
        for folder in folders:
            directory = directory.setdefault(folder, {})
        directory[name] = Attribute(partial(bytes, value))
    return root
