"""Variables as files of efivarfs: exact system calls, the target's errno, one write(2) a
SetVariable."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from uuid import UUID

from harness.capabilities import EFIVARS_PATH, VENDOR_GUID
from harness.consents import Consent
from harness.errors import TargetError
from harness.formats.efi import Attributes
from harness.instruments.descriptor import Descriptor, opened
from harness.instruments.outcomes import succeeded
from harness.probe import steps as do
from harness.probe.probe import Probe
from harness.probe.steps import Outcome, Step
from harness.shell import Shell

NV_BS_RT = Attributes.NON_VOLATILE | Attributes.BOOTSERVICE_ACCESS | Attributes.RUNTIME_ACCESS
"""Attributes 7: the ordinary run-time variable."""

IMMUTABLE = 0x10
"""FS_IMMUTABLE_FL (K6 include/uapi/linux/fs.h)."""

_FILE_NAME = re.compile(
    r"(.+)-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})", re.ASCII | re.DOTALL
)
# Larger than any variable: efivarfs answers each read(2) with a whole GetVariable.
_READ_BYTES = 65536
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True, order=True)
class VariableName:
    """Name and vendor GUID; ``str()`` is the file name."""

    name: str
    guid: UUID

    def __str__(self) -> str:
        return f"{self.name}-{self.guid}"

    @classmethod
    def of_file(cls, file_name: bytes) -> VariableName:
        """Parse a file name of efivarfs. Raises ValueError for one that is none."""
        text = file_name.decode("utf-8", "surrogateescape")
        found = name_of_file(text)
        if found is None:
            raise ValueError(f"{text!r} does not end in -GUID")
        return found


def is_ours(name: VariableName) -> bool:
    """Whether it has the suite's own vendor GUID."""
    return name.guid == VENDOR_GUID


def is_named(name: VariableName, patterns: Iterable[str]) -> bool:
    """Whether one of the names of a ``foreign`` marker means it: a name, or a pattern such as
    ``Boot*``."""
    return any(
        name.name == pattern or fnmatch.fnmatchcase(name.name, pattern) for pattern in patterns
    )


