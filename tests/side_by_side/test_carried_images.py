"""An RPMB image made by the emulated board under the real firmware of `hil qemu build`, and back.

The real U-Boot, OP-TEE and StandaloneMM run on QEMU; variables are read and written at U-Boot's
prompt, so that no kernel is needed. QEMU keeps key and counter of an RPMB in memory (docs/qemu.md):
OP-TEE programs its key again and mounts what is there. So does the emulated board with what comes
back. ``mm-query`` has the test key, ``mm-own-key`` a key derived from a HUK that is not zero.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulation.emmc.image import RpmbImage
from harness.errors import ConfigurationError
from harness.power.qemu import QemuPower, QemuPowerOptions
from harness.power.qemu_images import with_images
from tests.emulation.rig import GUID, Rig

BOOT_PARTITIONS = 2 << 20
RPMB_BYTES = 2 << 20
EMMC_BYTES = 68 << 20
BOOT_SECONDS = 300.0
COMMAND_SECONDS = 120.0
OWN_KEY_HUK = bytes(range(0x11, 0x21))
"""That of emulation/qemu/catalogue.py."""
BOARDS: dict[str, dict[str, object]] = {
    "mm-query": {},
    "mm-own-key": {"rpmb_test_key": False, "huk": OWN_KEY_HUK.hex()},
}
VARIABLES = {
    "Short": b"x",
    "Block": b"exactly one half sector ".ljust(256, b"."),
    "Long": b"0123456789" * 40,
    **{f"Filler{n}": b"%d" % n * 60 for n in range(8)},
}
PROMPT = b"=> "


def to_emmc(image: Path, emmc: Path) -> None:
    """Boot partitions of 1 MiB each, the RPMB, the user area."""
    with emmc.open("wb") as file:
        file.truncate(EMMC_BYTES)
        file.seek(BOOT_PARTITIONS)
        file.write(image.read_bytes()[:RPMB_BYTES])


def from_emmc(emmc: Path, image: Path) -> None:
    """The RPMB's data into an image without a key and with a counter of 0."""
    with emmc.open("rb") as file:
        file.seek(BOOT_PARTITIONS)
        data = file.read(RPMB_BYTES)
    rpmb = RpmbImage.open(image)
    for address in range(0, RPMB_BYTES // 256, 32):
        rpmb.commit(0, address, data[address * 256 : (address + 32) * 256])
    rpmb.close()


class UBoot:
    """U-Boot's prompt on QEMU's console."""

    def __init__(self, console: socket.socket) -> None:
        self._console = console
        self._rest = b""
        self._until(b"Hit stop to stop autoboot", BOOT_SECONDS)
        self._console.sendall(b"stop")
        self._until(PROMPT, COMMAND_SECONDS)

    def run(self, line: str) -> str:
        assert len(line) < 1000
        self._console.sendall(line.encode() + b"\n")
        self._until(b"\n", COMMAND_SECONDS)
        return self._until(PROMPT, COMMAND_SECONDS).decode("latin-1")

    def variables(self) -> dict[str, bytes]:
        """Those of the tests' vendor."""
        found: dict[str, bytes] = {}
        for block in re.split(r"^(?=\S+:\r?$)", self.run(f"printenv -e -guid {GUID}"), flags=re.M):
            name = re.match(r"(\w+):\r?\n", block)
            if name:
                assert "NV|BS|RT" in block
                rows = re.findall(r"^ +[0-9a-f]{8}: ((?:[0-9a-f]{2} ?)+)", block, re.M)
                found[name[1]] = bytes.fromhex("".join(rows))
        return found

    def set(self, name: str, value: bytes) -> None:
        said = self.run(f'setenv -e -nv -bs -rt -guid {GUID} {name} "{value.decode()}"')
        assert not re.search("fail|error", said, re.IGNORECASE), said

    def _until(self, mark: bytes, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        seen = self._rest
        while mark not in seen:
            self._console.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                more = self._console.recv(4096)
            except TimeoutError:
                pytest.fail(f"no {mark!r} within {seconds:g} s, but {seen[-500:]!r}")
            assert more, f"the console ended: {seen[-500:]!r}"
            seen += more
        before, _, self._rest = seen.partition(mark)
        return before


@contextmanager
def firmware(name: str, emmc: Path) -> Iterator[UBoot]:
    try:
        options, _ = with_images(QemuPowerOptions(), name, board="carried")
    except ConfigurationError as error:
        pytest.skip(f"no real firmware here: {error}")
    # What is written must stay in the image, and there is no system to start.
    kept = {"emmc": emmc, "snapshot": False, "disks": (), "images": None}
    power = QemuPower(options.model_copy(update=kept), board="carried")
    try:
        power.on(30)
        serial = power.endpoints().serial
        assert serial is not None
        host, port = serial.url.removeprefix("socket://").split(":")
        with socket.create_connection((host, int(port)), 10) as console:
            yield UBoot(console)
    finally:
        power.close()


def _read_all(rig: Rig, names: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: rig.read(f"{name}-{GUID}") for name in names}


@pytest.mark.fault("K1")
@pytest.mark.parametrize("name", BOARDS)
def test_an_image_of_the_emulated_board_opens_under_the_real_firmware_and_comes_back(
    tmp_path: Path, name: str
) -> None:
    emmc = tmp_path / "emmc.img"
    rig = Rig(tmp_path, **BOARDS[name])
    rig.boot()
    for variable, value in {**VARIABLES, "Gone": b"deleted", "Short": b"old"}.items():
        rig.write(f"{variable}-{GUID}", value)
    rig.write(f"Gone-{GUID}", b"")
    rig.write(f"Short-{GUID}", VARIABLES["Short"])
    rig.machine.power_cut()
    rig.machine.close()
    to_emmc(tmp_path / "rpmb.img", emmc)
    with firmware(name, emmc) as real:
        assert real.variables() == VARIABLES
        real.set("FromReal", b"written by the real firmware")
    again = tmp_path / "again"
    again.mkdir()
    from_emmc(emmc, again / "rpmb.img")
    rig = Rig(again, **BOARDS[name])
    rig.boot()
    expected = {**VARIABLES, "FromReal": b"written by the real firmware"}
    assert _read_all(rig, expected) == expected
    with pytest.raises(FileNotFoundError):
        rig.read(f"Gone-{GUID}")


@pytest.mark.fault("K1")
@pytest.mark.parametrize("name", BOARDS)
def test_an_image_of_the_real_firmware_opens_in_the_emulated_board(
    tmp_path: Path, name: str
) -> None:
    emmc = tmp_path / "emmc.img"
    emmc.write_bytes(b"")
    with emmc.open("r+b") as file:
        file.truncate(EMMC_BYTES)
    with firmware(name, emmc) as real:
        for variable, value in VARIABLES.items():
            real.set(variable, value)
        assert real.variables() == VARIABLES
    from_emmc(emmc, tmp_path / "rpmb.img")
    rig = Rig(tmp_path, **BOARDS[name])
    rig.boot()
    assert _read_all(rig, VARIABLES) == VARIABLES


@pytest.mark.fault("K1")
def test_carrying_there_and_back_loses_nothing(tmp_path: Path) -> None:
    """What the two tests above rest on, without any firmware."""
    rig = Rig(tmp_path)
    rig.boot()
    rig.write(f"Kept-{GUID}", b"value")
    rig.machine.power_cut()
    rig.machine.close()
    to_emmc(tmp_path / "rpmb.img", tmp_path / "emmc.img")
    (tmp_path / "again").mkdir()
    from_emmc(tmp_path / "emmc.img", tmp_path / "again" / "rpmb.img")
    again = Rig(tmp_path / "again")
    again.boot()
    assert again.read(f"Kept-{GUID}") == b"value"
    assert again.counter < rig.counter
