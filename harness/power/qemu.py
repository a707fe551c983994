"""Power by qemu-system-aarch64: a firmware built by anyone is a board.

The console is a socket on the loopback, SSH a forwarded port, the flash an eMMC image with boot
and RPMB partitions where QEMU has that (10.2 and later).

Such an eMMC keeps the data of its RPMB in the image, but its key and write counter in QEMU's
memory (QEMU 11.1, hw/sd/sd.c). So a machine with an eMMC is not ended when it is switched off: it
is reset and held, as a board without power keeps its flash.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from harness.errors import ConfigurationError, HostError, PowerError
from harness.power.driver import Driver, Endpoints, PowerDriver, PowerState
from harness.power.qemu_images import with_images
from harness.power.qmp import Monitor, QmpError
from harness.power.section import Section
from harness.tables import Table

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.02
_FIRST_RELEASE_WITH_RPMB = "10.2"


class QemuPowerOptions(Table):
    """A machine that qemu-system-aarch64 emulates, from images that anyone built. Paths are
    relative to the board file."""

    images: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="a configuration that `hil qemu build` made, e.g. mm-query: options that are "
        "not named here are those of its images",
    )
    program: str = "qemu-system-aarch64"
    machine: str = Field(default="virt", description="-M, e.g. `virt,secure=on`")
    cpu: str = "cortex-a57"
    cpus: int = Field(default=2, ge=1, le=64)
    memory_mib: int = Field(default=1024, ge=64)
    flash: tuple[Path, ...] = Field(default=(), description="firmware images, pflash in order")
    bios: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disks: tuple[Path, ...] = Field(default=(), description="raw or qcow2, as virtio disks")
    emmc: Path | None = Field(
        default=None,
        description="image of an eMMC: boot partitions, RPMB, user area (QEMU 10.2 or later)",
    )
    snapshot: bool = Field(
        default=False,
        description="disks and eMMC stay as they are: what the board writes is forgotten when "
        "the harness ends",
    )
    boot_partition_kib: int = Field(default=1024, ge=0)
    rpmb_kib: int = Field(default=2048, ge=128, le=16384)
    ssh_port: int = Field(
        default=0, ge=0, le=65535, description="loopback port that reaches the guest's 22; 0: any"
    )
    serial_port: int = Field(
        default=0, ge=0, le=65535, description="loopback port of the console; 0: any"
    )
    extra: tuple[str, ...] = Field(default=(), description="further arguments, as they are")


class QemuPowerSection(Section):
    """QEMU: switching on starts it, switching off ends it as pulling the plug would."""

    driver: Literal["qemu"]
    options: QemuPowerOptions


class QemuPower(PowerDriver):
    """Power driver ``qemu``. The machine ends with the harness, however that ends."""

    def __init__(self, options: QemuPowerOptions, *, board: str) -> None:
        self._options, self._login = with_images(options, options.images, board=board)
        self._board = board
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._held = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._messages: IO[bytes] | None = None
        # Chosen once: links keep their address over a power cycle.
        self.ssh_port = self._options.ssh_port or _free_port()
        """The loopback port that reaches the guest's SSH server."""
        self._serial_port = self._options.serial_port or _free_port()

    def on(self, timeout: float) -> None:
        state = self.state()
        if state is PowerState.ON:
            return
        if self._monitor is not None and self._alive():
            self._tell(["system_reset", "cont"], timeout)
            self._held = False
            return
        self._start(timeout)

    def off(self, timeout: float) -> None:
        if self._monitor is not None and self._alive():
            if not self._held:
                self._tell(["stop", "system_reset"], timeout)
                self._held = True
            return
        self._end(timeout)

    def state(self) -> PowerState:
        """A guest that switched itself off is off."""
        if self._held or not self._alive():
            return PowerState.OFF
        if self._monitor is None:
            return PowerState.ON
        try:
            said = self._monitor.execute("query-status", time.monotonic() + 5.0)
        except QmpError:
            return PowerState.UNKNOWN
        return PowerState.OFF if said["status"] == "shutdown" else PowerState.ON

    def endpoints(self) -> Endpoints:
        """The console, and SSH to images that `hil qemu build` made; otherwise SSH needs the
        guest's host key, so the board file names it, with ``power.options.ssh_port`` as port."""
        from harness.links.address import SerialAddress, SshAddress

        serial = SerialAddress(f"socket://{_LOOPBACK}:{self._serial_port}")
        if self._login is None:
            return Endpoints(serial=serial)
        ssh = SshAddress(
            _LOOPBACK,
            self.ssh_port,
            user=self._login.user,
            key=self._login.key,
            host_key_fingerprint=self._login.host_key_fingerprint,
            ssh_config=False,
        )
        return Endpoints(ssh, serial)

    def keeps(self) -> Path | None:
        """Beside the image of the eMMC; with the machine where the image stays as it is."""
        emmc = self._options.emmc
        if emmc is None:
            return None
        if self._options.snapshot:
            return None if self._folder is None else Path(self._folder.name, "safekeeping")
        return emmc.with_name(f"{emmc.name}.safekeeping")

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._end(2.0)
        self._close_messages()

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self, timeout: float) -> None:
        self._check_images()
        if shutil.which(self._options.program) is None:
            raise self._no_program("is not installed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._end(timeout)
        self._close_messages()
        self._messages = tempfile.TemporaryFile(prefix="hil-qemu-")  # noqa: SIM115
        self._folder = tempfile.TemporaryDirectory(prefix="hil-qemu-")
        monitor = Path(self._folder.name, "monitor")
        self._process = subprocess.Popen(
            [*self._command(), "-qmp", f"unix:{monitor},server=on,wait=off"],
            stdin=subprocess.DEVNULL,
            stdout=self._messages,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        greeted = self._wait_until_running(monitor, timeout)
        if self._options.emmc is None:
            greeted.close()
        else:
            self._monitor = greeted

    def _end(self, timeout: float) -> None:
        self._held = False
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout)
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _tell(self, commands: list[str], timeout: float) -> None:
        assert self._monitor is not None
        deadline = time.monotonic() + timeout
        try:
            for command in commands:
                self._monitor.execute(command, deadline)
        except QmpError as error:
            raise PowerError(
                f"QEMU did not do what it was told: {error}",
                remedy="raise timeouts.power; is the host overloaded?",
                board=self._board,
            ) from error

    def _command(self) -> list[str]:
        options = self._options
        command = [options.program, "-display", "none", "-monitor", "none"]
        command += ["-M", options.machine, "-cpu", options.cpu]
        command += ["-smp", str(options.cpus), "-m", str(options.memory_mib)]
        console = f"socket,id=console,host={_LOOPBACK},port={self._serial_port}"
        command += ["-chardev", f"{console},server=on,wait=off", "-serial", "chardev:console"]
        forward = f"hostfwd=tcp:{_LOOPBACK}:{self.ssh_port}-:22"
        command += [
            "-netdev",
            f"user,id=net,{forward}",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]
        for image in options.flash:
            command += ["-drive", f"if=pflash,format=raw,file={_escaped(image)}"]
        for flag, path in (
            ("-bios", options.bios),
            ("-kernel", options.kernel),
            ("-initrd", options.initrd),
        ):
            command += [] if path is None else [flag, str(path)]
        command += ["-append", options.append] if options.append else []
        for image in options.disks:
            raw = ",format=raw" if image.suffix in (".img", ".raw") else ""
            drive = f"if=virtio{raw},file={_escaped(image)}{self._snapshot()}"
            command += ["-drive", drive]
        if options.emmc is not None:
            # A guest that switches itself off must leave its eMMC.
            command += [*self._emmc(options.emmc), "-action", "shutdown=pause"]
        command += options.extra
        return [*_dies_with_us(), *command]

    def _emmc(self, image: Path) -> list[str]:
        if not self._has_rpmb():
            raise HostError(
                f"{self.version()} has no eMMC with an RPMB partition",
                remedy=f"use QEMU {_FIRST_RELEASE_WITH_RPMB} or later (power.options.program), or "
                "leave power.options.emmc out",
                board=self._board,
            )
        options = self._options
        drive = f"if=none,id=emmc,format=raw,file={_escaped(image)}{self._snapshot()}"
        # In bytes: these properties take no suffix.
        sizes = f"boot-partition-size={options.boot_partition_kib << 10}"
        sizes += f",rpmb-partition-size={options.rpmb_kib << 10}"
        return ["-drive", drive, "-device", "sdhci-pci", "-device", f"emmc,drive=emmc,{sizes}"]

    def _snapshot(self) -> str:
        return ",snapshot=on" if self._options.snapshot else ""

    def version(self) -> str:
        """The program and its release, as it names itself. Raises :class:`HostError`."""
        first = self._ask("--version").partition("\n")[0]
        found = re.search(r"QEMU emulator version (\S+)", first)
        return f"QEMU {found[1]}" if found else first

    def _has_rpmb(self) -> bool:
        return "rpmb-partition-size" in self._ask("-device", "emmc,help")

    def _ask(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self._options.program, *arguments],
                capture_output=True,
                timeout=10.0,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._no_program(f"cannot be asked: {error}") from error
        return done.stdout.decode("utf-8", "replace")

    def _no_program(self, why: str) -> HostError:
        return HostError(
            f"{self._options.program} {why}",
            remedy="install the package qemu-system-arm, or correct power.options.program",
            board=self._board,
        )

    def _check_images(self) -> None:
        options = self._options
        images = [*options.flash, *options.disks]
        images += [path for path in (options.bios, options.kernel, options.initrd) if path]
        images += [options.emmc] if options.emmc else []
        for image in images:
            if not image.is_file():
                raise ConfigurationError(
                    f"there is no image {image}",
                    remedy="build it, or correct [power.options] of the board file",
                    board=self._board,
                )

    def _wait_until_running(self, monitor: Path, timeout: float) -> Monitor:
        """Until its monitor greets, which it does once the machine is complete; what QEMU has to
        say when it ends instead."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise HostError(
                    f"{self._options.program} ended at once: {self._said()}",
                    remedy="correct [power.options] of the board file by that message",
                    board=self._board,
                )
            with contextlib.suppress(OSError, QmpError):
                return Monitor(monitor, deadline)
            threading.Event().wait(_POLL_SECONDS)
        self._end(2.0)
        raise PowerError(
            f"{self._options.program} did not run within {timeout:g} s",
            remedy="raise timeouts.power; is the host overloaded?",
            board=self._board,
        )

    def _said(self) -> str:
        if self._messages is None:
            return ""
        self._messages.seek(0)
        text = self._messages.read().decode("utf-8", "replace").strip()
        return text[-300:] or "without a message"

    def _close_messages(self) -> None:
        if self._messages is not None:
            self._messages.close()
            self._messages = None


def _dies_with_us() -> list[str]:
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", signal.SIGKILL.name.removeprefix("SIG")] if program else []


def _escaped(path: Path) -> str:
    """A file name inside a -drive option: a comma is written twice."""
    return str(path).replace(",", ",,")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _images(section: QemuPowerSection) -> list[str]:
    options = section.options
    images = [*options.flash, *options.disks, *([options.emmc] if options.emmc else [])]
    return [f"image {os.path.realpath(image)}" for image in images]


def _vary(
    section: QemuPowerSection, variant: str | None, autostart: bool, store: Path | None
) -> QemuPowerSection | None:
    """Images that are named by their configuration are as they were built at every start."""
    if section.options.images is None or not autostart:
        return None
    options = {} if variant is None else {"images": variant}
    return section.model_copy(update={"options": section.options.model_copy(update=options)})


DRIVER = Driver(
    section=QemuPowerSection,
    open=lambda section, context: QemuPower(section.options, board=context.board),
    things=_images,
    offers_links=lambda section: section.options.images is not None,
    vary=_vary,
)