def name_of_file(file_name: str) -> VariableName | None:
    """The variable of a file name; None where efivarfs could not have one of that name (K6
    fs/efivarfs/inode.c:efivarfs_valid_name takes the GUID in either case)."""
    found = _FILE_NAME.fullmatch(file_name[:-36] + file_name[-36:].lower())
    return VariableName(found[1], UUID(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable as read: attributes and data without the four attribute bytes."""

    name: VariableName
    attributes: Attributes
    data: bytes


@dataclass(frozen=True, slots=True)
class MountState:
    """One line of /proc/self/mountinfo: the mount's own flag and the superblock's are separate,
    and only the latter follows the driver (stack 6.1)."""

    mount_read_only: bool
    superblock_read_only: bool
    options: tuple[str, ...]

    @property
    def writable(self) -> bool:
        return not (self.mount_read_only or self.superblock_read_only)


@dataclass(frozen=True, slots=True)
class Space:
    """``statfs`` in bytes; all zero where the firmware does not advertise QueryVariableInfo."""

    total: int
    free: int
    available: int


class Efivars:
    """The variables of one board.

    Failed system calls raise :class:`OSError` with the errno that the target saw; what the
    probe's back-end cannot do raises :class:`harness.errors.MissingCapability` (a skip). Writes
    need the consent ``write_rpmb``. ``guid`` is :data:`VENDOR_GUID` unless given.
    """

    def __init__(
        self,
        shell: Shell,
        probe: Probe,
        *,
        consent: Callable[[Consent], None],
        path: str = EFIVARS_PATH,
        kept: Collection[VariableName] = (),
    ) -> None:
        self._shell = shell
        self._probe = probe
        self._consent = consent
        self._kept = kept
        self.path = path

    def file(self, name: str, guid: UUID = VENDOR_GUID) -> str:
        """The path of a variable's file."""
        return f"{self.path}/{VariableName(name, guid)}"

    # --- reading ------------------------------------------------------------------------------

    def names(self) -> list[VariableName]:
        """Every variable that the directory shows, sorted."""
        (outcome,) = self._take([do.ListDir(self.path)])
        return sorted(VariableName.of_file(name) for name in outcome.names)

    def exists(self, name: str, guid: UUID = VENDOR_GUID) -> bool:
        """Whether the file is there."""
        (outcome,) = self._probe.steps([do.Stat(self.file(name, guid))])
        if outcome.errno == "ENOENT":
            return False
        succeeded(outcome)
        return True

    def read(self, name: str, guid: UUID = VENDOR_GUID) -> Variable:
        """Attributes and data, by one read(2)."""
        raw = self.read_raw(name, guid)
        if len(raw) < 4:
            raise OSError(errno.EIO, f"{len(raw)} bytes: the variable is not committed", name)
        attributes = Attributes(int.from_bytes(raw[:4], "little"))
        return Variable(VariableName(name, guid), attributes, raw[4:])

    def read_raw(self, name: str, guid: UUID = VENDOR_GUID) -> bytes:
        """The file's content by one read(2): four attribute bytes and the data; empty for a file
        that was created and never written."""
        _, content, _ = self._take(
            [do.Open("v", self.file(name, guid)), do.Read("v", _READ_BYTES), do.Close("v")]
        )
        return content.data

    def size(self, name: str, guid: UUID = VENDOR_GUID) -> int:
        """The size that stat(2) shows: data plus four."""
        (outcome,) = self._take([do.Stat(self.file(name, guid))])
        return outcome.value or 0

    # --- writing ------------------------------------------------------------------------------

    def write(
        self,
        name: str,
        data: bytes,
        attributes: int = NV_BS_RT,
        guid: UUID = VENDOR_GUID,
        *,
        flags: str = "O_WRONLY|O_CREAT",
        timeout: float = 30.0,
    ) -> None:
        """One SetVariable: open with ``flags``, one write(2), close. An existing variable is
        immutable, so this raises EPERM for one; :meth:`overwrite` clears the flag first."""
        self._consent(Consent.WRITE_RPMB)
        content = attributes.to_bytes(4, "little") + data
        outcomes = self._take(
            [do.Open("v", self.file(name, guid), flags), do.Write("v", content), do.Close("v")],
            timeout=timeout,
        )
        if outcomes[1].value != len(content):
            raise TargetError(
                f"write(2) of {len(content)} bytes to {name} returned {outcomes[1].value}",
                remedy="efivarfs must take a variable whole or not at all",
            )

    def overwrite(
        self,
        name: str,
        data: bytes,
        attributes: int = NV_BS_RT,
        guid: UUID = VENDOR_GUID,
        *,
        timeout: float = 30.0,
    ) -> None:
        """Clear the immutable flag where it is set, then :meth:`write`; creates what is not
        there."""
        with contextlib.suppress(FileNotFoundError):
            self.set_immutable(name, False, guid)
        self.write(name, data, attributes, guid, timeout=timeout)

    def append(
        self,
        name: str,
        data: bytes,
        attributes: int = NV_BS_RT,
        guid: UUID = VENDOR_GUID,
        *,
        timeout: float = 30.0,
    ) -> None:
        """SetVariable with the APPEND_WRITE attribute."""
        self.overwrite(name, data, attributes | Attributes.APPEND_WRITE, guid, timeout=timeout)

    def delete(self, name: str, guid: UUID = VENDOR_GUID) -> None:
        """Clear the immutable flag where it is set, then unlink(2)."""
        self.set_immutable(name, False, guid)
        self.unlink(name, guid)

    def unlink(self, name: str, guid: UUID = VENDOR_GUID) -> None:
        """unlink(2) as it is: EPERM for an immutable file."""
        self._consent(Consent.WRITE_RPMB)
        self._take([do.Unlink(self.file(name, guid))])

    def is_immutable(self, name: str, guid: UUID = VENDOR_GUID) -> bool:
        """FS_IOC_GETFLAGS & 0x10."""
        return bool(self._flags(name, guid) & IMMUTABLE)

    def set_immutable(self, name: str, immutable: bool, guid: UUID = VENDOR_GUID) -> None:
        """FS_IOC_SETFLAGS where the flag differs."""
        flags = self._flags(name, guid)
        if bool(flags & IMMUTABLE) == immutable:
            return
        wanted = flags ^ IMMUTABLE
        self._take([do.Open("v", self.file(name, guid)), do.SetFlags("v", wanted), do.Close("v")])

    # --- descriptors --------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(
        self,
        name: str,
        flags: str = "O_RDONLY",
        guid: UUID = VENDOR_GUID,
        *,
        mode: int = 0o644,
    ) -> Iterator[Descriptor]:
        """The variable's file, open for as long as the block lasts: for what one whole write or
        read does not show. Raises OSError when it cannot be opened."""
        if flags != "O_RDONLY":
            self._consent(Consent.WRITE_RPMB)
        with opened(self._probe, self.file(name, guid), flags, mode) as descriptor:
            yield descriptor

    # --- the file system ----------------------------------------------------------------------

    def mount_state(self) -> MountState | None:
        """The topmost mount of efivarfs at its path; None when it is not mounted."""
        lines = self._shell.run("cat /proc/self/mountinfo").check().text.splitlines()
        states = [mount_state(line) for line in lines if line.split()[4] == self.path]
        return states[-1] if states else None

    def wait_until_writable(self, *, timeout: float = 10.0) -> None:
        """Wait until mount and superblock are read-write. Raises :class:`TargetError` at the
        deadline."""
        timeout = max(timeout, self._shell.least_timeout)
        deadline = time.monotonic() + timeout
        while True:
            state = self.mount_state()
            if state is not None and state.writable:
                return
            if time.monotonic() >= deadline:
                raise TargetError(
                    f"efivarfs is not writable after {timeout:g} s: {state or 'not mounted'}",
                    remedy="is the driver bound (`ls /sys/bus/tee/drivers/tee-stmm-efi`), and "
                    "was the mount made ro by hand?",
                )
            Event().wait(_POLL_SECONDS)

    def remount(self, mode: str) -> None:
        """``mount -o remount,MODE`` with mode ``ro`` or ``rw``. Raises CommandFailed with
        mount's own message."""
        self._shell.run_isolated(f"mount -o remount,{mode} {shlex.quote(self.path)}").check()

    def unmount(self) -> None:
        """``umount``. Raises CommandFailed."""
        self._shell.run_isolated(f"umount {shlex.quote(self.path)}").check()

    def mount(self, options: str = "") -> None:
        """``mount -t efivarfs``, with options such as ``ro`` or ``uid=1000``. Raises
        CommandFailed."""
        chosen = f"-o {shlex.quote(options)} " if options else ""
        self._shell.run_isolated(
            f"mount -t efivarfs {chosen}efivarfs {shlex.quote(self.path)}"
        ).check()

    def space(self) -> Space:
        """statfs(2) in bytes."""
        (outcome,) = self._take([do.StatFs(self.path)])
        block = outcome.field("bsize")
        return Space(
            total=outcome.field("blocks") * block,
            free=outcome.field("bfree") * block,
            available=outcome.field("bavail") * block,
        )

    # --- own variables ------------------------------------------------------------------------

    def own(self) -> list[VariableName]:
        """Variables with :data:`VENDOR_GUID`."""
        return [name for name in self.names() if name.guid == VENDOR_GUID]

    def delete_own(self) -> list[VariableName]:
        """Delete every variable with :data:`VENDOR_GUID` but those that are ``kept``; returns
        those that resisted."""
        return self.delete_these([name for name in self.own() if name not in self._kept])

    def delete_these(self, names: Iterable[VariableName]) -> list[VariableName]:
        """Delete variables, immutable or not, in one round trip; returns the names of
        :data:`VENDOR_GUID` that are then left and not ``kept``."""
        self._consent(Consent.WRITE_RPMB)
        steps: list[Step] = []
        for name in names:
            path = f"{self.path}/{name}"
            steps += [do.Open("v", path), do.SetFlags("v", 0), do.Close("v"), do.Unlink(path)]
        *_, listing = self._probe.steps([*steps, do.ListDir(self.path)], timeout=30.0)
        succeeded(listing)
        left = sorted(VariableName.of_file(name) for name in listing.names)
        return [name for name in left if name.guid == VENDOR_GUID and name not in self._kept]

    # --- helpers ------------------------------------------------------------------------------

    def _flags(self, name: str, guid: UUID) -> int:
        _, flags, _ = self._take(
            [do.Open("v", self.file(name, guid)), do.GetFlags("v"), do.Close("v")]
        )
        return flags.value or 0

    def _take(self, steps: Sequence[Step], *, timeout: float = 15.0) -> list[Outcome]:
        """Take the steps and raise for the first that failed (a later one may have failed
        because of it)."""
        outcomes = self._probe.steps(steps, timeout=timeout)
        for outcome in outcomes:
            succeeded(outcome)
        return outcomes


def mount_state(line: str) -> MountState:
    """Parse one line of mountinfo (proc(5)): options are field 6, the superblock's come last."""
    fields = line.split()
    options = fields[5].split(",")
    superblock = fields[-1].split(",")
    return MountState("ro" in options, "ro" in superblock, tuple(options))


def content_of(efivars: Efivars, name: str) -> bytes | None:
    """Attributes and data of one of our own variables; None for one that cannot be read, empty for
    one without a value."""
    try:
        return efivars.read_raw(name)
    except OSError:
        return None
