"""The board's mount table: what /proc/PID/mountinfo says, and what a board's would say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class MountEntry:
    """A line of mountinfo (proc(5)); ``options`` are the mount's, ``super_options`` the file
    system's; ``tags`` are the optional fields; ``path`` is ``target`` without escapes."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: str
    tags: str
    type: str
    source: str
    super_options: str
    path: str

    @classmethod
    def parse(cls, line: str) -> MountEntry:
        """One line."""
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        kind, source, super_options = after.split(" ", 2)
        return cls(
            int(fields[0]), int(fields[1]), fields[2], fields[3], fields[4], fields[5],
            " ".join(fields[6:]), kind, source, super_options, _unescaped(fields[4]),
        )  # fmt: skip

    @property
    def read_only(self) -> bool:
        """Whether writes give EROFS: the mount or its file system is read-only."""
        return self.options.startswith("ro") or self.super_options.startswith("ro")

    def mountinfo(self) -> str:
        """The line again."""
        tags = f"{self.tags} " if self.tags else ""
        return (
            f"{self.id} {self.parent} {self.device} {self.root} {self.target} {self.options} "
            f"{tags}- {self.type} {self.source} {self.super_options}\n"
        )

    def mounts(self) -> str:
        """The line of /proc/PID/mounts (show_vfsmnt)."""
        words = ["ro" if self.read_only else "rw"]
        words += self.options.split(",")[1:] + self.super_options.split(",")[1:]
        return f"{self.source} {self.target} {self.type} {','.join(words)} 0 0\n"

    def mountstats(self) -> str:
        """The line of /proc/PID/mountstats (show_vfsstat)."""
        return f"device {self.source} mounted on {self.target} with fstype {self.type}\n"


def _unescaped(target: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), target) if "\\" in target else target


def whole_lines(text: bytes) -> str:
    """Of a table that was read up to some limit: all but a line that is cut off."""
    return os.fsdecode(text[: text.rfind(b"\n") + 1])


@lru_cache(maxsize=4)
def parse_mountinfo(text: str) -> tuple[MountEntry, ...]:
    """All lines."""
    return tuple(MountEntry.parse(line) for line in text.splitlines())


def containing(entries: Sequence[MountEntry], path: str) -> MountEntry | None:
    """The mount that ``path`` (absolute, normalised, without symlinks) lies on."""
    best: MountEntry | None = None
    for entry in entries:
        target = entry.path
        inside = path == target or path.startswith(target.rstrip("/") + "/")
        # Of several mounts on one point the last is on top.
        if inside and (best is None or len(target) >= len(best.path)):
            best = entry
    return best


class BoardView:
    """Shows FUSE mounts as what they stand for, and hides those that only the transport needs.

    ``types``: device number of a FUSE mount -> file system type.  ``is_read_only(device)``: the
    model's own superblock flag; the host's follows it a moment later. ``shown_options(device)``:
    what the file system says of itself after that flag, with its leading comma (show_options).
    """

    def __init__(
        self,
        types: Mapping[str, str],
        is_read_only: Callable[[str], bool] = lambda _: False,
        shown_options: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.types = dict(types)
        self._is_read_only = is_read_only
        self._shown_options = shown_options
        self.sources: dict[int, str] = {}
        self.hidden: set[int] = set()

    def apply(self, entries: Sequence[MountEntry]) -> list[MountEntry]:
        """The board's table."""
        return [self._shown(entry) for entry in entries if entry.id not in self.hidden]

    def _shown(self, entry: MountEntry) -> MountEntry:
        kind = self.types.get(entry.device)
        if kind is None:
            return entry
        source = self.sources.get(entry.id, kind)
        flag = "ro" if self._is_read_only(entry.device) else entry.super_options.split(",")[0]
        options = flag + self._shown_options(entry.device)
        return replace(entry, type=kind, source=source, super_options=options)
