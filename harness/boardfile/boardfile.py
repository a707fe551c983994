"""Board files: ``boards/NAME.toml``, validated, with errors that name file, line and the nearest
valid word.

Import this module late: pydantic costs more than a whole ``hil --help``.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from harness.boardfile.places import board_files
from harness.capabilities import Capability
from harness.consents import Consent
from harness.errors import ConfigurationError
from harness.power.options import PowerSection
from harness.tables import Port, Seconds, Table

_LABGRID_PORT = 20408
_IN_A_PLACE = "in a labgrid place"
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
    """``[ssh]``: how to log in over the network. The host key is always checked: give its
    fingerprint or a known_hosts file."""

    host: str = Field(
        default="",
        validate_default=True,
        description="name or address; may be left out for a labgrid place",
    )
    port: Port = 22
    user: str = "root"
    key: Path | None = Field(
        default=None, description="private key file; without it ssh-agent is asked"
    )
    password: str | None = None
    shell: str = Field(default="sh", description="the POSIX shell to use, e.g. `busybox sh`")
    host_key_fingerprint: str | None = Field(
        default=None,
        pattern=r"^SHA256:[A-Za-z0-9+/]{43}=?$",
        description="as `ssh-keygen -lf` prints it: SHA256:...",
    )
    known_hosts: Path | None = Field(default=None, description="OpenSSH known_hosts file")

    @model_validator(mode="after")
    def _host_key_is_known(self) -> SshSection:
        if (self.host_key_fingerprint is None) == (self.known_hosts is None):
            raise ValueError("give exactly one of host_key_fingerprint and known_hosts")
        return self

    @field_validator("host")
    @classmethod
    def _host_is_known(cls, host: str, info: ValidationInfo) -> str:
        if not host and not _in_a_place(info):
            raise PydanticCustomError("missing", "Field required")
        return host


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
    password: str = ""


class PromptsSection(Table):
    """``[serial.prompts]``: regular expressions for what the console shows where it differs
    from the usual."""

    login: str | None = None
    password: str | None = None
    shell: str | None = None
    firmware: str | None = None


class SerialSection(Table):
    """``[serial]``: the console. Give a port (path or URL) or a udev match; neither for the
    port of a labgrid place."""

    port: str | None = Field(
        default=None, description="device path, or a socket:// or rfc2217:// URL", min_length=1
    )
    udev: UdevMatch | None = None
    baud: int = Field(default=115200, ge=300, le=4_000_000)
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
    power: Annotated[PowerSection, Field(discriminator="driver")]
    timeouts: TimeoutsSection = TimeoutsSection()
    kernel_log_allowed: tuple[str, ...] = Field(
        default=(), description="regular expressions of kernel lines that fail no test here"
    )
    capabilities: dict[Capability, bool] = Field(
        default={}, description="assertions: a value that the measurement contradicts fails"
    )
    limits: dict[_Measurement, float] = Field(
        default={},
        description="what a measurement of the tests may be at most; the key is its name, `_` and "
        "its unit, e.g. set_variable_ms",
    )
    consents: dict[Consent, bool] = Field(
        default={}, description="what the owner allows; default: no"
    )

    @model_validator(mode="after")
    def _reachable(self) -> BoardFile:
        if self.labgrid is None and self.power.driver == "labgrid":
            raise ValueError("power driver 'labgrid' needs [labgrid] with coordinator and place")
        offers = self.power.driver == "emulated" or (
            self.power.driver == "qemu" and self.power.options.images is not None
        )
        elsewhere = offers or self.labgrid is not None
        if not elsewhere and self.ssh is None and self.serial is None:
            raise ValueError("give [ssh] or [serial]: the board cannot be reached otherwise")
        return self

    def consents_to(self, consent: Consent) -> bool:
        """Whether the owner allows it."""
        return self.consents.get(consent, False)


def _in_a_place(info: ValidationInfo) -> bool:
    """Whether the file has a [labgrid] table, whose place may know what a section leaves out."""
    return bool(info.context and info.context.get(_IN_A_PLACE))


def load(path: Path) -> BoardFile:
    """Read and validate one board file. Relative paths in it are relative to its directory, and
    ``~`` is the user's home.

    Raises :class:`ConfigurationError` naming the file and, for every problem at once, the line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"cannot read the board file {path}: {reason}",
            remedy="give the path of a readable board file, or a name from `hil boards`",
        ) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{path}: not valid TOML: {error}", remedy="mend the line named above"
        ) from error
    data.setdefault("name", path.stem)
    in_a_place = "labgrid" in data
    if in_a_place:
        data.setdefault("power", {"driver": "labgrid"})
    try:
        board = BoardFile.model_validate_json(
            json.dumps(data, default=str), context={_IN_A_PLACE: in_a_place}
        )
    except ValidationError as error:
        problems = sorted(_explain(problem, text) for problem in error.errors())
        raise ConfigurationError(
            "; ".join(f"{path}:{line}: {what}" for line, what in problems),
            remedy="mend the lines named above; boards/example.toml shows all",
        ) from error
    return _with_absolute_paths(board, path.parent)


