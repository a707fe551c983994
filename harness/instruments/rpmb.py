"""The RPMB partition of the board's eMMC: write counter, blocks, identity.

mmc-utils carry the requests where the board has them; elsewhere, and for raw frames, a few lines
of python3 on the board make the same ioctl (stack 1.6).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.capabilities import octal
from harness.consents import Consent
from harness.errors import MissingCapability, TargetError
from harness.formats import mmc
from harness.formats import rpmb as wire
from harness.shell import Shell

_COUNTER = re.compile(r"Counter value: 0x([0-9a-fA-F]+)")
_RESULT = re.compile(r"retcode 0x([0-9a-fA-F]{4})")


@dataclass(frozen=True, slots=True)
class EmmcIdentity:
    """What sysfs says of the eMMC: the CID as 32 hex digits, the RPMB partition's size in bytes,
    the reliable-write sector count (EXT_CSD[222])."""

    cid: str
    rpmb_bytes: int
    reliable_write_sectors: int


class RpmbRefused(TargetError):
    """The device answered with a result code other than zero; ``result`` is the code."""

    def __init__(self, result: int, command: str) -> None:
        self.result = result
        code = result & wire.RESULT_MASK
        name = wire.RpmbResult(code).name if code in list(wire.RpmbResult) else "unknown"
        super().__init__(
            f"the RPMB partition answered with result {result:#06x} ({name})",
            remedy="see JESD84-B51 6.6.22; a wrong key gives 2, a partition without key 7",
            command=command,
        )


class Rpmb:
    """RPMB requests beside OP-TEE's. A refused request raises :class:`RpmbRefused`; a write needs
    the consent ``foreign_rpmb_write``, because OP-TEE's own counter is stale after it and every
    SetVariable fails until the next boot. ``programming`` raises unless the key may be programmed
    (harness.safekeeping.key_programming)."""

    def __init__(
        self,
        shell: Shell,
        *,
        consent: Callable[[Consent], None],
        programming: Callable[[], None],
    ) -> None:
        self._shell = shell
        self._consent = consent
        self._programming = programming
        self._device: str | None = None
        self._carrier: _MmcUtils | _PythonIoctl | None = None

    @property
    def device(self) -> str:
        """The first RPMB node, e.g. ``/dev/mmcblk0rpmb``. Raises MissingCapability."""
        if self._device is None:
            names = self._shell.run("ls /dev/mmcblk*rpmb").text.split()
            if not names:
                raise MissingCapability(
                    "this board has no RPMB device node",
                    remedy="the board needs an eMMC with an RPMB partition",
                )
            self._device = names[0]
        return self._device

    def counter(self, *, timeout: float = 10.0) -> int:
        """The write counter (the MAC of the answer is not checked: OP-TEE keeps the key)."""
        return self._requests().counter(timeout)

    def read_block(
        self, address: int, count: int = 1, key: bytes | None = None, *, timeout: float = 10.0
    ) -> bytes:
        """``count`` half sectors of 256 bytes from half sector ``address``; with ``key`` the
        answer's MAC is checked (:class:`TargetError` if it is wrong)."""
        return self._requests().read(address, count, key, timeout)

    def write_block(self, address: int, data: bytes, key: bytes, *, timeout: float = 10.0) -> None:
        """Authenticated write of one half sector (256 bytes) with a 32-byte key."""
        self._consent(Consent.FOREIGN_RPMB_WRITE)
        if len(data) != wire.DATA_SIZE or len(key) != wire.MAC_SIZE:
            raise ValueError(f"need {wire.DATA_SIZE} bytes of data and {wire.MAC_SIZE} of key")
        self._requests().write(address, data, key, timeout)

    def program_key(self, key: bytes, *, timeout: float = 10.0) -> None:
        """Give the partition its 32-byte authentication key, once and for ever; needs python3 on
        the board, and what harness.safekeeping.key_programming asks for. Raises
        :class:`RpmbRefused`: a partition that has a key answers GENERAL_FAILURE (stack 1.4)."""
        if len(key) != wire.MAC_SIZE:
            raise ValueError(f"need {wire.MAC_SIZE} bytes of key")
        reply = self.exchange(wire.key_request(key), 1, reliable=True, timeout=timeout)[-1]
        if reply.result:
            raise RpmbRefused(reply.result, f"RPMB key programming on {self.device}")

    def exchange(
        self, request: bytes, reply_frames: int, *, reliable: bool = False, timeout: float = 10.0
    ) -> list[wire.RpmbFrame]:
        """Send raw request frames and return the reply's; needs python3 on the board. With
        ``reliable`` (writes and key programming) the result register is asked for in between;
        a write needs ``foreign_rpmb_write``, a key what :meth:`program_key` needs. Raises OSError
        with the errno of the ioctl."""
        if any(frame.kind == wire.RpmbRequest.PROGRAM_KEY for frame in wire.unpack_frames(request)):
            self._programming()
        elif reliable:
            self._consent(Consent.FOREIGN_RPMB_WRITE)
        if not self._shell.run("command -v python3").ok:
            raise MissingCapability(
                "raw RPMB frames need python3 on the board",
                remedy="install the package python3 on the board",
            )
        carrier = _PythonIoctl(self._shell, self.device)
        return carrier.exchange(request, reply_frames, reliable, timeout)

    def identity(self) -> EmmcIdentity:
        """CID, size and reliable-write count of the eMMC behind :attr:`device` (stack 1.7)."""
        card = self.device.removeprefix("/dev/mmcblk").removesuffix("rpmb")
        result = self._shell.run(
            f"cd /sys/class/mmc_host/mmc{card}/mmc{card}:0001 && "
            "cat cid raw_rpmb_size_mult rel_sectors"
        )
        cid, size_mult, sectors = result.check().text.split()
        return EmmcIdentity(cid, int(size_mult, 0) * wire.SIZE_UNIT, int(sectors, 0))

    def _requests(self) -> _MmcUtils | _PythonIoctl:
        if self._carrier is None:
            found = self._shell.run("command -v mmc || command -v python3").text
            if not found:
                raise MissingCapability(
                    "this board has neither mmc nor python3 to send RPMB frames with",
                    remedy="install the package mmc-utils on the board",
                )
            carrier = _MmcUtils if found.endswith("/mmc") else _PythonIoctl
            self._carrier = carrier(self._shell, self.device)
        return self._carrier


