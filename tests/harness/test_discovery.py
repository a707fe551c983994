"""Discovery against a real udev database (umockdev): what is there, by which name, as it comes and
goes."""

from __future__ import annotations

import json

from tests.harness.support.udev_bench import run

_LIST = """
import json
from harness.lab.discovery import Bench, udev_match, ambiguous_serials
def show():
    found = Bench().devices()
    print(json.dumps([[d.node, d.kind, d.serial, d.path, d.interface] for d in found]))
    print(json.dumps([udev_match(d, found) for d in found]))
    print(json.dumps(ambiguous_serials(found)))
"""


def _lines(script: str) -> list[object]:
    return [json.loads(line) for line in run(script).splitlines()]


def test_an_empty_bench_has_nothing() -> None:
    assert _lines(_LIST + "show()") == [[], [], []]


def test_an_adapter_is_named_by_its_serial_number() -> None:
    devices, matches, _ = _lines(_LIST + "bench.serial_adapter('ttyUSB0', serial='A1B2')\nshow()")
    assert devices == [
        ["/dev/ttyUSB0", "serial adapter", "A1B2", "pci-0000:00:14.0-usb-0:1:1.0", "00"]
    ]
    assert matches == [{"serial": "A1B2"}]


def test_the_ports_of_one_adapter_are_told_apart() -> None:
    script = "for n in range(4): bench.serial_adapter(f'ttyUSB{n}', interface=n, serial='QUAD')\n"
    _, matches, ambiguous = _lines(_LIST + script + "show()")
    assert matches == [{"serial": "QUAD", "interface": f"0{n}"} for n in range(4)]
    assert ambiguous == []


def test_adapters_with_the_same_serial_number_are_named_by_their_port() -> None:
    script = (
        "bench.serial_adapter('ttyUSB0', port='1-1', serial='0001')\n"
        "bench.serial_adapter('ttyUSB1', port='1-2', serial='0001')\n"
    )
    _, matches, ambiguous = _lines(_LIST + script + "show()")
    assert matches == [
        {"path": "pci-0000:00:14.0-usb-0:1:1.0"},
        {"path": "pci-0000:00:14.0-usb-0:2:1.0"},
    ]
    assert ambiguous == ["0001"]


def test_an_adapter_without_serial_number_is_named_by_its_port() -> None:
    # An empty id must not match everything (zephyr#41169).
    script = (
        "bench.serial_adapter('ttyUSB0', port='1-4', vendor='1a86', model='7523')\n"
        "bench.serial_adapter('ttyUSB1', port='1-5', serial='X')\n"
    )
    _, matches, _ = _lines(_LIST + script + "show()")
    assert matches == [{"path": "pci-0000:00:14.0-usb-0:4:1.0"}, {"serial": "X"}]


def test_other_kinds_of_bench_devices_are_recognised() -> None:
    script = '''
usb = "/devices/pci0000:00/0000:00:14.0/usb1"
bench.add(f"""P: {usb}/1-7/1-7:1.0/host6/target6:0:0/6:0:0:0/block/sda
N: sda
E: DEVNAME=/dev/sda
E: SUBSYSTEM=block
E: DEVTYPE=disk
E: ID_BUS=usb
E: ID_VENDOR_ID=0424
E: ID_MODEL_ID=4041
E: ID_SERIAL_SHORT=00012
E: ID_PATH=pci-0000:00:14.0-usb-0:7:1.0-scsi-0:0:0:0
""")
bench.add(f"""P: {usb}/1-8
E: SUBSYSTEM=usb
E: DEVTYPE=usb_device
A: idVendor=16c0
A: idProduct=05df
A: serial=REL4

P: {usb}/1-8/1-8:1.0/0003:16C0:05DF.0001/hidraw/hidraw0
N: hidraw0
E: DEVNAME=/dev/hidraw0
E: SUBSYSTEM=hidraw
""")
bench.add("""P: /devices/platform/mmc_host/mmc0/mmc0:0001
E: SUBSYSTEM=mmc
E: DRIVER=mmcblk
A: type=MMC

P: /devices/platform/mmc_host/mmc0/mmc0:0001/block/mmcblk0
N: mmcblk0
E: DEVNAME=/dev/mmcblk0
E: SUBSYSTEM=block
E: DEVTYPE=disk
E: ID_SERIAL_SHORT=0xdeadbeef
E: ID_PATH=platform-mmc0
""")
show()
'''
    devices, matches, _ = _lines(_LIST + script)
    assert isinstance(devices, list)
    assert [device[:3] for device in devices] == [
        ["/dev/hidraw0", "USB relay", "REL4"],
        ["/dev/mmcblk0", "eMMC reader", "0xdeadbeef"],
        ["/dev/sda", "SD-mux", "00012"],
    ]
    assert matches == [{"serial": "REL4"}, {"serial": "0xdeadbeef"}, {"serial": "00012"}]


def test_hot_plug_is_watched() -> None:
    script = """
import threading
from harness.lab.discovery import Bench
def plug():
    place = bench.serial_adapter("ttyUSB7", serial="LATE")
    bench.event(place, "add")
    threading.Event().wait(0.3)
    bench.remove(place)
threading.Timer(0.5, plug).start()
for action, device in Bench().watch(timeout=3):
    print(action, device.node, device.serial, flush=True)
    if action == "remove":
        break
"""
    assert run(script) == "add /dev/ttyUSB7 LATE\nremove /dev/ttyUSB7 LATE\n"


def test_an_adapter_that_comes_with_the_board_s_power_is_waited_for() -> None:
    script = """
import threading
from harness.errors import HostError
from harness.lab.discovery import Bench
def plug():
    bench.event(bench.serial_adapter("ttyUSB0", serial="ONBOARD"), "add")
threading.Timer(0.5, plug).start()
found = Bench().wait_for(lambda d: d.serial == "ONBOARD", what="the console", timeout=10)
print(found.node)
try:
    Bench().wait_for(lambda d: d.serial == "ABSENT", what="the other console", timeout=0.2)
except HostError as error:
    print(error.what)
"""
    assert run(script).splitlines() == [
        "/dev/ttyUSB0",
        "the other console did not appear within 0.2 s; there is serial adapter /dev/ttyUSB0 "
        "(FTDI Serial adapter)",
    ]
