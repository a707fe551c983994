"""The RPMB partition of the board's eMMC: write counter, blocks, identity.

mmc-utils carry the requests where the board has them, a python3 one-liner with the same ioctl
(contract 1.6) where it has not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from harness.capabilities import Consent
from harness.errors import MissingCapability, TargetError
from harness.shell import Result, Shell

BLOCK_BYTES = 256
KEY_BYTES = 32
SIZE_UNIT_BYTES = 128 * 1024

_COUNTER = re.compile(r"Counter value: 0x([0-9a-fA-F]+)")
_RESULT = re.compile(r"retcode 0x([0-9a-fA-F]{4})")


@dataclass(frozen=True, slots=True)
class EmmcIdentity:
    """What sysfs says of the eMMC: the CID as 32 hex digits, the RPMB partition's size in bytes,
    the reliable-write sector count (EXT_CSD[222])."""

    cid: str
    rpmb_bytes: int
    reliable_write_sectors: int


class RpmbFailure(IntEnum):
    """Result codes of an RPMB response (JESD84-B51 6.6.22)."""

    GENERAL = 1
    AUTHENTICATION = 2
    COUNTER = 3
    ADDRESS = 4
    WRITE = 5
    READ = 6
    NO_KEY = 7


class RpmbRefused(TargetError):
    """The device answered with a result code other than zero; ``result`` is the code."""

    def __init__(self, result: int, command: str) -> None:
        self.result = result
        known = {failure.value: failure.name for failure in RpmbFailure}
        name = known.get(result & 0x7F, "unknown")
        super().__init__(
            f"the RPMB partition answered with result {result:#06x} ({name})",
            remedy="see JESD84-B51 6.6.22: 2 wrong key, 3 counter, 4 address, 7 no key programmed",
            command=command,
        )


class Rpmb:
    """RPMB requests beside OP-TEE's. A refused request raises :class:`RpmbRefused`; a write needs
    the consent ``foreign_rpmb_write``, because OP-TEE's own counter is stale after it and every
    SetVariable fails until the next boot."""

    def __init__(self, shell: Shell, *, consent: Callable[[Consent], None]) -> None:
        self._shell = shell
        self._consent = consent
        self._device: str | None = None
        self._has_mmc_utils: bool | None = None

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
        """The write counter. It is read without authentication of the answer."""
        output = self._mmc(f"rpmb read-counter {self.device}", timeout).text
        match = _COUNTER.search(output)
        if match is None:
            raise TargetError(
                f"no counter in the answer {output[:200]!r}",
                remedy="run `mmc rpmb read-counter` on the board",
            )
        return int(match[1], 16)

    def read_block(
        self, address: int, count: int = 1, key: bytes | None = None, *, timeout: float = 10.0
    ) -> bytes:
        """``count`` half sectors of 256 bytes from half sector ``address``; with ``key`` the
        answer's MAC is checked."""
        key_file = "$d/key" if key is not None else ""
        result = self._mmc(
            f"rpmb read-block {self.device} {address:#x} {count} $d/out {key_file}; "
            "s=$?; test $s = 0 && cat $d/out; (exit $s)",
            timeout,
            files={"key": key} if key is not None else {},
        )
        return result.stdout[-count * BLOCK_BYTES :]

    def write_block(self, address: int, data: bytes, key: bytes, *, timeout: float = 10.0) -> None:
        """Authenticated write of one half sector (256 bytes) with a 32-byte key."""
        self._consent(Consent.FOREIGN_RPMB_WRITE)
        if len(data) != BLOCK_BYTES or len(key) != KEY_BYTES:
            raise ValueError(f"need {BLOCK_BYTES} bytes of data and {KEY_BYTES} of key")
        self._mmc(
            f"rpmb write-block {self.device} {address:#x} $d/data $d/key",
            timeout,
            files={"data": data, "key": key},
        )

    def identity(self) -> EmmcIdentity:
        """CID, size and reliable-write count of the eMMC behind :attr:`device`."""
        card = self.device.removeprefix("/dev/").removesuffix("rpmb")
        text = self._shell.run(
            f"cd /sys/class/block/{card}/device 2>/dev/null || "
            f"cd /sys/class/mmc_host/mmc{card.removeprefix('mmcblk')}/mmc*:0001 && "
            "cat cid raw_rpmb_size_mult rel_sectors"
        ).check()
        cid, size_mult, sectors = text.text.split()
        return EmmcIdentity(cid, int(size_mult, 0) * SIZE_UNIT_BYTES, int(sectors, 0))

    def _mmc(self, arguments: str, timeout: float, files: dict[str, bytes] | None = None) -> Result:
        """Run mmc-utils with ``files`` in a directory ``$d`` that does not outlive the command."""
        if self._has_mmc_utils is None:
            self._has_mmc_utils = self._shell.run("command -v mmc").ok
        if not self._has_mmc_utils:
            raise MissingCapability(
                "this board has no command mmc", remedy="install the package mmc-utils on the board"
            )
        create = "".join(
            f"printf {shlex.quote(_octal(content))} > $d/{name} && "
            for name, content in (files or {}).items()
        )
        command = f"d=$(mktemp -d) && {create}mmc {arguments}; s=$?; rm -rf $d; exit $s"
        result = self._shell.run_isolated(command, timeout=timeout)
        refusal = _RESULT.search(result.text + result.error_text)
        if refusal is not None:
            raise RpmbRefused(int(refusal[1], 16), f"mmc {arguments}")
        return result.check()


def _octal(content: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in content)