class _MmcUtils:
    """Through the command ``mmc`` (MU mmc_cmds.c)."""

    def __init__(self, shell: Shell, device: str) -> None:
        self._shell = shell
        self._device = device

    def counter(self, timeout: float) -> int:
        output = self._mmc("read-counter", "", timeout)
        match = _COUNTER.search(output.decode("ascii", "replace"))
        if match is None:
            raise TargetError(
                f"no counter in the answer {output[:200]!r}",
                remedy="run `mmc rpmb read-counter` on the board",
            )
        return int(match[1], 16)

    def read(self, address: int, count: int, key: bytes | None, timeout: float) -> bytes:
        files = {} if key is None else {"key": key}
        key_file = "" if key is None else "$d/key"
        output = self._mmc(
            "read-block",
            f"{address:#x} {count} $d/data {key_file} && cat $d/data",
            timeout,
            files,
        )
        return output[-count * wire.DATA_SIZE :]

    def write(self, address: int, data: bytes, key: bytes, timeout: float) -> None:
        files = {"data": data, "key": key}
        self._mmc("write-block", f"{address:#x} $d/data $d/key", timeout, files)

    def _mmc(
        self, action: str, arguments: str, timeout: float, files: dict[str, bytes] | None = None
    ) -> bytes:
        """Run it with ``files`` in a directory ``$d`` that does not outlive the command."""
        create = "".join(
            f"printf {shlex.quote(octal(content))} > $d/{name} && "
            for name, content in (files or {}).items()
        )
        mmc_command = f"mmc rpmb {action} {self._device} {arguments}"
        command = f"d=$(mktemp -d) && {create}{mmc_command}; s=$?; rm -rf $d; exit $s"
        result = self._shell.run_isolated(command, timeout=timeout)
        refusal = _RESULT.search(result.text + result.error_text)
        if refusal is not None:
            raise RpmbRefused(int(refusal[1], 16), mmc_command)
        return result.check().stdout


