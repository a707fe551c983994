"""Replays recorded rows (tests/truth) against a file system of the model, in process.

Rows are single system calls in order; some recorded rows are missing.  What the recorder did
between rows without listing it is done here by rule, never by row:

- it cleared the immutable flag before a step whose outcome is not EPERM;
- a ``special`` row says whether the variable existed and what it held;
- a file that a row finds refused or already there came from a row that is missing: it is made with
  the content or the size that this or another row of the group states;
- a row that writes data "again" finds that data in the variable.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from emulation.linux.efivarfs import FS_IMMUTABLE_FL
from harness.formats.efi import GLOBAL_VARIABLE_GUID
from tests.emulation.vfs import Vfs

TRUTH: Final = Path(__file__).parent.parent / "truth"
Row = dict[str, Any]

_OPEN: Final = re.compile(r"fd=open\((?P<name>'.*'|\".*\"),(?P<flags>[A-Z_|]+)\)", re.DOTALL)
_LONG_NAME: Final = re.compile(r"name of (\d+) characters")
_STEP: Final = re.compile(
    r"fd=open\(.*|(read|lseek|pread)\(fd,.*\)"
    r"|write\(fd,([0-9a-f]*|attrs=0x7\+\d+ bytes|0x\w+\+[\w-]+\.auth \(\d+ bytes\))\)"
    r"|fstat\(fd\)\.st_size|close\(fd\)|unlink( again)?|stat|chattr -i|read back"
    r"|truncate\(\d+\)|GETFLAGS|ioctl\(FS_IOC_GETFLAGS\)",
    re.DOTALL,
)
_DELETED_GLOBAL: Final = re.compile(r"delete ([A-Z]\w+)")
_VENDOR_GUID: Final = "12345678-1234-1234-1234-123456789abc"


def rows(group: str) -> list[Row]:
    """The rows of a group that state an outcome which can be replayed."""
    text = (TRUTH / f"{group}.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [row for row in found if row.get("replay", True)]


@dataclass(frozen=True)
class Difference:
    """A step, or a fact around it, that came out otherwise than recorded."""

    row: str
    what: str
    expected: object
    seen: object

    def __str__(self) -> str:
        return f"{self.row} {self.what}: expected {self.expected!r}, saw {self.seen!r}"


@dataclass
class Replay:
    """Replays the rows of a group one after the other on one board."""

    vfs: Vfs
    rpmb_writes: Callable[[], int]
    agreed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    _name: str = ""

    def run(self, group: list[Row]) -> None:
        """Replay the rows; the result is in the three lists."""
        for row in group:
            if not _is_system_calls(row):
                self.skipped.append(row["id"])
                continue
            self._name = _named_file(row) or self._name
            if _finds_a_file(row) and not self.vfs.exists(self._name):
                self.vfs.write_file(self._name, _stated_content(self._name, group))
            steps = _Steps(self.vfs, row, self._name)
            steps.prepare()
            before = self.rpmb_writes()
            differences = list(steps.run())
            written = self.rpmb_writes() - before
            # How much a write costs depends on where it falls in the store; nothing costs nothing.
            if row.get("rpmb_writes") == 0 and written:
                differences.append(Difference(row["id"], "rpmb_writes", 0, written))
            self.differences += differences
            if not differences:
                self.agreed.append(row["id"])


def _is_system_calls(row: Row) -> bool:
    return all(isinstance(step, str) and _STEP.fullmatch(step) for step in row["op"])


def _finds_a_file(row: Row) -> bool:
    outcome = row["outcome"]
    first = outcome[0] if isinstance(outcome, list) else outcome
    return first in ("-EEXIST", "-EPERM")


def _stated_content(name: str, group: list[Row]) -> bytes:
    """What the group says about a file: its bytes, or any bytes of its size."""
    size, about = 4, ""
    for row in group:
        about = _named_file(row) or about
        if about != name:
            continue
        if "-EPERM" in row["outcome"] and "after" in row:
            return bytes.fromhex(row["after"])
        if "stat" in row["op"]:
            size = row["outcome"][row["op"].index("stat")]
    return b"\7\0\0\0".ljust(size, b"s")


def _named_file(row: Row) -> str | None:
    """The file a row is about; None when it is that of the row before."""
    first, desc = row["op"][0], row["desc"]
    long_name = _LONG_NAME.match(desc)
    if long_name:  # the recorder cut the step itself short
        return "n" * int(long_name[1]) + f"-{_VENDOR_GUID}"
    opened = _OPEN.fullmatch(first)
    if opened:
        return str(ast.literal_eval(opened["name"]))
    deleted = _DELETED_GLOBAL.fullmatch(desc)
    if deleted:
        return f"{deleted[1]}-{GLOBAL_VARIABLE_GUID}"
    return f"Unnamed-{_VENDOR_GUID}" if "after" in row else None


class _Steps:
    """One row: its steps, the descriptor they share, and the file they are about."""

    def __init__(self, vfs: Vfs, row: Row, name: str) -> None:
        self.vfs = vfs
        self.row = row
        self.name = name
        self.fd = -1

    def run(self) -> Iterator[Difference]:
        outcome = self.row["outcome"]
        outcomes = outcome if isinstance(outcome, list) else [outcome]
        for step, expected in zip(self.row["op"], outcomes, strict=True):
            seen = self._step(step, expected)
            if not _agrees(step, expected, seen):
                yield Difference(self.row["id"], step[:60], expected, seen)
        if self.fd >= 0:
            self.vfs.close(self.fd)
        yield from self._around()

    def prepare(self) -> None:
        """Bring the file to the state that the recorder had it in."""
        if "before" in self.row:
            self._bring(self.row["before"])
        outcome = self.row["outcome"]
        if isinstance(outcome, list) and outcome[0] == "ok" and self._opens_for_writing():
            self._clear_immutable()

        if "data again" in self.row["desc"]:
            self.vfs.write_file(self.name, _content(self.row["op"][1][len("write(fd,") : -1]))

    def _opens_for_writing(self) -> bool:
        return "O_WRONLY" in self.row["op"][0] or "O_RDWR" in self.row["op"][0]

    def _bring(self, content: str | None) -> None:
        """Make the variable absent, or present with its recorded content if it can be set."""
        if not content:
            if self.vfs.exists(self.name):
                self._clear_immutable()
                _attempt(lambda: self.vfs.unlink(self.name))
            return
        wanted = bytes.fromhex(content)
        if self.vfs.exists(self.name) and self.vfs.read_file(self.name)[:40] != wanted:
            self._clear_immutable()
            _attempt(lambda: self.vfs.write_file(self.name, wanted))

    def _clear_immutable(self) -> None:
        if self.vfs.exists(self.name):
            self.vfs.setflags(self.name, 0)

    def _step(self, step: str, expected: object) -> object:
        if step.startswith("unlink") and expected != "-EPERM":
            self._clear_immutable()
        try:
            return self._call(step)
        except OSError as error:
            return f"-{errno.errorcode[error.errno or 0]}"

    def _call(self, step: str) -> object:
        if step.startswith("fd=open"):
            self.fd = self.vfs.open(self.name, _flags(step))
            return "ok"
        if step == "close(fd)":
            fd, self.fd = self.fd, -1
            self.vfs.close(fd)
            return 0
        if step == "fstat(fd).st_size":
            return self.vfs.fstat(self.fd).size
        call, _parenthesis, argument = step.removesuffix(")").partition("(")
        if call in ("write", "read", "lseek", "pread"):
            return self._on_descriptor(call, argument.removeprefix("fd,"))
        return self._on_name(call, argument)

    def _on_descriptor(self, call: str, argument: str) -> object:
        if call == "write":
            return self.vfs.write(self.fd, _content(argument))
        if call == "lseek":
            return self.vfs.lseek(self.fd)
        if call == "read":
            data = self.vfs.read(self.fd, int(argument))
        else:
            size, offset = argument.split(",")
            data = self.vfs.pread(self.fd, int(size), int(offset))
        return f"{len(data)} bytes {data.hex()}".strip()

    def _on_name(self, call: str, argument: str) -> object:
        if call.startswith("unlink"):
            self.vfs.unlink(self.name)
            return 0
        if call == "stat":
            return self.vfs.stat(self.name).size
        if call == "chattr -i":
            self.vfs.setflags(self.name, self.vfs.getflags(self.name) & ~FS_IMMUTABLE_FL)
            return 0
        if call == "truncate":
            self.vfs.truncate(self.name, int(argument))
            return 0
        if call == "read back":
            return self.vfs.read_file(self.name).hex()
        return self.vfs.getflags(self.name)

    def _around(self) -> Iterator[Difference]:
        """The facts recorded beside the steps, looked at after the last one."""
        gone = "unlink" in self.row["op"]
        for key, look in (
            ("st_size", lambda: self.vfs.stat(self.name).size),
            ("after", lambda: self.vfs.read_file(self.name)),
            ("readback", lambda: self.vfs.read_file(self.name)),
            ("exists", lambda: self.vfs.exists(self.name)),
            ("flags", lambda: self.vfs.getflags(self.name)),
        ):
            if key not in self.row or self.row[key] is None or gone:
                continue
            try:
                seen: object = look()
            except OSError as error:
                seen = f"-{errno.errorcode[error.errno or 0]}"
            if not _same(self.row[key], seen):
                yield Difference(self.row["id"], key, self.row[key], seen)


def _flags(step: str) -> int:
    match = _OPEN.fullmatch(step)
    words = match["flags"].split("|") if match else ["O_WRONLY", "O_CREAT"]
    flags = 0
    for word in words:
        flags |= getattr(os, word)
    return flags


def _content(argument: str) -> bytes:
    signed = re.fullmatch(r"(0x\w+)\+([\w-]+\.auth) \(\d+ bytes\)", argument)
    if signed:
        return int(signed[1], 16).to_bytes(4, "little") + (TRUTH / "auth" / signed[2]).read_bytes()
    size = re.fullmatch(r"attrs=0x7\+(\d+) bytes", argument)
    return b"\7\0\0\0" + b"s" * int(size[1]) if size else bytes.fromhex(argument)


def _agrees(step: str, expected: object, seen: object) -> bool:
    if step.startswith("unlink") and expected is None:
        return seen == 0
    return expected == seen


def _same(expected: object, seen: object) -> bool:
    """Contents are recorded as hex, as a bytes literal, or (special rows) as their first 40."""
    if not isinstance(seen, bytes) or not isinstance(expected, str):
        return expected == seen
    long_content = re.fullmatch(r"([0-9a-f]{8})\+(\d+)", expected)
    if long_content:
        return seen[:4].hex() == long_content[1] and len(seen) == 4 + int(long_content[2])
    literal = re.fullmatch(r"b(['\"]).*\1", expected, re.DOTALL)
    wanted = ast.literal_eval(expected) if literal else bytes.fromhex(expected)
    return bytes(wanted) == seen or (len(wanted) == 40 and seen.startswith(wanted))


def _attempt(action: Any) -> None:
    try:
        action()
    except OSError:
        return
