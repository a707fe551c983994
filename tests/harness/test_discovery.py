"""Discovery against a real udev database (umockdev): what is there, by which name, as it comes and
goes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.harness.support.udev_bench import run

_LIST = """
import json
from harness.lab.discovery import Discovery, udev_match, ambiguous_serials
def show():
    found = Discovery().devices()
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
from harness.lab.discovery import Discovery
def plug():
    place = bench.serial_adapter("ttyUSB7", serial="LATE")
    bench.event(place, "add")
    threading.Event().wait(0.3)
    bench.remove(place)
threading.Timer(0.5, plug).start()
for action, device in Discovery().watch(timeout=3):
    print(action, device.node, device.serial, flush=True)
    if action == "remove":
        break
"""
    assert run(script) == "add /dev/ttyUSB7 LATE\nremove /dev/ttyUSB7 LATE\n"


def test_an_adapter_that_comes_with_the_board_s_power_is_waited_for() -> None:
    script = """
import threading
from harness.errors import HostError
from harness.lab.discovery import Discovery
def plug():
    bench.event(bench.serial_adapter("ttyUSB0", serial="ONBOARD"), "add")
threading.Timer(0.5, plug).start()
found = Discovery().wait_for(lambda d: d.serial == "ONBOARD", what="the console", timeout=10)
print(found.node)
try:
    Discovery().wait_for(lambda d: d.serial == "ABSENT", what="the other console", timeout=0.2)
except HostError as error:
    print(error.what)
"""
    assert run(script).splitlines() == [
        "/dev/ttyUSB0",
        "the other console did not appear within 0.2 s; there is serial adapter /dev/ttyUSB0 "
        "(FTDI Serial adapter)",
    ]


_BOARD_FILE = """
from harness.boardfile import loading
from harness.board.board import Board
def board_file(folder, serial):
    path = folder / "desk.toml"
    path.write_text(f'''
emmc_cid = "aa015851454d55212101deadbeef2900"
[serial]
{serial}
[power]
driver = "command"
options = {{ on = "touch {folder}/on", off = "rm -f {folder}/on", status = "test -e {folder}/on \
&& echo on || echo off", off_seconds = 0.01 }}
[timeouts]
adapter = 30
boot = 60
[consents]
power_cycle = true
''')
    return loading.load(path)
"""


def test_a_board_file_s_adapter_is_the_one_that_has_every_property() -> None:
    script = """
from harness.boardfile.sections import UdevMatch
from harness.errors import HostError
from harness.lab.adapter import node_of
for n in range(2): bench.serial_adapter(f"ttyUSB{n}", interface=n, serial="PAIR")
print(node_of(UdevMatch(serial="PAIR", interface="01")))
for wanted in (UdevMatch(serial="PAIR"), UdevMatch(serial="PAIR", path="x")):
    try:
        node_of(wanted)
    except HostError as error:
        print(error.what)
"""
    adapters = ", ".join(f"serial adapter /dev/ttyUSB{n} (FTDI Serial adapter)" for n in range(2))
    assert run(script).splitlines() == [
        "/dev/ttyUSB1",
        "2 serial adapters have serial PAIR: /dev/ttyUSB0, /dev/ttyUSB1",
        f"the serial adapter with serial PAIR, path x is not plugged in; there is {adapters}",
    ]


def test_a_board_waits_for_the_adapter_that_it_powers_itself(tmp_path: Path) -> None:
    """By udev, under another name after the power cycle; the shell at its end is a real one."""
    script = """
import os, sys, threading
from pathlib import Path
from tests.harness.support.line import Line
folder = Path(sys.argv[1])
lines = [Line(["bash", "--norc", "-i"], environment={"PS1": "board# "}) for _ in range(2)]
def outlet():
    "The adapters come a while after the power and go with it."
    for number, line in enumerate(lines):
        while not (folder / "on").exists():
            pause.wait(0.02)
        pause.wait(0.3)
        place = bench.serial_adapter(f"ttyUSB{number}", serial="ONBOARD", terminal=line.device)
        bench.event(place, "add")
        while (folder / "on").exists():
            pause.wait(0.02)
        bench.remove(place)
pause = threading.Event()
threading.Thread(target=outlet, daemon=True).start()
board = Board(board_file(folder, 'udev = { serial = "ONBOARD" }'))
board.start()
print(board.links.find().serial.url == lines[0].device, board.links.serial.run("echo up").text)
board.power.off(5)
while any(device.serial for device in Discovery().devices()):
    pause.wait(0.02)
board.power.on(5)
print(board.links.find(just_switched_on=True).serial.url == lines[1].device)
board.relink()
print(board.links.serial.run("echo again").text)
board.close()
sys.stdout.flush()
os._exit(0)
"""
    prelude = _BOARD_FILE + "from harness.lab.discovery import Discovery\n"
    assert run(prelude + script, str(tmp_path)) == "True up\nTrue\nagain\n"


def test_an_adapter_that_does_not_come_with_the_power_is_named(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from harness.errors import HilError
for serial in ('udev = { serial = "ONBOARD" }', 'port = "/dev/serial/by-id/ONBOARD"'):
    file = board_file(Path(sys.argv[1]), serial)
    file = file.model_copy(update={"timeouts": file.timeouts.model_copy(update={"adapter": 0.2})})
    board = Board(file)
    try:
        board.start()
    except HilError as error:
        print(error.board, error.what, sep=": ")
    board.power.off(5)
    board.close()
"""
    assert run(_BOARD_FILE + script, str(tmp_path)).splitlines() == [
        "desk: the serial adapter with serial ONBOARD did not appear within 0.2 s; "
        "there is nothing",
        "desk: the serial adapter /dev/serial/by-id/ONBOARD did not appear within 0.2 s",
    ]
