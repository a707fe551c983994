"""All variables of a board, read in two round trips, and what each is by its nature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from harness.capabilities import EFIVARS_PATH
from harness.formats.efi import (
    CERT_DB_GUID,
    CUSTOM_MODE_GUID,
    MEMORY_OVERWRITE_LOCK_GUID,
    SECURE_BOOT_ENABLE_GUID,
    VARIABLE_ERROR_FLAG_GUID,
    VENDOR_KEYS_NV_GUID,
    Attributes,
)
from harness.instruments.efivars import IMMUTABLE, VariableName, name_of_file
from harness.instruments.outcomes import succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.probe.steps import Outcome, Step

MONOTONIC_COUNTER_GUID = UUID("eb704011-1402-11d3-8e77-00a0c969723b")
"""MTC, the upper half of GetNextHighMonotonicCount (edk2 MonotonicCounterRuntimeDxe)."""

_READ_BYTES = 65536
# Serial at 115200 baud carries a full store (16 KiB, as hex) in three seconds.
_READ_SECONDS = 60.0
_ATTRIBUTE_BYTES = 4
_STEPS_EACH = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """One variable as read: ``content`` is its four attribute bytes and data, empty for a file
    that was never written, None where reading failed with ``problem`` (an errno's name).
    ``immutable`` is None where the board cannot tell. Its data is never shown."""

    name: VariableName
    content: bytes | None = field(repr=False)
    immutable: bool | None = None
    problem: str = ""

    @property
    def is_variable(self) -> bool:
        """Whether the firmware has it (a file alone is no variable)."""
        return self.content is not None and len(self.content) >= _ATTRIBUTE_BYTES

    @property
    def attributes(self) -> Attributes:
        """Of a variable that was read."""
        return Attributes(int.from_bytes((self.content or b"")[:_ATTRIBUTE_BYTES], "little"))

    @property
    def data(self) -> bytes:
        """Of a variable that was read."""
        return (self.content or b"")[_ATTRIBUTE_BYTES:]


class Nature(StrEnum):
    """Why a variable's former value cannot be written back, as a reader is told."""

    VOLATILE = "volatile: the firmware makes it afresh at every start"
    FIRMWARE = "only the firmware writes it"
    COUNTER = "a counter never goes back"
    HARDWARE_ERROR = "a hardware error record: only the firmware writes it"
    AUTHENTICATED = (
        "authenticated: writing it takes its owner's signature, and its time stamp never goes back"
    )


# CustomMode and SecureBootEnable are seen where StandaloneMM was never told ExitBootServices.
_OF_THE_FIRMWARE = {
    CERT_DB_GUID,
    CUSTOM_MODE_GUID,
    SECURE_BOOT_ENABLE_GUID,
    VENDOR_KEYS_NV_GUID,
    VARIABLE_ERROR_FLAG_GUID,
    MEMORY_OVERWRITE_LOCK_GUID,
}


def nature(stored: Stored) -> Nature | None:
    """What keeps a variable from being written back; None for one that can be (stack 4.6, 4.7,
    4.10)."""
    attributes = stored.attributes
    if stored.name.guid in _OF_THE_FIRMWARE:
        return Nature.FIRMWARE
    if stored.name.guid == MONOTONIC_COUNTER_GUID:
        return Nature.COUNTER
    if not attributes & Attributes.NON_VOLATILE:
        return Nature.VOLATILE
    if attributes & Attributes.HARDWARE_ERROR_RECORD:
        return Nature.HARDWARE_ERROR
    authenticated = (
        Attributes.AUTHENTICATED_WRITE_ACCESS | Attributes.TIME_BASED_AUTHENTICATED_WRITE_ACCESS
    )
    return Nature.AUTHENTICATED if attributes & authenticated else None


def read_all(
    probe: Probe, wanted: Callable[[VariableName], bool] = lambda name: True
) -> Mapping[VariableName, Stored]:
    """Every variable that the directory shows and ``wanted`` takes, with flags and content. Raises
    OSError when the directory cannot be listed, the link's errors."""
    (listing,) = probe.steps([do.ListDir(EFIVARS_PATH)], timeout=_READ_SECONDS)
    succeeded(listing)
    texts = [raw.decode("utf-8", "surrogateescape") for raw in listing.names]
    files = [(name, text) for text in texts if (name := name_of_file(text)) and wanted(name)]
    outcomes = probe.steps(
        [step for _, text in files for step in _reading(f"{EFIVARS_PATH}/{text}")],
        timeout=_READ_SECONDS,
    )
    batches = zip(*[iter(outcomes)] * _STEPS_EACH, strict=True)
    return {
        name: _stored(name, *batch)
        for (name, _), batch in sorted(zip(files, batches, strict=True), key=lambda pair: pair[0])
    }


def read_one(probe: Probe, name: VariableName) -> Stored:
    """One variable as :func:`read_all` reads it; one that is not there has the problem ENOENT.
    Raises the link's errors."""
    opened, *rest = probe.steps(_reading(f"{EFIVARS_PATH}/{name}"))
    return _stored(name, opened, *rest)


def _reading(path: str) -> list[Step]:
    return [do.Open("v", path), do.GetFlags("v"), do.Read("v", _READ_BYTES), do.Close("v")]


def _stored(
    name: VariableName, opened: Outcome, flags: Outcome, read: Outcome, *_: Outcome
) -> Stored:
    immutable = bool((flags.value or 0) & IMMUTABLE) if flags.ok else None
    if not read.ok:
        return Stored(name, None, immutable, opened.errno or read.errno or "unreadable")
    return Stored(name, read.data, immutable)