class _PythonIoctl:
    """Through MMC_IOC_MULTI_CMD, made by python3 on the board; frames are built here."""

    def __init__(self, shell: Shell, device: str) -> None:
        self._shell = shell
        self._device = device

    def counter(self, timeout: float) -> int:
        request = wire.counter_request(os.urandom(wire.NONCE_SIZE))
        return self._ask(request, 1, timeout)[0].write_counter

    def read(self, address: int, count: int, key: bytes | None, timeout: float) -> bytes:
        request = wire.read_request(address, os.urandom(wire.NONCE_SIZE))
        frames = self._ask(request, count, timeout)
        if key is not None and wire.mac(key, wire.join(frames)) != frames[-1].mac:
            raise TargetError(
                f"the MAC of half sector {address:#x} does not fit the key",
                remedy="give the key that OP-TEE uses on this board",
            )
        return b"".join(frame.data for frame in frames)

    def write(self, address: int, data: bytes, key: bytes, timeout: float) -> None:
        request = wire.write_request(key, self.counter(timeout), address, data)
        self._ask(request, 1, timeout, reliable=True)

    def exchange(
        self, request: bytes, reply_frames: int, reliable: bool, timeout: float
    ) -> list[wire.RpmbFrame]:
        """The reply's frames, whatever their result."""
        commands = [_send(request, reliable)]
        if reliable:
            commands.append(_send(wire.result_request(), False))
        commands.append(f"{mmc.MMC_READ_MULTIPLE_BLOCK} 0 {reply_frames} -")
        reply = self._ioctl(commands, timeout)
        return wire.unpack_frames(reply)

    def _ask(
        self, request: bytes, reply_frames: int, timeout: float, *, reliable: bool = False
    ) -> list[wire.RpmbFrame]:
        frames = self.exchange(request, reply_frames, reliable, timeout)
        if frames[-1].result:
            raise RpmbRefused(frames[-1].result, f"RPMB request on {self._device}")
        return frames

    def _ioctl(self, commands: Sequence[str], timeout: float) -> bytes:
        result = self._shell.run_isolated(
            f"python3 -c {shlex.quote(_IOCTL)} {self._device}",
            stdin="".join(line + "\n" for line in commands).encode(),
            timeout=timeout,
        ).check()
        status, _, reply = result.text.partition(" ")
        if status != "0":
            raise OSError(int(status), os.strerror(int(status)), self._device)
        return bytes.fromhex(reply)


def _send(frames: bytes, reliable: bool) -> str:
    # The kernel takes the sign bit as "reliable write" (K6 block.c:__mmc_blk_ioctl_cmd).
    flag = 1 - mmc.RELIABLE_WRITE if reliable else 1
    count = len(frames) // wire.FRAME_SIZE
    return f"{mmc.MMC_WRITE_MULTIPLE_BLOCK} {flag} {count} {frames.hex()}"


# One line a command: opcode, write_flag, blocks, data or "-". Prints "errno reply-in-hex".
_IOCTL = f"""
import ctypes, fcntl, os, struct, sys
commands, buffers = b"", []
for line in sys.stdin:
    opcode, flag, blocks, data = line.split()
    buffer = ctypes.create_string_buffer({wire.FRAME_SIZE} * int(blocks))
    if data != "-":
        buffer.raw = bytes.fromhex(data)
    buffers.append(buffer)
    commands += struct.pack({mmc.IOC_CMD.format!r}, int(flag), 0,
        int(opcode), 0, 0, 0, 0, 0, {mmc.RSP_R1_ADTC}, {wire.FRAME_SIZE},
        int(blocks), 0, 0, 0, 0, 0, ctypes.addressof(buffer))
array = bytearray(struct.pack({mmc.MULTI_COUNT.format!r}, len(buffers)) + commands)
try:
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), {mmc.MMC_IOC_MULTI_CMD}, array)
    print(0, buffers[-1].raw.hex())
except OSError as error:
    print(error.errno)
"""
