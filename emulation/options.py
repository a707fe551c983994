"""What kind of board is emulated: a frozen record, written as ``key=value`` on the command line."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, get_args, get_origin, get_type_hints

from emulation.faults import Fault, FaultSpecError

Variant = Literal["mm-query", "mm", "file", "mm-kernel-rpmb"]
EfivarfsSeries = Literal["K6", "K7"]
OpteeRelease = Literal["4.10", "4.1"]
RpmbProfile = Literal["qemu", "silicon"]
DriverLoading = Literal["auto", "builtin", "manual", "absent"]
SupplicantBuild = Literal["rpmb", "emulation"]
EfivarsMount = Literal["boot", "read-only", "none"]
SupplicantUser = Literal["root", "tee"]
Userland = Literal["host", "busybox"]

_LEAST: Final = {"processes": 32, "descriptors": 64, "memory": 64, "tmpfs": 4, "file": 1}
_MOST: Final = 1 << 20
"""A board does not start, or does nothing, with less; more is none."""

_TRUE: Final = ("yes", "true", "on", "1")
_FALSE: Final = ("no", "false", "off", "0")


class OptionError(ValueError):
    """An option that does not exist or cannot have that value; the text names the nearest word."""


@dataclass(frozen=True)
class BoardOptions:
    """Everything that can differ between two emulated boards.

    ``variant`` is the firmware and RPMB routing (tests/truth/README.md): ``mm-query`` and ``mm``
    keep variables in StMM, with and without QueryVariableInfo at run time; ``file`` is a U-Boot
    that keeps its own variables in a file; ``mm-kernel-rpmb`` is ``mm`` with RPMB routed in the
    kernel.
    """

    variant: Variant = "mm-query"
    efivarfs: EfivarfsSeries = "K6"
    """Kernel series whose efivarfs is modelled (stack 6)."""
    optee: OpteeRelease = "4.10"
    """4.1 has the relocation defect of stack 2.4."""
    hostname: str = "stmm-board"
    cid: str = "aa015851454d55212101deadbeef2900"
    """The eMMC's CID, 32 hexadecimal digits."""
    rpmb_size_mult: int = 16
    """EXT_CSD[168], units of 128 KiB, 1..128."""
    rpmb_rel_wr_sec_c: int = 1
    """EXT_CSD[222], 1..255."""
    rpmb_profile: RpmbProfile = "qemu"
    """Whose result codes the RPMB answers with where implementations differ (stack 10.1)."""
    mmc_postsleep: bool = False
    """MMC commands wait as long as their sender asks for: 20 ms a write with tee-supplicant."""
    write_key: bool = True
    """OP-TEE programs the RPMB key of a blank part (CFG_RPMB_WRITE_KEY)."""
    rpmb_key: str = field(default="", repr=False)
    """Key that somebody programmed before the first power-on, 64 hexadecimal digits."""
    rpmb_test_key: bool = True
    """OP-TEE was built with CFG_RPMB_TESTKEY; otherwise its RPMB key comes from ``huk`` and
    ``cid``."""
    huk: str = field(default="", repr=False)
    """Hardware unique key, 32 hexadecimal digits; zero by default. One made up for the purpose:
    that of a real board is a secret that opens its storage, and stays in it."""
    huk_compat: bool = True
    """OP-TEE derives its keys with CFG_CORE_HUK_SUBKEY_COMPAT, its default (stack 2.5)."""
    die_id: str = ""
    """Nothing: OP-TEE puts "BEEF" repeated into its storage key; 64 hexadecimal digits: this
    (CFG_CORE_HUK_SUBKEY_COMPAT_USE_OTP_DIE_ID); ``derived``: the same where the platform has
    none."""
    rpmb_node: bool = True
    """Whether udev made /dev/mmcblk0rpmb."""
    stmm: bool = True
    """Whether OP-TEE was built with StandaloneMM (CFG_STMM_PATH)."""
    preempt_rt: bool = False
    """A PREEMPT_RT kernel, which starts without EFI run-time services."""
    driver: DriverLoading = "auto"
    """tee_stmm_efi: loaded by its alias when the device appears, built in, by hand, or not built
    at all."""
    supplicant: SupplicantBuild = "rpmb"
    """``emulation`` is a tee-supplicant built with RPMB_EMU, the classic fault of bring-up."""
    supplicant_program: str = ""
    """Path of a tee-supplicant built for this host, such as upstream's, to run instead of ours."""
    supplicant_autostart: bool = True
    """The userland starts the supplicant at boot, as the udev rule of optee_client does."""
    supplicant_user: SupplicantUser = "root"
    """``tee``: it runs without privileges and may open /dev/teepriv0, but not the RPMB's node."""
    supplicant_unbinds: bool = False
    """Stopping the supplicant's service first unbinds the driver, by a drop-in."""
    fault: tuple[str, ...] = ()
    """Faults armed before the first power-on (emulation.faults), separated by commas; more
    ``fault=`` words add to them."""
    mount: EfivarsMount = "boot"
    """Whether the userland mounts efivarfs at boot, as systemd does; ``read-only``: as /etc/fstab
    says."""
    userland: Userland = "host"
    """``busybox``: the PATH holds busybox's commands and no others."""
    sftp: bool = True
    """Whether the SSH server offers SFTP (dropbear does not)."""
    baud: int = 115200
    """Rate of the serial line, 10 bits a byte; 0 is unpaced."""
    processes: int = 1024
    """Processes and threads that the board may have at once, all its users together."""
    descriptors: int = 4096
    """Files that one process of the board may have open."""
    memory: int = 2048
    """MiB of private memory that one process of the board may have."""
    tmpfs: int = 256
    """MiB that each of /, /run, /tmp and /dev/shm of the board holds."""
    file: int = 1024
    """MiB that one file of the board may have."""
    root_password: str = field(default="", repr=False)
    """What login on the console asks root for; nothing by default."""
    mutant: str = ""
    """The one thing that is broken, of docs/mutants.md; nothing by default. Whoever runs the board
    looks whether there is such a mutant."""

    def __post_init__(self) -> None:
        if self.baud < 0:
            raise OptionError(f"baud={self.baud}: must be positive, or 0 for an unpaced line")
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) <= _MOST:
                value = getattr(self, name)
                raise OptionError(f"{name}={value}: must be {least}..{_MOST}")
        if not 1 <= self.rpmb_size_mult <= 128:
            raise OptionError(f"rpmb_size_mult={self.rpmb_size_mult}: must be 1..128 (of 128 KiB)")
        if not 1 <= self.rpmb_rel_wr_sec_c <= 255:
            raise OptionError(f"rpmb_rel_wr_sec_c={self.rpmb_rel_wr_sec_c}: must be 1..255")
        if self.kernel_routed_rpmb and self.optee == "4.1":
            raise OptionError("variant=mm-kernel-rpmb: needs OP-TEE 4.4 or later, not optee=4.1")
        if not _is_hex(self.cid, 16):
            raise OptionError(f"cid={self.cid}: must be 32 hexadecimal digits")
        if self.rpmb_key and not _is_hex(self.rpmb_key, 32):
            raise OptionError("rpmb_key: must be 64 hexadecimal digits")
        if self.huk and not _is_hex(self.huk, 16):
            raise OptionError("huk: must be 32 hexadecimal digits")
        if self.die_id not in ("", "derived") and not _is_hex(self.die_id, 32):
            raise OptionError(f"die_id={self.die_id}: must be 64 hexadecimal digits, or derived")
        if self.die_id and not self.huk_compat:
            raise OptionError("die_id: is part of no key with huk_compat=no")
        for spec in self.fault:
            try:
                Fault.parse(spec)
            except FaultSpecError as error:
                raise OptionError(f"fault={error}") from None

    @property
    def kernel_routed_rpmb(self) -> bool:
        """Whether Linux answers OP-TEE's RPMB requests itself, without a supplicant."""
        return self.variant == "mm-kernel-rpmb"

    @classmethod
    def parse(cls, words: Iterable[str] = ()) -> Self:
        """Build the record from ``key=value`` words; the last of two equal keys wins (of ``fault``:
        both).

        Raises :class:`OptionError` naming the nearest valid key or value.
        """
        hints = get_type_hints(cls)
        names = [option.name for option in fields(cls)]
        values: dict[str, Any] = {}
        for word in words:
            key, equals, text = word.partition("=")
            key = key.replace("-", "_")
            if not equals:
                # Never the whole word: its other half may be a HUK.
                shown = word.partition(":")[0].partition(" ")[0]
                raise OptionError(f"{shown}: write it as key=value; keys are {', '.join(names)}")
            if key not in names:
                raise OptionError(f"{key}: no such option{nearest(key, names)}")
            if key == "fault":
                values[key] = (*values.get(key, ()), *text.split(","))
            else:
                values[key] = _convert(key, text, hints[key])
        return cls(**values)


def _convert(key: str, text: str, kind: object) -> object:
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        if text not in choices:
            raise OptionError(f"{key}={text}: no such value{nearest(text, choices)}")
        return text
    if kind is bool:
        if text not in _TRUE + _FALSE:
            raise OptionError(f"{key}={text}: must be yes or no")
        return text in _TRUE
    if kind is int:
        try:
            return int(text, 0)
        except ValueError:
            raise OptionError(f"{key}={text}: must be a whole number") from None
    return text


def nearest(word: str, choices: list[str]) -> str:
    """The end of a complaint about ``word``: the choice it is like, and all of them."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (one of {', '.join(choices)})"


def _is_hex(text: str, size: int) -> bool:
    try:
        return len(text) == 2 * size and len(bytes.fromhex(text)) == size
    except ValueError:
        return False
