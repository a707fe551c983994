"""What a board file may say: its tables.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from harness.capabilities import Capability
from harness.consents import Consent
from harness.power.registry import PowerSection, driver_of
from harness.tables import Baud, Pattern, Port, Seconds, Table

_LABGRID_PORT = 20408
IN_A_PLACE = "in a labgrid place"
"""Key of the validation context: whether the file has a [labgrid] table."""
_Measurement = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*_[A-Za-z0-9]+$")]


class LabgridSection(Table):
    """``[labgrid]``: the place of a labgrid coordinator that the board is in. What the board file
    does not name itself (host, port and user of SSH, the serial port, the power driver) is what
    the place has; it is acquired for as long as the board is used."""

    coordinator: str = Field(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(:\d{1,5})?$",
        description="HOST or HOST:PORT; port 20408 by itself",
    )
    place: str = Field(min_length=1, description="a name from `labgrid-client places`")
    wait: float = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="seconds to wait, in labgrid's own queue, for a place that somebody else has",
    )
    power: str = Field(default="", description="name of the power resource, where there are more")
    serial: str = Field(default="", description="name of the NetworkSerialPort to use as console")
    ssh: str = Field(default="", description="name of the NetworkService")

    @property
    def address(self) -> str:
        """HOST:PORT of the coordinator."""
        named = re.search(r":\d+$", self.coordinator)
        return self.coordinator if named else f"{self.coordinator}:{_LABGRID_PORT}"


class SshSection(Table):
    """``[ssh]``: how to log in over the network. What is not given is what ssh_config says of the
    host. The host key is always checked: give its fingerprint or a known_hosts file, or have it
    in the files that ssh(1) reads."""

    host: str = Field(
        default="",
        validate_default=True,
        description="name, address or `Host` of ssh_config; may be left out for a labgrid place",
    )
    port: Port | None = Field(default=None, description="default: ssh_config's, else 22")
    user: str | None = Field(default=None, description="default: ssh_config's, else root")
    key: Path | None = Field(
        default=None,
        description="private key file; without it, and without password, ssh-agent is asked, then "
        "ssh_config's IdentityFile",
    )
    password: SecretStr | None = Field(
        default=None, description="for password and keyboard-interactive; a change is refused"
    )
    shell: str = Field(default="sh", description="the POSIX shell to use, e.g. `busybox sh`")
    host_key_fingerprint: str | None = Field(
        default=None,
        pattern=r"^SHA256:[A-Za-z0-9+/]{43}=?$",
        description="as `ssh-keygen -lf` prints it: SHA256:...",
    )
    known_hosts: Path | None = Field(
        default=None, description="OpenSSH known_hosts file; default: the user's"
    )

    @model_validator(mode="after")
    def _host_key_is_known(self) -> SshSection:
        if self.host_key_fingerprint is not None and self.known_hosts is not None:
            raise ValueError("give only one of host_key_fingerprint and known_hosts")
        return self

    @field_validator("host")
    @classmethod
    def _host_is_known(cls, host: str, info: ValidationInfo) -> str:
        if not host and not _in_a_place(info):
            raise PydanticCustomError("missing", "Field required")
        said = re.fullmatch(r"(?:(.*)@)?(\[.*\]|[^:]*)(?::(\d+))?", host)
        if said and (said[1] or said[3]):
            keys = {"user": said[1], "host": said[2].strip("[]"), "port": said[3]}
            hint = ", ".join(f"{key} = {value}" for key, value in keys.items() if value)
            raise ValueError(f"only the host belongs here; give {hint}, each with its key")
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host


class UdevMatch(Table):
    """``[serial.udev]``: a serial adapter by what it is, not by its changing name. Every given
    property must match."""

    vendor_id: str | None = Field(default=None, description="ID_VENDOR_ID, e.g. 0403")
    model_id: str | None = Field(default=None, description="ID_MODEL_ID, e.g. 6011")
    serial: str | None = Field(default=None, min_length=1, description="ID_SERIAL_SHORT")
    path: str | None = Field(default=None, description="ID_PATH: the USB port the adapter sits in")
    interface: str | None = Field(
        default=None, description="ID_USB_INTERFACE_NUM of a multi-port adapter"
    )

    @model_validator(mode="after")
    def _something_to_match(self) -> UdevMatch:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give at least one property to match")
        return self


class LoginSection(Table):
    """``[serial.login]``: what to answer at the login prompt."""

    user: str = "root"
    password: SecretStr = SecretStr("")


class PromptsSection(Table):
    """``[serial.prompts]``: regular expressions for what the console shows where it differs
    from the usual."""

    login: Pattern | None = None
    password: Pattern | None = None
    shell: Pattern | None = None
    firmware: Pattern | None = None
    interrupt_text: Pattern | None = Field(
        default=None,
        description="what a firmware shows while it counts down; default: what U-Boot and its "
        "vendors say",
    )
    interrupt_key: str | None = Field(
        default=None,
        min_length=1,
        description='what stops the count-down, e.g. "\\u0003" for ^C; default: the key that the '
        "firmware names, else a blank",
    )


class SerialSection(Table):
    """``[serial]``: the console. Give a port (path or URL) or a udev match; neither for the
    port of a labgrid place."""

    port: str | None = Field(
        default=None, description="device path, or a socket:// or rfc2217:// URL", min_length=1
    )
    udev: UdevMatch | None = None
    baud: Baud = 115200
    login: LoginSection = LoginSection()
    prompts: PromptsSection = PromptsSection()

    @property
    def named(self) -> bool:
        """Whether the file itself says which port."""
        return self.port is not None or self.udev is not None

    @model_validator(mode="after")
    def _one_way_to_find_it(self, info: ValidationInfo) -> SerialSection:
        both = self.port is not None and self.udev is not None
        if both or not (self.named or _in_a_place(info)):
            raise ValueError("give exactly one of port and udev")
        return self


class TimeoutsSection(Table):
    """``[timeouts]``: how long this board takes, in seconds."""

    boot: Seconds = Field(default=120.0, description="from power-on to the first answered command")
    power: Seconds = Field(default=60.0, description="for the power driver to switch")
    adapter: Seconds = Field(
        default=10.0,
        description="from power-on to the serial adapter, where it draws its power from the board",
    )
    ready: Seconds = Field(
        default=15.0,
        description="from the first answered command to the driver bound and efivarfs rw",
    )
    shutdown: Seconds = Field(
        default=60.0, description="from `reboot` to the new boot's first sign"
    )
    command: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="the least that every command gets, where a SetVariable takes longer than "
        "tests expect: OP-TEE moves 48 KiB by some 200 RPMB writes",
    )


class BoardFile(Table):
    """A board: what it is, how to reach it, what it can do and what its owner allows."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="default: file name")
    description: str = ""
    emmc_cid: str = Field(
        pattern=r"^[0-9a-f]{32}$",
        description="32 lower-case hex digits, from /sys/class/mmc_host/mmc0/mmc0:0001/cid; "
        "the harness refuses to write to any other board",
    )
    disposable: bool = Field(
        default=False, description="the board may be left changed in ways that cannot be undone"
    )
    rpmb_write_budget: int | None = Field(
        default=None, ge=0, description="RPMB writes that one run may cost; without it unlimited"
    )
    labgrid: LabgridSection | None = None
    ssh: SshSection | None = None
    serial: SerialSection | None = None
    power: PowerSection
    timeouts: TimeoutsSection = TimeoutsSection()
    kernel_log_allowed: tuple[Pattern, ...] = Field(
        default=(), description="regular expressions of kernel lines that fail no test here"
    )
    capabilities: dict[Capability, bool] = Field(
        default={}, description="assertions: a value that the measurement contradicts fails"
    )
    limits: dict[_Measurement, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="what a measurement of the tests may be at most; the key is its name, `_` and "
        "its unit, e.g. set_variable_ms",
    )
    consents: dict[Consent, bool] = Field(
        default={}, description="what the owner allows; default: no"
    )

    @model_validator(mode="after")
    def _reachable(self) -> BoardFile:
        driver = driver_of(self.power)
        if self.labgrid is None and driver.needs_place:
            raise ValueError(
                f"power driver {driver.name!r} needs [labgrid] with coordinator and place"
            )
        elsewhere = driver.offers_links(self.power) or self.labgrid is not None
        if not elsewhere and self.ssh is None and self.serial is None:
            raise ValueError("give [ssh] or [serial]: the board cannot be reached otherwise")
        return self

    def consents_to(self, consent: Consent) -> bool:
        """Whether the owner allows it."""
        return self.consents.get(consent, False)


def _in_a_place(info: ValidationInfo) -> bool:
    """Whether the file has a [labgrid] table, whose place may know what a section leaves out."""
    return bool(info.context and info.context.get(IN_A_PLACE))