def find(name: str) -> Path:
    """The board file for a path or a bare name. Names are looked up in ``$HIL_BOARDS`` (a
    directory), in ``./boards`` and in the ``boards`` beside the package. Raises
    :class:`ConfigurationError` with the nearest names."""
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    known = {path.stem: path for path in reversed(list(board_files()))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(
        f"there is no board file for {name!r}",
        remedy=f"{hint}Known boards: {', '.join(sorted(known)) or 'none'}; or give a path",
    )


def schema() -> dict[str, Any]:
    """The JSON schema of board files, for editors."""
    generated = BoardFile.model_json_schema()
    # A board file need not repeat its own name, and a labgrid place brings its power.
    generated["required"] = [key for key in generated["required"] if key not in {"name", "power"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}


def schema_text() -> str:
    """:func:`schema` as committed in ``boards/board.schema.json``."""
    return json.dumps(schema(), indent=2) + "\n"


def _with_absolute_paths(board: BoardFile, folder: Path) -> BoardFile:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder.resolve() / path.expanduser()

    changes: dict[str, Any] = {}
    if board.ssh is not None:
        changes["ssh"] = board.ssh.model_copy(
            update={
                "key": absolute(board.ssh.key),
                "known_hosts": absolute(board.ssh.known_hosts),
            }
        )
    if board.power.driver == "emulated":
        changes["power"] = board.power.model_copy(update={"state": absolute(board.power.state)})
    if board.power.driver == "qemu":
        options = board.power.options
        paths: dict[str, Any] = {
            key: absolute(getattr(options, key)) for key in ("bios", "kernel", "initrd", "emmc")
        }
        for key in ("flash", "disks"):
            paths[key] = tuple(absolute(path) for path in getattr(options, key))
        changes["power"] = board.power.model_copy(
            update={"options": options.model_copy(update=paths)}
        )
    return board.model_copy(update=changes)


# --- explaining what is wrong -------------------------------------------------------------------

_Location = Sequence[str | int]


def _explain(problem: ErrorDetails, text: str) -> tuple[int, str]:
    """One problem: its line, and what is wrong with the nearest valid word."""
    location = [part for part in problem["loc"] if part != "[key]"]
    table, toml_path = _walk(location)
    line = _line_of(toml_path, text)
    dotted = ".".join(toml_path) or "the board file"
    match problem["type"]:
        case "extra_forbidden" | "enum" if _is_key_problem(problem):
            hint = _nearest(toml_path[-1], _words(table))
            return line, f"unknown key {dotted!r}{hint}"
        case "missing":
            return line, f"missing {dotted!r}"
        case "union_tag_not_found":
            return line, f"missing '{dotted}.driver'"
        case "union_tag_invalid":
            tag = problem["ctx"]["tag"]
            valid = [word.strip(" '") for word in problem["ctx"]["expected_tags"].split(",")]
            return _line_of([*toml_path, "driver"], text), (
                f"unknown driver {tag!r}{_nearest(tag, valid)}"
            )
        case "value_error":
            return line, f"{dotted}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            return line, f"{dotted!r}: {message}, not {problem['input']!r}"


def _is_key_problem(problem: ErrorDetails) -> bool:
    return problem["type"] == "extra_forbidden" or problem["loc"][-1] == "[key]"


def _nearest(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if near:
        return f", did you mean {near[0]!r}?"
    return f", valid are {', '.join(sorted(valid))}" if valid else ""


def _walk(location: _Location) -> tuple[dict[str, Any], list[str]]:
    """Follow a pydantic location through the JSON schema: the schema of the last table on the
    way, and the location as the TOML file spells it (union tags are not keys)."""
    root = schema()

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return resolve(root["$defs"][node["$ref"].rpartition("/")[2]])
        tables = [option for option in node.get("anyOf", ()) if "$ref" in option]
        return resolve(tables[0]) if tables else node

    node, toml_path = root, []
    for part in map(str, location):
        mapping = node.get("discriminator", {}).get("mapping")
        if mapping and part in mapping:
            node = resolve({"$ref": mapping[part]})
            continue
        toml_path.append(part)
        child = node.get("properties", {}).get(part)
        if child is None:
            break
        node = resolve(child)
    return node, toml_path


def _words(node: dict[str, Any]) -> list[str]:
    """The keys that a table may have."""
    if "propertyNames" in node:
        names = node["propertyNames"]
        if "$ref" in names:
            names = schema()["$defs"][names["$ref"].rpartition("/")[2]]
        return list(names.get("enum", ()))
    return list(node.get("properties", ()))


_HEADER = re.compile(r"^\s*\[+([^\]]+)\]+")
_ASSIGNMENT = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[\w"'-]+)*)\s*=""")


def _line_of(path: Sequence[str], text: str) -> int:
    """The line on which ``path`` is set; for a missing key, the line of the nearest table above
    it that exists (line 1 for the file itself)."""
    lines: dict[tuple[str, ...], int] = {(): 1}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _split_key(header[1])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault((*table, *_split_key(assignment[1])), number)
    wanted = tuple(path)
    while wanted not in lines:
        wanted = wanted[:-1]
    return lines[wanted]


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
